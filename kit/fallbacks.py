"""Notice operators that the NPU back end hands to the CPU.

torch_npu reports a fallback in C++ on file descriptor 2 only, where Python's warnings never see
it. So the descriptor is led through `tee`: every byte still reaches the terminal, even when this
process is killed with its last words in the pipe, and a copy is searched for operators' names.
"""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PATTERN = re.compile(r"operator '([\w:.]+)'[^\n]*fall back to (?:run on the )?CPU")
DRAIN_TIMEOUT_S = 5.0


class Fallbacks:
    """Names of operators that fell back; complete once the watch is over."""

    def __init__(self) -> None:
        """Start with none."""
        self.names: tuple[str, ...] = ()


def find_names(text: str) -> tuple[str, ...]:
    """Return the operators that text reports as fallen back, each once, in order."""
    return tuple(dict.fromkeys(PATTERN.findall(text)))


@contextlib.contextmanager
def watch(active: bool, descriptor: int = 2) -> Iterator[Fallbacks]:
    """Watch a file descriptor for reports of fallbacks while the block runs.

    Args:
        active: False does nothing, for devices without fallbacks.
        descriptor: the file descriptor, restored on leaving.

    Yields:
        A Fallbacks whose names are filled in when the block is left.
    """
    found = Fallbacks()
    if not active:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="fallbacks-") as folder:
        copy = Path(folder) / "stderr"
        original = os.dup(descriptor)
        # A session of its own: Ctrl-C is for this process, tee ends when the pipe does.
        tee = subprocess.Popen(
            ["tee", "--", str(copy)],
            stdin=subprocess.PIPE,
            stdout=original,
            start_new_session=True,
        )
        assert tee.stdin is not None  # stdin=PIPE makes it
        os.dup2(tee.stdin.fileno(), descriptor)
        tee.stdin.close()
        try:
            yield found
        finally:
            os.dup2(original, descriptor)
            os.close(original)
            try:
                tee.wait(DRAIN_TIMEOUT_S)
            except subprocess.TimeoutExpired:  # a child process still holds the pipe's end
                tee.terminate()
                tee.wait()
            found.names = find_names(copy.read_text(encoding="utf-8", errors="replace"))
