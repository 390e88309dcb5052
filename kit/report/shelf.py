"""What lies in the output folder: records that can be read, those that cannot, and pictures."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from kit.records import SCHEMA_VERSION, AccuracyRecord, BenchmarkRecord, InferenceRecord, Record
from kit.report.fields import Node, damage

SCRIPTS: dict[str, type[Record]] = {
    "inference": InferenceRecord,
    "benchmark": BenchmarkRecord,
    "accuracy": AccuracyRecord,
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_RECORD_BYTES = 256 << 20
LARGEST_PICTURE_BYTES = 32 << 20
# A record and its pictures are renamed into place together; this is far beyond that.
PICTURE_AGE_LIMIT_S = 60.0
SHOWN_DAMAGE = 12  # a record that lacks a hundred fields is named by its first ones

PictureState = Literal["found", "absent", "unreadable", "older"]


@dataclass(frozen=True)
class Entry:
    """One script's place in the folder.

    Attributes:
        script: its name.
        state: whether there is a record that can be read.
        problem: why it cannot be read; empty where it can.
        record: the record; a place with nothing where there is none.
        damaged: paths of fields that are missing or of the wrong type.
        started_at: when the run started; None where that cannot be read.
    """

    script: str
    state: Literal["found", "absent", "unreadable"]
    problem: str = ""
    record: Node = field(default_factory=Node)
    damaged: tuple[str, ...] = ()
    started_at: datetime | None = None

    @property
    def file(self) -> str:
        """The record's file name."""
        return f"{self.script}.json"


@dataclass(frozen=True)
class Shelf:
    """An output folder as a report sees it.

    Attributes:
        folder: where it is.
        entries: one per script, by name.
        fresh: files of a run that are about to be written, by name: they count as there.
    """

    folder: Path
    entries: Mapping[str, Entry]
    fresh: Mapping[str, bytes]

    def found(self) -> list[Entry]:
        """Return the entries that can be read."""
        return [entry for entry in self.entries.values() if entry.state == "found"]

    def picture(self, script: str, name: str) -> tuple[PictureState, bytes]:
        """Return a picture of a script's run, and its bytes where it can be shown.

        One that is much older than its record belongs to an earlier run and is not shown.
        """
        try:
            content = read(self.folder / name, self.fresh, LARGEST_PICTURE_BYTES)
        except FileNotFoundError:
            return "absent", b""
        except (OSError, ValueError):
            return "unreadable", b""
        if not content.startswith(PNG_SIGNATURE):
            return "unreadable", b""
        if self.is_older(name, f"{script}.json"):
            return "older", b""
        return "found", content

    def is_older(self, picture: str, record: str) -> bool:
        """Return whether a picture was written long before its record."""
        if picture in self.fresh:
            return False
        if record in self.fresh:
            return True  # the run that is about to be written made no such picture
        try:
            ages = [(self.folder / name).stat().st_mtime for name in (picture, record)]
        except OSError:
            return False
        return ages[1] - ages[0] > PICTURE_AGE_LIMIT_S


def load(folder: Path, fresh: Mapping[str, bytes] | None = None) -> Shelf:
    """Read the records in a folder; nothing in it can make this fail.

    Args:
        folder: the output folder.
        fresh: files that are about to be written there, by name; they come before the old ones.
    """
    fresh = fresh or {}
    entries = {script: load_record(script, folder, fresh) for script in SCRIPTS}
    return Shelf(folder, entries, fresh)


def load_record(script: str, folder: Path, fresh: Mapping[str, bytes]) -> Entry:
    """Return one script's entry."""
    try:
        content = read(folder / f"{script}.json", fresh, LARGEST_RECORD_BYTES)
        record = json.loads(content.decode("utf-8"), parse_constant=refuse_constant)
    except FileNotFoundError:
        return Entry(script, "absent")
    except OSError as error:
        return Entry(script, "unreadable", error.strerror or str(error))
    except (ValueError, RecursionError) as error:
        return Entry(script, "unreadable", f"no JSON: {error}")
    if not isinstance(record, dict):
        return Entry(script, "unreadable", "no JSON object")
    if "script" in record and record["script"] != script:
        return Entry(script, "unreadable", f"a record of {record['script']!r}")
    version = str(record.get("schema_version", SCHEMA_VERSION))
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        problem = f"schema version {version}, this kit reads {SCHEMA_VERSION}"
        return Entry(script, "unreadable", problem)
    damaged = tuple(damage(record, SCRIPTS[script]))
    return Entry(script, "found", "", Node(record), damaged, timestamp(record.get("started_at")))


def read(path: Path, fresh: Mapping[str, bytes], limit: int) -> bytes:
    """Return a file's bytes, from `fresh` where it is there.

    Raises:
        OSError: where it cannot be read.
        ValueError: where it is beyond the limit.
    """
    if path.name in fresh:
        return fresh[path.name]
    # Never a pipe or a device: opening one could wait for ever.
    if path.exists() and not path.is_file():
        raise OSError(0, "not a plain file", os.fspath(path))
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit} bytes")
    return content


def refuse_constant(name: str) -> float:
    """Refuse NaN and Infinity, which are not JSON.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is not a number that JSON has")


def timestamp(value: object) -> datetime | None:
    """Return an ISO 8601 time with an offset; None for anything else."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None
