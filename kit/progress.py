"""A progress bar with time left for long work: on the terminal only, and never in a log."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Shows bars on the stderr of the moment it was made; nothing where that is no terminal.

    kit/device/health.py leads stderr through a pipe: make the Progress before that.
    """

    def __init__(self, stream: TextIO | None = None, *, silent: bool = False) -> None:
        """Draw on `stream`, by default a duplicate of this process's stderr."""
        self.stream = stream or duplicate_of_stderr()
        self.shown = not silent and self.stream is not None and self.stream.isatty()

    @contextlib.contextmanager
    def bar(self, total: int | None, label: str, unit: str = "forward") -> Iterator["Bar"]:
        """Show a bar while the block runs, and wipe it after.

        Args:
            total: how many steps there will be; None where that is not known.
            label: what is going on.
            unit: what one step is.
        """
        if not self.shown:
            yield Bar(None)
            return
        tqdm.monitor_interval = 0  # its thread would wake up while something is being timed
        with tqdm(
            total=total, desc=label, unit=f" {unit}", file=self.stream, leave=False, mininterval=0.2
        ) as drawn:
            yield Bar(drawn)


class Bar:
    """A bar that may not be there."""

    def __init__(self, drawn: "tqdm[None] | None") -> None:
        """Wrap tqdm's bar; None for none."""
        self.drawn = drawn

    def step(self, count: int = 1) -> None:
        """Move on."""
        if self.drawn is not None:
            self.drawn.update(count)


def duplicate_of_stderr() -> TextIO | None:
    """Return a stream of its own on stderr's descriptor; None where stderr is closed or no file."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="replace")
    except (OSError, ValueError, AttributeError):
        return None
