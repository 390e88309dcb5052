"""inference.py as a function: what a good run leaves behind."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from transformers import AutoModel

from kit.inference import features
from kit.inference.features import PANEL_HEIGHT, heading
from kit.model import images, model, preprocessing
from kit.model.model import Features
from tests.models import save_tiny_convnext, save_tiny_dinov2
from tests.schemas import hold_to_schema

Run = Callable[..., tuple[int, Path]]


def record_of(folder: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((folder / "inference.json").read_text("utf-8"))
    hold_to_schema(record)
    return record


def test_the_record_is_what_transformers_itself_computes(
    run_inference: Run, tiny_weights: Path, photo: Path
) -> None:
    code, folder = run_inference("--device", "cpu")
    assert code == 0
    results = record_of(folder)["results"]
    plain = AutoModel.from_pretrained(tiny_weights).eval()
    pixels = preprocessing.preprocess(images.decode(photo).pixels, preprocessing.Preprocessing())
    with torch.inference_mode():
        expected = plain(pixels)
    pooled = results["pooler_output"]  # type: ignore[index] # a JSON object
    hidden = results["last_hidden_state"]  # type: ignore[index] # the same
    assert pooled["first_values"] == expected.pooler_output.flatten()[:5].tolist()
    assert hidden["first_values"] == expected.last_hidden_state.flatten()[:5].tolist()
    assert pooled["shape"] == [1, 32]
    assert hidden["shape"] == [1, 201, 32]
    assert pooled["finite"] and hidden["finite"]


def test_the_console_is_the_seed_report_then_the_names_of_the_files(
    run_inference: Run, capsys: pytest.CaptureFixture[str], photo: Path, tiny_weights: Path
) -> None:
    code, folder = run_inference("--device", "cpu")
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    name = lines[lines.index("Inference Results") + 2].removeprefix("Device: CPU (").rstrip(")")
    values = record_of(folder)["results"]["pooler_output"]["first_values"]  # type: ignore[index]
    assert lines[1:3] == [
        f"[INFO] Loading image from: {photo}",
        f"[INFO] Loading model from: {tiny_weights}",
    ]
    assert lines[3:8] == [
        f"[INFO] Model moved to CPU device: {name}",
        "[INFO] Input shape: torch.Size([1, 3, 224, 224])",
        "[INFO] Device: cpu",
        "[INFO] Warm-up inference...",
        "[INFO] Running timed inference...",
    ]
    assert lines[8:11] == ["=" * 60, "Inference Results", "=" * 60]
    assert lines[12].startswith("Latency: ") and lines[12].endswith(" ms")
    assert lines[13:19] == [
        "Pooled output shape: torch.Size([1, 32])",
        "Last hidden state shape: torch.Size([1, 201, 32])",
        "Pooled output dtype: torch.float32",
        "Pooled output device: cpu",
        f"Pooled output first 5 values: [{' '.join(str(np.float32(v)) for v in values)}]",
        "=" * 60,
    ]
    assert lines[19].startswith("[INFO] Wrote ")


def test_the_text_log_is_the_console(
    run_inference: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run_inference()
    assert (folder / "inference.log").read_text("utf-8") == capsys.readouterr().out


def test_auto_on_the_cpu_is_a_warning_and_the_record_repeats_it(run_inference: Run) -> None:
    _, folder = run_inference("--device", "auto")
    record = record_of(folder)
    assert record["device"]["type"] == "cpu"  # type: ignore[index] # a JSON object
    assert any("running on the CPU" in warning for warning in record["warnings"])  # type: ignore[attr-defined] # a JSON list


def test_the_cpu_by_name_is_no_warning(run_inference: Run) -> None:
    _, folder = run_inference("--device", "cpu")
    of_the_patch = "NPU monkey-patch not applied"  # where torch-npu is there without CANN
    warnings = cast("list[str]", record_of(folder)["warnings"])
    assert [warning for warning in warnings if not warning.startswith(of_the_patch)] == []


def test_the_picture_shows_the_image_beside_its_features(run_inference: Run, photo: Path) -> None:
    _, folder = run_inference()
    with Image.open(folder / "inference_features.png") as picture:
        width, height = picture.size
        top = height - PANEL_HEIGHT
        left = picture.convert("RGB").crop((0, top, (width - 8) // 2, height))
        right = np.asarray(picture.convert("RGB").crop(((width + 8) // 2, top, width, height)))
        with Image.open(photo) as original:
            expected = original.resize(left.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(left, int) - np.asarray(expected, int)).max() == 0
    colours = np.unique(right.reshape(-1, 3), axis=0)
    assert 20 < len(colours) <= 14 * 14


@pytest.mark.parametrize(
    ("has_font", "words"), [(True, "NPU x，随机权重"), (False, "NPU x, random")]
)
def test_the_pictures_title_is_chinese_where_the_host_has_a_font_for_it(
    monkeypatch: pytest.MonkeyPatch, has_font: bool, words: str
) -> None:
    own = ImageFont.load_default(12)
    drawn: list[str] = []

    def font(*_: object) -> object:
        if not has_font:
            raise OSError("cannot open resource")
        return own

    def textbbox(_: object, __: object, text: str, **___: object) -> tuple[int, int, int, int]:
        drawn.append(text)
        return (0, 0, 90, 12)

    monkeypatch.setattr(ImageFont, "load_default", lambda size: own)
    monkeypatch.setattr(ImageFont, "truetype", font)
    monkeypatch.setattr(ImageDraw.ImageDraw, "textbbox", textbbox)
    assert heading("NPU x, random weights", 400, "zh").width == 400
    assert drawn[0].startswith(words)


def test_saved_features_are_the_whole_tensors(
    run_inference: Run, tmp_path: Path, tiny_weights: Path
) -> None:
    file = tmp_path / "features.safetensors"
    code, folder = run_inference("--save-features", str(file))
    record = record_of(folder)
    with safe_open(file, "pt") as content:
        pooled = content.get_tensor("pooler_output")
        hidden = content.get_tensor("last_hidden_state")
        metadata = content.metadata()
    assert code == 0
    assert pooled.shape == (1, 32) and hidden.shape == (1, 201, 32)
    assert pooled[0, :5].tolist() == record["results"]["pooler_output"]["first_values"]  # type: ignore[index]
    assert metadata["weights_sha256"] == record["model"]["sha256"]  # type: ignore[index]
    assert metadata["source"] == "local"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("output/inference.json", "give a name in .safetensors"),
        ("output/inference.log", "give a name in .safetensors"),
        ("output/inference_features.png", "give a name in .safetensors"),
        ("output", "give a name in .safetensors"),
        ("folder.safetensors", "Is a directory"),
        ("missing/features.safetensors", "there is no folder"),
        (f"{'n' * 240}.safetensors", "File name too long"),
        ("", "the path is empty"),
    ],
)
def test_features_that_cannot_be_saved_there_are_refused_before_the_run(
    run_inference: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    code, folder = run_inference("--save-features", str(tmp_path / name) if name else "")
    captured = capsys.readouterr()
    assert code == 2
    assert words in captured.err and captured.err.count("\n") == 1
    assert "Loading" not in captured.out
    assert not folder.exists() or list(folder.iterdir()) == []
    assert not (tmp_path / "missing").exists()


def test_features_go_into_an_output_folder_that_is_new(run_inference: Run, tmp_path: Path) -> None:
    file = tmp_path / "output" / "features.safetensors"
    code, _ = run_inference("--save-features", str(file))
    assert code == 0
    assert file.is_file()


def test_the_latency_is_the_median_of_several_forwards_that_agree(run_inference: Run) -> None:
    code, folder = run_inference("--device", "cpu")
    results = cast("dict[str, Any]", record_of(folder)["results"])
    assert code == 0
    assert 1 <= len(results["samples_ms"]) <= features.MOST_FORWARDS
    assert results["latency_ms"] == np.median(results["samples_ms"])
    assert results["images"][0]["latency_ms"] == results["latency_ms"]
    forwards = len(results["samples_ms"])  # the warm-up and all timed ones but the first
    assert results["repeats"] == {"forwards": forwards, "differing": 0, "largest_difference": 0.0}


def off_by(share: float, number: int) -> Callable[..., tuple[Features, float]]:
    """Return a timed_forward whose call of that number, from 1 on, is off by a share."""
    original, count = model.timed_forward, 0

    def timed(*arguments: Any) -> tuple[Features, float]:  # noqa: ANN401 - passed on
        nonlocal count
        count += 1
        found, took_ms = original(*arguments)
        hidden = found.last_hidden_state * (1 + (share if count == number else 0.0))
        return Features(found.pooler_output, hidden), min(took_ms, 1.0)  # so that 20 are taken

    return timed


@pytest.mark.parametrize("number", [1, 7])  # the warm-up, and a later timed forward
def test_forwards_that_differ_a_little_are_a_warning_and_recorded(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(features, "timed_forward", off_by(1e-3, number))
    code, folder = run_inference("--device", "cpu")
    record = record_of(folder)
    repeats = cast("dict[str, Any]", record["results"])["repeats"]
    assert code == 0
    assert repeats["forwards"] == 20
    assert repeats["differing"] == 1
    assert 0 < repeats["largest_difference"] < 0.1
    warnings = cast("list[str]", record["warnings"])
    assert any(w.startswith("1 of 20 further forwards of the same input") for w in warnings)


@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.parametrize("share", [0.02, float("nan")])
def test_forwards_that_differ_beyond_the_limits_fail_and_leave_their_record(
    run_inference: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    share: float,
    number: int,
) -> None:
    monkeypatch.setattr(features, "timed_forward", off_by(share, number))
    code, folder = run_inference("--device", "cpu")
    results = cast("dict[str, Any]", record_of(folder)["results"])
    assert code == 1
    (reason,) = results["failures"]
    assert reason.startswith("two forwards of the same input give another last_hidden_state (")
    differing = 20 if number == 2 and share == 0.02 else 1  # the first timed one is the measure
    assert results["repeats"]["differing"] == differing
    assert (results["repeats"]["largest_difference"] is None) is math.isnan(share)
    assert results["last_hidden_state"]["finite"]
    assert f"FAIL: {reason}" in capsys.readouterr().out


def test_a_folder_gives_every_image_and_names_the_broken_ones(
    run_inference: Run, tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/c.png"):
        (folder / name).write_bytes(photo.read_bytes())
    (folder / "a.jpg").write_bytes(b"no image")
    (folder / "bb.png").write_bytes(photo.read_bytes()[:300])
    saved = tmp_path / "features.safetensors"
    code, output = run_inference("--image", str(folder), "--save-features", str(saved))
    record = record_of(output)
    assert code == 0
    assert record["input"]["images"] == 2  # type: ignore[index] # a JSON object
    names = [entry["image"] for entry in record["results"]["images"]]  # type: ignore[index]
    assert names == [str(folder / "b.png"), str(folder / "deep" / "c.png")]
    warnings = "\n".join(record["warnings"])  # type: ignore[arg-type] # a JSON list
    assert str(folder / "a.jpg") in warnings and str(folder / "bb.png") in warnings
    with safe_open(saved, "pt") as content:
        assert content.get_tensor("pooler_output").shape == (2, 32)
    assert f"{folder / 'b.png'}: " in capsys.readouterr().out


def test_a_size_off_the_patch_grid_runs_and_says_what_is_cropped(
    run_inference: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = run_inference("--size", "100")
    assert code == 0
    assert "crops the last 4 rows and 4 columns, which leaves 96x96" in capsys.readouterr().out
    assert record_of(folder)["results"]["last_hidden_state"]["shape"] == [1, 5 + 36, 32]  # type: ignore[index]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_dtype_is_computed_in_and_recorded(run_inference: Run, dtype: str) -> None:
    code, folder = run_inference("--dtype", dtype)
    record = record_of(folder)
    names = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}
    assert code == 0
    assert record["model"]["dtype"] == dtype  # type: ignore[index] # a JSON object
    assert record["results"]["pooler_output"]["dtype"] == names[dtype]  # type: ignore[index]


def test_eager_attention_agrees_with_sdpa_and_is_recorded(run_inference: Run) -> None:
    values = {}
    for attention in ("eager", "sdpa"):
        _, folder = run_inference("--attention", attention)
        record = record_of(folder)
        assert record["model"]["attention"] == attention  # type: ignore[index]
        values[attention] = record["results"]["pooler_output"]["first_values"]  # type: ignore[index]
    assert values["eager"] == pytest.approx(values["sdpa"], abs=1e-5)


@pytest.mark.parametrize(
    ("save", "tokens", "attention"),
    [(save_tiny_dinov2, 257, "sdpa"), (save_tiny_convnext, 50, None)],
)
def test_other_vision_models_load_by_their_own_config(
    run_inference: Run,
    tmp_path: Path,
    save: Callable[[Path], Path],
    tokens: int,
    attention: str | None,
) -> None:
    code, folder = run_inference("--weights", str(save(tmp_path / "other")))
    record = record_of(folder)
    assert code == 0
    assert record["results"]["last_hidden_state"]["shape"] == [1, tokens, 32]  # type: ignore[index]
    assert record["model"]["attention"] == attention  # type: ignore[index]


def test_paths_with_spaces_and_chinese_characters_work(
    run_inference: Run, tmp_path: Path, photo: Path, tiny_weights: Path
) -> None:
    weights, image = tmp_path / "权重 一", tmp_path / "图 片.png"
    weights.symlink_to(tiny_weights)
    image.write_bytes(photo.read_bytes())
    output = tmp_path / "输出 目录"
    code, _ = run_inference(
        "--weights", str(weights), "--image", str(image), "--output-dir", str(output)
    )
    assert code == 0
    assert record_of(output)["input"]["image"] == str(image)  # type: ignore[index]
    assert "图 片" in (output / "inference.json").read_text("utf-8")


@pytest.mark.parametrize("size", [(1, 1), (1, 4000)])
def test_the_smallest_and_the_thinnest_image_run(
    run_inference: Run, tmp_path: Path, size: tuple[int, int]
) -> None:
    image = tmp_path / "thin.png"
    Image.new("RGB", size, (10, 200, 30)).save(image)
    code, folder = run_inference("--image", str(image))
    record = record_of(folder)
    assert code == 0
    assert (record["input"]["width"], record["input"]["height"]) == size  # type: ignore[index]


def test_a_model_of_another_token_layout_is_one_line_and_exit_code_2(
    run_inference: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2])
    transformers.SwinModel(config).save_pretrained(tmp_path / "swin")
    code, folder = run_inference("--weights", str(tmp_path / "swin"), "--attention", "eager")
    error = capsys.readouterr().err
    assert code == 2
    assert "SwinModel gives a last_hidden_state of (784, 16), not CLS" in error
    assert error.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_strict_fp32_is_recorded_as_the_modes_that_were_on(run_inference: Run) -> None:
    _, folder = run_inference("--strict-fp32")
    device = record_of(folder)["device"]
    assert device["matmul_fp32"] == device["convolution_fp32"] == "fp32"  # type: ignore[index]


def test_the_pictures_colours_use_the_whole_range_about_its_middle(
    run_inference: Run,
) -> None:
    code, folder = run_inference("--no-report")
    assert code == 0
    picture = np.asarray(Image.open(folder / "inference_features.png").convert("RGB"), float)
    colours = picture[-PANEL_HEIGHT:, -picture.shape[1] // 2 + features.GAP :]
    assert colours.mean() == pytest.approx(127.5, abs=20)
    assert colours.max() - colours.min() > 127.5
