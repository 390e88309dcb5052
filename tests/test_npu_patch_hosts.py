"""npu_patch on hosts where no NPU can be used: each state has its cause, its fix, and no harm."""

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import npu_patch
from tests.emulated_npu import REPOSITORY
from tests.fake_cann import build

SURVIVES = (
    "import logging\n"
    "import npu_patch\n"
    "import importlib.util, torch\n"
    "from transformers import DINOv3ViTModel\n"
    "status = npu_patch.status()\n"
    "assert not status.applied\n"
    "assert not hasattr(torch.Tensor, 'npu') or status.state == 'no_device'\n"
    "assert torch.ones(2).sum() == 2\n"
    "assert npu_patch.apply() == status == npu_patch.restore()\n"
    "print(status.state, status.reason, status.fix, sep='|')\n"
)


def _run(code: str, *folders: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    paths = [*map(str, folders), str(REPOSITORY)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    environment |= {"PYTHONPATH": os.pathsep.join(paths), **variables}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=folders[0] if folders else REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _fake_torch_npu(folder: Path, version: str, source: str) -> Path:
    """Write a torch_npu that is found before a real one, with an installer's record of itself."""
    package = folder / "torch_npu"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    record = folder / f"torch_npu-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n"
    )
    # As the real one has it: torch loads the back end by itself.
    (record / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    return folder


def _torch_version() -> str:
    import torch

    return str(torch.__version__).partition("+")[0]


def _state(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("NPU monkey-patch") <= 1
    return done.stdout.strip().splitlines()[-1].split("|")


HIDE = (
    "import os, sys\n"
    "sys.modules['torch_npu'] = None\n"
    "os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'\n"
)


def test_torch_npu_absent_is_said_without_alarm() -> None:
    done = _run(HIDE + SURVIVES)
    assert _state(done) == ["torch_npu_absent", "torch_npu is not installed", ""]
    assert "NPU monkey-patch" not in done.stderr


def test_cann_absent_names_the_library_and_how_to_load_it(tmp_path: Path) -> None:
    error = "libhccl.so: cannot open shared object file: No such file or directory"
    fake = _fake_torch_npu(tmp_path, _torch_version(), f"raise ImportError({error!r})\n")
    done = _run(SURVIVES, fake)
    state, reason, fix = _state(done)
    assert state == "cann_absent"
    assert "libhccl.so" in reason
    assert "set_env.sh" in fix
    assert "NPU monkey-patch not applied: torch_npu does not find CANN (libhccl.so)" in done.stderr


def test_cann_absent_with_the_real_torch_npu() -> None:
    if reason := build.unavailable_reason():
        pytest.skip(reason)
    assert _state(_run(SURVIVES, build.torch_npu_folder()))[0] == "cann_absent"


def test_a_child_process_is_safe_too(tmp_path: Path) -> None:
    fake = _fake_torch_npu(tmp_path, _torch_version(), "raise ImportError('libhccl.so: no')\n")
    code = (
        "import npu_patch, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import torch; print(7)'], check=True)\n"
    )
    assert _run(code, fake).stdout.strip() == "7"


def test_the_wrong_pair_is_named_and_not_imported(tmp_path: Path) -> None:
    fake = _fake_torch_npu(tmp_path, "2.1.0.post3", "raise SystemExit('imported')\n")
    done = _run(SURVIVES, fake)
    state, reason, fix = _state(done)
    assert state == "version_mismatch"
    assert reason.startswith("torch-npu 2.1.0.post3 is not made for torch ")
    assert f"pip install --no-deps 'torch-npu=={_torch_version()}.*'" in fix


def test_a_post_number_and_a_local_part_still_pair(tmp_path: Path) -> None:
    fake = _fake_torch_npu(tmp_path, f"{_torch_version()}.post1+git123", "raise ImportError('x')\n")
    state, reason, _ = _state(_run(SURVIVES, fake))
    assert state == "torch_npu_broken"
    assert reason == "torch_npu cannot be imported (x)"


@pytest.mark.parametrize("error", ["RuntimeError('line one\\nline two')", "OSError('boom')"])
def test_a_torch_npu_that_breaks_in_another_way_is_one_line(tmp_path: Path, error: str) -> None:
    source = f"import torch_npu.half\nraise {error}\n"
    fake = _fake_torch_npu(tmp_path, _torch_version(), source)
    (fake / "torch_npu" / "half.py").write_text("")
    state, reason, fix = _state(_run(SURVIVES, fake))
    assert state == "torch_npu_broken"
    assert "line two" not in reason
    assert "python3 -m npu_patch" in fix


def test_torch_absent_is_a_state_and_not_an_error(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "import npu_patch\n"
        "print(npu_patch.status().state)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = _run(code)
    assert done.stdout.strip() == "torch_absent"
    assert "pip install torch" in done.stderr


def test_torch_compile_stays_where_no_npu_is_used() -> None:
    unset = "import os; os.environ.pop('TORCH_COMPILE_DISABLE', None)\n"
    code = f"{unset}{HIDE}import npu_patch; print('TORCH_COMPILE_DISABLE' in os.environ)"
    assert _run(code).stdout.strip() == "False"


@pytest.mark.parametrize(
    ("version", "too_old"),
    [("2.5.1", True), ("2.6.0+cpu", True), ("2.7.1", False), ("2.13.0+cpu", False), ("3.0", False)],
)
def test_a_torch_that_is_too_old_is_one_line_and_tried(
    monkeypatch: pytest.MonkeyPatch, version: str, too_old: bool
) -> None:
    monkeypatch.setattr(npu_patch, "_version", lambda package: version)
    line = npu_patch.Status("applied", "", npu_patch._age_problem()).message
    applied = "Applied NPU monkey-patch (torch.cuda -> torch.npu)"
    warned = f"{applied}. torch {version} is older than 2.7, the oldest supported."
    assert line == (warned if too_old else applied)


def test_a_module_without_a_list_of_its_names_has_names(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("as_in_torch_2_10")
    exec("import os\n_SUPPORTED = True\nclass GreenContext: ...\nclass _Own: ...", vars(module))
    monkeypatch.setitem(sys.modules, "as_in_torch_2_10", module)
    assert npu_patch.public("as_in_torch_2_10") == "GreenContext"
    module.__dict__["__all__"] = ["ours"]
    assert npu_patch.public("as_in_torch_2_10") == "ours"


def test_a_copy_alone_works(tmp_path: Path) -> None:
    copied = tmp_path / "npu_patch.py"
    copied.write_bytes((REPOSITORY / "npu_patch.py").read_bytes())
    code = "import sys; sys.path = [p for p in sys.path if p != sys.argv[1]]\n"
    done = _run(
        f"{code}{HIDE}import npu_patch; print(npu_patch.__file__)".replace(
            "sys.argv[1]", repr(str(REPOSITORY))
        ),
        tmp_path,
    )
    assert done.stdout.strip() == str(copied), done.stderr


def test_on_a_bare_machine_the_import_brings_no_torch() -> None:
    code = HIDE + "import npu_patch, sys; print('torch' in sys.modules)"
    assert _run(code).stdout.strip() == "False"


# A torch and a torch_npu that are nothing but their build and the way in which the import ends.
TORCH = "class npu:\n    is_available = lambda: False\n"
LAST_WORDS = (
    "terminate called after throwing an instance of 'c10::ValueError'\n"
    "  what():  Duplicated key 'pinned_reserve_segment_size_mb' found\nframe #0: <unknown>"
)
DIES = f"sys.stderr.write({LAST_WORDS!r})\nsys.stderr.flush()\nos.abort()\n"
EXITS = "sys.stderr.write('out of handles\\n')\nsys.stderr.flush()\nos._exit(7)\n"
RAISES = "raise ImportError('libhccl.so: cannot open shared object file')\n"
ASK = (
    "import npu_patch\nstatus = npu_patch.status()\n"
    "print(status.state, status.reason, status.fix, sep='|')\n"
)


class Pair:
    """A folder with the two packages."""

    def __init__(self, folder: Path, torch: str, ending: str) -> None:
        self.folder, self.diary = folder, folder / "diary"
        release, _, local = torch.partition("+")
        cuda = repr("13.0" if local.startswith("cu") else None)
        (folder / "torch").mkdir()
        (folder / "torch" / "__init__.py").write_text(TORCH)
        (folder / "torch" / "version.py").write_text(
            f"from typing import Optional\n__version__ = {torch!r}\ncuda: Optional[str] = {cuda}\n"
        )
        record = folder / f"torch-{torch}.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n")
        _fake_torch_npu(folder, release, self._source(ending))

    def _source(self, ending: str) -> str:
        return f"import os, sys\nopen({str(self.diary)!r}, 'a').write('x')\n{ending}"

    def end(self, ending: str) -> None:
        """Let the import end in another way, though the libraries look as before."""
        file = self.folder / "torch_npu" / "__init__.py"
        written = file.stat().st_mtime_ns
        file.write_text(self._source(ending))
        os.utime(file, ns=(written, written))
        shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)

    def ask(self, code: str = ASK, **variables: str) -> list[str]:
        """Import npu_patch in a new process; return state, reason and fix."""
        variables = {"XDG_CACHE_HOME": str(self.folder / "cache"), **variables}
        return _state(_run(code, self.folder, CUDA_VISIBLE_DEVICES="", **variables))

    @property
    def imports(self) -> int:
        """How often torch_npu was imported."""
        return len(self.diary.read_text()) if self.diary.exists() else 0


def test_a_pair_whose_import_dies_is_named_and_never_imported_here(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "2.13.0+cu130", DIES)
    state, reason, fix = pair.ask()
    assert state == "torch_npu_aborts"
    assert reason == (
        "importing torch_npu 2.13.0 beside torch 2.13.0+cu130 for cuda 13.0 ends the process"
        " (SIGABRT: Duplicated key 'pinned_reserve_segment_size_mb' found)"
    )
    wheel = "pip install 'torch==2.13.0+cpu' --index-url https://download.pytorch.org/whl/cpu"
    assert fix == f"Install torch's CPU build: {wheel}"
    assert pair.imports == 1
    hidden = "import npu_patch, importlib.util, torch\nprint(importlib.util.find_spec('torch_npu'))"
    assert pair.ask(hidden) == ["None"]


def test_the_answer_is_remembered_while_the_libraries_stay(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "2.13.0+cu130", DIES)
    first = pair.ask()
    assert pair.ask() == first
    assert pair.imports == 1
    os.utime(tmp_path / "torch_npu" / "__init__.py", (1, 1))
    assert pair.ask() == first
    assert pair.imports == 2


def test_ranks_and_workers_are_told_the_answer(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "2.13.0+cu130", DIES)
    code = (
        "import os, subprocess, sys\nimport npu_patch\n"
        "environment = {**os.environ, 'XDG_CACHE_HOME': '/elsewhere'}\n"
        f"command = [sys.executable, '-c', {ASK!r}]\n"
        "subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)\n"
    )
    assert pair.ask(code)[0] == "torch_npu_aborts"
    assert pair.imports == 1


def test_without_a_home_the_temporary_folder_remembers(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "2.13.0+cu130", DIES)
    (tmp_path / "temporary").mkdir()
    for _ in range(2):
        pair.ask(XDG_CACHE_HOME="/dev/null", TMPDIR=str(tmp_path / "temporary"))
    assert pair.imports == 1


@pytest.mark.parametrize("build", ["2.13.0+cpu", "2.12.0+cu130", "2.9.0+cu128"])
def test_a_pair_that_is_known_to_start_needs_no_trial(tmp_path: Path, build: str) -> None:
    pair = Pair(tmp_path, build, "")
    assert pair.ask()[0] == "no_device"
    assert pair.imports == 1


def test_a_cuda_build_that_starts_is_tried_once(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "2.13.0+cu130", "")
    assert pair.ask()[0] == "no_device"
    assert pair.imports == 2
    assert pair.ask()[0] == "no_device"
    assert pair.imports == 3


def test_a_trial_that_raises_is_no_answer(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "2.13.0+cu130", RAISES)
    assert pair.ask()[0] == "cann_absent"
    pair.end(DIES)
    assert pair.ask()[0] == "torch_npu_aborts"


def test_an_import_that_exits_is_named_by_its_code(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "2.13.0", EXITS)
    (tmp_path / "torch" / "version.py").unlink()
    state, reason, fix = pair.ask()
    assert state == "torch_npu_aborts"
    assert reason.endswith("for an unknown device ends the process (exit code 7: out of handles)")
    assert "python3 -m npu_patch" in fix


def test_a_pair_of_unknown_versions_is_tried(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "2.13.0+cpu", DIES)
    for record in tmp_path.glob("torch_npu-*"):
        shutil.rmtree(record)
    assert pair.ask()[0] == "torch_npu_aborts"
