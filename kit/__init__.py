"""The modules that inference.py, benchmark.py and accuracy.py share.

Everything here is ordinary CUDA code. On an Ascend host npu_patch, which the scripts import
first, makes that an NPU; on a GPU host it is a GPU; elsewhere the CPU does the work.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - older ones get here, and should hear why
    sys.stderr.write(
        f"error: the kit needs Python 3.10 or newer, this is {sys.version.split()[0]}\n"
    )
    raise SystemExit(2)
