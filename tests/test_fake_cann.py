"""The emulated NPU as a host: devices, versions, missing operators, the build and the fixture."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.emulated_npu import REPOSITORY, SET_BY_THE_PATCH, EmulatedNpu
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
    finished = npu_host.run_code(source, environment={"EMULATED_NPU": ""})
    assert "emulated 1\n" in finished.stdout, finished.stderr


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


def test_two_builds_at_once_leave_one_whole_result(
    npu_host: EmulatedNpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def finish_second(_torch: Path, _objects: Path, libraries: Path) -> None:
        (libraries / "mine").touch()
        if not build.build_folder().exists():  # the other process is done while we compile
            build.build_folder().mkdir()
            (build.build_folder() / "theirs").touch()

    monkeypatch.setenv(build.BUILD_FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(build, "compile_all", lambda *_: time.sleep(0))
    monkeypatch.setattr(build, "link_all", finish_second)
    folder = build.build()
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [folder]
    assert folder != npu_host.library_folder


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("torch_npu", "the emulated NPU needs torch-npu, which is not installed"),
        ("g++", "the emulated NPU needs g++ 12 or newer, which is not installed"),
    ],
)
def test_the_reason_for_skipping_is_one_line(
    monkeypatch: pytest.MonkeyPatch, missing: str, reason: str
) -> None:
    found = {"torch": Path("torch"), "torch_npu": Path("torch_npu")}
    found.pop(missing, None)
    monkeypatch.setattr(build, "package_folder", found.get)
    monkeypatch.setattr(build, "compiler", lambda: None if missing == "g++" else "g++")
    assert build.unavailable_reason() == reason
    with pytest.raises(build.BuildError, match="needs"):
        build.build()


@pytest.mark.parametrize("required", ["0", "1"])
def test_a_missing_compiler_skips_unless_the_npu_is_required(tmp_path: Path, required: str) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import npu_host\n")
    (tmp_path / "test_it.py").write_text("def test_it(npu_host): pass\n")
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", tmp_path],
        env={
            **os.environ,
            "CXX": "no-such-compiler",
            "KIT_REQUIRE_NPU": required,
            "PYTHONPATH": str(REPOSITORY),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == int(required), finished.stdout
    if build.package_folder("torch_npu"):
        assert "the emulated NPU needs g++ 12 or newer, which is not installed" in finished.stdout
    assert ("1 skipped" if required == "0" else "KIT_REQUIRE_NPU=1, but") in finished.stdout
