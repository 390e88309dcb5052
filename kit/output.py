"""The only writer: console lines, the text log, and files that appear whole or not at all."""

import contextlib
import errno
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from kit.errors import KitError

RULE = "=" * 60  # above and below the blocks of a report


class RunLog:
    """Prints a run's lines to the console as they come and keeps them for the text log."""

    def __init__(self, *, silent: bool = False) -> None:
        """Start with no lines; a silent log prints none, as one rank of several prints for all."""
        self.silent = silent
        self.lines: list[str] = []
        # A descriptor of its own: kit/device/health.py leads stderr through a pipe later.
        self.terminal = os.fdopen(os.dup(2), "w", errors="replace") if os.isatty(2) else None
        self.warnings: list[str] = []

    def line(self, text: str = "") -> None:
        """Print one line as it is, characters that the console lacks as escapes.

        Raises BrokenPipeError where stdout's reader is gone, KitError where it cannot be written.
        """
        self.lines.append(text)
        if self.silent:
            return
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        try:
            print(shown, flush=True)  # noqa: T201 - this is the one place that prints
        except BrokenPipeError:
            raise
        except OSError as error:
            detach_stdout()
            raise KitError(f"cannot print: {error.strerror or error}; free the space") from error

    def info(self, message: str) -> None:
        """Print `[INFO] message`."""
        self.line(f"[INFO] {message}")

    def warning(self, message: str) -> None:
        """Print `[WARNING] message` and keep it for the record."""
        self.warnings.append(message)
        self.line(f"[WARNING] {message}")

    @contextlib.contextmanager
    def bar(
        self, total: int | None, label: str, unit: str = "forward"
    ) -> Iterator[Callable[[int], object]]:
        """Show how far work is while the block runs, on a terminal only and never in the log.

        Yields what moves the bar on by a number of steps, each a `unit`; total may be None.
        """
        if self.silent or self.terminal is None:
            yield lambda steps: None
            return
        from tqdm import tqdm  # transformers brings it

        tqdm.monitor_interval = 0  # its thread would wake up while something is being timed
        with tqdm(
            total=total,
            desc=label,
            unit=f" {unit}",
            file=self.terminal,
            leave=False,
            mininterval=0.2,
        ) as drawn:
            yield drawn.update
        self.terminal.flush()

    def text(self) -> str:
        """Return all lines, each ended, as the text log's content."""
        return "".join(f"{line}\n" for line in self.lines)


@contextlib.contextmanager
def alive(log: RunLog, every_s: float = 30.0) -> Iterator[None]:
    """Say every half minute, from a thread, that the first forward still runs in the block."""
    done = threading.Event()
    start = time.monotonic()

    def tell() -> None:
        while not done.wait(every_s):
            with contextlib.suppress(KitError, OSError):
                took = f"{time.monotonic() - start:.0f} s"
                log.info(f"The first forward has run for {took}; a first run may compile")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def encoded(text: str) -> bytes:
    """Return text as UTF-8; the bytes of a file name that are none become escapes."""
    return text.encode("utf-8", "backslashreplace")


def complain(line: str) -> None:
    """Print one line on stderr; a stderr that is closed or full is no reason to fail.

    A path or a message that itself holds line breaks stays on the one line.
    """
    line = line.replace("\r", "\\r").replace("\n", "\\n")
    with contextlib.suppress(OSError, ValueError):
        print(encoded(line).decode(), file=sys.stderr, flush=True)  # noqa: T201 - a run's last word


def detach_stdout() -> None:
    """Lead stdout to nowhere, once its reader is gone: Python would complain at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_writable(folder: Path) -> None:
    """Make `folder` and prove that a file can be written in it; KitError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_error(folder, error) from error


def require_writable_file(path: Path) -> None:
    """Prove that a file can be put at `path`; KitError where its folder or its name forbids it."""
    try:
        if not path.parent.is_dir():
            raise KitError(f"cannot write {path}: there is no folder {path.parent}; make it first")
        stage(path, b"").unlink()
    except OSError as error:
        raise write_error(path, error) from error


def publish(files: Mapping[Path, bytes], gone: Iterable[Path] = ()) -> None:
    """Write all files, or none: each in full beside its place first, then renamed into it.

    A reader sees the old file or the new one, never a part. What is `gone` is deleted then: files
    of an earlier run that would stand beside these. Raises KitError where a file cannot be written.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            staged.append((stage(path, content), path))
        for temporary, path in staged:
            temporary.replace(path)
        for path in gone:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        for temporary, _ in staged:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def stage(path: Path, content: bytes) -> Path:
    """Write content to a new hidden file beside `path`, on the disk, and return it.

    Where that fails, or `path` is a folder, the hidden file is gone and the OSError raised.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            umask = os.umask(0o022)  # which mkstemp ignores; other readers should not have to
            os.umask(umask)
            os.fchmod(file.fileno(), 0o666 & ~umask)
            os.fsync(file.fileno())
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def write_error(path: Path, error: OSError) -> KitError:
    """Return the error that names the path, the cause and how to fix it."""
    return KitError(
        f"cannot write {path}: {error.strerror or error}; "
        "free the space or the permission, or choose another --output-dir"
    )
