"""Bad input: one line on stderr with the value and how to fix it, exit code 2, nothing written."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import accuracy
import benchmark
import inference
from kit import outside
from kit.errors import KitError
from kit.model import weights
from kit.run import ROOT
from tests.models import save_tiny_bert

Run = Callable[..., tuple[int, Path]]
Expect = Callable[..., None]


@pytest.fixture
def expect_error(run_inference: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Expect:
    """Run inference.py and hold it to the rules of an error; `words` must be in its line."""

    def expect(*options: str, words: str) -> None:
        folder = tmp_path / "output"
        folder.mkdir()
        (folder / "inference.json").write_text("an earlier result")
        code, _ = run_inference(*options)
        error = capsys.readouterr().err
        assert code == 2
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert words in error
        assert [path.name for path in folder.iterdir()] == ["inference.json"]
        assert (folder / "inference.json").read_text() == "an earlier result"

    return expect


@pytest.fixture
def weights_copy(tiny_weights: Path, tmp_path: Path) -> Path:
    """A copy of the tiny weights that a test may break."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "copy"))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_image(expect_error: Expect) -> None:
    expect_error("--image", "no/such.jpg", words="image no/such.jpg does not exist")


def test_an_empty_image(expect_error: Expect, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    expect_error("--image", str(tmp_path / "empty.jpg"), words="empty.jpg is empty")


def test_a_truncated_image(expect_error: Expect, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:200])
    expect_error("--image", str(tmp_path / "cut.png"), words="cut.png is damaged")


def test_a_file_that_is_no_image(expect_error: Expect, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    expect_error("--image", str(tmp_path / "text.jpg"), words="text.jpg is not an image")


def test_an_image_beyond_the_bomb_limit(
    expect_error: Expect, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    expect_error("--image", str(photo), words="has more than 1000 pixels")


def test_a_folder_without_images(expect_error: Expect, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    expect_error("--image", str(tmp_path / "none"), words="none holds no image")


def test_a_folder_with_only_broken_images(expect_error: Expect, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "broken" / name).write_text("hello")
    expect_error("--image", str(tmp_path / "broken"), words="none of the 2 images can be decoded")


def test_weights_that_are_not_there(expect_error: Expect) -> None:
    expect_error("--weights", "no/weights", words="--weights no/weights is not a folder")


def test_weights_from_the_environment_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DINOV3_WEIGHTS", "no/weights")
    with pytest.raises(KitError, match=r"\$DINOV3_WEIGHTS no/weights is not a folder"):
        weights.find(None, tmp_path)


def test_an_empty_weights_folder(expect_error: Expect, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    expect_error("--weights", str(tmp_path / "empty"), words="holds no *.safetensors")


def test_pickled_weights_only(expect_error: Expect, tmp_path: Path) -> None:
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").touch()
    expect_error("--weights", str(tmp_path / "pickle"), words="pickled weights only")


def test_a_text_models_weights(expect_error: Expect, tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "bert")
    expect_error("--weights", str(folder), words="holds a bert model, which is no vision model")


def test_weights_without_a_config(expect_error: Expect, weights_copy: Path) -> None:
    (weights_copy / "config.json").unlink()
    expect_error("--weights", str(weights_copy), words="config.json is missing")


@pytest.mark.parametrize("content", ["{", "[1]", '{"model_type": "no-such-model"}', "{}"])
def test_a_config_that_is_no_model(expect_error: Expect, weights_copy: Path, content: str) -> None:
    (weights_copy / "config.json").write_text(content)
    expect_error("--weights", str(weights_copy), words="config.json")


def test_a_config_that_asks_for_code_from_the_folder(
    expect_error: Expect, weights_copy: Path, tmp_path: Path
) -> None:
    proof = tmp_path / "it_ran"
    (weights_copy / "evil.py").write_text(f"open({str(proof)!r}, 'w')")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (weights_copy / "config.json").write_text(json.dumps(config))
    expect_error("--weights", str(weights_copy), words="config.json")
    assert not proof.exists()


@pytest.mark.parametrize("change", [-100, -1, 1])
def test_a_safetensors_file_of_the_wrong_length(
    expect_error: Expect, weights_copy: Path, change: int
) -> None:
    file = weights_copy / "model.safetensors"
    os.truncate(file, file.stat().st_size + change)
    expect_error(
        "--weights", str(weights_copy), words="model.safetensors has a damaged safetensors header"
    )


@pytest.mark.parametrize("head", [b"\xff" * 8, b"\0" * 8, (50).to_bytes(8, "little"), b""])
def test_a_damaged_safetensors_header(
    expect_error: Expect, weights_copy: Path, head: bytes
) -> None:
    file = weights_copy / "model.safetensors"
    file.write_bytes(head + file.read_bytes()[8:] if head else b"")
    expect_error("--weights", str(weights_copy), words="damaged safetensors header")


def test_missing_keys(expect_error: Expect, weights_copy: Path) -> None:
    edit_tensors(weights_copy, lambda tensors: tensors.pop("norm.weight"))
    expect_error("--weights", str(weights_copy), words="no weights for norm.weight")


def test_extra_keys(expect_error: Expect, weights_copy: Path) -> None:
    edit_tensors(weights_copy, lambda tensors: tensors.update(extra=torch.ones(1)))
    expect_error("--weights", str(weights_copy), words="does not know: extra")


def test_wrong_shapes(expect_error: Expect, weights_copy: Path) -> None:
    edit_tensors(weights_copy, lambda tensors: tensors.update({"norm.weight": torch.ones(7)}))
    expect_error("--weights", str(weights_copy), words="wrong shape for norm.weight")


def test_a_missing_shard(expect_error: Expect, weights_copy: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (weights_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    expect_error(
        "--weights", str(weights_copy), words="model-00001-of-00002.safetensors is missing"
    )


def test_a_non_finite_output_is_no_result(expect_error: Expect, weights_copy: Path) -> None:
    def break_one(tensors: dict[str, torch.Tensor]) -> None:
        tensors["norm.weight"][3] = float("nan")

    edit_tensors(weights_copy, break_one)
    expect_error("--weights", str(weights_copy), words="pooler_output holds 1 values that are NaN")


@pytest.mark.parametrize("size", ["0", "-16", "2.5", "many", "123456"])
def test_a_size_that_is_none(expect_error: Expect, size: str) -> None:
    expect_error(f"--size={size}", words=f"'{size}' is not a whole number of pixels")


def test_a_size_below_one_patch(expect_error: Expect) -> None:
    expect_error("--size", "15", words="15x15 is smaller than the model's 16x16 patch")


def test_an_input_of_one_patch_is_large_enough(run_inference: Run) -> None:
    code, folder = run_inference("--size", "16")
    assert code == 0
    record = json.loads((folder / "inference.json").read_text("utf-8"))
    assert record["input"]["shape"] == [1, 3, 16, 16]


def test_of_many_missing_weights_three_are_named_and_the_rest_counted(
    expect_error: Expect, weights_copy: Path
) -> None:
    def lose_five(tensors: dict[str, torch.Tensor]) -> None:
        for name in sorted(tensors)[:5]:
            del tensors[name]

    edit_tensors(weights_copy, lose_five)
    expect_error("--weights", str(weights_copy), words=" and 2 more; download the folder again")


@pytest.mark.parametrize("main", [inference.main, benchmark.main, accuracy.main])
def test_every_script_refuses_an_input_below_one_patch(
    main: Callable[[list[str]], int],
    tiny_weights: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--weights", str(tiny_weights), "--image", str(photo), "--output-dir", str(tmp_path)]
    assert main([*argv, "--device", "cpu", "--size", "1"]) == 2
    error = "error: an input of 1x1 is smaller than the model's 16x16 patch: use a --size of at"
    assert capsys.readouterr().err.startswith(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["gpu", "npu:", "npu:x", "cuda:-1", "CPU", "cpu:0", ""])
def test_an_unknown_device(expect_error: Expect, device: str) -> None:
    expect_error(f"--device={device}", words=f"unknown device '{device}'")


def test_a_device_that_is_not_there_is_never_replaced(expect_error: Expect) -> None:
    expect_error("--device", "npu", words="--device npu: no NPU is available here")


@pytest.mark.parametrize(
    "option", ["--dtype=int8", "--attention=flash", "--seed=-1", "--download=ftp", "--bogus"]
)
def test_an_option_that_does_not_exist(expect_error: Expect, option: str) -> None:
    expect_error(option, words=option.partition("=")[0])


def test_features_into_a_folder_that_is_not_there(expect_error: Expect, tmp_path: Path) -> None:
    expect_error("--save-features", str(tmp_path / "no" / "f.safetensors"), words="no folder")


def test_an_output_folder_that_is_a_file(
    run_inference: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "output").write_text("in the way")
    code, _ = run_inference()
    assert code == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path / 'output'}: ")


def test_an_output_folder_that_is_read_only_is_noticed_before_any_work(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write everywhere
    code, folder = run_inference()
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith(f"error: cannot write {folder}: Permission denied; ")


def test_a_full_disk_leaves_earlier_results_untouched(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = run_inference()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    synced: list[int] = []

    def full_at_the_second_file(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_at_the_second_file)
    assert code == 0
    capsys.readouterr()
    assert run_inference()[0] == 2
    error = capsys.readouterr().err
    assert "No space left on device; free the space" in error and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_interruption_in_this_process_is_130_and_writes_nothing(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kit.inference import features

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "timed_forward", interrupted)
    code, folder = run_inference()
    assert code == 130
    assert list(folder.iterdir()) == []
    assert capsys.readouterr().err == "interrupted: nothing was written\n"


@pytest.mark.parametrize("name", ["image", "config.json", "model.safetensors"])
def test_a_pipe_or_a_device_is_never_opened(
    expect_error: Expect, weights_copy: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "pipe.jpg" if name == "image" else weights_copy / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    options = ("--image", str(path)) if name == "image" else ("--weights", str(weights_copy))
    expect_error(*options, words=f"{path} is not a plain file")
    if name != "image":
        path.unlink()
        path.symlink_to("/dev/zero")
        with pytest.raises(KitError, match="is not a plain file"):
            weights.check_folder(weights_copy)


@pytest.mark.parametrize("option", ["--image", "--weights", "--output-dir", "--save-features"])
def test_an_empty_path_is_not_the_current_folder(expect_error: Expect, option: str) -> None:
    expect_error(option, "", words="the path is empty")


@pytest.mark.parametrize("option", ["--image", "--weights"])
def test_a_name_that_is_too_long(expect_error: Expect, option: str) -> None:
    expect_error(option, "a" * 300, words="File name too long")


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 7}, "not a multiple of num_attention_heads 7"),
        ({"hidden_size": "32"}, "hidden_size is 32, not a whole number"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"image_size": [32, True]}, "image_size is [32, True]"),
        ({"quantization_config": {"bits": 4}}, "asks for quantized weights"),
    ],
)
def test_a_configuration_that_no_vision_model_has(
    expect_error: Expect, weights_copy: Path, changes: dict[str, object], words: str
) -> None:
    edit_json(weights_copy / "config.json", **changes)
    expect_error("--weights", str(weights_copy), words=words)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_that_is_nested_too_deeply(
    expect_error: Expect, weights_copy: Path, name: str
) -> None:
    (weights_copy / name).write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    expect_error("--weights", str(weights_copy), words=f"{name} is nested too deeply")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": -5}, "a size of -5"),
        ({"size": {"height": 0, "width": 32}}, "a size of 0"),
        ({"size": True}, "a size of True"),
        ({"size": {"shortest_edge": 10**7}}, "a size of 10000000"),
        ({"image_mean": [0.5, 0.5, 10**400]}, "is not a number that float32 holds"),
        ({"image_std": ["1", 1, 1]}, "1 is not a number"),
        ({"rescale_factor": "x"}, "x is not a number"),
    ],
)
def test_preprocessing_that_nobody_can_do(
    expect_error: Expect, weights_copy: Path, changes: dict[str, object], words: str
) -> None:
    edit_json(weights_copy / "preprocessor_config.json", **changes)
    expect_error("--weights", str(weights_copy), words=words)


def test_a_size_of_one_e400_in_the_preprocessing(expect_error: Expect, weights_copy: Path) -> None:
    (weights_copy / "preprocessor_config.json").write_text('{"size": 1e400}')
    expect_error("--weights", str(weights_copy), words="asks for what the kit cannot do")


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e400]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        '{"a": 4}',
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_a_safetensors_header_that_is_damaged(weights_copy: Path, header: str) -> None:
    content = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
    (weights_copy / "model.safetensors").write_bytes(content)
    with pytest.raises(KitError, match="damaged safetensors header"):
        weights.check_folder(weights_copy)


def test_whole_numbers_where_floats_belong(expect_error: Expect, weights_copy: Path) -> None:
    edit_tensors(weights_copy, lambda t: t.update({"norm.weight": t["norm.weight"].to(torch.int8)}))
    expect_error("--weights", str(weights_copy), words="holds norm.weight as I8")


def test_a_folder_with_the_name_of_the_weights(expect_error: Expect, weights_copy: Path) -> None:
    (weights_copy / "model.safetensors").unlink()
    (weights_copy / "model.safetensors").mkdir()
    expect_error("--weights", str(weights_copy), words="model.safetensors is not a plain file")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MASTER_ADDR", None), ("MASTER_PORT", "abc"), ("MASTER_PORT", "0"), ("MASTER_PORT", "65536")],
)
def test_ranks_that_cannot_meet(
    expect_error: Expect, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None
) -> None:
    import accuracy

    set_ = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, text in {**set_, "MASTER_PORT": "29500", variable: value}.items():
        if text is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, text)
    monkeypatch.setattr("inference.main", accuracy.main)
    expect_error("--device", "cpu", words="MASTER_ADDR is")


def test_a_device_of_five_thousand_digits(expect_error: Expect) -> None:
    expect_error("--device", "npu:" + "9" * 5000, words="unknown device 'npu:999")


def test_a_torchvision_that_does_not_fit_torch_is_not_asked(
    tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    options = ["--weights", tiny_weights, "--image", photo, "--output-dir", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "inference.py", *map(str, options)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_two_dashes_are_no_value(expect_error: Expect) -> None:
    expect_error("--size=--", words="argument --size: -- is no value")


def test_a_line_break_in_a_path_stays_on_the_one_line(expect_error: Expect) -> None:
    expect_error("--image", "no\nsuch.png", words=r"image no\nsuch.png does not exist")


def test_a_configuration_that_breaks_the_forward(expect_error: Expect, weights_copy: Path) -> None:
    edit_json(weights_copy / "config.json", layer_norm_eps=None)
    # transformers 5 refuses the value when it reads it, transformers 4 when it computes with it.
    expect_error("--weights", str(weights_copy), words="config.json")


def test_a_file_that_cannot_be_read_is_named_with_what_to_check(tmp_path: Path) -> None:
    path = tmp_path / "absent.safetensors"
    with pytest.raises(KitError, match="No such file or directory; check the path and its perm"):
        outside.read_bytes(path, "--features", 1)
