"""Finding and hashing the weights."""

import hashlib
import shutil
from pathlib import Path

import pytest

from kit.model import weights
from kit.model.weights import Weights


def test_the_order_is_given_then_environment_then_default_then_random(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "DEFAULT_FOLDERS", (Path("nowhere"), Path("here")))
    assert weights.find(None, tmp_path) == Weights(None, "random")
    default, environment, given = (
        Path(shutil.copytree(tiny_weights, tmp_path / name)) for name in ("here", "env", "given")
    )
    assert weights.find(None, tmp_path) == Weights(default, "local")
    monkeypatch.setenv("DINOV3_WEIGHTS", str(environment))
    assert weights.find(None, tmp_path) == Weights(environment, "local")
    assert weights.find(given, tmp_path) == Weights(given, "local")


def test_the_hash_of_one_file_is_its_sha256(tiny_weights: Path) -> None:
    file = tiny_weights / "model.safetensors"
    assert weights.sha256_of_files([file]) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_hash_of_several_files_is_that_of_sha256sums_lines(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        file.write_bytes(file.name.encode())
    lines = "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files
    )
    assert weights.sha256_of_files(files) == hashlib.sha256(lines.encode()).hexdigest()
