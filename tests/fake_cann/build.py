"""Build the stub CANN libraries for the running interpreter's torch and torch-npu.

    python3 tests/fake_cann/build.py        # prints the folder to put on LD_LIBRARY_PATH

torch-npu lies in a folder of its own, $KIT_TORCH_NPU or build/torch-npu, which only processes on
the emulated NPU have on their path: beside a torch-npu without CANN a bare `import torch` fails.

An unchanged source is not rebuilt: the folder's name is a hash of all that the libraries depend on.
Neither torch nor torch-npu is imported, since importing them needs the libraries.
"""

import concurrent.futures
import fcntl
import hashlib
import importlib.machinery
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kit import doctor

SOURCE_FOLDER = Path(__file__).resolve().parent / "src"
REPOSITORY = Path(__file__).resolve().parents[2]
BUILD_FOLDER_VARIABLE = "FAKE_CANN_BUILD_DIR"
TORCH_NPU_VARIABLE = "KIT_TORCH_NPU"

FLAGS = ("-std=c++20", "-Wall", "-Wextra", "-fmax-errors=3", "-fPIC", "-fvisibility=hidden")
LONGEST_MESSAGE = 4000  # one error in a template can print a thousand lines of candidates
# torch_npu links to these too; all that it wants of them stands in libascendcl.so.
OTHER_NAMES = (
    "libhccl.so",
    "libacl_op_compiler.so",
    "libge_runner.so",
    "libgraph.so",
    "libacl_tdt_channel.so",
    "libmsprofiler.so",
)


class BuildError(Exception):
    """The libraries cannot be built; the message says why and how to fix it."""


def torch_npu_folder() -> Path:
    """Where `pip install --target` put torch-npu for the emulated NPU."""
    return Path(os.environ.get(TORCH_NPU_VARIABLE) or REPOSITORY / "build" / "torch-npu").resolve()


def package_folder(name: str) -> Path | None:
    """Find a package as a process on the emulated NPU will, without importing it.

    sys.modules is not asked: npu_patch hides a torch_npu there that has no CANN.
    """
    spec = importlib.machinery.PathFinder.find_spec(name, [str(torch_npu_folder()), *sys.path])
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def release(package: Path) -> dict[str, Any]:
    """Read version.py of torch or torch-npu, which imports neither."""
    return runpy.run_path(str(package / "version.py"))


def compiler() -> str | None:
    """Find the C++ compiler: $CXX, else g++; None when there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def pair_problem(torch: Path, torch_npu: Path) -> str | None:
    """Why torch-npu cannot be loaded beside this torch, in one line; None when it can."""
    ours, theirs = release(torch), release(torch_npu)
    build = "CUDA" if ours.get("cuda") else "cpu"
    return doctor.pair_problem(ours["__version__"], theirs["__version__"], build)


def unavailable_reason() -> str | None:
    """Why the emulated NPU cannot be had here, in one line; None when it can."""
    if sys.platform != "linux":
        return f"the emulated NPU needs Linux, not {sys.platform}"
    torch, torch_npu = package_folder("torch"), package_folder("torch_npu")
    if torch is None:
        return "the emulated NPU needs torch, which is not installed"
    if torch_npu is None:
        folder = torch_npu_folder()
        wanted = "--no-deps --upgrade -r tests/fake_cann/requirements.txt"
        command = f"pip install {wanted} --target {folder}"
        return f"the emulated NPU needs torch-npu: {command} ({TORCH_NPU_VARIABLE} moves it)"
    if problem := pair_problem(torch, torch_npu):
        return f"the emulated NPU needs another torch: {problem}"
    if compiler() is None:
        return "the emulated NPU needs g++ 12 or newer, which is not installed"
    return None


def emulated_variables(libraries: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that put a process with this environment on the emulated NPU.

    They are those of CANN's set_env.sh and the folder of torch-npu. FAKECANN_DRIVER=missing leaves
    the driver's library out of reach, as in a container into which it is not mounted.
    """
    driver = [] if environment.get("FAKECANN_DRIVER") == "missing" else [libraries / "driver"]

    def before(folders: Sequence[Path], variable: str) -> str:
        return os.pathsep.join(filter(None, [*map(str, folders), environment.get(variable)]))

    return {
        "LD_LIBRARY_PATH": before([libraries, *driver], "LD_LIBRARY_PATH"),
        "PYTHONPATH": before([torch_npu_folder()], "PYTHONPATH"),
        "ASCEND_HOME_PATH": str(libraries),
        "ASCEND_OPP_PATH": str(libraries),
    }


def acl_include_folder(torch_npu: Path) -> Path:
    """Find the folder that holds `acl/acl.h`, which moved between torch-npu's releases."""
    for candidate in ("include", "include/third_party/acl/inc"):
        if (torch_npu / candidate / "acl" / "acl.h").is_file():
            return torch_npu / candidate
    message = f"no acl/acl.h below {torch_npu / 'include'}: this torch-npu is laid out differently"
    raise BuildError(message)


def source_files() -> list[Path]:
    """List every file that the libraries are made of, this script included."""
    return [*sorted(path for path in SOURCE_FOLDER.rglob("*") if path.is_file()), Path(__file__)]


def build_key() -> str:
    """Hash of the sources, the flags, the compiler and the versions of torch and torch-npu."""
    path = compiler()
    version = path and subprocess.run([path, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr((FLAGS, path, version, sys.version_info[:2])).encode())
    for package in filter(None, map(package_folder, ("torch", "torch_npu"))):
        digest.update(f"{package} {release(package)['__version__']}".encode())
    for source in [Path(__file__), *source_files()]:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def build_folder() -> Path:
    """Where the libraries of the present sources lie, or will lie once built."""
    base = os.environ.get(BUILD_FOLDER_VARIABLE) or REPOSITORY / "build" / "fake_cann"
    return Path(base).resolve() / build_key()


def run_compiler(*arguments: str | Path) -> None:
    """Run the compiler; raise BuildError with what it printed when it fails."""
    command = [str(compiler()), *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        message = f"{shlex.join(command)}\n{finished.stderr[:LONGEST_MESSAGE]}"
        raise BuildError(message)
    sys.stderr.write(finished.stderr)  # warnings


def write_aten_header(torch: Path, source: Path, folder: Path) -> None:
    """Write `<source>_aten.h`: the header of every `at::` operator that the source uses.

    All of ATen in one header takes the compiler twice as long, and a list kept by hand would be a
    second line for each operator.
    """
    text = source.read_text()
    for name in re.findall(r'#include "(\w+\.inc)"', text):
        text += (source.parent / name).read_text()
    # An operator that works in place ends in "_" and shares the header of the one that does not.
    used = sorted({name.rstrip("_") for name in re.findall(r"\bat::(\w+)\(", text)})
    headers = [f"ATen/ops/{name}.h" for name in used]
    present = [header for header in headers if (torch / "include" / header).is_file()]
    lines = ["#pragma once", *(f"#include <{header}>" for header in present)]
    (folder / f"{source.stem}_aten.h").write_text("\n".join(lines) + "\n")


def compile_all(torch: Path, torch_npu: Path, objects: Path) -> None:
    """Compile every .cpp file into `objects`, as many at once as there are cores."""
    includes = [
        f"-I{objects}",
        f"-isystem{acl_include_folder(torch_npu)}",
        f"-isystem{torch / 'include'}",
        f"-isystem{torch / 'include/torch/csrc/api/include'}",
    ]
    # The operators take longest, so they start first.
    sources = sorted(SOURCE_FOLDER.rglob("*.cpp"), key=lambda path: path.parent == SOURCE_FOLDER)

    def compile_one(source: Path) -> None:
        write_aten_header(torch, source, objects)
        # Optimizing hundreds of lambdas doubles the time of the build and saves none at run time.
        level = "-O0" if source.stem.endswith("_operators") else "-O1"
        run_compiler(
            *(*FLAGS, level, *includes), *("-c", source, "-o", objects / f"{source.stem}.o")
        )

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(compile_one, sources):
            pass


def link_all(torch: Path, objects: Path, libraries: Path) -> None:
    """Link the runtime and the operators, and name the runtime as torch_npu looks for it."""
    runtime = [objects / f"{path.stem}.o" for path in SOURCE_FOLDER.glob("*.cpp")]
    operators = [objects / f"{path.stem}.o" for path in (SOURCE_FOLDER / "operators").glob("*.cpp")]
    driver = libraries / "driver"
    driver.mkdir()
    shared = ("-shared", "-Wl,--no-undefined", "-pthread", f"-Wl,-rpath-link,{driver}")
    run_compiler(*shared, objects / "ascend_hal.o", "-o", driver / "libascend_hal.so")
    run_compiler(
        *shared,
        *runtime,
        *("-o", libraries / "libascendcl.so"),
        *(f"-L{driver}", "-Wl,--no-as-needed", "-lascend_hal"),
    )
    run_compiler(
        *shared,
        *operators,
        *("-o", libraries / "libopapi.so"),
        *(f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", f"-L{libraries}", "-lascendcl"),
    )
    for name in OTHER_NAMES:
        (libraries / name).symlink_to("libascendcl.so")
    for name in ("runtime", "compiler"):  # torch_npu wants them below ASCEND_HOME_PATH
        (libraries / name).mkdir()


def build() -> Path:
    """Build the libraries unless they are there; return their folder.

    Of several processes at once the first builds, on every core, and the others wait for it.

    Raises BuildError when g++ or torch-npu is missing or the compiler fails.
    """
    reason = unavailable_reason()
    torch, torch_npu = package_folder("torch"), package_folder("torch_npu")
    if reason or torch is None or torch_npu is None:
        raise BuildError(reason)
    folder = build_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it however this process ends
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            objects, libraries = Path(scratch, "objects"), Path(scratch, "libraries")
            objects.mkdir()
            libraries.mkdir()
            compile_all(torch, torch_npu, objects)
            link_all(torch, objects, libraries)
            libraries.rename(folder)  # last: a build that was killed leaves no half of one
    return folder


def main() -> int:
    """Print the folder of the libraries."""
    try:
        print(build())  # noqa: T201 - this is the command's output
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
