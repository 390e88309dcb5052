"""Whatever moment a run ends at, records are whole or absent, and the next run needs no help.

KIT_KILL_MOMENTS sets at how many random moments each script is ended (20: a hundred in all), and
KIT_ENDURANCE how many images and folders the last tests have (1000 on demand); .ci/run tries a few.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.accuracy.evidence import FILE
from kit.accuracy.folder import MOST_SAVED_BYTES
from kit.records import RECORDS, decode
from kit.run import ROOT
from tests.accuracy_runs import make_images
from tests.report_records import everything
from tests.test_benchmark_ranks import children

pytestmark = pytest.mark.extended
MOMENTS = int(os.environ.get("KIT_KILL_MOMENTS", "2"))
MANY = int(os.environ.get("KIT_ENDURANCE", "40"))
SCRIPTS = ("inference", "benchmark", "accuracy")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def begin(script: str, weights: Path, image: Path, output: Path) -> "subprocess.Popen[str]":
    """Start a script on the tiny model."""
    command = [sys.executable, str(ROOT / f"{script}.py"), "--device", "cpu", "--weights"]
    command += [str(weights), "--image", str(image), "--output-dir", str(output)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def hold_to_the_property(script: str, output: Path, earlier: bytes) -> None:
    """Check that the record is the earlier one or a whole one of this run."""
    content = (output / f"{script}.json").read_bytes()
    if content != earlier:
        decode(content, RECORDS[script])


@pytest.fixture(scope="module")
def durations() -> dict[tuple[str, bool], float]:
    """How long a run takes, by script and whether over a folder, once it is known."""
    return {}


@pytest.mark.parametrize("over_a_folder", [False, True], ids=["one image", "folder"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_that_is_ended_at_any_moment_leaves_whole_records(
    script: str,
    over_a_folder: bool,
    tiny_weights: Path,
    photo: Path,
    image_folder: Path,
    tmp_path: Path,
    durations: dict[tuple[str, bool], float],
) -> None:
    if over_a_folder and script == "benchmark":
        return  # it measures one image, which the other case has
    image = image_folder if over_a_folder else photo
    output = tmp_path / "output"
    start = time.monotonic()
    first = begin(script, tiny_weights, image, output)
    first.communicate(timeout=600)
    assert first.returncode == 0
    took_s = time.monotonic() - start
    earlier = (output / f"{script}.json").read_bytes()
    moments = random.Random(f"{script} {over_a_folder}")
    for _ in range(MOMENTS):
        number = moments.choice(SIGNALS)
        process = begin(script, tiny_weights, image, output)
        time.sleep(moments.uniform(0.02, 1.05) * took_s)
        process.send_signal(number)
        _, error = process.communicate(timeout=600)
        assert process.returncode in (0, 130, -number), (number, process.returncode, error)
        assert "Traceback" not in error or process.returncode == -number, error
        hold_to_the_property(script, output, earlier)
    last = begin(script, tiny_weights, image, output)
    _, error = last.communicate(timeout=600)
    assert last.returncode == 0, error
    decode((output / f"{script}.json").read_bytes(), RECORDS[script])


@pytest.fixture(params=[12, 64, 200])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of so many KiB; skips where none may be mounted."""
    with mounted(tmp_path / "disk", kibibytes=request.param) as folder:
        yield folder


@contextlib.contextmanager
def mounted(folder: Path, *, kibibytes: int) -> Iterator[Path]:
    """Yield the folder as a file system of its own for a while."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("no file system may be mounted here: run as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_disk_that_is_full_costs_what_does_not_fit_and_no_more(
    script: str, small_disk: Path, tiny_weights: Path, photo: Path
) -> None:
    process = begin(script, tiny_weights, photo, small_disk)
    out, error = process.communicate(timeout=600)
    record = small_disk / f"{script}.json"
    assert process.returncode in (0, 2), error
    assert "Traceback" not in error
    if process.returncode == 2:
        assert error.startswith("error: cannot write ") and error.count("\n") == 1
        assert not record.exists()
    else:
        assert json.loads(record.read_text("utf-8"))["status"] == "complete"
        assert "[INFO] Wrote " in out
    assert not [path for path in small_disk.iterdir() if path.name.endswith(".part")]


def peak_bytes(command: list[str], out: Path) -> tuple[int, int]:
    """Run a command to its end; return its exit code and the most memory that it had."""
    with out.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_maxrss * 1024


def test_many_images_under_torchrun_survive_a_full_disk_changes_and_a_killed_rank(
    tiny_weights: Path, tmp_path: Path
) -> None:
    images = make_images(tmp_path / "images", MANY)
    with mounted(tmp_path / "references", kibibytes=6 * MANY) as references:
        hold_to_the_end(tiny_weights, images, references, tmp_path / "out")


def hold_to_the_end(weights: Path, images: Path, references: Path, output: Path) -> None:
    """Disturb a run over images in every way, let another one go to its end, and look at it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(ROOT / "accuracy.py"), "--device", "cpu"]
    command += ["--weights", str(weights), "--image", str(images), "--no-report"]
    command += ["--output-dir", str(output), "--references", str(references)]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not any(references.iterdir()):
        time.sleep(0.01)
    ranks = children(process.pid)
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)  # a tiny model would be at the end before the changes are
    (images / "000.png").unlink()
    (images / f"{MANY - 1:03}.png").write_bytes(b"cut short")
    shutil.copyfile(images / "001.png", images / "added.png")
    os.kill(ranks[-1], signal.SIGKILL)
    os.kill(ranks[0], signal.SIGCONT)
    _, error = process.communicate(timeout=600)
    assert process.returncode not in (0, None)
    assert [line for line in error.splitlines() if line.startswith("error: ")], error
    assert not (output / "accuracy.json").exists()

    done = subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, check=False, timeout=3600
    )
    assert done.returncode == 0, done.stderr
    content = (output / "accuracy.json").read_bytes()
    results = decode(content, RECORDS["accuracy"]).results  # type: ignore[attr-defined] # by name
    assert results.folder.images == MANY - 1  # one less, one more, and one that is broken
    assert [Path(broken.image).name for broken in results.folder.broken] == [f"{MANY - 1:03}.png"]
    assert results.folder.cached > 0
    assert "No space left on device" in done.stdout + done.stderr


def test_memory_does_not_grow_with_the_images_of_a_folder(
    tiny_weights: Path, tmp_path: Path
) -> None:
    peaks, saved = [], []
    for count in (MANY // 4, MANY):
        images = make_images(tmp_path / f"images-{count}", count)
        command = [sys.executable, str(ROOT / "accuracy.py"), "--device", "cpu", "--no-report"]
        command += ["--weights", str(tiny_weights), "--image", str(images)]
        command += ["--output-dir", str(tmp_path / f"out-{count}")]
        code, peak = peak_bytes(command, tmp_path / "console")
        assert code == 0
        peaks.append(peak)
        saved.append((tmp_path / f"out-{count}" / FILE).stat().st_size)
    # The first images' features are kept for their file, up to MOST_SAVED_BYTES, and twice written.
    assert saved[1] <= MOST_SAVED_BYTES + (1 << 20)
    assert peaks[1] - peaks[0] < (32 << 20) + 3 * (saved[1] - saved[0]), (peaks, saved)


def test_the_table_of_many_hosts_has_a_row_for_each_and_memory_stays_flat(tmp_path: Path) -> None:
    folders = []
    for number in range(MANY):
        folder = tmp_path / f"{number:04}"
        folder.mkdir()
        for script, record in everything().items():
            (folder / f"{script}.json").write_text(json.dumps(record), encoding="utf-8")
        folders.append(str(folder))
    command = [sys.executable, str(ROOT / "docs" / "collect.py")]
    _, one = peak_bytes([*command, folders[0]], tmp_path / "table.csv")
    code, peak = peak_bytes([*command, *folders], tmp_path / "table.csv")
    assert code == 0
    assert len((tmp_path / "table.csv").read_text().splitlines()) == MANY + 1
    assert peak - one < 16 << 20, (one, peak)
