"""The only reader of files that the kit did not make: plain, bounded, one sentence when wrong.

A FIFO or a device is never opened, since reading it could wait for ever. Standard library only.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, Literal

from kit.errors import KitError

Kind = Literal["file", "folder", "other", "missing"]
LARGEST_JSON_BYTES = 64 << 20


def kind_of(path: Path, what: str) -> Kind:
    """Return what lies at a path, links followed; KitError where the system does not say."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except (OSError, ValueError) as error:
        raise cannot_read(path, what, error) from error
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "other"


def read_bytes(path: Path, what: str, largest_bytes: int) -> bytes:
    """Return a plain file's content; KitError, begun by `what`, where it cannot be read."""
    if kind_of(path, what) not in ("file", "missing"):
        raise KitError(f"{what} {path} is not a plain file: give one".strip())
    try:
        # A FIFO that has taken the file's place since would else be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(largest_bytes + 1)
    except (OSError, ValueError) as error:
        raise cannot_read(path, what, error) from error
    if len(content) > largest_bytes:
        words = f"{what} {path} has more than {largest_bytes} bytes: give a smaller file"
        raise KitError(words.strip())
    return content


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """Return the JSON object in a file; else a KitError that `fix` ends.

    NaN and Infinity, which JSON does not have, are refused.
    """
    return json_object(read_bytes(path, "", LARGEST_JSON_BYTES), str(path), fix)


def json_object(content: bytes, name: str, fix: str) -> dict[str, Any]:
    """Return the JSON object that bytes hold; else a KitError that `name` begins and `fix` ends."""
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise KitError(f"{name} is nested too deeply: {fix}") from error
    except ValueError as error:
        raise KitError(f"{name} is not readable JSON ({error}): {fix}") from error
    if not isinstance(value, dict):
        raise KitError(f"{name} does not hold a JSON object: {fix}")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON has")


def cannot_read(path: Path, what: str, error: OSError | ValueError) -> KitError:
    """Return the error of a path that the system does not let us read."""
    words = (error.strerror if isinstance(error, OSError) else None) or str(error)
    shown = str(path) if len(str(path)) <= 300 else f"{str(path)[:300]}..."
    said = f"cannot read {what} {shown}: {words}; check the path and its permissions"
    return KitError(said.replace("  ", " "))
