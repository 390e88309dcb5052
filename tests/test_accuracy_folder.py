"""accuracy.py over a folder: streamed, resumed, cached, shared, and never counted twice."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import accuracy
from kit import distributed
from kit.accuracy import folder as folders
from kit.distributed import Rank
from kit.model.model import Features
from kit.model.preprocessing import Preprocessing
from kit.run import ROOT
from tests.accuracy_runs import (
    FOLDER_COUNT,
    make_images,
    options_of,
    record_of,
    results_of,
    without_history,
)


def test_a_folder_is_compared_and_broken_files_are_counted_in_the_verdict(
    whole: dict[str, Any], whole_run: Path
) -> None:
    folder = whole["folder"]
    printed = (whole_run / "accuracy.log").read_text("utf-8")
    assert folder["images"] == FOLDER_COUNT
    assert folder["failed"] == 0
    assert [Path(broken["image"]).name for broken in folder["broken"]] == ["000.jpg", "004a.jpg"]
    assert f"{FOLDER_COUNT} images, 0 failed, 2 broken" in printed
    assert len(folder["worst"]) == 10
    errors = [image["relative_error"] for image in folder["worst"]]
    assert all(0 < error < 1e-5 for error in errors)
    assert whole["image"] == folder["worst"][0]["image"]
    assert folder["neighbours"]["top1"] == 1.0
    assert folder["neighbours"]["top5"] == 1.0


def test_several_decoding_threads_give_the_same_as_one(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, whole: dict[str, Any]
) -> None:
    options = options_of(tmp_path, image_folder, tiny_weights, "--workers", "3", "--no-references")
    assert accuracy.main(options) == 0
    assert without_history(results_of(tmp_path / "out")) == without_history(whole)


# As hosts see a shared folder at different moments: rank 1 misses the first four images.
OTHER_LIST = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
from kit.model import images
plain = images.find
images.find = lambda *given: plain(*given)[4 * int(os.environ["RANK"]):]
import accuracy
sys.exit(accuracy.main())
"""


@pytest.mark.extended
def test_two_ranks_that_list_different_images_give_the_same_as_one_and_share_the_cores(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, whole: dict[str, Any]
) -> None:
    script = tmp_path / "two_hosts.py"
    script.write_text(OTHER_LIST)
    cores = sorted(os.sched_getaffinity(0))[:2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script), str(ROOT), *options_of(tmp_path, image_folder, tiny_weights)],
        capture_output=True, text=True, check=False, timeout=180, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path / "out")
    assert record["results"]["folder"]["ranks"] == 2
    assert done.stdout.count("Accuracy Validation Results") == 1
    assert "The ranks find different images: those that the first finds count" in record["warnings"]
    assert record["environment"]["cpu_threads"] == max(1, len(cores) // 2)
    assert without_history(record["results"]) == without_history(whole)


def test_what_ranks_tell_each_other_holds_no_model(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, bytes] = {}

    def gather(group: distributed.Group, value: object, name: str) -> list[object]:
        told[name] = pickle.dumps(value)
        return [value]

    monkeypatch.setattr(distributed.Group, "gather", gather)
    options = options_of(tmp_path, image_folder, tiny_weights, "--no-references")
    assert accuracy.main(options) == 0
    assert b"AccuracyResults" in told["the verdict"]
    assert all(b"DINOv3ViTModel" not in value for value in told.values())


def test_each_rank_of_a_host_computes_its_references_with_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)))
    for local_size, threads, expected in (
        (1, "1", []),
        (8, "1", [3]),
        (32, "1", [1]),
        (8, "5", []),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)  # torchrun sets 1 where nothing is set
        distributed.share_cores(Rank(0, 0, local_size, local_size))
        assert chosen == expected
        chosen.clear()


def test_one_image_beyond_a_limit_fails_the_folder_and_is_named(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plain = folders.FolderRun.device_features

    def wrong(self: folders.FolderRun, batch: Any) -> Features:  # noqa: ANN401 - as device_features
        features = plain(self, batch)
        for number, image in enumerate(batch):
            if image.about.image.endswith("007.png"):
                tokens = features.last_hidden_state.clone()
                tokens[number, 20] *= 1.2
                features = Features(features.pooler_output, tokens)
        return features

    monkeypatch.setattr(folders.FolderRun, "device_features", wrong)
    assert accuracy.main(options_of(tmp_path, image_folder, tiny_weights)) == 1
    results = results_of(tmp_path / "out")
    assert results["verdict"] == "FAIL"
    assert results["folder"]["failed"] == 1
    assert Path(results["image"]).name == "007.png"
    assert results["reasons"][0] == f"1 of {FOLDER_COUNT} images are beyond a limit"
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


def test_a_folder_that_changes_while_it_runs_is_what_it_was_when_it_was_listed(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_images(tmp_path / "images", 7)
    (folder / "000.png").write_bytes(b"no image")  # before the first sound one
    plain = folders.FolderRun.run

    def changing(self: folders.FolderRun, *given: Any) -> Any:  # noqa: ANN401 - as run
        (folder / "004.png").unlink()
        for name in ("0000.png", "003a.png", "zzz.png"):
            shutil.copy(folder / "005.png", folder / name)
        return plain(self, *given)

    monkeypatch.setattr(folders.FolderRun, "run", changing)
    assert accuracy.main(options_of(tmp_path, folder, tiny_weights)) == 0
    found = results_of(tmp_path / "out")["folder"]
    broken = {Path(entry["image"]).name: entry["reason"] for entry in found["broken"]}
    compared = sorted(Path(entry["image"]).name for entry in found["worst"])
    assert compared == ["001.png", "002.png", "003.png", "005.png", "006.png"]
    assert found["images"] == 5
    assert broken.keys() == {"000.png", "004.png"}
    assert "is not an image" in broken["000.png"]
    assert "No such file" in broken["004.png"]


def test_a_worst_image_that_went_or_changed_gives_its_place_to_the_next(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_images(tmp_path / "images", 5)
    plain = folders.FolderRun.run
    worst: list[Path] = []

    def changing(self: folders.FolderRun, *given: Any) -> Any:  # noqa: ANN401 - as run
        done = plain(self, *given)
        assert done is not None
        worst.extend(Path(image.image) for image in done[0].worst)
        worst[0].unlink()
        shutil.copy(worst[3], worst[1])
        return done

    monkeypatch.setattr(folders.FolderRun, "run", changing)
    assert accuracy.main(options_of(tmp_path, folder, tiny_weights)) == 0
    record = record_of(tmp_path / "out")
    assert record["results"]["image"] == str(worst[2])
    assert [Path(entry["image"]) for entry in record["results"]["folder"]["worst"]] == worst
    assert sum("Not measured in full" in warning for warning in record["warnings"]) == 2


def test_images_come_in_order_and_no_more_than_asked_ahead(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []
    ahead: list[int] = []
    plain, device_features = folders.decode_and_prepare, folders.FolderRun.device_features

    def counted(path: Path, steps: Preprocessing) -> Any:  # noqa: ANN401 - as decode_and_prepare
        begun.append(path)
        return plain(path, steps)

    def looked(self: folders.FolderRun, batch: Any) -> Features:  # noqa: ANN401 - as device_features
        ahead.append(
            len(begun) - int(Path(batch[0].about.image).stem) - 2
        )  # two broken ones come before
        return device_features(self, batch)

    monkeypatch.setattr(folders, "decode_and_prepare", counted)
    monkeypatch.setattr(folders.FolderRun, "device_features", looked)
    options = options_of(tmp_path, image_folder, tiny_weights, "--batch-size", "1")
    assert accuracy.main(options) == 0
    assert sorted(begun) == begun
    assert max(ahead) <= 5
    assert len(ahead) == FOLDER_COUNT


@pytest.mark.parametrize("at_once", [1 << 18, 50])
def test_copies_of_an_image_tie_and_are_no_disagreement(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(folders, "SIMILARITIES_AT_ONCE", at_once)
    generator = np.random.default_rng(5)
    for count in range(4, 16):
        reference = np.repeat(generator.normal(size=(count, 32)).astype(np.float32), 3, axis=0)
        noise = np.repeat(generator.normal(scale=1e-6, size=(count, 32)), 3, axis=0)
        found = folders.agreement((reference + noise).astype(np.float32), reference)
        assert found.top1 == 1.0


def test_neighbours_agree_with_a_plain_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "SIMILARITIES_AT_ONCE", 7 * 300)  # in parts
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(300, 16)).astype(np.float32)
    device = (reference + generator.normal(scale=0.2, size=reference.shape)).astype(np.float32)
    found = folders.agreement(device, reference)

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
    assert folders.agreement(reference[:2], reference[:2]).top1 is None
