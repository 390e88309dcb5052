"""The style of all pictures: they read 400 pixels wide, and on light and dark pages alike.

The ground is transparent, and every colour stands out from white and from black.
"""

import io
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from kit.device.device import LABELS
from kit.language import translated
from kit.records import DeviceType, ModelInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_INCHES, DPI = 5.0, 160  # 800 pixels, shown at 400: 9 points are 10 pixels there
INK, GREY = "#767676", "#8a8a8a"  # of texts; of what does not count
BLUE, ORANGE, GREEN, RED = "#1f83c0", "#d55e00", "#009e73", "#d83a22"
LONGEST_NAME, LONGEST_LINE = 56, 70  # characters of a title
STYLE: Any = {  # its type in matplotlib names every key that there is
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    **dict.fromkeys(("axes.titlesize", "axes.labelsize", "legend.fontsize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 8.5),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "font.size": 9,
    "figure.titlesize": 9.5,
    "savefig.transparent": True,
}
# The first that the host has draws Chinese; on a host without any the texts stay English.
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "Source Han Sans CN",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC",
    "Droid Sans Fallback",
)  # fmt: skip


def subject(model: ModelInfo, device: DeviceType, name: str) -> str:
    """Return what a picture is of: the device, marked where it is emulated, and the weights."""
    chip = name.removesuffix(" (emulated)")
    mark = "" if chip == name else ", EMULATED"
    weights = PurePath(model.weights or "").name or "random weights"
    if model.source == "random":
        weights = "random weights"
    found = f"{LABELS[device]} {shortened(chip)}{mark}"
    long = len(found) + len(weights) > LONGEST_LINE
    return found + (",\n" if long else ", ") + shortened(weights)


def shortened(name: str) -> str:
    """Return a name of any length, as one line that a title has room for."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_NAME else f"{line[:LONGEST_NAME]}…"


def figure_of(height: float, title: str) -> "Figure":
    """Return an empty figure, WIDTH_INCHES wide, `height` inches high, that needs no display."""
    import matplotlib as mpl  # only pictures need it

    mpl.use("Agg")
    mpl.rcParams.update(STYLE)
    from matplotlib.figure import Figure

    figure = Figure((WIDTH_INCHES, height), dpi=DPI, layout="constrained")
    figure.suptitle(title.replace("$", r"\$"))  # two of which would begin a formula
    return figure


def png(figure: "Figure", language: str) -> bytes:
    """Return the figure as a PNG file, in Chinese where that is asked for and a font has it."""
    from matplotlib.text import Text

    font = chinese_font() if language == "zh" else None
    for text in figure.findobj(lambda artist: isinstance(artist, Text)):
        assert isinstance(text, Text)
        if font is not None:
            text.set_text(translated(text.get_text(), language))
            text.set_fontfamily(["DejaVu Sans", font])
    for text in figure.texts:  # the title: a device may have a long name
        share = text.get_window_extent().width / (0.98 * figure.bbox.width)
        text.set_fontsize(float(text.get_fontsize()) / max(1.0, share))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def chinese_font() -> str | None:
    """Return a font of this host that has Chinese characters, None where there is none."""
    from matplotlib.font_manager import fontManager

    names = {font.name for font in fontManager.ttflist}
    return next((name for name in CHINESE_FONTS if name in names), None)
