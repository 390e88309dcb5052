"""Fixtures that every test may use. Nothing here reaches for the network."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
# Sums depend on the number of threads in their last bits; torchrun's ranks have one thread, too.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("DINOV3_WEIGHTS", None)
os.environ["LC_ALL"] = "C.UTF-8"  # reports are in the default language, whoever runs the tests

import npu_patch  # isort: skip - it makes the imports of torch below safe on any host

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.accuracy_runs import FOLDER_COUNT, Run, make_images, options_of, results_of
from tests.emulated_npu import EmulatedNpu
from tests.fake_cann import build
from tests.models import save_tiny_vit

__all__ = ["npu_patch"]

NO_SKIPS_VARIABLE = "KIT_NO_SKIPS"
MOST_WORKERS = 8  # each imports torch and makes the session's fixtures for itself


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return a worker for each core; none for named files and for the smoke test, which are short.

    xdist's own choice counts cores that this process may not use, or hyperthreads as none.
    """
    if config.option.markexpr == "smoke" or any(".py" in name for name in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_WORKERS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that skips where KIT_NO_SKIPS=1, as continuous integration sets it."""
    report = yield
    if report.skipped and os.environ.get(NO_SKIPS_VARIABLE) == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{NO_SKIPS_VARIABLE}=1, but {reason}"
    return report


def pytest_configure() -> None:
    """Let the tests, and what they start, hear Ctrl-C; a shell's background jobs ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with a DINOv3 ViT of 2 blocks, 32 wide, seeded. Not to be changed."""
    return save_tiny_vit(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small colourful image file. Not to be changed."""
    path = tmp_path_factory.mktemp("images") / "photo.png"
    red, green = Image.linear_gradient("L"), Image.radial_gradient("L")
    Image.merge("RGB", (red, green, red.rotate(90))).resize((80, 60)).save(path)
    return path


@pytest.fixture
def run_inference(
    tiny_weights: Path, photo: Path, tmp_path: Path
) -> Callable[..., tuple[int, Path]]:
    """Run inference.py in this process on the tiny model; returns exit code and output folder."""

    def run(*options: str, defaults: bool = True) -> tuple[int, Path]:
        import inference

        folder = tmp_path / "output"
        argv = ["--output-dir", str(folder)]
        if defaults and "--weights" not in options:
            argv += ["--weights", str(tiny_weights)]
        if defaults and "--image" not in options:
            argv += ["--image", str(photo)]
        return inference.main([*argv, *options]), folder

    return run


@pytest.fixture
def run_accuracy(tiny_weights: Path, photo: Path, tmp_path: Path) -> Run:
    """Run accuracy.py in this process on the tiny model; returns exit code and output folder."""
    import accuracy

    def run(*options: str, weights: Path = tiny_weights) -> tuple[int, Path]:
        folder = tmp_path / "output"
        argv = ["--output-dir", str(folder), "--weights", str(weights), "--device", "cpu"]
        if "--image" not in options:
            argv += ["--image", str(photo)]
        return accuracy.main([*argv, *options]), folder

    return run


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, two of them broken. Not to be changed."""
    folder = make_images(tmp_path_factory.mktemp("folder") / "images", FOLDER_COUNT)
    (folder / "004a.jpg").write_bytes(b"no image")
    (folder / "000.jpg").write_bytes(b"")  # before the first sound one
    return folder


@pytest.fixture(scope="session")
def whole_run(
    tmp_path_factory: pytest.TempPathFactory, image_folder: Path, tiny_weights: Path
) -> Path:
    """The output folder of one undisturbed run. Not to be changed."""
    import accuracy

    folder = tmp_path_factory.mktemp("whole")
    assert accuracy.main(options_of(folder, image_folder, tiny_weights)) == 0
    return folder / "out"


@pytest.fixture
def whole(whole_run: Path) -> dict[str, Any]:
    """The results of one undisturbed run."""
    return results_of(whole_run)


@pytest.fixture(scope="session")
def npu_host() -> Iterator[EmulatedNpu]:
    """Build the emulated NPU once; skip with the reason in one line where it cannot be had."""
    if reason := build.unavailable_reason():
        pytest.skip(reason)
    host = EmulatedNpu(build.build())
    yield host
    host.close()
