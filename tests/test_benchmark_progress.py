"""Progress bars: on a terminal only, and on the one of before stderr is led elsewhere."""

import contextlib
import os
import pty
import select
from collections.abc import Iterator

import pytest

from kit.output import RunLog


@contextlib.contextmanager
def stderr_is_a_terminal() -> Iterator[int]:
    """Make descriptor 2 a terminal in the block; yields the descriptor that reads what it shows."""
    leader, follower = pty.openpty()
    before = os.dup(2)
    os.dup2(follower, 2)
    try:
        yield leader
    finally:
        os.dup2(before, 2)
        for descriptor in (leader, follower, before):
            os.close(descriptor)


def test_a_terminal_sees_how_far_the_work_is_and_no_trace_stays() -> None:
    with stderr_is_a_terminal() as terminal:
        log = RunLog()
        with log.bar(4, "batch 8") as step:
            for _ in range(4):
                step(1)
        drawn = ""
        while select.select([terminal], [], [], 5)[0] and not drawn.rstrip(" ").endswith("\r"):
            drawn += os.read(terminal, 4096).decode()
    assert "batch 8" in drawn
    assert "0/4" in drawn
    assert drawn.rstrip(" ").endswith("\r")
    assert log.text() == ""


def test_the_bar_stays_on_the_terminal_when_stderr_is_led_elsewhere() -> None:
    with stderr_is_a_terminal() as terminal:
        log = RunLog()
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        with log.bar(3, "batch 16") as step:
            step(1)
        drawn = os.read(terminal, 4096)
        os.write(2, b"all there is")
        assert os.read(reader, 4096) == b"all there is"
    assert b"batch 16" in drawn
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_another_rank_shows_nothing() -> None:
    with stderr_is_a_terminal() as terminal:
        with RunLog(silent=True).bar(2, "batch 8") as step:
            step(2)
        os.write(2, b"!")
        assert os.read(terminal, 4096) == b"!"


def test_without_a_terminal_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with RunLog().bar(2, "batch 8") as step:
        step(2)
    assert capfd.readouterr() == ("", "")
