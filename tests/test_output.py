"""Writing: whole files or none."""

import os
import stat
import threading
from pathlib import Path

import pytest

from kit import output
from kit.errors import KitError


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    versions = [bytes([letter]) * 1_000_000 for letter in b"ab"]
    output.publish({path: versions[0]})
    seen: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        output.publish({path: versions[turn % 2]})
    done.set()
    reader.join()
    assert set(seen) <= set(versions)
    assert len(seen) > 1


def test_a_failure_in_the_last_file_changes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    output.publish({first: b"old a", second: b"old b"})
    original = output.stage

    def fail_at_the_second(path: Path, content: bytes) -> Path:
        if path == second:
            raise OSError("broken")
        return original(path, content)

    monkeypatch.setattr(output, "stage", fail_at_the_second)
    with pytest.raises(KitError, match=r"cannot write .*b: broken"):
        output.publish({first: b"new a", second: b"new b"})
    assert (first.read_bytes(), second.read_bytes()) == (b"old a", b"old b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_in_the_place_of_a_file_is_an_error_before_anything_changes(
    tmp_path: Path,
) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(KitError, match="Is a directory"):
        output.publish({tmp_path / "a": b"a", tmp_path / "b": b"b"})
    assert not (tmp_path / "a").exists()


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        output.publish({tmp_path / "a": b""})
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_long_work_shows_that_it_is_alive(capsys: pytest.CaptureFixture[str]) -> None:
    told = threading.Event()

    class Log(output.RunLog):
        def info(self, message: str) -> None:
            super().info(message)
            told.set()

    log = Log()
    with output.alive(log, every_s=0.01):
        assert told.wait(60)
    printed = capsys.readouterr().out
    assert printed.startswith("[INFO] The first forward has run for 0 s; a first run may compile")
    with output.alive(log, every_s=3600):
        pass
    assert not capsys.readouterr().out


def test_the_log_keeps_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    log = output.RunLog()
    log.info("one")
    log.warning("two")
    log.line("three")
    assert log.text() == capsys.readouterr().out == "[INFO] one\n[WARNING] two\nthree\n"
    assert log.warnings == ["two"]
