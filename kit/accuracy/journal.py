"""A folder's finished images, line by line on the disk, so that a killed run can be resumed."""

import base64
import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kit.output import LineFile
from kit.records import ImageAccuracy

NAME = "accuracy.resume.{rank}.jsonl"


@dataclass(frozen=True)
class Entry:
    """One finished image.

    Attributes:
        accuracy: for the record.
        stamp: size and time of the file; another one is another image.
        device, reference: pooler_output on both sides, float32.
    """

    accuracy: ImageAccuracy
    stamp: str
    device: npt.NDArray[np.float32]
    reference: npt.NDArray[np.float32]

    def line(self) -> str:
        """Return the entry as one line of JSON."""
        return json.dumps(
            {
                "accuracy": dataclasses.asdict(self.accuracy),
                "stamp": self.stamp,
                "device": base64.b64encode(self.device.tobytes()).decode(),
                "reference": base64.b64encode(self.reference.tobytes()).decode(),
            }
        )


def entry_of(line: str) -> Entry | None:
    """Return the entry in a line, None where the line is damaged."""
    try:
        found = json.loads(line)
        return Entry(
            ImageAccuracy(**found["accuracy"]),
            found["stamp"],
            *(
                np.frombuffer(base64.b64decode(found[side]), np.float32)
                for side in ("device", "reference")
            ),
        )
    except (ValueError, KeyError, TypeError):
        return None


def stamp_of(path: Path) -> str:
    """Return the size and time of a file; empty where it is gone."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    return ""


class Journal:
    """This rank's file of finished images, and a look at all ranks' files."""

    def __init__(self, folder: Path, about: Mapping[str, str], rank: int) -> None:
        """Keep the journal in `folder`.

        Args:
            folder: of the run's results.
            about: everything that the entries depend on; a journal of another run is not used.
            rank: of this process.
        """
        self.folder = folder
        self.path = folder / NAME.format(rank=rank)
        self.header = json.dumps({"about": dict(about)}, sort_keys=True)
        self._file: LineFile | None = None

    def read(self) -> dict[str, Entry]:
        """Return what an earlier run of the same kind finished, by path; every rank's."""
        entries: dict[str, Entry] = {}
        for path in sorted(self.folder.glob(NAME.format(rank="*"))):
            for line in self._lines(path):
                entry = entry_of(line)
                if entry is not None and entry.stamp == stamp_of(Path(entry.accuracy.image)):
                    entries[entry.accuracy.image] = entry
        return entries

    def _lines(self, path: Path) -> Sequence[str]:
        """Return a journal's whole lines after its header; none where it is another run's."""
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ()
        lines = content.split("\n")[:-1]  # what has no newline was cut off
        return lines[1:] if lines and lines[0] == self.header else ()

    def open(self, *, afresh: bool) -> None:
        """Begin to append: to this rank's own file where it is of the same run, else afresh.

        Raises:
            KitError: where it cannot be written.
        """
        kept = [] if afresh else [line for line in self._lines(self.path) if entry_of(line)]
        self._file = LineFile(self.path, [self.header, *kept])

    def append(self, entries: Sequence[Entry]) -> None:
        """Add finished images; they are on the disk when this returns.

        Raises:
            KitError: where they cannot be written.
        """
        assert self._file is not None  # opened
        self._file.append([entry.line() for entry in entries])

    def close(self) -> None:
        """Stop appending; the file stays."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Remove every rank's journal: the run is finished."""
        for path in self.folder.glob(NAME.format(rank="*")):
            path.unlink(missing_ok=True)
