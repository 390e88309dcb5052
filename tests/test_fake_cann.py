"""The emulated NPU as a host: devices, versions, missing operators, the build and the fixture."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.emulated_npu import REPOSITORY, SET_BY_THE_PATCH, WARM_CHIPS, EmulatedNpu
from tests.fake_cann import build

HOST = """
import torch, torch_npu
from torch_npu.npu.utils import get_cann_version
count = torch.npu.device_count()
print("count", count, torch.npu.is_available())
if count:
    print("name", torch.npu.get_device_name(count - 1))
    x = torch.ones(2, device=f"npu:{count - 1}") * 3
    print("sum", x.sum().item(), x.device)
print("versions", get_cann_version("CANN"), get_cann_version("RUNTIME"))
"""


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_host_has_the_devices_chip_and_versions_that_were_set(
    npu_host: EmulatedNpu, count: int
) -> None:
    soc = "Ascend910B3" if count == 8 else "Ascend910_9362"
    finished = npu_host.run_code(
        HOST,
        environment={
            "FAKECANN_DEVICES": str(count),
            "FAKECANN_SOC": soc,
            "FAKECANN_VERSION": "8.3.RC1" if count == 8 else "9.1.0",
        },
    )
    assert finished.returncode == 0, finished.stderr
    assert f"count {count} True\nname {soc}\nsum 6.0 npu:{count - 1}\n" in finished.stdout
    assert ("versions 8.3.RC1 8.3.RC1" if count == 8 else "versions 9.1.0") in finished.stdout


def test_the_library_that_is_loaded_says_that_it_is_no_chip(npu_host: EmulatedNpu) -> None:
    source = """
import ctypes, os, torch_npu
library = ctypes.CDLL("libascendcl.so", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
print("emulated", library.fake_cann_emulated())
"""
    finished = npu_host.run_code(source)
    assert "emulated 1\n" in finished.stdout, finished.stderr


@pytest.mark.extended
def test_the_devices_that_are_visible_have_to_ascend(npu_host: EmulatedNpu) -> None:
    for visible, count in {"1": 1, "0,1": 2, "1,0": 0, "0,7": 1}.items():
        finished = npu_host.run_code(HOST, environment={"ASCEND_RT_VISIBLE_DEVICES": visible})
        assert f"count {count} {count > 0}\n" in finished.stdout, (visible, finished.stderr)


@pytest.mark.extended
def test_a_drivers_version_can_be_unreadable_or_unknown(npu_host: EmulatedNpu) -> None:
    source = """
from torch_npu.npu.utils import get_cann_version
print("CANN", get_cann_version("CANN"))
try:
    print("driver", repr(get_cann_version("DRIVER")))
except UnicodeDecodeError as error:
    print("driver is no text")
"""
    for driver, answer in {
        "garbage": " is no text",
        "none": " ''",
        "24.1.rc2": " '24.1.rc2'",
    }.items():
        finished = npu_host.run_code(source, environment={"FAKECANN_DRIVER": driver})
        assert f"CANN 9.1.0\ndriver{answer}\n" in finished.stdout, finished.stderr
    finished = npu_host.run_code(source, environment={"FAKECANN_FAIL": "aclsysGetCANNVersion"})
    assert "CANN \ndriver ''\n" in finished.stdout, finished.stderr


def test_without_the_drivers_library_torch_npu_cannot_be_imported(npu_host: EmulatedNpu) -> None:
    finished = npu_host.run_code("import torch", environment={"FAKECANN_DRIVER": "missing"})
    assert finished.returncode == 1
    assert "ImportError: libascend_hal.so: cannot open shared object file" in finished.stderr


def test_cann_writes_lines_on_stdout_when_its_variable_says_so(npu_host: EmulatedNpu) -> None:
    source = "import torch; torch.ones(2, device='npu'); print('done')"
    finished = npu_host.run_code(source, environment={"ASCEND_SLOG_PRINT_TO_STDOUT": "1"})
    assert re.fullmatch(r"\[INFO\] ACL\(.* aclInit\ndone\n", finished.stdout), finished.stderr


def test_a_host_without_a_device_says_so(npu_host: EmulatedNpu) -> None:
    finished = npu_host.run_code(HOST, environment={"FAKECANN_DEVICES": "0"})
    assert finished.returncode == 0, finished.stderr
    assert "count 0 False" in finished.stdout


def test_an_operator_that_torch_npu_lacks_falls_back_to_the_cpu_and_warns_on_stderr(
    npu_host: EmulatedNpu,
) -> None:
    source = """
import torch
x = torch.hypot(torch.full((2,), 3.0, device="npu"), torch.full((2,), 4.0, device="npu"))
print("hypot", x.cpu().tolist(), x.device)
"""
    finished = npu_host.run_code(source)
    assert "hypot [5.0, 5.0] npu:0" in finished.stdout
    assert "aten::hypot" in finished.stderr
    assert "fall back to run on the CPU" in finished.stderr
    silenced = npu_host.run_code(source, environment={"TORCH_NPU_DISABLED_WARNING": "1"})
    assert "hypot [5.0, 5.0] npu:0" in silenced.stdout
    assert "fall back" not in silenced.stderr


def test_an_operator_that_is_not_emulated_ends_the_process_or_raises_as_asked(
    npu_host: EmulatedNpu,
) -> None:
    source = """
import torch
x = torch.ones(3, 4, device="npu")
try:
    torch.nn.functional.embedding_bag(torch.zeros(1, 2, dtype=torch.long, device="npu"), x)
except RuntimeError:
    print("raised")
"""
    strict = npu_host.run_code(source)
    assert strict.returncode == 97
    assert "operator not emulated: aclop EmbeddingBag" in strict.stderr
    lenient = npu_host.run_code(
        source, environment={"FAKECANN_STRICT": "0", "TASK_QUEUE_ENABLE": "0"}
    )
    assert "raised" in lenient.stdout


def test_without_computing_the_values_are_garbage_but_copies_arrive(npu_host: EmulatedNpu) -> None:
    source = """
import torch
x = torch.arange(4.0).to("npu")
print("copied", x.cpu().tolist(), "added", (x + 1).cpu().tolist() == [1.0, 2.0, 3.0, 4.0])
"""
    finished = npu_host.run_code(source, environment={"FAKECANN_NOOP": "1"})
    assert "copied [0.0, 1.0, 2.0, 3.0] added False" in finished.stdout, finished.stderr


def test_the_launcher_runs_a_script_with_its_arguments_and_exit_code(
    npu_host: EmulatedNpu, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\nprint(sys.argv[1], torch.npu.device_count())\nsys.exit(7)"
    )
    finished = subprocess.run(
        [sys.executable, REPOSITORY / "tests" / "fake_cann" / "run.py", script, "hello"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in SET_BY_THE_PATCH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 7, finished.stderr
    assert "hello 2\n" in finished.stdout
    assert npu_host.library_folder.is_dir()


ENDINGS = {
    "words": "import sys\nprint(sys.argv, __name__)\nprint('aside', file=sys.stderr)",
    "code": "import sys\nsys.exit(7)",
    "error": "{}['absent']",
    "signal": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "module": "import __main__, pickle\ndef f(): return 5\nprint(pickle.loads(pickle.dumps(f))())",
}


@pytest.mark.extended
@pytest.mark.parametrize(
    ("ending", "in_file"), [*zip(ENDINGS, itertools.cycle([False, True]), strict=False)]
)
def test_a_fork_of_the_warm_python_ends_and_prints_as_a_new_process(
    npu_host: EmulatedNpu, tmp_path: Path, ending: str, in_file: bool
) -> None:
    npu_host.close()  # a variable that a test before has left would keep it from being forked
    source = f"import torch\n{ENDINGS[ending]}"  # whose torch_npu has a word at the end, too
    (tmp_path / "script.py").write_text(source)
    command = ["script.py", "-x", "y"] if in_file else ["-c", source, "-x", "y"]
    forked, new = (npu_host.run(command, cwd=tmp_path, fresh=fresh) for fresh in (False, True))
    assert npu_host.warm[WARM_CHIPS[0]].serves(command, npu_host.environment())
    assert forked.returncode == new.returncode
    timeless = [re.sub(r"[\d:-]+", "N", done.stdout) for done in (forked, new)]
    assert timeless[0] == timeless[1]
    assert forked.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


def test_what_a_fork_cannot_change_is_run_in_a_new_process(npu_host: EmulatedNpu) -> None:
    code = "import os, torch\nprint(os.environ.get('FAKECANN_DEVICES'), torch.npu.device_count())"
    assert npu_host.run_code(code).stdout == "None 2\n"
    assert npu_host.run_code(code, environment={"FAKECANN_DEVICES": "5"}).stdout == "5 5\n"


def test_a_child_that_takes_too_long_is_ended(npu_host: EmulatedNpu) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        npu_host.run_code("import time\ntime.sleep(600)", timeout_s=0.5)
    assert npu_host.run_code("print(1)").stdout == "1\n"


def test_a_child_does_not_inherit_the_faults_of_its_parent(
    npu_host: EmulatedNpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKECANN_FAIL", "aclnnGelu")
    environment = npu_host.environment({"FAKECANN_SOC": "Ascend310P3"})
    assert "FAKECANN_FAIL" not in environment
    assert environment["FAKECANN_SOC"] == "Ascend310P3"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["LD_LIBRARY_PATH"].split(os.pathsep)[0] == str(npu_host.library_folder)


def test_an_unchanged_source_is_not_rebuilt_and_a_changed_one_is(
    npu_host: EmulatedNpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "compile_all", lambda *_: pytest.fail("compiled again"))
    assert build.build() == npu_host.library_folder
    changed = tmp_path / "src"
    shutil.copytree(build.SOURCE_FOLDER, changed)
    monkeypatch.setattr(build, "SOURCE_FOLDER", changed)
    assert build.build_folder() == npu_host.library_folder
    (changed / "options.cpp").write_text("// another")
    assert build.build_folder() != npu_host.library_folder


def test_of_two_builds_at_once_one_compiles_and_the_other_waits_for_it(
    npu_host: EmulatedNpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled = []

    def compile_slowly(_torch: Path, _torch_npu: Path, objects: Path) -> None:
        compiled.append(objects)
        time.sleep(0.2)

    monkeypatch.setenv(build.BUILD_FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(build, "compile_all", compile_slowly)
    monkeypatch.setattr(build, "link_all", lambda *_: None)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build.build(), range(2))
    assert first == second != npu_host.library_folder
    assert len(compiled) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"lock", first.name}


def _package(folder: Path, name: str, version: str, cuda: str | None = None) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / name / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")


@pytest.mark.parametrize(
    ("torch_version", "cuda", "torch_npu", "reason"),
    [
        ("2.13.0+cpu", None, "2.13.0", None),
        ("2.9.0+cu128", "12.8", "2.9.0.post2", None),
        ("2.12.0", "13.0", "2.12.0", None),
        ("2.13.0", "13.0", "2.13.0", "ends the process beside a CUDA build of torch 2.13.0"),
        ("2.14.0+cu130", "13.0", "2.14.0", "ends the process beside a CUDA build of torch 2.14.0"),
        ("2.9.0+cpu", None, "2.13.0", "torch-npu 2.13.0 is not made for torch 2.9.0+cpu"),
        ("2.13.1+cpu", None, "2.13.0", "torch-npu 2.13.0 is not made for torch 2.13.1+cpu"),
        ("2.13.0+cpu", None, None, "pip install --no-deps --upgrade -r"),
    ],
)
def test_a_pair_that_cannot_be_loaded_is_named_and_not_imported(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    torch_version: str,
    cuda: str | None,
    torch_npu: str | None,
    reason: str | None,
) -> None:
    _package(tmp_path, "torch", torch_version, cuda)
    if torch_npu:
        _package(tmp_path, "torch_npu", torch_npu)
    monkeypatch.setenv(build.TORCH_NPU_VARIABLE, str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(build, "compiler", lambda: "g++")
    found = build.unavailable_reason()
    assert found == reason or (found and reason and reason in found and "\n" not in found)


@pytest.mark.extended
@pytest.mark.parametrize("no_skips", ["0", "1"])
def test_a_missing_compiler_skips_or_fails_where_no_test_may_skip(
    tmp_path: Path, no_skips: str
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    _package(packages, "torch_npu", str(torch.__version__).partition("+")[0])
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import npu_host, pytest_runtest_makereport\n"
    )
    (tmp_path / "test_it.py").write_text("def test_it(npu_host): pass\n")
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", tmp_path],
        env={
            **os.environ,
            "CXX": "no-such-compiler",
            "KIT_NO_SKIPS": no_skips,
            "KIT_TORCH_NPU": str(packages),
            "PYTHONPATH": str(REPOSITORY),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == int(no_skips), finished.stdout
    assert "the emulated NPU needs g++ 12 or newer, which is not installed" in finished.stdout
    assert ("1 skipped" if no_skips == "0" else "KIT_NO_SKIPS=1, but") in finished.stdout
