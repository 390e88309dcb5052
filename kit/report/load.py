"""Read the records and the pictures of an output folder; no content of it makes this fail."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kit import outside
from kit.errors import KitError
from kit.records import (
    RECORDS,
    AccuracyRecord,
    AnyRecord,
    BenchmarkRecord,
    InferenceRecord,
    Record,
    RecordError,
    decode,
)

LARGEST_PICTURE_BYTES = 32 << 20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SCRIPTS = tuple(RECORDS)
PICTURES = {
    "inference": ("inference_features.png",),
    "benchmark": ("benchmark_latency.png", "benchmark_throughput.png", "benchmark_ladder.png"),
    "accuracy": ("accuracy_layers.png", "accuracy_tokens.png", "accuracy_pca.png"),
}
# A run draws its pictures after it has written its record; a copy of a folder mixes the times up.
PICTURE_AGE_LIMIT_S = 5.0


@dataclass(frozen=True)
class Picture:
    """A picture beside its record."""

    name: str  # of its file, which the Markdown links
    png: bytes = b""  # empty where it cannot be shown
    problem: str = ""  # why not: absent, unreadable or older than its record


@dataclass(frozen=True)
class Records:
    """What lies in an output folder; None for a record that is not there or cannot be read."""

    inference: InferenceRecord | None = None
    benchmark: BenchmarkRecord | None = None
    accuracy: AccuracyRecord | None = None
    problems: Mapping[str, str] = field(default_factory=dict)  # why it cannot be, by its script
    pictures: Mapping[str, Picture] = field(default_factory=dict)  # by the names of their files

    def found(self) -> list[Record]:
        """Return the records that can be read."""
        return [one for one in (self.inference, self.benchmark, self.accuracy) if one is not None]

    def newest(self) -> Record | None:
        """Return the record whose run started last; None where there is none."""
        return max(self.found(), key=started_at, default=None)


def started_at(record: Record) -> datetime:
    """Return when a record's run started; ValueError without a time with an offset from UTC."""
    found = datetime.fromisoformat(record.started_at)
    if found.tzinfo is None:
        raise ValueError("no offset from UTC")
    return found


def load_records(folder: Path) -> Records:
    """Return the records and pictures in a folder; ModuleNotFoundError without msgspec."""
    problems: dict[str, str] = {}
    return Records(
        inference=load_record(folder, "inference", InferenceRecord, problems),
        benchmark=load_record(folder, "benchmark", BenchmarkRecord, problems),
        accuracy=load_record(folder, "accuracy", AccuracyRecord, problems),
        problems=problems,
        pictures={
            name: load_picture(folder / name, folder / f"{script}.json")
            for script, names in PICTURES.items()
            for name in names
        },
    )


def load_record(
    folder: Path, script: str, kind: type[AnyRecord], problems: dict[str, str]
) -> AnyRecord | None:
    """Return one script's record; None where there is none, with an entry in `problems`."""
    path = folder / f"{script}.json"
    collected = gc.isenabled()
    gc.disable()  # a record of a million objects has no garbage among them
    try:
        if outside.kind_of(path, "record") == "missing":
            return None
        record = decode(outside.read_bytes(path, "record", outside.LARGEST_JSON_BYTES), kind)
        started_at(record)
    except (KitError, RecordError) as error:
        problems[script] = str(error).replace(f" {path}", "")
        return None
    except ValueError as error:
        problems[script] = f"{error} - at `$.started_at`"
        return None
    finally:
        if collected:
            gc.enable()
    return record


def load_picture(path: Path, record: Path) -> Picture:
    """Return a picture; one that is older than its record belongs to an earlier run."""
    try:
        if outside.kind_of(path, "picture") == "missing":
            return Picture(path.name, problem="absent")
        content = outside.read_bytes(path, "picture", LARGEST_PICTURE_BYTES)
        age_s = record.stat().st_mtime - path.stat().st_mtime
    except (KitError, OSError):
        content, age_s = b"", 0.0
    if not content.startswith(PNG_SIGNATURE):
        return Picture(path.name, problem="unreadable")
    if age_s > PICTURE_AGE_LIMIT_S:
        return Picture(path.name, problem="older")
    return Picture(path.name, content)
