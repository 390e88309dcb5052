"""accuracy.py over a folder: streamed, resumed, cached, shared, and never counted twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import accuracy
from kit.accuracy import folder as folders
from kit.accuracy.journal import entry_of
from kit.accuracy.loader import Loader, default_workers
from kit.accuracy.neighbours import agreement
from kit.accuracy.sides import Side
from kit.forward import Features
from kit.preprocessing import Preprocessing
from tests.accuracy_runs import SCRIPT, make_images, results_of, run_process
from tests.models import save_tiny_vit

COUNT = 11


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, two of them broken. Not to be changed."""
    folder = make_images(tmp_path_factory.mktemp("folder") / "images", COUNT)
    (folder / "004a.jpg").write_bytes(b"no image")
    (folder / "000.jpg").write_bytes(b"")  # before the first sound one
    return folder


def options_of(tmp_path: Path, images: Path, weights: Path, *more: str) -> list[str]:
    return ["--device", "cpu", "--output-dir", str(tmp_path / "out"), "--weights", str(weights),
            "--image", str(images), "--batch-size", "3", "--workers", "0", *more]  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, images: Path, tiny_weights: Path) -> Path:
    """The output folder of one undisturbed run. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    assert accuracy.main(options_of(folder, images, tiny_weights)) == 0
    return folder / "out"


@pytest.fixture
def whole(whole_run: Path) -> dict[str, Any]:
    """The results of one undisturbed run."""
    return results_of(whole_run)


def without_history(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results without what tells how they came about."""
    folder = {key: value for key, value in results["folder"].items()
              if key not in ("resumed", "cached", "ranks")}  # fmt: skip
    return results | {"folder": folder}


def test_a_folder_is_compared_and_broken_files_are_counted_in_the_verdict(
    whole: dict[str, Any], whole_run: Path
) -> None:
    folder = whole["folder"]
    printed = (whole_run / "accuracy.log").read_text("utf-8")
    assert folder["images"] == COUNT
    assert folder["failed"] == 0
    assert [Path(broken["image"]).name for broken in folder["broken"]] == ["000.jpg", "004a.jpg"]
    assert f"{COUNT} images, 0 failed, 2 broken" in printed
    assert len(folder["worst"]) == 10
    errors = [image["relative_error"] for image in folder["worst"]]
    assert all(0 < error < 1e-5 for error in errors)
    assert whole["image"] == folder["worst"][0]["image"]
    assert folder["neighbours"]["top1"] == 1.0
    assert folder["neighbours"]["top5"] == 1.0


def test_worker_processes_and_a_thread_give_the_same(
    tmp_path: Path, images: Path, tiny_weights: Path, whole: dict[str, Any]
) -> None:
    options = options_of(tmp_path, images, tiny_weights, "--workers", "2", "--no-references")
    done = run_process(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert without_history(results_of(tmp_path / "out")) == without_history(whole)


def test_two_ranks_give_the_same_as_one(
    tmp_path: Path, images: Path, tiny_weights: Path, whole: dict[str, Any]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(SCRIPT), *options_of(tmp_path, images, tiny_weights, "--no-references")],
        capture_output=True, text=True, check=False, timeout=180, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = results_of(tmp_path / "out")
    assert results["folder"]["ranks"] == 2
    assert done.stdout.count("Accuracy Validation Results") == 1
    assert without_history(results) == without_history(whole)


def test_references_are_kept_by_content_and_found_again(
    tmp_path: Path, images: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    plain = Side.features

    def counted(side: Side, pixels: torch.Tensor) -> Features:
        computed.append(1)
        return plain(side, pixels)

    monkeypatch.setattr(Side, "features", counted)
    options = options_of(tmp_path, images, tiny_weights)
    accuracy.main(options)
    first = results_of(tmp_path / "out")
    assert len(computed) == COUNT
    accuracy.main(options)
    again = results_of(tmp_path / "out")
    assert len(computed) == COUNT
    assert again["folder"]["cached"] == COUNT
    assert without_history(again) == without_history(first)
    other = save_tiny_vit(tmp_path / "other", seed=1)
    accuracy.main(options_of(tmp_path, images, other))
    assert len(computed) == 2 * COUNT
    accuracy.main([*options, "--size", "64"])
    assert len(computed) == 3 * COUNT


def test_a_damaged_reference_is_computed_again(
    tmp_path: Path, images: Path, tiny_weights: Path, whole: dict[str, Any]
) -> None:
    options = options_of(tmp_path, images, tiny_weights)
    accuracy.main(options)
    files = sorted((tmp_path / "out" / "references").rglob("*.safetensors"))
    assert len(files) == COUNT
    files[0].write_bytes(files[0].read_bytes()[:-10])
    content = bytearray(files[1].read_bytes())
    content[-5] ^= 0x40  # one bit of a feature
    files[1].write_bytes(bytes(content))
    assert accuracy.main(options) == 0
    results = results_of(tmp_path / "out")
    assert results["folder"]["cached"] == COUNT - 2
    assert without_history(results) == without_history(whole)


def test_a_killed_run_is_taken_over_without_loss_or_double_count(
    tmp_path: Path, images: Path, tiny_weights: Path, whole: dict[str, Any]
) -> None:
    options = options_of(tmp_path, images, tiny_weights, "--no-references")
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
    assert 3 <= kept < COUNT
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
    tmp_path: Path, images: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(tmp_path, images, tiny_weights)
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


def test_one_image_beyond_a_limit_fails_the_folder_and_is_named(
    tmp_path: Path, images: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plain = folders.FolderRun.device_features

    def wrong(self: folders.FolderRun, batch: Any) -> Features:  # noqa: ANN401 - as device_features
        features = plain(self, batch)
        for number, image in enumerate(batch):
            if image.path.name == "007.png":
                tokens = features.last_hidden_state.clone()
                tokens[number, 20] *= 1.2
                features = Features(features.pooler_output, tokens)
        return features

    monkeypatch.setattr(folders.FolderRun, "device_features", wrong)
    assert accuracy.main(options_of(tmp_path, images, tiny_weights)) == 1
    results = results_of(tmp_path / "out")
    assert results["verdict"] == "FAIL"
    assert results["folder"]["failed"] == 1
    assert Path(results["image"]).name == "007.png"
    assert results["reasons"][0] == f"1 of {COUNT} images are beyond a limit"
    assert "when it was measured again" in results["reasons"][1]
    assert "007.png: relative error" in capsys.readouterr().out


def test_a_folder_without_a_sound_image_is_one_line_and_exit_code_2(
    tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"no image")
    assert accuracy.main(options_of(tmp_path, folder, tiny_weights)) == 2
    assert "none of the 2 images can be decoded" in capsys.readouterr().err


def test_a_full_disk_ends_the_cache_and_not_the_run(
    tmp_path: Path, images: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be", encoding="utf-8")
    options = options_of(tmp_path, images, tiny_weights, "--references", str(blocked / "cache"))
    assert accuracy.main(options) == 0
    assert capsys.readouterr().out.count("no longer kept on the disk") == 1


def test_images_come_in_order_and_no_more_than_asked_ahead(images: Path) -> None:
    paths = sorted(images.iterdir())
    taken: list[Path] = []

    def counted() -> Any:  # noqa: ANN401 - a generator of paths
        for path in paths:
            taken.append(path)
            yield path

    with Loader(0, Preprocessing(height=32, width=32)) as loader:
        stream = loader.stream(counted(), ahead=2)
        assert next(stream).path == paths[0]
        assert len(taken) == 3
        assert [image.path for image in stream] == paths[1:]


def test_few_images_need_no_worker_process() -> None:
    assert default_workers(10) == 0
    assert default_workers(5000) >= 1


def test_neighbours_agree_with_a_plain_search() -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(300, 16)).astype(np.float32)
    device = (reference + generator.normal(scale=0.2, size=reference.shape)).astype(np.float32)
    found = agreement(device, reference)

    def plain(features: Any) -> Any:  # noqa: ANN401 - an array
        unit = features.astype(np.float64)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        similarity = unit @ unit.T
        np.fill_diagonal(similarity, -np.inf)
        return np.argsort(-similarity, axis=1)[:, :5]

    ours, theirs = plain(device), plain(reference)
    common = [len(set(a) & set(b)) / 5 for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
    assert found.top1 == pytest.approx((ours[:, 0] == theirs[:, 0]).mean())
    assert found.top5 == pytest.approx(np.mean(common))
    assert 0.2 < (found.top1 or 0) < 1
    assert agreement(reference[:2], reference[:2]).top1 is None
