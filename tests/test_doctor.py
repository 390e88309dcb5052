"""The doctor: what is right and wrong on a host, what to install there, what a bug report gets."""

import dataclasses
import json
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

import npu_patch
from kit import bundle, doctor, environment
from kit.doctor import Check, Pair
from kit.environment import Cann, Host
from tests.emulated_npu import REPOSITORY, EmulatedNpu
from tests.test_npu_patch_hosts import _fake_torch_npu

READY = Host(
    python="3.11.9",
    machine="aarch64",
    versions={
        "torch": "2.12.0+cpu",
        "torch-npu": "2.12.0",
        "transformers": "4.57.6",
        "numpy": "2.4.0",
    },
    torch_build="cpu",
    cann=Cann(version="9.1.0", chips=8, chip="Ascend910_9362"),
    driver_file="26.1.0",
)
RULE = "/usr/local/Ascend"


def ready(**changes: object) -> Host:
    """Return a ready host with changes; versions are merged, an empty one is not installed."""
    if isinstance(versions := changes.get("versions"), dict):
        merged = {**READY.versions, **versions}
        changes["versions"] = {name: version for name, version in merged.items() if version}
    return dataclasses.replace(READY, **changes)  # type: ignore[arg-type]


def checks(given: Host) -> dict[str, Check]:
    return {check.name: check for check in (check(given) for check in doctor.CHECKS)}


def run(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ---- The command -------------------------------------------------------------------------------


def test_the_diagnosis_of_a_bare_host_names_what_is_wrong(tmp_path: Path) -> None:
    done = run("-S", "-m", "npu_patch", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    found = {check["name"]: check for check in report["checks"]}
    assert done.returncode == 1
    assert report["ready"] is False and report["schema_version"] == 2
    assert found["Python"]["right"] and not found["torch"]["right"]
    assert not found["CANN"]["right"] and "set_env.sh" in found["CANN"]["fix"]
    assert not found["chips"]["right"] and not found["NPU"]["right"]
    assert all(check["fix"] for check in report["checks"] if check["right"] is False)
    assert report["install"]["pair"]["torch_npu"] == "2.12.0"


def test_the_diagnosis_as_text_has_a_line_a_check_and_ends_with_what_to_install(
    tmp_path: Path,
) -> None:
    done = run("-S", "-m", "npu_patch", cwd=tmp_path)
    lines, _, install = done.stdout.partition("\n\n")
    assert done.returncode == 1
    assert len(lines.splitlines()) == len(doctor.CHECKS) + 1
    assert all(line[:8] in {"right   ", "WRONG   ", "unsure  "} for line in lines.splitlines())
    assert install.count(" -m pip install ") == 3
    assert install.startswith("Install torch 2.12.0 and torch-npu 2.12.0, a guess: ")


def test_the_diagnosis_names_a_wrong_pair(tmp_path: Path) -> None:
    _fake_torch_npu(tmp_path, "2.1.0.post3", "raise SystemExit('imported')\n")
    done = run(
        *("-m", "npu_patch", "--json"),
        cwd=tmp_path,
        PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}",
    )
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert "torch-npu 2.1.0.post3 is not made for torch" in found["torch-npu"]["value"]


def test_the_diagnosis_does_not_import_torch() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['npu_patch', '--json']\n"
        "try:\n"
        f"    runpy.run_path({str(REPOSITORY / 'npu_patch.py')!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert 'torch' not in sys.modules and 'torch_npu' not in sys.modules\n"
    )
    done = run("-c", code, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


def test_the_diagnosis_of_a_ready_host_says_that_it_computes(npu_host: EmulatedNpu) -> None:
    done = npu_host.run(["-m", "npu_patch", "--json"])
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert report["ready"] is True
    found = {check["name"]: check for check in report["checks"]}
    assert found["chips"]["value"] == "2 x Ascend910_9362"
    assert found["CANN"]["value"] == "9.1.0"
    assert found["NPU"]["value"] == "computes"
    assert not [name for name, check in found.items() if check["right"] is False]


def test_the_diagnosis_without_a_chip_says_so(npu_host: EmulatedNpu) -> None:
    done = npu_host.run(["-m", "npu_patch", "--json"], environment={"FAKECANN_DEVICES": "0"})
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert found["CANN"]["right"]
    assert not found["chips"]["right"] and "npu-smi" in found["chips"]["fix"]


def test_lines_that_cann_prints_do_not_disturb_the_answer() -> None:
    noise = "os.write(1, b'[INFO] lines\\n')\nprint('more')\n"
    assert environment.ask(f"{noise}os.write(answer, b'{{\"chips\": 2}}')\n{noise}") == (
        {"chips": 2},
        "",
    )


def test_a_child_that_is_killed_leaves_its_last_words() -> None:
    words = "what():  Duplicated key 'pinned_reserve_segment_size_mb' found"
    code = f"os.write(2, b'''terminate called\\n  {words}\\nmore'''); os.abort()"
    assert environment.ask(code) == ({}, words)
    assert environment.ask("os.abort()") == ({}, "exit code -6")


# ---- Versions and pairs ------------------------------------------------------------------------


def test_the_table_is_sound() -> None:
    table = doctor.pairs()
    assert table.recommended == Pair("2.12.0", "2.12.0", "9.1.0")
    assert len({row.torch_npu for row in table.rows}) == len(table.rows) > 20
    for row in table.rows:
        assert environment.release(row.torch_npu)[:3] == environment.release(row.torch)
        assert len(environment.minor(row.cann)) == 2
        assert row.torch in table.python_of_torch


@pytest.mark.parametrize(
    ("version", "number"),
    [
        ("8.5.0-beta.1", (8, 5)),
        ("8.3.RC2", (8, 3)),
        ("9.0.0", (9, 0)),
        ("8.2.RC1.alpha003", (8, 2)),
        ("V100R001", ()),
        ("", ()),
    ],
)
def test_cann_versions_are_read_as_major_and_minor(version: str, number: tuple[int, ...]) -> None:
    assert environment.minor(version) == number


@pytest.mark.parametrize(
    ("cann", "python", "torch", "pair"),
    [
        ("9.1.0", "3.11.9", "", "2.12.0"),
        ("9.1.0", "3.13.1", "2.9.0", "2.9.0.post6"),  # its torch stays
        ("9.0.0", "3.11.9", "2.13.0", "2.9.0.post2"),
        ("8.5.1", "3.10.4", "2.8.0+cpu", "2.8.0.post2"),
        ("8.3.RC2", "3.11.9", "", "2.8.0"),
        ("8.5.0-beta.1", "3.10.4", "2.9.0", "2.9.0"),
    ],
)
def test_the_pair_is_that_of_the_host_s_cann(cann: str, python: str, torch: str, pair: str) -> None:
    given = ready(python=python, cann=Cann(version=cann), versions={"torch": torch})
    chosen = doctor.prescribe(given)
    assert chosen.pair.torch_npu == pair
    assert chosen.reason == f"for CANN {cann} and Python {python}"


@pytest.mark.parametrize(
    ("cann", "python", "reason"),
    [
        (None, "3.11.9", "a guess: CANN's version is unknown, and this is recommended with 9.1.0"),
        ("9.7.0", "3.11.9", "a guess: the table has no row for CANN 9.7.0"),
        (
            "8.5.0",
            "3.13.1",
            "a guess: wheels for CANN 8.5.0 are for Python 3.10, 3.11, 3.12, not 3.13",
        ),
    ],
)
def test_outside_the_table_the_pair_is_said_to_be_a_guess(
    cann: str | None, python: str, reason: str
) -> None:
    chosen = doctor.prescribe(ready(python=python, cann=Cann(version=cann)))
    assert (chosen.pair.torch_npu, chosen.reason) == ("2.12.0", reason)


@pytest.mark.parametrize(
    ("cann", "versions", "missing", "packages"),
    [
        ("9.1.0", {}, (), ()),
        ("9.1.0", {}, ("attrs", "scipy"), ("attrs scipy",)),
        ("9.1.0", {"numpy": ""}, ("numpy", "scipy"), ("numpy scipy",)),
        ("8.2.RC1", {}, ("attrs",), ("attrs 'numpy<2'",)),
        ("8.2.RC1", {"numpy": ""}, ("numpy",), ("'numpy<2'",)),
        ("8.2.RC1", {"numpy": "1.26.4"}, (), ()),
    ],
)
def test_the_commands_install_the_cpu_build_and_keep_pip_from_changing_it(
    cann: str, versions: dict[str, str], missing: tuple[str, ...], packages: tuple[str, ...]
) -> None:
    chosen = doctor.prescribe(ready(cann=Cann(version=cann), versions=versions, missing=missing))
    torch, torch_npu, *others = [text.partition(" -m pip install ")[2] for text in chosen.commands]
    assert torch == (f"torch=={chosen.pair.torch} --index-url https://download.pytorch.org/whl/cpu")
    assert torch_npu == f"--no-deps torch-npu=={chosen.pair.torch_npu}"
    assert tuple(others) == packages


def test_a_pair_older_than_what_was_tried_is_prescribed_and_said_to_be_so() -> None:
    given = ready(cann=Cann(version="8.2.RC1"), versions={"torch": "2.5.1"})
    chosen = doctor.prescribe(given)
    assert chosen.pair.torch_npu == "2.5.1.post1"
    assert chosen.reason.startswith("for CANN 8.2.RC1 and Python 3.11.9, older than ")
    check = checks(given)["torch"]
    assert (check.right, check.fix) == (None, "")
    assert check.value.endswith("is the oldest that was tried")


def test_the_patch_and_the_doctor_know_the_same_releases_of_torch() -> None:
    table = doctor.pairs()
    assert npu_patch.OLDEST_TORCH == doctor.OLDEST_TORCH
    assert set(table.cuda_build_starts) == npu_patch._CUDA_BUILD_STARTS
    assert not npu_patch._CUDA_BUILD_STARTS & {*table.cuda_build_aborts}


def test_the_cuda_build_is_offered_where_it_was_seen_to_start() -> None:
    for cann, offered in (("9.1.0", True), ("8.2.RC1", False)):
        given = ready(cann=Cann(version=cann), versions={"torch-npu": ""})
        found = tuple(check(given) for check in doctor.CHECKS)
        text = doctor.as_text(found, doctor.prescribe(given))
        assert text.endswith("it is the CUDA build, larger, which starts too.") is offered


def test_an_unknown_pair_is_no_mistake() -> None:
    check = checks(ready(versions={"torch-npu": "2.12.0.post9"}))["pairing with CANN"]
    assert check.right is None
    assert check.value == (
        "unknown pair: the table has no row for torch-npu 2.12.0.post9; here is CANN 9.1.0"
    )


@pytest.mark.parametrize(
    ("torch_npu", "cann", "right"),
    [
        ("2.8.0.post2", "8.5.0", True),
        ("2.8.0.post2", "8.5.1", True),
        ("2.8.0.post2+gitabc", "8.3.RC1", False),
        ("2.8.0", "8.3.RC2", True),
        ("2.8.0", "8.5.0", False),
        ("2.9.0.post1+gitee7ba04", "8.5.1", True),
        ("2.9.0.post1+gitee7ba04", "8.0.RC2", False),
        ("2.13.0", "9.1.0", None),
        ("2.12.0", "unreadable", None),
        ("2.12.0", "", None),
    ],
)
def test_the_post_number_names_the_cann_release(
    torch_npu: str, cann: str, right: bool | None
) -> None:
    given = ready(versions={"torch-npu": torch_npu}, cann=Cann(version=cann or None))
    assert checks(given)["pairing with CANN"].right is right


def test_a_cann_without_a_readable_version_is_not_wrong() -> None:
    found = checks(ready(cann=Cann(version=None, chips=1, chip="Ascend310P3")))
    assert found["CANN"] == Check("CANN", "loaded, of unknown version")
    assert found["pairing with CANN"].right is None


def test_the_npu_is_tried_whatever_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ask", lambda code: ({"right": True}, ""))
    given = ready(
        versions={"torch": "2.20.0", "torch-npu": "2.20.0"}, cann=Cann(version="10.0.0", chips=1)
    )
    assert doctor.try_npu(given) == Check("NPU", "computes")
    assert doctor.try_npu(ready(cann=Cann())).value == "not tried"


# ---- What is on the disk -----------------------------------------------------------------------


def cann_folder(folder: Path, version: str = "") -> None:
    """Make what CANN's installer leaves of its version."""
    (folder / "aarch64-linux").mkdir(parents=True)
    if version:
        text = f"package_name=Ascend-cann-toolkit\nversion={version}\narch=aarch64\n"
        (folder / "aarch64-linux" / "ascend_toolkit_install.info").write_text(text)


@pytest.fixture
def ascend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty /usr/local/Ascend, and a home without one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setattr(environment, "ask", lambda code, **variables: ({}, "not asked"))
    (tmp_path / "Ascend").mkdir()
    return tmp_path / "Ascend"


def test_cann_8_5_is_found_in_its_new_place(ascend: Path) -> None:
    cann_folder(ascend / "cann-8.5.0", "8.5.0")
    (ascend / "cann").symlink_to("cann-8.5.0")
    (ascend / "cann-8.5.0" / "set_env.sh").touch()
    found = environment.read_host(ascend)
    assert (found.cann_on_disk, found.set_env) == ("8.5.0", str(ascend / "cann" / "set_env.sh"))
    check = checks(found)["CANN"]
    assert check.value == "found 8.5.0, not loaded (not asked)"
    assert check.fix == f"Load CANN: source {ascend}/cann/set_env.sh"


def test_cann_8_3_is_found_in_its_old_place(ascend: Path) -> None:
    cann_folder(ascend / "ascend-toolkit" / "8.3.RC2", "8.3.RC2")
    (ascend / "ascend-toolkit" / "latest").symlink_to("8.3.RC2")
    (ascend / "ascend-toolkit" / "set_env.sh").touch()
    found = environment.read_host(ascend)
    assert found.cann_on_disk == "8.3.RC2"
    assert checks(found)["CANN"].fix == f"Load CANN: source {ascend}/ascend-toolkit/set_env.sh"


def test_cann_s_folder_names_its_version_where_no_file_does(ascend: Path) -> None:
    cann_folder(ascend / "cann-9.0.0-beta.2")
    assert environment.read_host(ascend).cann_on_disk == "9.0.0-beta.2"


def test_the_loaded_cann_is_looked_at_before_others(
    ascend: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cann_folder(ascend / "cann-8.5.0", "8.5.0")
    cann_folder(tmp_path / "mine", "9.1.0")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "mine"))
    assert environment.read_host(ascend).cann_on_disk == "9.1.0"


def test_a_host_without_cann_hears_of_both_places(ascend: Path) -> None:
    fix = checks(environment.read_host(ascend))["CANN"].fix
    assert f"source {RULE}/cann/set_env.sh" in fix
    assert f"source {RULE}/ascend-toolkit/set_env.sh" in fix


@pytest.mark.parametrize(
    ("content", "version"),
    [("Version=25.0.rc1.1\nfirm=1\n", "25.0.rc1.1"), ("\udcff\n", ""), (None, None)],
)
def test_the_driver_s_file_is_read(ascend: Path, content: str | None, version: str | None) -> None:
    if content is not None:
        (ascend / "driver").mkdir()
        file = ascend / "driver" / "version.info"
        file.write_bytes(content.encode(errors="surrogateescape"))
    assert environment.read_host(ascend).driver_file == version


@pytest.mark.parametrize("garbage", ["\ufffd\ufffd(\x01", "driver version is too old", "", None])
def test_a_driver_version_that_cannot_be_read_costs_nothing(garbage: str | None) -> None:
    given = ready(driver_file=None, cann=Cann(driver=environment.readable(garbage), chips=1))
    assert checks(given)["driver"] == Check("driver", "of unknown version", None)


def test_a_missing_driver_is_wrong_only_where_no_chip_is_seen() -> None:
    check = checks(ready(driver_file=None, cann=Cann()))["driver"]
    assert check.right is False
    assert check.value == f"no {RULE}/driver/version.info"


@pytest.mark.parametrize(
    "raises", ["UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'invalid start byte')", None]
)
def test_a_record_has_null_for_a_driver_version_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, raises: str | None
) -> None:
    def get_cann_version(module: str) -> str:
        if raises:
            raise eval(raises)
        return "\x7f\x01(" if module == "DRIVER" else "9.1.0"

    utils = types.ModuleType("torch_npu.npu.utils")
    utils.get_cann_version = get_cann_version  # type: ignore[attr-defined]
    for name in ("torch_npu", "torch_npu.npu"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torch_npu.npu.utils", utils)
    assert environment.ascend_version("DRIVER") is None
    assert environment.ascend_version("CANN") == (None if raises else "9.1.0")


# ---- Packages and variables --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "build"),
    [
        ("cuda: Optional[str] = '12.8'", "CUDA 12.8"),
        ("cuda = '13.0'", "CUDA 13.0"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", "ROCm 6.4"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", "cpu"),
        ("", ""),
    ],
)
def test_torch_s_build_is_read_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, build: str
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit\n")
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\n")
    spec = importlib_spec(tmp_path / "torch")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    assert environment._torch_build() == build


def importlib_spec(folder: Path) -> types.SimpleNamespace:
    return types.SimpleNamespace(origin=str(folder / "__init__.py"))


@pytest.mark.parametrize("release", ["2.13.0", "2.14.0"])
def test_a_cuda_build_that_would_end_the_process_is_wrong(release: str) -> None:
    versions = {"torch": release, "torch-npu": release}
    check = checks(ready(versions=versions, torch_build="CUDA 13.0"))["torch"]
    assert check.right is False
    assert check.value == (
        f"{release}, built for CUDA 13.0: with torch-npu {release} it ends the process"
    )
    assert check.fix.endswith(
        f" -m pip install torch=={release}+cpu --index-url https://download.pytorch.org/whl/cpu"
    )
    assert checks(ready(versions=versions))["torch"].right


def test_a_cuda_build_is_right_where_it_starts_and_where_there_is_no_torch_npu() -> None:
    versions = {"torch": "2.12.0", "torch-npu": "2.12.0"}
    assert checks(ready(versions=versions, torch_build="CUDA 13.0"))["torch"].right
    versions = {"torch": "2.13.0", "torch-npu": ""}
    assert checks(ready(versions=versions, torch_build="CUDA 13.0"))["torch"].right


def test_a_cuda_build_beside_an_nvidia_gpu_is_wrong() -> None:
    check = checks(ready(torch_build="CUDA 12.8", nvidia=True))["torch"]
    assert check.right is False and "two accelerators" in check.value


def test_numpy_2_with_cann_8_2_is_wrong() -> None:
    check = checks(ready(cann=Cann(version="8.2.RC1")))["CANN's Python"]
    assert check.right is False and check.fix.endswith("pip install 'numpy<2'")
    assert checks(ready(cann=Cann(version="8.3.RC1")))["CANN's Python"].right


def test_missing_packages_of_cann_are_named_with_the_command() -> None:
    check = checks(ready(missing=("attrs", "cloudpickle")))["CANN's Python"]
    assert (check.right, check.value) == (None, "missing: attrs, cloudpickle")
    assert check.fix.endswith(" -m pip install attrs cloudpickle")


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("0", True),
        ("0,1,7", True),
        ("3", True),
        ("1,0", False),
        ("0,0", False),
        ("", False),
        ("npu:0", False),
        ("0,1 ,0", True),  # torch_npu reads no further than the blank
    ],
)
def test_visible_chips_must_ascend(value: str, right: bool) -> None:
    check = checks(ready(variables={"ASCEND_RT_VISIBLE_DEVICES": value}))["visible chips"]
    assert check.right is right
    assert check.value.startswith(f"ASCEND_RT_VISIBLE_DEVICES={value}")
    assert right or "ascending: 0,1" in check.fix


def test_a_container_without_the_driver_s_libraries_hears_how_to_mount_them() -> None:
    problem = "libascend_hal.so: cannot open shared object file"
    check = checks(ready(cann=Cann(problem=problem)))["CANN"]
    assert check.value == f"not loaded ({problem})"
    assert f"-v {RULE}/driver:{RULE}/driver" in check.fix
    assert f"export LD_LIBRARY_PATH={RULE}/driver/lib64/driver" in check.fix


def test_the_driver_s_libraries_that_are_there_need_only_the_path(ascend: Path) -> None:
    folder = ascend / "driver" / "lib64" / "driver"
    folder.mkdir(parents=True)
    (folder / "libascend_hal.so").touch()
    found = dataclasses.replace(
        environment.read_host(ascend), cann=Cann(problem="libascend_hal.so: no")
    )
    assert checks(found)["CANN"].fix == f"export LD_LIBRARY_PATH={folder}:$LD_LIBRARY_PATH"


def test_a_torchvision_that_does_not_fit_is_seen(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    record = tmp_path / "torchvision-0.24.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.24.0\n")
    done = run(
        *("-m", "npu_patch", "--json"),
        cwd=tmp_path,
        PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}",
    )
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}["torchvision"]
    assert found["right"] is False
    assert "0.24.0 does not fit torch " in found["value"]
    assert "operator torchvision::nms does not exist" in found["value"]
    assert " uninstall torchvision" in found["fix"]


def test_the_torchvision_for_this_torch_is_named() -> None:
    given = ready(versions={"torch": "2.9.0", "torchvision": "0.28.0"}, torchvision_problem="x")
    assert "torchvision==0.24.*" in checks(given)["torchvision"].fix


def test_what_is_too_old_is_named() -> None:
    found = checks(ready(versions={"transformers": "4.55.4"}))
    assert found["transformers"].value == "4.55.4 has no DINOv3"


@pytest.mark.parametrize(
    ("python", "right"), [("3.10.1", True), ("3.13.9", True), ("3.14.0", None)]
)
def test_a_python_that_nobody_tried_is_said_to_be_so(python: str, right: bool | None) -> None:
    assert checks(ready(python=python))["Python"].right is right


def test_an_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.version_info = (3, 9, 18); sys.version = '3.9.18 (main)'; import kit"
    done = run("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the kit needs Python 3.10 or newer, this is 3.9.18\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: b\nRuntimeError: words\n[ERROR] 2026 more", "RuntimeError: words"),
        ("Traceback\n  File x\nOSError: libhccl.so: No such file or directory", "libhccl.so"),
        (
            "Traceback (most recent call last):\n  File x\nRuntimeError: SetPrecisionMode failed\n"
            "[Error]: internal\n        EC0010: [PID: 1] Failed to import Python module [x].\n"
            "        Solution: Check that all required",
            "EC0010: [PID: 1] Failed to import Python module [x]",
        ),
        ("terminate called after\n  what():  Duplicated key\nx", "what():  Duplicated key"),
        ("nothing known\nlast", "last"),
        ("", ""),
    ],
)
def test_the_line_with_the_cause_is_found(text: str, line: str) -> None:
    assert environment.last_words(text) == line


# ---- The bundle --------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Make a folder of results with names everywhere."""
    record = {
        "environment": {
            "command": ["inference.py", "--image", "My Photos/Alice Smith.jpg", "--dtype", "bf16"],
            "variables": {"ASCEND_HOME_PATH": "/usr/local/Ascend/cann-9.0.0"},
        },
        "model": {"weights": "/data/clinic-x/weights"},
        "input": {"image": "My Photos/Alice Smith.jpg"},
        "results": {"ranks": [{"host": "node-17.clinic"}], "throughput": 127.4},
        "warnings": ["/home/alice/scan 3.png is odd", "alice on Box9 at 10.1.2.3:29500"],
    }
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "inference.json").write_text(json.dumps(record))
    (folder / "benchmark.json").write_text('{"image": "/data/clinic-x/patient.png", broken')
    (folder / "inference.log").write_text(
        "[INFO] Loading image from: My Photos/Alice Smith.jpg\n"
        "[INFO] Loading model from: /data/clinic-x/weights\n"
        "[INFO] Loading model from: seeded random weights (seed 0)\n"
        "[INFO] Wrote output/inference.json, 127 images/s on node-17.clinic\n"
        f'  File "{REPOSITORY}/kit/run.py", line 3, in main\n'
    )
    (folder / "accuracy.log").write_text("[INFO] Loading image from: Uncle Bob.jpeg\n")
    (folder / "inference_features.png").write_bytes(b"pixels")
    return folder


def test_no_name_leaks_into_the_bundle(results: Path) -> None:
    names = bundle.Names(["Box9.clinic", "box9"], ["alice"])
    files = bundle.contents(results, names)
    everything = "".join([*files, *files.values()]).lower()
    for name in ("alice", "smith", "photos", "clinic", "patient", "box9", "node-17", "10.1.2.3"):
        assert name not in everything, name
    assert "uncle" not in everything and "scan" not in everything


def test_the_bundle_keeps_what_a_bug_report_needs(results: Path) -> None:
    files = bundle.contents(results, bundle.Names(["box9"], ["alice"]))
    assert set(files) == {"inference.json", "inference.log", "benchmark.json", "accuracy.log"}
    record = json.loads(files["inference.json"])
    command = record["environment"]["command"]
    assert command[:2] == ["inference.py", "--image"] and command[3:] == ["--dtype", "bf16"]
    assert command[2] == record["input"]["image"] and command[2].endswith(".jpg")
    assert record["environment"]["variables"]["ASCEND_HOME_PATH"] == "/usr/local/Ascend/cann-9.0.0"
    assert record["results"]["throughput"] == 127.4
    log = files["inference.log"].splitlines()
    assert log[0] == f"[INFO] Loading image from: {command[2]}"
    assert log[1] == f"[INFO] Loading model from: {record['model']['weights']}"
    assert log[2] == "[INFO] Loading model from: seeded random weights (seed 0)"
    assert log[3] == "[INFO] Wrote output/inference.json, 127 images/s on <host>"
    assert log[4] == '  File "<kit>/kit/run.py", line 3, in main'


@pytest.mark.parametrize("common", ["root", "npu", "7", "a"])
def test_a_name_that_everybody_has_spoils_no_text(common: str) -> None:
    text = "root moved a model to npu:0 in 7 ms"
    assert bundle.Names([common], [common]).text(text) == text


def test_the_command_writes_the_bundle(results: Path) -> None:
    target = results.parent / "report.zip"
    done = run("-S", "-m", "npu_patch", "--bundle", target, cwd=results.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Wrote {target}: accuracy.log, benchmark.json, doctor.json, ")
    with zipfile.ZipFile(target) as archive:
        assert json.loads(archive.read("doctor.json"))["ready"] is False
        assert b"WRONG" in archive.read("doctor.txt")
        everything = b"".join(archive.read(name) for name in archive.namelist())
    assert str(results.parent).encode() not in everything
    assert sorted(results.parent.iterdir()) == [results, target]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "usage: python3 -m npu_patch --bundle FILE.zip [FOLDER]\n"),
        (["absent/x.zip"], "cannot write absent/x.zip: No such file or directory\n"),
    ],
)
def test_a_bundle_that_cannot_be_written_is_one_line(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    done = run("-S", "-m", "npu_patch", "--bundle", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
