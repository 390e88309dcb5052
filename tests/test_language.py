"""The language of report, card and pictures."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from kit import language, pictures
from kit.benchmark.report import draw_latency, draw_throughput
from kit.language import default_language, translated
from kit.options import shared_parser
from kit.pictures import png
from tests.report_records import benchmark


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "zh"),
        ({"LANG": ""}, "zh"),
        ({"LANG": "C"}, "zh"),
        ({"LANG": "C.UTF-8"}, "zh"),
        ({"LC_ALL": "POSIX"}, "zh"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "fr_FR", "LC_MESSAGES": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LANG": "en_GB"}, "en"),
        ({"LANG": "Chinese"}, "en"),
    ],
)
def test_the_locale_chooses_where_the_option_does_not(
    environment: Mapping[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_language(environment) == expected
    monkeypatch.delenv("LC_ALL")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert shared_parser("inference", "").parse_args([]).lang == expected
    assert shared_parser("inference", "").parse_args(["--lang", "en"]).lang == "en"


def test_phrases_are_translated_as_whole_words_only() -> None:
    assert translated("fp32-sdpa-graph", "zh") == "fp32-sdpa-graph"
    assert translated("graph", "zh") == "图模式"
    assert translated("images/s", "zh") == "images/s"
    assert translated("relative error against fp64", "zh") == "相对 fp64 的误差"
    assert translated("data/block/image-7.jpg", "zh") == "data/block/image-7.jpg"
    assert translated("graph", "en") == "graph"


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        (
            "block 3, GELU (layer.3.mlp): relative error 0.0012 (worst token 0.004), 3.1 times the "
            "limit; the declared arithmetic explains 0.0003",
            "第 3 层，GELU (layer.3.mlp)：相对误差 0.0012（最差 token 0.004），为阈值的 3.1 倍；"
            "所声明的运算精度可解释 0.0003",
        ),
        ("3 of 8 images are wrong: place 2", "8 张图片中有 3 张结果有误：位置 2"),
        ("shape (1, 2) where (1, 3) is right", "形状为 (1, 2)，应为 (1, 3)"),
        ("Object missing required field `a` - at `$.b`", "缺少字段 `a`（位置 `$.b`）"),
        ("forward 12: EZ9999: inner error", "第 12 次前向：EZ9999: inner error"),
        (
            "image 7.jpg: this processor prepares it with other last bits",
            "image 7.jpg：本机处理器的预处理结果末位不同",
        ),
        (
            "Left out: image my block/image 7.jpg is damaged (EOF): give a whole file",
            "已跳过：图片 my block/image 7.jpg 已损坏 (EOF)：请提供完整的文件",
        ),
        (
            "Left out: image 7.jpg is not an image that Pillow can read: give another",
            "已跳过：image 7.jpg 不是 Pillow 能读取的图片，请换一张",
        ),
        (
            "a/image 7.safetensors holds 2 of 3 judged images",
            "a/image 7.safetensors 中保存了 3 张已判定图片中的 2 张",
        ),
    ],
)
def test_what_records_say_reads_in_chinese_and_names_stay_as_they_are(
    english: str, chinese: str
) -> None:
    assert translated(english, "zh") == chinese


# ---- Every message that can stand in a record ----------------------------------------------------

# Calls whose texts go into records: warnings, errors that skip a mode or an image, phases of them.
TOLD = {"warning", "warn", "KitError", "DeviceError", "OutOfDeviceMemoryError", "CaptureError",
        "SkippedMode", "Switch", "device_errors", "after", "failing", "Status"}  # fmt: skip
HELD = {"reason", "reasons", "warnings", "note", "problem", "subject", "what", "verdict",
        "HOW_TO_DOWNLOAD"}  # fmt: skip # names
# What a function of words returns: any that gives a reason or a list of them, and these.
REASONS = {"str | None", "list[str]", "tuple[str, ...]"}
RETURNED = {"wrong_sentence", "unexplained_sentence", "place_words", "block_words",
            "other_arithmetics", "class_of"}  # fmt: skip
SOURCES = ("device", "model/images.py", "model/preprocessing.py", "model/setup.py", "benchmark",
           "accuracy", "inference", "statistics.py", "outside.py")  # fmt: skip
# Errors that end a script before it has a record, by how they begin or what only they say.
ENDS_THE_RUN = re.compile(
    r"--|LOCAL_RANK|folder|none of the \{\}|image \{\} does not exist|an input of"
    r"|\{\} asks for what|a tensor|\{\} \((no image|a tensor)|\{\} \{\} is of"
    r"|\{\} holds (features|a \{\})|two forwards of|the folder's worst|mode \{\}: |check: |to \{\}$"
)
# Parts that are put together before anyone reads them, as the whole that they are parts of.
COMPOSED = {
    "{} while {}: {}{}": "operator A failed while moving the model: 507010",
    "{} {} off": "HF32 matrix products off",
    "its result": "its result is off by 3.1, which no rounding of fp32 makes (0.2 is explained)",
    ", unexplained error from {}": "PASS, unexplained error from block 3",
    "the {}": "a token, the patch in row 3, column 4",
    "vector {}": "the vector 3",
    "torch_npu does not find {} ({})": "torch_npu does not find CANN (A)",
    "importing {} ends the process ({})": "importing torch_npu 2.9.0 beside torch 2.9.0 for A "
    "ends the process (7)",
    " and ": "Operators that fall back to the CPU are unknown: A_1 and A_2 silence torch_npu's "
    "messages; unset them",
}
WORDS_OF_PROGRAMS = {
    "what():",
    "cuda",
    " to {}",
    "coverage",
    "device error",
    "output",
    "both",
    "fail",
}
# What stays as it is: names of the field and of commands, what stands between quotes and brackets.
SAME_IN_CHINESE = {
    "pip", "install", "triton", "fast", "math", "one",
    "token", "tokens", "sdpa", "eager", "batch", "rank", "bfloat16", "fp32", "fp16", "bf16",
    "hf32", "tf32", "erf", "tanh", "softmax", "patch", "torch", "torch_npu", "transformers",
    "transfer_to_npu", "contrib", "npu", "register", "performance", "partial", "graph", "ms",
    "dtype", "size", "warmup", "budget", "modes", "weights", "download", "modelscope", "image",
    "strict", "config", "json", "data", "pooler_output", "last_hidden_state", "dim", "input",
    "embedding", "residual", "block", "norm",
}  # fmt: skip


def name_of(node: ast.expr) -> str:
    """Return the last name of a call, a list or a variable."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def strings(node: ast.AST) -> Iterator[str]:
    """Yield the texts in an expression, {} for what is filled in, then the texts in that."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
            yield from strings(child)


def messages(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a module that may become a part of a record."""
    for node in ast.walk(tree):
        told: list[ast.expr] = []
        if isinstance(node, ast.Call):
            called, arguments = node.func, [*node.args, *(one.value for one in node.keywords)]
            arguments = arguments[1:2] if name_of(called) == "Status" else arguments  # its reason
            adds = isinstance(called, ast.Attribute) and called.attr == "append"
            if name_of(called.value if adds else called) in (HELD if adds else TOLD):  # type: ignore[attr-defined] # adds says so
                told = arguments
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [one for target in targets for one in getattr(target, "elts", [target])]
            told = [node.value] if HELD & {name_of(one) for one in names} else []
        elif isinstance(node, ast.FunctionDef) and (
            node.name in RETURNED or (node.returns and ast.unparse(node.returns) in REASONS)
        ):
            below = ast.walk(node)
            told = [
                one.value for one in below if isinstance(one, ast.Return | ast.Yield) and one.value
            ]
        for one in told:
            yield from strings(one)


def english_left(text: str) -> list[str]:
    """Return the English words of a Chinese text, but for names that both languages write."""
    plain = re.sub(r"`[^`]*`|--?[\w-]+|\w*\d\w*|\w+[_.]\w+|[A-Z]\w*", " ", text)
    return [word for word in re.findall(r"[a-z]{2,}", plain) if word not in SAME_IN_CHINESE]


def test_every_message_that_can_stand_in_a_record_has_its_chinese() -> None:
    kit = Path(language.__file__).parent
    paths = [
        path
        for source in SOURCES
        for path in (sorted((kit / source).glob("*.py")) or [kit / source])
        if path.name != "report.py"  # what the console shows of a record
    ]
    found = {
        text: path
        for path in (*paths, kit.parent / "npu_patch.py")
        for text in messages(ast.parse(path.read_text("utf-8")))
        if not ENDS_THE_RUN.match(text) and text not in WORDS_OF_PROGRAMS
    }
    assert len(found) > 150
    left = {}
    for text, path in found.items():
        filled = COMPOSED.get(text, text).replace("{}", "7.5")
        if words := english_left(translated(filled, "zh")):
            left[text] = f"{path.name}: {' '.join(words)}"
    assert left == {}


def texts(figure: Figure) -> set[str]:
    """Return the words in a figure that are not numbers."""
    found = figure.findobj(lambda one: isinstance(one, Text))
    return {text.get_text() for text in found if isinstance(text, Text) and text.get_text()}


@pytest.mark.filterwarnings("ignore:Glyph")  # the font that any host has lacks Chinese
def test_a_picture_is_in_the_language_of_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "chinese_font", lambda: "DejaVu Sans")
    figures = [draw_latency(benchmark()), draw_throughput(benchmark())]
    english = set.union(*map(texts, figures))
    for figure in figures:
        assert png(figure, "zh").startswith(b"\x89PNG")
    chinese = set.union(*map(texts, figures))
    assert {"forward", "warm-up", "timed"} <= english
    assert {"前向", "预热", "计时"} <= chinese
    assert not {"warm-up", "timed", "forward"} & chinese
