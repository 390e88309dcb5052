"""What every script's main does around its work."""

import subprocess
import sys

import pytest

from kit.run import ROOT

AROUND_THE_IMPORTS = """
import gc, sys
from kit.run import quick_imports
seen = []
gc.callbacks.append(lambda phase, info: seen.append(phase))
try:
    with quick_imports():
        import npu_patch, torch
        {inside}
except OSError:
    pass
{after}
print(len(seen), gc.isenabled(), gc.get_freeze_count() > 50_000)
"""


def around_the_imports(inside: str = "", after: str = "") -> str:
    """Return how often garbage was looked for, and how it stands after the imports."""
    source = AROUND_THE_IMPORTS.format(inside=inside, after=after)
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip()


@pytest.mark.parametrize("inside", ["", "raise OSError"])
def test_imports_are_not_searched_for_garbage_and_what_follows_is(inside: str) -> None:
    assert around_the_imports(inside) == "0 True True"
    assert around_the_imports(inside, after="gc.collect()") == "2 True True"


def test_a_second_run_in_the_same_process_freezes_nothing() -> None:
    after = "gc.unfreeze()\nwith quick_imports(): assert gc.isenabled()"
    assert around_the_imports(after=after) == "0 True False"
