"""Try releases of torch-npu, each with its torch, on the emulated NPU: what starts, what works.

    python3 tests/fake_cann/pairs.py 2.9.0.post2 2.12.0 [--folder FOLDER] [--keep] [--python PYTHON]
    python3 tests/fake_cann/pairs.py --resolve

Makes an environment for each, one after the other, with torch as the package index gives it (on
x86-64 that is the CUDA build, which needs no GPU), runs the three scripts with tiny weights, where
torch_npu starts also the idioms and faults, and prints a row of a Markdown table; what failed, and
the console's lines that are not the kit's, stand below it. The exit code is 0 where all work but
for idioms, 3 where the index lacks one, 1 otherwise. An environment has 2 to 8 GB and is deleted
unless --keep is given. Needs Linux x86-64, g++ 12 and the network.

With --resolve it installs nothing: it asks pip whether the commands that the doctor prescribes for
each row of its table resolve, for both architectures and every Python, from the ordinary index.
"""

import argparse
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kit import doctor, environment

ROOT = Path(__file__).resolve().parents[2]
# As run.py, but for any torch: that some pairs abort is what is to be seen.
RUN = """
import os, sys
from tests.fake_cann import build
build.pair_problem = lambda torch, torch_npu: None
os.environ.update(build.emulated_variables(build.build(), os.environ))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
IMPORT = "import torch, torch_npu; print((torch.ones(2, device='npu') + 1).sum().item())"
TINY = (
    "import npu_patch, pathlib, sys, tests.models as m; m.save_tiny_vit(pathlib.Path(sys.argv[1]))"
)
SCRIPTS = (
    ("inference.py",),
    ("benchmark.py", "--iterations", "5", "--modes", "all"),
    ("accuracy.py", "--strict"),
)
# What a run meets, how it is played, and options; each is to end with one line and exit code 2.
FAULTS = (
    ("an operator fails", {"FAKECANN_FAIL": "aclnnGeluV2:3"}, ()),
    ("an operator returns NaN", {"FAKECANN_NAN": "aclnnGeluV2"}, ()),
    ("an operator is wrong", {"FAKECANN_WRONG": "aclnnGeluV2"}, ()),
    ("the device vanishes", {"FAKECANN_LOST": "aclnnGeluV2:3"}, ()),
    ("memory runs out", {"FAKECANN_HBM_GIB": "0.02"}, ("--size", "1024")),
    ("no chip answers", {"FAKECANN_DEVICES": "0"}, ("--device", "npu")),
)
NOT_INSTALLED = "cannot be installed"
SECONDS = 1800


@dataclass(frozen=True)
class Pair:
    """What one pair did; a cell each, and the lines below the table."""

    name: str
    cells: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def works(self) -> bool:
        """Whether it starts, the scripts pass on the NPU, and faults end as they should."""
        wanted = ["starts", *("passes" for _ in SCRIPTS), f"{len(FAULTS)} of {len(FAULTS)}"]
        return list(self.cells[1:-1]) == wanted


def execute(python: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the environment's Python in the repository, both streams in one."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [python, *arguments],
        cwd=ROOT,
        env={
            **inherited,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
            "KIT_TORCH_NPU": os.devnull,  # it lies in the environment
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS,
        check=False,
    )


def install(torch_npu: str, folder: Path, options: argparse.Namespace) -> Path:
    """Make the environment; return its Python. Raises CalledProcessError where pip fails."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([options.python, "-m", "venv", folder], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet"]
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    others = [
        line
        for line in lines
        if line and not line.startswith(("#", "torch", "transformers", "modelscope"))
    ]
    torch = re.match(r"\d+\.\d+\.\d+", torch_npu)
    assert torch is not None, torch_npu
    subprocess.run(
        [*pip, f"torch=={torch.group()}", f"transformers=={options.transformers}", *others],
        check=True,
    )
    # Its wheels before 2.11 ask for torch's CPU build by name, which the ordinary index lacks.
    subprocess.run([*pip, "--no-deps", f"torch-npu=={torch_npu}", "pyyaml"], check=True)
    return python


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Return the exit code and the line that says why."""
    return f"exit {done.returncode}: {environment.last_words(done.stdout)[:300]}"


def idioms(python: Path) -> tuple[str, list[str]]:
    """Run the CUDA idioms under the patch; return how many hold, and the errors of others."""
    done = execute(
        python,
        *("-c", RUN, "-m", "tests.cuda_idioms", "npu_patch"),
        TASK_QUEUE_ENABLE="0",
        FAKECANN_STRICT="0",
    )
    try:
        results = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return "none", [f"idioms: {last_words(done)}"]
    failed = {name: error for name, error in results.items() if error}
    notes = [f"idiom {name}: {error}" for name, error in failed.items()]
    return f"{len(results) - len(failed)} of {len(results)}", notes


def faults(python: Path, *options: str) -> tuple[str, list[str]]:
    """Play faults; return how many end as they should, and what the others did."""
    wrong = []
    for name, variables, more in FAULTS:
        done = execute(python, "-c", RUN, "inference.py", *options, *more, **variables)
        lines = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
        if done.returncode != 2 or len(lines) != 1 or "Traceback" in done.stdout:
            wrong.append(f"fault, {name}: {last_words(done)}")
    return f"{len(FAULTS) - len(wrong)} of {len(FAULTS)}", wrong


def try_pair(torch_npu: str, folder: Path, options: argparse.Namespace) -> Pair:
    """Install a pair and try all."""
    try:
        python = install(torch_npu, folder, options)
    except subprocess.CalledProcessError as error:
        return Pair(torch_npu, (NOT_INSTALLED,), (f"pip: exit {error.returncode}",))
    asked = (
        "import importlib.metadata as m, importlib.util as u, pathlib, re\n"
        "folder = pathlib.Path(u.find_spec('torch').submodule_search_locations[0])\n"
        "print(re.search(r\"__version__ = '(.*)'\", (folder / 'version.py').read_text())[1])"
    )
    torch = execute(python, "-c", asked, TORCH_DEVICE_BACKEND_AUTOLOAD="0").stdout.strip()
    started = execute(python, "-c", RUN, "-c", IMPORT)
    starts = not started.returncode
    weights, output = folder / "tiny", folder / "output"
    execute(python, "-c", TINY, str(weights), TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    cells, notes = [torch, "starts" if starts else last_words(started)], []
    for script, *arguments in SCRIPTS:
        done = execute(
            python,
            *("-c", RUN, script, *arguments),
            *("--weights", str(weights), "--output-dir", str(output)),
        )
        on_npu = "Applied NPU monkey-patch" in done.stdout
        cells.append(("passes" if on_npu else "runs on the CPU") if not done.returncode else
                     last_words(done))  # fmt: skip
        first = done.stdout.partition("[INFO]")[0].splitlines()
        notes += [f"{script}, before the kit's first line: {line}" for line in first]
        notes += [
            f"{script}, amid its lines: {line}"
            for line in done.stdout.splitlines()[len(first) :]
            if re.search(r"Warning: |^\[W\d", line)
        ]
    if not starts:
        return Pair(torch_npu, tuple(cells), tuple(notes))
    ended, others = faults(python, "--weights", str(weights), "--output-dir", str(output))
    right, wrong = idioms(python)
    return Pair(torch_npu, (*cells, ended, right), (*notes, *others, *wrong))


@functools.cache
def resolves(wanted: tuple[str, ...], machine: str, python: str) -> str:
    """Return what pip says of packages on another host, from the ordinary index."""
    # A wheel names the oldest C library that it runs on; pip infers only the oldest names.
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(17, 29)]
    platforms = [f"--platform={tag}" for tag in [*tags, f"manylinux2014_{machine}"]]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"),
                *("--target", folder, "--only-binary=:all:", "--python-version", python),
                *platforms,
                *wanted,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "resolves" if not done.returncode else (errors or [f"exit {done.returncode}"])[-1]


def resolve(row: doctor.Pair, machine: str, python: str) -> str:
    """Return what pip says of the doctor's commands for a host; "-" where it prescribes others."""
    prescribed = doctor.prescribe(
        environment.Host(
            python=python,
            machine=machine,
            versions={"torch": row.torch},
            missing=environment.CANN_PACKAGES,
            cann=environment.Cann(version=row.cann),
        )
    )
    if prescribed.pair != row:
        return "-"
    torch, torch_npu, others = (
        shlex.split(command.partition(" install ")[2]) for command in prescribed.commands
    )
    # Without torch's dependencies: those of the CUDA build are gigabytes, which pip would fetch.
    pair = resolves((torch[0], *torch_npu), machine, python)
    return pair if pair != "resolves" else resolves(tuple(others), machine, python)


def resolve_all() -> int:
    """Print a row for each pair of the doctor's table that it prescribes; fail if one fails."""
    pythons = ("3.10", "3.11", "3.12", "3.13")
    sys.stdout.write(f"| CANN | torch-npu | machine | {' | '.join(pythons)} |\n{'| --- ' * 7}|\n")
    failed = False
    for row in doctor.pairs().rows:
        for machine in ("x86_64", "aarch64"):
            cells = [resolve(row, machine, python) for python in pythons]
            failed |= not {"resolves", "-"}.issuperset(cells)
            if set(cells) != {"-"}:
                shown = " | ".join([row.cann, row.torch_npu, machine, *cells])
                sys.stdout.write(f"| {shown} |\n")
                sys.stdout.flush()
    return int(failed)


def main() -> int:
    """Try every pair given and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("torch_npu", nargs="*", metavar="TORCH_NPU", help="a release, 2.9.0.post2")
    parser.add_argument("--folder", type=Path, help="where the environments go (a temporary one)")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    parser.add_argument("--transformers", default="4.57.6", metavar="VERSION")
    parser.add_argument("--python", default=sys.executable, help="the interpreter")
    parser.add_argument("--resolve", action="store_true", help="resolve what the doctor prescribes")
    options = parser.parse_args()
    if options.resolve:
        return resolve_all()
    base = options.folder or Path(tempfile.mkdtemp())
    notes, code = [], 0
    heads = (
        "torch-npu | torch | import | inference | benchmark | accuracy --strict | faults | idioms"
    )
    sys.stdout.write(f"| {heads} |\n{'| --- ' * 8}|\n")
    for version in options.torch_npu:
        pair = try_pair(version, base / version, options)
        empty = [""] * (7 - len(pair.cells))
        sys.stdout.write(f"| {' | '.join([pair.name, *pair.cells, *empty])} |\n")
        sys.stdout.flush()
        notes += [f"- {pair.name}: {note}\n" for note in pair.notes]
        if not pair.works:
            code = max(code, 3 if NOT_INSTALLED in pair.cells else 1)
        if not options.keep:
            shutil.rmtree(base / version, ignore_errors=True)
    sys.stdout.write("\n" + "".join(notes))
    return code


if __name__ == "__main__":
    sys.exit(main())
