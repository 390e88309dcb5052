"""The command python3 -m npu_patch: other people's scripts as if run directly."""

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import npu_patch
from tests.emulated_npu import REPOSITORY, EmulatedNpu


def _run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python without installed packages: what is compared here needs no torch, and no time."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-S", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _both(
    folder: Path, source: str, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """Run a script directly and under the command."""
    (folder / "script.py").write_text(source)
    return (
        _run("script.py", *arguments, cwd=folder),
        _run("-m", "npu_patch", "script.py", *arguments, cwd=folder),
    )


def _without_our_line(text: str) -> str:
    return "".join(line for line in text.splitlines(True) if "NPU monkey-patch" not in line)


def test_a_script_sees_what_it_sees_when_run_directly(tmp_path: Path) -> None:
    source = (
        "import sys, __main__\n"
        "here = sorted(k for k in vars(__main__) if k.startswith('__'))\n"
        "print(sys.argv, __name__, __file__, sys.path[0], here, __package__, __spec__)\n"
        "print(__doc__, __main__ is sys.modules['__main__'], type(__loader__).__name__)\n"
    )
    direct, under = _both(tmp_path, f'"""Words."""\n{source}', "-m", "a b", "--json", "-h")
    assert under.stdout == direct.stdout
    assert under.returncode == direct.returncode == 0


@pytest.mark.parametrize(
    ("ending", "code"),
    [("", 0), ("sys.exit(3)", 3), ("sys.exit('words')", 1), ("sys.exit()", 0), ("1 / 0", 1)],
)
def test_the_exit_code_is_the_scripts_own(tmp_path: Path, ending: str, code: int) -> None:
    direct, under = _both(tmp_path, f"import sys\nprint('ran')\n{ending}\n")
    assert under.returncode == direct.returncode == code
    assert under.stdout == direct.stdout
    assert _without_our_line(under.stderr) == direct.stderr


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    raise ValueError('words')\nf()\n",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError(1) from error\n",
        "this is no python\n",
        "import json\njson.loads('{')\n",
        "import sys\nsys.excepthook = lambda *about: print('hook', about[0].__name__)\n1 / 0\n",
    ],
)
def test_a_traceback_is_the_scripts_own(tmp_path: Path, source: str) -> None:
    direct, under = _both(tmp_path, source)
    assert _without_our_line(under.stderr) == direct.stderr
    assert (under.stdout, under.returncode) == (direct.stdout, direct.returncode)


def test_ctrl_c_ends_it_as_directly(tmp_path: Path) -> None:
    direct, under = _both(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    assert under.returncode == direct.returncode == -signal.SIGINT
    assert _without_our_line(under.stderr) == direct.stderr


def test_a_module_runs_as_directly(tmp_path: Path) -> None:
    package = tmp_path / "parcel"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tool.py").write_text(
        "import sys\nprint(sys.argv, __name__, __package__, __spec__.name, sys.path[0])\n1 / 0\n"
    )
    direct = _run("-m", "parcel.tool", "a", "-b", cwd=tmp_path)
    under = _run("-m", "npu_patch", "-m", "parcel.tool", "a", "-b", cwd=tmp_path)
    assert under.stdout == direct.stdout
    assert under.returncode == direct.returncode == 1
    assert _without_our_line(under.stderr) == direct.stderr


def test_a_folder_with_a_main_runs_as_directly(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "__main__.py").write_text("import sys, other\nprint(sys.argv, sys.path[0])\n")
    (folder / "other.py").write_text("")
    direct, under = (
        _run("app", "x", cwd=tmp_path),
        _run("-m", "npu_patch", "app", "x", cwd=tmp_path),
    )
    assert under.stdout == direct.stdout
    assert under.returncode == direct.returncode == 0


def test_a_missing_script_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    direct, under = (
        _run("absent.py", cwd=tmp_path),
        _run("-m", "npu_patch", "absent.py", cwd=tmp_path),
    )
    assert under.returncode == direct.returncode == 2
    assert under.stderr == direct.stderr


def test_a_missing_module_is_one_line(tmp_path: Path) -> None:
    direct = _run("-m", "absent_module", cwd=tmp_path)
    under = _run("-m", "npu_patch", "-m", "absent_module", cwd=tmp_path)
    assert _without_our_line(under.stderr) == direct.stderr
    assert under.returncode == direct.returncode == 1


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("-h", 0), ("--wrong", 2), ("-m", 2)])
def test_the_usage_is_shown(tmp_path: Path, option: str, code: int) -> None:
    done = _run("-m", "npu_patch", option, cwd=tmp_path)
    assert done.returncode == code
    assert "python3 -m npu_patch script.py" in done.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_a_copy_alone_prints_its_status(tmp_path: Path, as_json: bool) -> None:
    (tmp_path / "npu_patch.py").write_bytes((REPOSITORY / "npu_patch.py").read_bytes())
    done = subprocess.run(
        [sys.executable, "-S", "-m", "npu_patch", *(["--json"] if as_json else [])],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    if as_json:
        assert json.loads(done.stdout)["state"] == "torch_absent"
    else:
        assert "not applied: torch is not installed. Install it: " in done.stdout


class _Loud:
    """A descriptor like torch 2.9's allow_tf32, which warns whoever asks for it."""

    def __get__(self, instance: object, owner: type) -> None:
        raise AssertionError


class _Owner:
    switch = _Loud()


def test_a_row_asks_no_descriptor_that_it_replaces() -> None:
    before = vars(_Owner)["switch"]
    given: list[object] = []

    def keep(original: object, place: npu_patch.Place) -> object:
        given.append(original)
        return original

    npu_patch._do_row(npu_patch.Row(f"{__name__}._Owner", "switch", keep))
    assert given == [before]
    assert vars(_Owner)["switch"] is before


def test_a_type_of_c_takes_an_attribute_and_loses_it_again() -> None:
    span = datetime.timedelta(3)
    before = vars(datetime.timedelta)["days"]
    npu_patch._set(datetime.timedelta, "days", property(lambda self: 7))
    try:
        assert span.days == 7
    finally:
        npu_patch._set(datetime.timedelta, "days", before)
    assert span.days == 3
    assert vars(datetime.timedelta)["days"] is before
    npu_patch._set(datetime.timedelta, "weeks", 1)
    npu_patch._set(datetime.timedelta, "weeks", npu_patch._ABSENT)
    assert not hasattr(span, "weeks")


def test_a_cuda_script_runs_unmodified_on_the_npu(npu_host: EmulatedNpu, tmp_path: Path) -> None:
    script = tmp_path / "cuda_script.py"
    script.write_text(
        "import sys\nimport torch\nimport torch.multiprocessing as mp\n"
        "def work(rank: int) -> None:\n"
        "    assert torch.ones(1, device=f'cuda:{rank}').get_device() == rank\n"
        "if __name__ == '__main__':\n"
        "    assert torch.cuda.is_available()\n"
        "    print(sys.argv[1], torch.ones(2).cuda().sum().item())\n"
        "    mp.spawn(work, nprocs=1)\n"
    )
    done = npu_host.run(["-m", "npu_patch", script, "argument"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("argument 2.0")
