"""What every script's main does around its work."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import inference
from kit import output
from kit.run import ROOT

Run = Callable[..., tuple[int, Path]]

AROUND_THE_IMPORTS = """
import gc, sys
from kit.run import quick_imports
seen = []
gc.callbacks.append(lambda phase, info: seen.append(phase))
try:
    with quick_imports():
        import npu_patch, torch
        {inside}
except OSError:
    pass
{after}
print(len(seen), gc.isenabled(), gc.get_freeze_count() > 50_000)
"""


def around_the_imports(inside: str = "", after: str = "") -> str:
    """Return how often garbage was looked for, and how it stands after the imports."""
    source = AROUND_THE_IMPORTS.format(inside=inside, after=after)
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip()


@pytest.mark.parametrize("inside", ["", "raise OSError"])
def test_imports_are_not_searched_for_garbage_and_what_follows_is(inside: str) -> None:
    assert around_the_imports(inside) == "0 True True"
    assert around_the_imports(inside, after="gc.collect()") == "2 True True"


def test_a_second_run_in_the_same_process_freezes_nothing() -> None:
    after = "gc.unfreeze()\nwith quick_imports(): assert gc.isenabled()"
    assert around_the_imports(after=after) == "0 True False"


def test_a_crash_is_one_line_and_exit_code_2_and_leaves_earlier_results(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run_inference()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    monkeypatch.setattr(inference, "now", lambda: 1 / 0)
    code, _ = run_inference()
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ZeroDivisionError: division by zero (")
    assert error.count("\n") == 1
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert b"in <lambda>" in after.pop("inference.error.log")
    assert after == before


def test_a_picture_that_fails_is_a_warning_and_costs_nothing_else(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kit.inference import features

    def fail(*_: object) -> bytes:
        raise ValueError("SVD did not converge")

    monkeypatch.setattr(features, "draw", fail)
    code, folder = run_inference()
    assert code == 0
    warning = "[WARNING] No inference_features.png: ValueError: SVD did not converge\n"
    assert warning in capsys.readouterr().out
    assert warning in (folder / "inference.log").read_text("utf-8")
    assert sorted(path.name for path in folder.iterdir()) == [
        "inference.json", "inference.log", "report.html", "report.md",
    ]  # fmt: skip


@pytest.mark.parametrize("package", ["jinja2", "msgspec"])
def test_a_package_of_the_report_that_is_missing_costs_no_record(
    run_inference: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
) -> None:
    for name in [name for name in sys.modules if name.startswith(("kit.report", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    code, folder = run_inference()
    assert code == 0
    assert (folder / "inference.json").is_file()
    warning = f"[WARNING] No report: the package {package} is not installed\n"
    assert warning in capsys.readouterr().out
    assert (folder / "inference_features.png").is_file()
    assert not (folder / "report.md").exists()


def test_inference_draws_without_matplotlib(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, folder = run_inference()
    assert code == 0
    assert "No inference_features.png" not in capsys.readouterr().out
    assert (folder / "inference_features.png").is_file()


def test_the_record_is_written_before_the_report_is_printed(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = output.RunLog.line

    def full(self: output.RunLog, text: str = "") -> None:
        if text == "Inference Results":
            raise BrokenPipeError
        original(self, text)

    monkeypatch.setattr(output.RunLog, "line", full)
    monkeypatch.setattr(output, "detach_stdout", lambda: None)
    code, folder = run_inference()
    assert code == 2
    error = capsys.readouterr().err
    assert "the reader of the console output went away" in error
    assert f"{folder / 'inference.json'}, {folder / 'inference.log'} had been written" in error
    assert json.loads((folder / "inference.json").read_text("utf-8"))["status"] == "complete"
    assert "Inference Results\n" in (folder / "inference.log").read_text("utf-8")


def test_sigterm_acts_as_ctrl_c(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminate() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(10)  # the signal is heard at the next instruction
        return ""

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(inference, "now", terminate)
    code, folder = run_inference()
    assert code == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert not list(folder.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_in_a_destructor_is_not_lost(
    run_inference: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    class Closing:
        def __del__(self) -> None:
            signal.raise_signal(number)  # what is raised here, Python drops

    waited: list[bool] = []

    def close() -> str:
        Closing()
        waited.append(threading.Event().wait(60))
        return ""

    monkeypatch.setattr(inference, "now", close)
    code, folder = run_inference()
    assert code == 130
    assert waited == []  # the wait was ended, not waited for
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert not list(folder.iterdir())


def test_sigterm_in_a_destructor_is_not_lost_where_a_shell_ignores_ctrl_c(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closing:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def close() -> str:
        Closing()
        threading.Event().wait(60)
        return ""

    monkeypatch.setattr(inference, "now", close)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for nohup's and background jobs
    try:
        code, _ = run_inference()
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130


def test_what_else_a_destructor_raises_reaches_the_hook_that_was_there(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("in a destructor")

    def end() -> str:
        Broken()
        return "2026-01-01T00:00:00+00:00"

    heard: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: heard.append(str(what.exc_value)))
    monkeypatch.setattr(inference, "now", end)
    code, _ = run_inference()
    assert (code, heard) == (0, ["in a destructor"])


def test_a_name_that_is_no_utf8_reaches_the_console_the_log_and_the_record(
    run_inference: Run, photo: Path, tmp_path: Path
) -> None:
    image = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    image.write_bytes(photo.read_bytes())
    code, folder = run_inference("--image", str(image))
    assert code == 0
    assert json.loads((folder / "inference.json").read_text("utf-8"))["input"]["image"].endswith(
        r"caf\xe9.png"
    )
    assert r"caf\udce9.png" in (folder / "inference.log").read_text("utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_console_on_a_full_disk_is_one_line(tiny_weights: Path, tmp_path: Path) -> None:
    options = ["--weights", str(tiny_weights), "--output-dir", str(tmp_path)]
    command = [sys.executable, "inference.py", *options]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot print: No space left on device; free the space\n"
