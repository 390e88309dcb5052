"""Run any Python script on the emulated NPU.

python3 tests/fake_cann/run.py SCRIPT [ARGUMENTS...]

Builds the stub when needed, then replaces itself with the interpreter, so that signals and exit
codes are the script's own. README.md beside this file lists the environment variables.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fake_cann import build


def main() -> int:
    """Set the library path and become `python3 SCRIPT ARGUMENTS...`."""
    if len(sys.argv) == 1:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        libraries = build.build()
    except build.BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    os.environ.update(build.emulated_variables(libraries, os.environ))
    return os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
