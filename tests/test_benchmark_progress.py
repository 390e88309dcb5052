"""Progress bars: on a terminal only, and on the one of before stderr is led elsewhere."""

import io
import os
import pty

import pytest

from kit.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_a_terminal_sees_how_far_the_work_is_and_no_trace_stays() -> None:
    terminal = Terminal()
    with Progress(terminal).bar(4, "batch 8") as bar:
        for _ in range(4):
            bar.step()
    drawn = terminal.getvalue()
    assert "batch 8" in drawn
    assert "0/4" in drawn
    assert drawn.rstrip(" ").endswith("\r")


@pytest.mark.parametrize("silent", [False, True])
def test_no_terminal_or_another_rank_sees_nothing(silent: bool) -> None:
    stream = Terminal() if silent else io.StringIO()
    with Progress(stream, silent=silent).bar(2, "batch 8") as bar:
        bar.step(2)
    assert stream.getvalue() == ""


def test_the_bar_goes_to_the_terminal_that_stderr_was_when_it_was_made(
    capfd: pytest.CaptureFixture[str],
) -> None:
    leader, follower = pty.openpty()
    before = os.dup(2)
    os.dup2(follower, 2)
    try:
        progress = Progress(os.fdopen(os.dup(2), "w", encoding="utf-8"))
    finally:
        os.dup2(before, 2)
    with progress.bar(3, "batch 16") as bar:
        bar.step()
    assert b"batch 16" in os.read(leader, 4096)
    assert capfd.readouterr().err == ""
    for descriptor in (leader, follower, before):
        os.close(descriptor)
