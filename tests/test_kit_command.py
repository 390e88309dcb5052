"""python3 -m kit: the three scripts one after the other, whatever becomes of one of them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kit import __main__ as command
from kit.run import ROOT
from tests.emulated_npu import EmulatedNpu

# A script that ends as its file beside it says.
STUB = """import os, pathlib, signal, sys, time
def stop(number, frame):
    print("asked to stop", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
ending = pathlib.Path(__file__).with_suffix(".ends").read_text()
print(pathlib.Path(__file__).stem, *sys.argv[1:], flush=True)
if ending == "waits":
    time.sleep(60)
if ending == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(ending))
"""


def stubs(folder: Path, *endings: str) -> Path:
    """Put scripts in a folder that end as said: an exit code, `dies` or `waits`."""
    for script, ending in zip(command.SCRIPTS, endings, strict=True):
        (folder / script).write_text(STUB)
        (folder / script).with_suffix(".ends").write_text(ending)
    return folder


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    """Start python3 -m kit with the scripts of a folder in place of the kit's."""
    program = (
        "import pathlib, sys; from kit import __main__ as command;"
        f"command.ROOT = pathlib.Path({str(folder)!r}); sys.exit(command.main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, "--output-dir", str(folder / "output"), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def table(out: str) -> dict[str, str]:
    """Return how each script ended, by the table of outcomes."""
    rows = re.findall(r"^(\w+\.py) +(.+?) +[\d.]+ s$", out, re.M)
    return dict(rows)


@pytest.mark.parametrize(
    ("endings", "code", "outcomes"),
    [
        (("0", "0", "0"), 0, ["passed", "passed", "passed"]),
        (("0", "1", "0"), 1, ["passed", "failed its verdict", "passed"]),
        (("2", "0", "1"), 2, ["could not run", "passed", "failed its verdict"]),
        (("0", "dies", "1"), 137, ["passed", "died: SIGKILL", "failed its verdict"]),
        (("0", "77", "0"), 77, ["passed", "died: exit code 77", "passed"]),
    ],
)
def test_every_script_runs_whatever_becomes_of_the_others(
    tmp_path: Path, endings: tuple[str, str, str], code: int, outcomes: list[str]
) -> None:
    process = start(stubs(tmp_path, *endings))
    out, _ = process.communicate()
    assert process.returncode == code
    assert list(table(out).values()) == outcomes
    assert re.findall(r"^\[INFO\] (\d of 3)", out, re.M) == ["1 of 3", "2 of 3", "3 of 3"]
    assert (tmp_path / "output" / "report.html").is_file()


def test_an_option_goes_to_every_script_that_knows_it(tmp_path: Path) -> None:
    options = ["--seed", "3", "--iterations=9", "--explain", "--lang", "en"]
    out, _ = start(stubs(tmp_path, "0", "0", "0"), *options).communicate()
    shared = ["--seed", "3", "--lang", "en"]
    lines = [line for line in out.splitlines() if line.startswith(("inference ", "bench", "accur"))]
    tails = [line.split(f"{tmp_path / 'output'} ")[1].split() for line in lines if "--seed" in line]
    assert tails == [
        shared,
        ["--seed", "3", "--iterations=9", "--lang", "en"],
        ["--seed", "3", "--explain", "--lang", "en"],
    ]


def test_modes_are_the_benchmarks_unless_a_coverage_is_asked_for() -> None:
    for coverage, takers in (
        ([], ["benchmark.py"]),
        (["--coverage"], ["benchmark.py", "accuracy.py"]),
    ):
        _, arguments = command.parse(["--modes", "fp32-sdpa", *coverage])
        assert [script for script, words in arguments.items() if "--modes" in words] == takers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bogus", "1"], "no script knows '--bogus'"),
        (["photo.jpg"], "unrecognized arguments: photo.jpg"),
        (["--iterations", "none"], "argument --iterations: 'none' is not a whole number"),
        (["--strict", "1"], "unrecognized arguments: 1"),
        (["--no-report="], "argument --no-report: ignored explicit argument ''"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--output-dir", str(tmp_path / "output"), *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""
    assert not (tmp_path / "output").exists()


def test_torchrun_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert command.main([]) == 2
    assert "torchrun starts one script" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_script_that_runs_and_leaves_out_the_rest(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = start(stubs(tmp_path, "0", "waits", "0"))
    assert process.stdout is not None
    seen = ""
    while not re.search(r"^benchmark ", seen, re.M):
        line = process.stdout.readline()
        assert line, seen
        seen += line
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out.count("asked to stop") == 1
    assert list(table(out).values()) == ["passed", "stopped", "not run"]
    assert (tmp_path / "output" / "report.html").is_file()


def test_a_record_that_the_script_did_not_write_is_named(tmp_path: Path) -> None:
    folder = stubs(tmp_path, "0", "2", "0") / "output"
    folder.mkdir()
    for script in ("inference", "benchmark"):
        (folder / f"{script}.json").write_text("{}")
    os.utime(folder / "benchmark.json", (1, 1))
    out, _ = start(tmp_path).communicate()
    warned = [line for line in out.splitlines() if "of an earlier run" in line]
    assert warned == [f"[WARNING] {folder / 'benchmark.json'} is of an earlier run"]


def test_the_help_names_every_option_and_needs_no_torch() -> None:
    program = "import sys; from kit.__main__ import main\ntry: main(['--help'])\n"
    program += "except SystemExit: sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for module in command.SCRIPTS.values():
        for name in module.make_parser().names():
            assert name in done.stdout


@pytest.mark.extended
def test_on_the_emulated_npu_it_ends_with_a_card_that_says_so(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    options = ["--weights", str(tiny_weights), "--image", str(photo), "--lang", "en"]
    done = npu_host.run(
        [
            "-m",
            "kit",
            "--output-dir",
            str(tmp_path),
            "--iterations",
            "5",
            "--batch-sizes",
            "1",
            *options,
        ]
    )
    assert done.returncode == 0, done.stderr
    assert list(table(done.stdout).values()) == ["passed"] * 3
    assert f"modelscope upload OWNER/NAME {tmp_path / 'card'}" in done.stdout
    assert f"python3 -m atomgit upload {tmp_path / 'card'} --repo-id OWNER/NAME" in done.stdout
    card = (tmp_path / "card" / "README.md").read_text("utf-8")
    first_line = card.split("---\n")[2].strip().splitlines()[0]
    assert "Computed on the emulated NPU" in first_line
    assert "[INFO] Applied NPU monkey-patch (torch.cuda -> torch.npu)" in card
    assert "python3 tests/fake_cann/run.py inference.py" in card
