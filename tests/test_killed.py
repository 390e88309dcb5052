"""Whatever moment a run ends at, records are whole or absent, and the next run needs no help.

KIT_KILL_MOMENTS sets at how many random moments each script is ended; .ci/run tries a few.
"""

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

from kit.records import RECORDS, decode
from kit.run import ROOT

pytestmark = pytest.mark.extended
MOMENTS = int(os.environ.get("KIT_KILL_MOMENTS", "2"))
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
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("no file system may be mounted here: run as root")
    yield folder
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
