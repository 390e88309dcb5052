"""A Python on the emulated NPU with its imports done, which forks for each command it is sent.

Importing torch, torch_npu, transformers and matplotlib takes 4 s of a core, a fork 0.02 s. A
command is a line of JSON on stdin: Python's `arguments` (-c SOURCE or FILE, and the script's own),
`cwd`, `environment` and the `output` files for stdout and stderr. The answers on stdout are the
fork's process id and, once it has ended, its wait status.
"""

import ctypes
import gc
import json
import os
import runpy
import sys
import types
from pathlib import Path
from typing import Any

# What the kit's scripts import; torch brings torch_npu.
import jinja2  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch._dynamo  # torch_npu and transformers use these two, none of which is named here
import torch.distributed.tensor  # noqa: F401 - import order is theirs
import transformers.quantizers  # noqa: F401
from transformers import DINOv3ViTModel  # noqa: F401


def run(arguments: list[str]) -> None:
    """Run -c SOURCE or FILE as the program that this process is."""
    first, *rest = arguments
    if first != "-c":
        sys.argv, sys.path[0] = arguments, str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")
        return
    sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
    sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))


def become(command: dict[str, Any]) -> None:
    """Take the command's environment, folder and files, and read the faults again."""
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["cwd"])
    for descriptor, name in enumerate([os.devnull, *command["output"]]):
        opened = os.open(name, os.O_WRONLY | os.O_APPEND if descriptor else os.O_RDONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    ctypes.CDLL("libascendcl.so").fakecannReadOptions()


def main() -> None:
    """Serve until stdin ends; in a fork, run its command and end as Python ends."""
    gc.collect()
    gc.freeze()  # else a fork's first collection would copy every page
    for line in sys.stdin:
        child = os.fork()
        if not child:
            become(command := json.loads(line))
            run(command["arguments"])
            return
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitpid(child, 0)[1]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
