"""Pack what a bug report needs, without the names in it: python3 -m npu_patch --bundle FILE.zip.

The archive holds the doctor's answer, and the records and logs of a folder of results. Names of
hosts and users, addresses, and every path that is neither the kit's nor CANN's are replaced, each
by the same word throughout. Python's standard library is enough.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import re
import socket
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.output import stage
from kit.outside import read_bytes

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 50_000_000  # bytes of one file; a larger one is left out
# What a path in running text is made of: no blanks, quotes, brackets or punctuation around it.
PART = r"[^\s\"'`<>|:;,()=\[\]{}*,。:;()“”]"
PATH = re.compile(
    rf"(?<![\w.:/>~-])~?/{PART}+"
    rf"|{PART}*[^\W_]{PART}*\.(?:jpe?g|png|webp|bmp|gif|tiff?|safetensors|json|log|zip|npz|py)\b",
    re.IGNORECASE,
)
ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?=:\d)|\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
LOADED = re.compile(r"(Loading (?:image|model) from: )((?!seeded random).+)")
ENDING = re.compile(r"\.[A-Za-z0-9]{1,11}$")
# Paths that say nothing of whose host this is.
PUBLIC = re.compile(
    r"/usr/local/Ascend\b|/dev/(?:davinci|devmm_svm|hisi_hdc|null)|/proc/|/sys/|/usr/(?:s?bin|lib)\b"
    r"|data/sample\.jpg$|(?:output/)?(?:inference|benchmark|accuracy)[\w.-]*$|npu_patch\.py$"
    r"|(?:preprocessor_)?config\.json$|model[\w.-]*\.(?:safetensors|json)$"
)
PATH_KEYS = {"image", "weights", "baseline", "git_origin"}  # of records: paths and addresses
PATH_OPTIONS = {
    "--image", "--weights", "--output-dir", "--baseline", "--save-features", "--features",
    "--against", "--references",
}  # fmt: skip
# Words of everybody's host and of the records' own.
COMMON = {"root", "localhost", "user", "npu", "cpu", "cuda", "torch", "ascend", "python", "linux"}


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for whole words, the longest first; for none, one that matches nothing."""
    longest_first = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return re.compile(rf"(?<![^\W_])(?:{longest_first or '(?!)'})(?![^\W_])", re.IGNORECASE)


class Names:
    """Replaces what names a host, a user or their files: equal things by equal words."""

    def __init__(self, hosts: Iterable[str], users: Iterable[str]) -> None:
        """Take the names of hosts and users."""
        self._names: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        for kind, names in (("host", hosts), ("user", users)):
            for name in names:
                self._learn(name, f"<{kind}>")

    def _learn(self, name: str, word: str) -> None:
        if len(name) > 1 and not name.isdigit() and name.lower() not in COMMON:
            self._names.setdefault(name.lower(), word)

    def path(self, path: str) -> str:
        """Return a word for a path, with its ending; the path itself where that is the kit's."""
        for folder, word in ((str(ROOT), "<kit>"), (str(Path(os.__file__).parent), "<python>")):
            inside = path.removeprefix(folder + "/")
            if inside != path and (inside.endswith(".py") or PUBLIC.match(inside)):
                return f"{word}/{inside}"
        if path.strip("./") == "" or PUBLIC.match(path):
            return path
        word = self._paths.setdefault(path, f"<path-{len(self._paths) + 1}>")
        ending = ENDING.search(path)
        return word + (ending.group() if ending else "")

    def text(self, text: str) -> str:
        """Replace in running text: the learnt paths with blanks, other paths, then names."""
        text = LOADED.sub(lambda found: found.group(1) + self.path(found.group(2)), text)
        blanks = [path for path in self._paths if len(path) > 3 and not PATH.fullmatch(path)]
        text = _any_of(blanks).sub(lambda found: self.path(found.group()), text)
        text = PATH.sub(lambda found: self.path(found.group()), text)
        text = ADDRESS.sub("<address>", text)
        return _any_of(self._names).sub(lambda found: self._names[found.group().lower()], text)

    def value(self, value: Any, key: str = "") -> Any:  # noqa: ANN401 - whatever JSON holds
        """Replace in all strings and keys of a decoded JSON value."""
        if isinstance(value, dict):
            return {self.text(name): self.value(item, name) for name, item in value.items()}
        if isinstance(value, list):  # a command's words are paths where an option says so
            options = ["", *(item if isinstance(item, str) else "" for item in value)]
            keys = ("image" if option in PATH_OPTIONS else "" for option in options)
            return [self.value(item, key) for item, key in zip(value, keys)]  # noqa: B905
        if not isinstance(value, str):
            return value
        if key == "host":
            self._learn(value, "<host>")
        return self.path(value) if key in PATH_KEYS else self.text(value)


def of_this_host() -> Names:
    """Return what replaces the names of this host and of the user who runs this."""
    host = socket.gethostname()
    users = [Path.home().name, *(os.environ.get(name, "") for name in ("USER", "LOGNAME"))]
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        users.append(getpass.getuser())
    return Names([host, host.partition(".")[0], os.environ.get("HOSTNAME", "")], users)


def contents(folder: Path, names: Names) -> dict[str, str]:
    """Return the records and logs of a folder by name, with everybody's names replaced.

    Records come first: what they tell of paths with blanks is replaced in the logs, too.
    """
    found: dict[str, str] = {}
    for ending in ("*.json", "*.log"):
        for file in sorted(folder.glob(ending)):
            try:
                text = read_bytes(file, "", LARGEST).decode("utf-8", "replace")
            except KitError:  # no plain file, or too large
                continue
            try:
                record = json.loads(text) if ending == "*.json" else None
            except (ValueError, RecursionError):
                record = None
            if record is not None:
                names.value(record)  # learns the names, which may stand before the place that tells
                text = json.dumps(names.value(record), ensure_ascii=False, indent=2)
            found[names.text(file.name)] = names.text(text) if record is None else text
    return found


def pack(report: dict[str, Any], text: str, paths: list[str]) -> int:
    """Pack the doctor's answer, records and logs; say where. Return the exit code.

    `report` is what --json prints, `text` what the command prints; `paths` are the archive and the
    folder with records and logs, by default output.
    """
    if not 1 <= len(paths) <= 2:
        print("usage: python3 -m npu_patch --bundle FILE.zip [FOLDER]", file=sys.stderr)  # noqa: T201
        return 2
    target, folder = Path(paths[0]), Path(*paths[1:] or ["output"])
    names = of_this_host()
    files = contents(folder, names)
    files["doctor.json"] = json.dumps(names.value(report), indent=2)
    files["doctor.txt"] = names.text(text)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    try:
        stage(target, packed.getvalue()).replace(target)
    except OSError as error:
        print(f"cannot write {target}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"Wrote {target}: {', '.join(sorted(files))}. Look into it before you send it.")  # noqa: T201
    return 0
