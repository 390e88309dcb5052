"""The scripts as a user runs them: processes of their own."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from kit.run import ROOT
from tests.schemas import hold_to_schema

SCRIPT = str(ROOT / "inference.py")


def environment() -> Mapping[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def run(arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        check=False,
    )


@pytest.fixture
def long_run(tiny_weights: Path, photo: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run over so many images that a test can stop it in the middle."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(20_000):
        (folder / f"{number}.png").symlink_to(photo)
    return ["--weights", str(tiny_weights), "--image", str(folder), "--output-dir", "out"]


def started(arguments: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
    """Start inference.py and wait until it computes."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "timed inference" in line:
            break
    return process


@pytest.mark.extended
def test_without_weights_the_whole_vit_b16_runs_from_any_folder(tmp_path: Path) -> None:
    done = run(["--device", "cpu"], tmp_path)
    record = json.loads((tmp_path / "output" / "inference.json").read_text("utf-8"))
    hold_to_schema(record)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert record["model"]["source"] == "random"
    assert record["model"]["parameters"] == 85_660_416
    assert record["results"]["last_hidden_state"]["shape"] == [1, 201, 768]
    assert record["input"]["image"] == str(ROOT / "data" / "sample.jpg")
    assert "the features mean nothing" in done.stdout
    assert (tmp_path / "output" / "inference.log").read_text("utf-8") == done.stdout
    with Image.open(tmp_path / "output" / "inference_features.png") as picture:
        assert picture.width == 2 * 640 + 8
        assert picture.info["source"] == "random"


def test_help_names_every_option_and_imports_no_torch(tmp_path: Path) -> None:
    done = run(["--help"], tmp_path)
    for option in [
        "--weights",
        "--download",
        "--image",
        "--size",
        "--device",
        "--dtype",
        "--attention",
        "--strict-fp32",
        "--output-dir",
        "--seed",
        "--save-features",
    ]:
        assert option in done.stdout
    assert done.returncode == 0
    code = (
        "import sys, inference\n"
        "try: inference.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(
    tmp_path: Path,
) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import inference; sys.exit(inference.main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the package torch is not installed: pip install -r requirements.txt\n"
    )


def test_ctrl_c_is_one_line_exit_code_130_and_nothing_written(
    long_run: list[str], tmp_path: Path
) -> None:
    process = started(long_run, tmp_path)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "interrupted: nothing was written\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_the_tests_of_ctrl_c_run_as_a_shells_background_job_too(tmp_path: Path) -> None:
    chosen = ROOT / "tests" / "test_npu_patch_command.py::test_ctrl_c_ends_it_as_directly"
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-m", "pytest", "-q"]
    done = subprocess.run(
        [*ignoring, "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}", str(chosen)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


def test_a_killed_run_leaves_the_earlier_record(long_run: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "inference.json").write_text("{}")
    process = started(long_run, tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["inference.json"]
    assert (tmp_path / "out" / "inference.json").read_text() == "{}"


def test_a_file_too_large_for_the_disk_is_one_line_and_leaves_nothing(
    tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--weights", str(tiny_weights), "--image", str(photo)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write output/") and done.stderr.count("\n") == 1
    assert list((tmp_path / "output").iterdir()) == []


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path, tiny_weights: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--weights", str(tiny_weights)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    error = process.stderr.read()
    process.wait(timeout=120)
    assert process.returncode == 2
    assert error == "error: the reader of the console output went away; nothing was written\n"
