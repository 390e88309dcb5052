"""accuracy.py over a folder again: a run that was stopped leaves its references to the next."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import accuracy
from kit.accuracy import folder as folders
from kit.accuracy.references import Side
from kit.model import images as decoding
from kit.model.model import Features
from tests.accuracy_runs import (
    FOLDER_COUNT,
    SCRIPT,
    make_images,
    options_of,
    results_of,
    without_history,
)
from tests.models import save_tiny_vit


def test_references_are_kept_by_content_and_found_again(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    plain = Side.features

    def counted(side: Side, pixels: torch.Tensor) -> Features:
        computed.append(1)
        return plain(side, pixels)

    monkeypatch.setattr(Side, "features", counted)
    options = options_of(tmp_path, image_folder, tiny_weights)
    accuracy.main(options)
    first = results_of(tmp_path / "out")
    others = len(computed) - FOLDER_COUNT  # of the other sizes that every run looks at
    accuracy.main(options)
    again = results_of(tmp_path / "out")
    assert first["folder"]["cached"] == 0
    assert len(computed) == FOLDER_COUNT + 2 * others
    assert again["folder"]["cached"] == FOLDER_COUNT
    assert without_history(again) == without_history(first)
    other = save_tiny_vit(tmp_path / "other", seed=1)
    accuracy.main(options_of(tmp_path, image_folder, other))
    assert len(computed) == 2 * FOLDER_COUNT + 3 * others
    accuracy.main([*options, "--size", "64"])
    assert results_of(tmp_path / "out")["folder"]["cached"] == 0


def test_a_damaged_reference_is_computed_again(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, whole: dict[str, Any]
) -> None:
    options = options_of(tmp_path, image_folder, tiny_weights)
    accuracy.main(options)
    files = sorted((tmp_path / "out" / "references").rglob("*.safetensors"))
    assert len(files) == FOLDER_COUNT
    files[0].write_bytes(files[0].read_bytes()[:-10])
    content = bytearray(files[1].read_bytes())
    content[-5] ^= 0x40  # one bit of a feature
    files[1].write_bytes(bytes(content))
    assert accuracy.main(options) == 0
    results = results_of(tmp_path / "out")
    assert results["folder"]["cached"] == FOLDER_COUNT - 2
    assert without_history(results) == without_history(whole)


def test_a_full_disk_ends_the_cache_and_not_the_run(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be", encoding="utf-8")
    options = options_of(
        tmp_path, image_folder, tiny_weights, "--references", str(blocked / "cache")
    )
    assert accuracy.main(options) == 0
    assert capsys.readouterr().out.count("no longer kept on the disk") == 1


def test_a_killed_run_continues_with_the_same_record_to_the_byte(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, whole_run: Path
) -> None:
    options = options_of(tmp_path, image_folder, tiny_weights)
    slow = (
        "import sys, time; sys.argv = sys.argv[1:]; sys.path.insert(0, '.');"
        "import npu_patch, accuracy; from kit.accuracy.folder import FolderRun as F;"
        "plain = F.finish;"
        "F.finish = lambda *given: (time.sleep(0.5), plain(*given))[1];"
        "accuracy.main(sys.argv)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *options], cwd=SCRIPT.parent, stdout=subprocess.DEVNULL
    )
    references = tmp_path / "out" / "references"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(references.rglob("*.safetensors"))) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "accuracy.json").exists()
    kept = len(list(references.rglob("*.safetensors")))
    assert 3 <= kept < FOLDER_COUNT
    assert accuracy.main(options) == 0
    log = (tmp_path / "out" / "accuracy.log").read_text("utf-8")
    assert f"{kept} of {FOLDER_COUNT} CPU references were taken from the disk" in log
    expected = (whole_run / "accuracy.json").read_text("utf-8").splitlines()
    found = (tmp_path / "out" / "accuracy.json").read_text("utf-8").splitlines()
    differing = [line.partition(":")[0].strip() for line in set(expected) ^ set(found)]
    assert sorted(set(differing)) in (['"cached"'], ['"cached"', '"started_at"'])
    assert f'"cached": {kept},' in "".join(found)


def test_a_run_that_was_interrupted_leaves_its_references_to_the_next(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(tmp_path, image_folder, tiny_weights)
    plain = folders.FolderRun.finish
    finished: list[int] = []

    def finish(self: folders.FolderRun, *given: Any) -> Any:  # noqa: ANN401 - as finish
        if len(finished) == 2:
            raise KeyboardInterrupt
        finished.append(1)
        return plain(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(folders.FolderRun, "finish", finish)
        assert accuracy.main(options) == 130
    assert accuracy.main(options) == 0
    assert 6 <= results_of(tmp_path / "out")["folder"]["cached"] <= 9


def test_an_image_that_changed_has_a_reference_of_its_own(
    tmp_path: Path, tiny_weights: Path
) -> None:
    images = make_images(tmp_path / "images", 3)
    options = options_of(tmp_path, images, tiny_weights)
    assert accuracy.main(options) == 0
    with Image.open(images / "002.png") as changed:
        changed.rotate(90).save(images / "001.png")
    assert accuracy.main(options) == 0
    assert results_of(tmp_path / "out")["folder"]["cached"] == 2


@pytest.mark.parametrize("change", ["config", "transformers", "threads", "decoder"])
def test_a_reference_that_could_have_other_bits_is_not_taken(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    images = make_images(tmp_path / "images", 3)
    weights = Path(shutil.copytree(tiny_weights, tmp_path / "weights"))
    options = options_of(tmp_path, images, weights)
    assert accuracy.main(options) == 0
    if change == "config":  # the weights' own hash stays the same
        config = json.loads((weights / "config.json").read_text())
        (weights / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    elif change == "transformers":
        monkeypatch.setattr("kit.accuracy.folder.transformers.__version__", "4.0.0")
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    else:  # as another Pillow may decode the same file
        plain = decoding.rgb_pixels
        monkeypatch.setattr(decoding, "rgb_pixels", lambda image: plain(image) ^ 1)
    assert accuracy.main(options) == 0
    assert results_of(tmp_path / "out")["folder"]["cached"] == 0
