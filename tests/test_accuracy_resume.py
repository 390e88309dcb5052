"""accuracy.py over a folder again: references from the disk, stopped runs taken over."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import accuracy
from kit.accuracy import folder as folders
from kit.accuracy.journal import entry_of
from kit.accuracy.sides import Side
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
    assert len(computed) == FOLDER_COUNT
    accuracy.main(options)
    again = results_of(tmp_path / "out")
    assert len(computed) == FOLDER_COUNT
    assert again["folder"]["cached"] == FOLDER_COUNT
    assert without_history(again) == without_history(first)
    other = save_tiny_vit(tmp_path / "other", seed=1)
    accuracy.main(options_of(tmp_path, image_folder, other))
    assert len(computed) == 2 * FOLDER_COUNT
    accuracy.main([*options, "--size", "64"])
    assert len(computed) == 3 * FOLDER_COUNT


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


def test_a_killed_run_is_taken_over_without_loss_or_double_count(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, whole: dict[str, Any]
) -> None:
    options = options_of(tmp_path, image_folder, tiny_weights, "--no-references")
    slow = (
        "import sys, time; sys.argv = sys.argv[1:]; sys.path.insert(0, '.');"
        "import npu_patch, accuracy; from kit.accuracy.folder import FolderRun as F;"
        "plain = F.finish;"
        "F.finish = lambda self, pending: (time.sleep(0.5), plain(self, pending))[1];"
        "accuracy.main(sys.argv)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *options], cwd=SCRIPT.parent, stdout=subprocess.DEVNULL
    )
    journal = tmp_path / "out" / "accuracy.resume.0.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (
        not journal.exists() or journal.read_text("utf-8").count("\n") < 4
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "accuracy.json").exists()
    kept = journal.read_text("utf-8").count("\n") - 1
    assert 3 <= kept < FOLDER_COUNT
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"accuracy": {"image": "cut off')  # as a kill in the middle of a line leaves it
    assert accuracy.main(options) == 0
    results = results_of(tmp_path / "out")
    assert results["folder"]["resumed"] == kept
    assert without_history(results) == without_history(whole)
    assert not journal.exists()


def interrupted_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come when so many batches are finished."""
    plain = folders.FolderRun.finish
    finished: list[int] = []

    def finish(self: folders.FolderRun, pending: folders.Pending) -> Any:  # noqa: ANN401 - as finish
        if len(finished) == batches:
            raise KeyboardInterrupt
        finished.append(1)
        return plain(self, pending)

    monkeypatch.setattr(folders.FolderRun, "finish", finish)


def test_ctrl_c_keeps_what_is_finished_and_restart_forgets_it(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(tmp_path, image_folder, tiny_weights)
    with monkeypatch.context() as patched:
        interrupted_after(2, patched)
        assert accuracy.main(options) == 130
    journal = tmp_path / "out" / "accuracy.resume.0.jsonl"
    assert len(journal.read_text("utf-8").splitlines()) == 1 + 2 * 3
    assert accuracy.main([*options, "--restart"]) == 0
    assert results_of(tmp_path / "out")["folder"]["resumed"] == 0


def test_an_image_that_changed_and_a_run_of_another_kind_are_not_taken_over(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "images", 7)
    options = options_of(tmp_path, images, tiny_weights)
    with monkeypatch.context() as patched:
        interrupted_after(2, patched)
        assert accuracy.main(options) == 130
    (images / "001.png").write_bytes((images / "006.png").read_bytes())
    assert accuracy.main(options) == 0
    assert results_of(tmp_path / "out")["folder"]["resumed"] == 5
    with monkeypatch.context() as patched:
        interrupted_after(2, patched)
        assert accuracy.main(options) == 130
    assert accuracy.main([*options, "--dtype", "bf16"]) == 0
    assert results_of(tmp_path / "out")["folder"]["resumed"] == 0


def test_a_damaged_line_of_the_journal_is_no_entry() -> None:
    for line in ("", "{", "[]", json.dumps({"accuracy": {}}), '{"accuracy": {"image": 1}}'):
        assert entry_of(line) is None
