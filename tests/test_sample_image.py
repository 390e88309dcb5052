"""The shipped sample picture: what it is, that it can be drawn again, and its detail."""

import errno
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

DATA = Path(__file__).resolve().parents[1] / "data"
SAMPLE = DATA / "sample.jpg"
PATCH = 16  # the model's patch size in pixels

Grey = NDArray[np.float64]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DATA))
    return importlib.import_module("draw_sample")


def pixels(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float64)


def luminance(rgb: NDArray[np.float64]) -> Grey:
    return np.asarray(rgb @ np.array([0.299, 0.587, 0.114]), np.float64)


def entropy_bits(grey: Grey) -> float:
    """Return the entropy of the histogram's 256 values, in bits."""
    share = np.bincount(grey.astype(np.int64).ravel(), minlength=256) / grey.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def spectral_slope(grey: Grey) -> float:
    """Return the exponent of frequency by which the power spectrum changes."""
    window = np.outer(np.hanning(grey.shape[0]), np.hanning(grey.shape[1]))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    down, across = (np.fft.fftfreq(length) for length in grey.shape)
    frequency = np.hypot(down[:, None], across[None, :])
    edges = np.geomspace(0.01, 0.5, 17)
    ring = np.digitize(frequency, edges)
    means = [power[ring == index].mean() for index in range(1, len(edges))]
    middle = np.sqrt(edges[1:] * edges[:-1])
    return float(np.polyfit(np.log(middle), np.log(means), 1)[0])


def gradient_kurtosis(grey: Grey) -> float:
    """Return the fourth moment of neighbours' differences over the squared second."""
    step = np.diff(grey, axis=1)
    return float((step**4).mean() / (step**2).mean() ** 2)


def flattest_patch(grey: Grey) -> float:
    """Return the least standard deviation of any of the model's patches, in code values."""
    rows, columns = (length // PATCH for length in grey.shape)
    blocks = grey[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH)
    return float(blocks.std(axis=(1, 3)).min())


# What photographs have, and flat drawings or noise have not:
# - a wide tonal range, about 7 to 7.9 of the 8 bits;
# - power that falls with frequency about as its square: Tolhurst, Tadmor and Chao (1992) measured
#   exponents of -0.8 to -1.5 for the amplitude, thus -1.6 to -3.0 for the power; noise has 0;
# - differences mostly small and seldom large (Huang and Mumford 1999): a kurtosis well over the 3
#   of Gaussian noise, but not the hundreds of flat areas with a few hard edges;
# - grain and texture everywhere: a sensor's noise alone gives a smooth sky about one code value.
STATISTICS: dict[str, tuple[Callable[[Grey], float], float, float]] = {
    "entropy_bits": (entropy_bits, 7.0, 7.9),
    "spectral_slope": (spectral_slope, -3.0, -1.6),
    "gradient_kurtosis": (gradient_kurtosis, 5.0, 40.0),
    "flattest_patch": (flattest_patch, 1.0, 20.0),
}


def flat_drawing() -> Grey:
    grey = np.full((427, 640), 200.0)
    grey[200:] = 90.0
    grey[150:260, 400:560] = 40.0
    return grey


def white_noise() -> Grey:
    return np.clip(np.random.default_rng(0).normal(128, 40, (427, 640)), 0, 255)


def within(name: str, grey: Grey) -> bool:
    statistic, low, high = STATISTICS[name]
    return low <= statistic(grey) <= high


def test_the_shipped_sample_is_a_640_by_427_rgb_jpeg() -> None:
    with Image.open(SAMPLE) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (640, 427), "RGB")
        assert b"Apache-2.0" in image.info["comment"]


def test_the_script_draws_the_shipped_sample_again(tmp_path: Path) -> None:
    output = tmp_path / "again.jpg"
    command = [sys.executable, str(DATA / "draw_sample.py"), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{output}\n", "")
    assert list(tmp_path.iterdir()) == [output]
    difference = np.abs(pixels(output) - pixels(SAMPLE))
    # Rounding may move a leaf or a blade by one pixel; a changed scene moves far more than these.
    assert difference.mean() < 0.5
    assert (difference > 16).mean() < 0.005


@pytest.mark.parametrize("name", STATISTICS)
def test_the_sample_has_a_photographs_statistics(name: str) -> None:
    statistic, low, high = STATISTICS[name]
    assert low <= statistic(luminance(pixels(SAMPLE))) <= high


@pytest.mark.parametrize(
    ("draw", "failing"),
    [
        (flat_drawing, {"entropy_bits", "gradient_kurtosis", "flattest_patch"}),
        (white_noise, {"spectral_slope", "gradient_kurtosis", "flattest_patch"}),
    ],
)
def test_a_flat_drawing_and_noise_have_not(draw: Callable[[], Grey], failing: set[str]) -> None:
    grey = draw()
    assert {name for name in STATISTICS if not within(name, grey)} == failing


def test_the_samples_parts_have_their_own_colours() -> None:
    rgb = pixels(SAMPLE)

    def mean(left: int, top: int, right: int, bottom: int) -> NDArray[np.float64]:
        return np.asarray(rgb[top:bottom, left:right].mean(axis=(0, 1)), np.float64)

    sky, lake = mean(300, 60, 400, 100), mean(200, 220, 400, 300)
    meadow, spruce = mean(150, 330, 500, 420), mean(50, 200, 100, 300)
    cabin = mean(487, 195, 514, 215)
    assert sky.argmax() == lake.argmax() == 2
    assert meadow.argmax() == spruce.argmax() == 1
    assert cabin.argmax() == 0
    brightness = [part.mean() for part in (sky, lake, meadow, spruce)]
    assert min(-np.diff(brightness)) > 20


def test_a_failed_write_leaves_the_old_picture_and_nothing_else(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "sample.jpg"
    output.write_bytes(b"old")

    def half_written(_: Image.Image, stream: BinaryIO, **__: object) -> None:
        stream.write(b"\xff\xd8")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(OSError, match="No space left"):
        script.save(np.zeros((4, 4, 3), np.uint8), output)
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]


def test_a_missing_folder_is_one_line_and_exit_code_2(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "missing" / "sample.jpg"
    assert script.main(["--output", str(output)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"draw_sample.py: cannot write {output}: its folder is missing\n"


def test_ctrl_c_is_exit_code_130_and_writes_nothing(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "draw", interrupted)
    assert script.main(["--output", str(tmp_path / "sample.jpg")]) == 130
    assert list(tmp_path.iterdir()) == []
