"""CUDA idioms: a few lines of ordinary CUDA code each, with the assertion that they hold.

They are correct on a GPU and know of no NPU. The modules beside this one (cuda_idioms_*.py) hold
them by subject. Run as a program, this module executes all of them in one process and prints a JSON
object with the error of each, or null:

    python3 -m tests.cuda_idioms {npu_patch,transfer_to_npu,none} [--module MODULE] [NAME...]

With --module it does so for the public functions of another module.
"""

import argparse
import ast
import importlib
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

Idiom = Callable[[], None]
SUBJECTS = (
    "devices",
    "tensors",
    "modules",
    "runtime",
    "memory",
    "precision",
    "gelu",
    "formats",
    "torch_tools",
)
MODULES = tuple(f"tests.cuda_idioms_{subject}" for subject in SUBJECTS)


def load(modules: Sequence[str] = MODULES) -> dict[str, Idiom]:
    """Import the idioms of every subject: its public functions are they."""
    found: dict[str, Idiom] = {}
    for path in modules:
        module = importlib.import_module(path)
        for name in names([path]):
            found[name] = getattr(module, name)
    return found


def names(modules: Sequence[str] = MODULES) -> list[str]:
    """Read the names of all idioms without importing torch."""
    folder = Path(__file__).resolve().parents[1]
    return [
        node.name
        for path in modules
        for node in ast.parse((folder / f"{path.replace('.', '/')}.py").read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


def _execute(idiom: Idiom) -> str | None:
    try:
        idiom()
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {text} ({where.filename}:{where.lineno})"[:400]
    return None


def main() -> int:
    """Patch as asked, run the idioms, print what became of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patch", choices=("npu_patch", "transfer_to_npu", "none"))
    parser.add_argument("--module")
    parser.add_argument("only", nargs="*")
    arguments = parser.parse_args()
    if arguments.patch == "npu_patch":
        importlib.import_module("npu_patch")
    import torch

    if arguments.patch == "transfer_to_npu":
        importlib.import_module("torch_npu.contrib.transfer_to_npu")
    warnings.simplefilter("ignore")
    results = {}
    modules = [arguments.module] if arguments.module else MODULES
    for name, idiom in load(modules).items():
        if not arguments.only or name in arguments.only:
            torch.manual_seed(0)
            results[name] = _execute(idiom)
    sys.stdout.write(json.dumps(results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
