"""What is captured of the host."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from kit import environment
from kit.device import device
from kit.device.health import SILENCERS, watch
from kit.run import ROOT

NPU_SMI = """
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B4               | OK            | 93.9        41                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3162 / 32768         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 2389          | python3                  | 123                     |
| 0       0                 | 77            | vllm                     | 30212                   |
| No running processes found in NPU 1                                                            |
+===========================+===============+====================================================+
"""


def test_cores_are_written_as_the_system_does() -> None:
    assert environment.as_ranges({0}) == "0"
    assert environment.as_ranges({16, 1, 0, 2, 18, 19}) == "0-2,16,18-19"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://github.com/owner/kit.git", "https://github.com/owner/kit.git"),
        ("https://user:token@gitee.com/owner/kit?key=1", "https://gitee.com/owner/kit"),
        ("git@atomgit.com:owner/kit.git", "git@atomgit.com:owner/kit.git"),
        ("ssh://git@atomgit.com:22/owner/kit", "ssh://git@atomgit.com:22/owner/kit"),
        ("ssh://alice@atomgit.com/owner/kit", None),
        ("/home/alice/kit", None),
        ("file:///home/alice/kit", None),
        ("https://10.0.0.3/kit", None),
        ("https://build-host/kit", None),
        ("git@git.corp:owner/kit", None),
        ("", None),
    ],
)
def test_the_clones_address_is_kept_where_it_is_public_and_never_a_credential(
    url: str, address: str | None
) -> None:
    assert environment.public_address(url) == address


def test_the_numa_nodes_are_those_of_the_cores(tmp_path: Path) -> None:
    for node, core in ((0, 0), (0, 1), (1, 2), (10, 3)):
        (tmp_path / f"node{node}" / f"cpu{core}").mkdir(parents=True)
    assert environment.numa_nodes({1, 3}, tmp_path) == (0, 10)
    assert environment.numa_nodes({1}, tmp_path / "none") == ()


def test_processes_on_the_chips_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.device_processes() is None
    tool = tmp_path / "npu-smi"
    tool.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{NPU_SMI}\nEND\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    assert environment.device_processes() == 2


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor : 0\nmodel name : AMD EPYC\n", "AMD EPYC"),
        ("processor : 0\nCPU implementer : 0x48\nCPU part : 0xd01\n", "Kunpeng 920"),
        ("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0c\n", os.uname().machine),
    ],
)
def test_a_processor_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, name: str
) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    assert device.cpu_name() == name


def test_a_capture_names_this_process_own_cores() -> None:
    found = environment.capture(ROOT)
    assert found.cpu_affinity == environment.as_ranges(os.sched_getaffinity(0))


@pytest.mark.parametrize("name", SILENCERS)
def test_fallbacks_are_unknown_where_their_messages_are_silenced(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    read, write = os.pipe()
    with watch(True, write) as fallen:
        pass
    assert fallen.names == ()
    monkeypatch.setenv(name, "1")
    with watch(True, write) as fallen:
        pass
    assert fallen.names is None
    os.close(read)
    os.close(write)


def test_cleared_results_are_no_change_of_the_kit(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", tmp_path, *author, *words], check=True, capture_output=True)

    (tmp_path / "output").mkdir()
    for name in ("kit.py", "output/.gitkeep"):
        (tmp_path / name).touch()
    assert environment.git_commit(tmp_path) is None
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    shutil.rmtree(tmp_path / "output")
    commit = environment.git_commit(tmp_path)
    assert commit and re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "kit.py").write_text("changed")
    assert environment.git_commit(tmp_path) == f"{commit}+dirty"
