"""What every script's main does: parse, run, publish, and turn errors into exit codes."""

import argparse
import contextlib
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kit import output, ranks
from kit.errors import KitError
from kit.records import Record

ROOT = Path(__file__).resolve().parent.parent  # the kit's folder, whatever the current one is
OUR_MODULES = ("kit", "npu_patch")
EXIT_PASSED = 0
EXIT_FAILED_VERDICT = 1
EXIT_COULD_NOT_RUN = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@dataclass(frozen=True)
class Outcome:
    """What a run computed: nothing of it has been written yet.

    Attributes:
        record: for output/<script>.json.
        report: the lines that stand at the end of the console output.
        files: further files by name, under the output folder, or anywhere by absolute path.
        exit_code: 0, 1 for a failed verdict, or 130 for a partial result after Ctrl-C.
    """

    record: Record
    report: Sequence[str]
    files: Mapping[Path, bytes] = field(default_factory=dict)
    exit_code: int = EXIT_PASSED


def now() -> str:
    """Return the time as records have it: ISO 8601, whole seconds, with the offset from UTC."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch and transformers in the block without looking for garbage meanwhile.

    They make half a million objects that stay as long as the process: going through them again and
    again takes a sixth of the imports' time, and once more 0.2 s in the middle of the work. So they
    are left out of later collections too.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


Parse = Callable[[Sequence[str] | None], argparse.Namespace]
Run = Callable[[argparse.Namespace, output.RunLog], Outcome]


def run_script(parse: Parse, run: Run, argv: Sequence[str] | None = None) -> int:
    """Run one script and return its exit code.

    0: done and passed. 1: done, and the verdict is a failure. 2: could not run. 130: Ctrl-C.
    An error is one line on stderr and leaves earlier results as they were. Of torchrun's ranks
    the first one prints and writes.
    """
    # The run's own log prints npu_patch's line; logging's last resort must not print it again.
    logging.getLogger("npu_patch").addHandler(logging.NullHandler())
    try:
        arguments = parse(argv)
        leads = ranks.place().leads
        if leads:
            output.require_writable(arguments.output_dir)
        log = output.RunLog(silent=not leads)
        outcome = run(arguments, log)
        if leads:
            for line in outcome.report:
                log.line(line)
            publish(arguments, log, outcome)
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line on stderr
        return EXIT_COULD_NOT_RUN
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or name in OUR_MODULES:  # a fault of ours, not of the host's
            raise
        message = f"the package {name} is not installed: pip install -r requirements.txt"
        print(f"error: {message}", file=sys.stderr)  # noqa: T201 - the same
        return EXIT_COULD_NOT_RUN
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message = "the reader of the console output went away; nothing was written"
        print(f"error: {message}", file=sys.stderr)  # noqa: T201 - the same
        return EXIT_COULD_NOT_RUN
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)  # noqa: T201 - the same
        return EXIT_INTERRUPTED
    return outcome.exit_code


def publish(arguments: argparse.Namespace, log: output.RunLog, outcome: Outcome) -> None:
    """Name the files on the console, then write them with the log and the record.

    Raises:
        KitError: where a file cannot be written.
    """
    folder: Path = arguments.output_dir
    record, text_log = (folder / f"{arguments.script}.{suffix}" for suffix in ("json", "log"))
    files = {folder / name: content for name, content in outcome.files.items()}
    content = output.record_json(outcome.record)
    fresh = {str(name): picture for name, picture in outcome.files.items()}
    report = make_report(arguments, log, {**fresh, record.name: content})
    written = ", ".join(str(path) for path in (record, text_log, *files, *report))
    log.info(f"Wrote {written}")
    files |= {record: content, text_log: log.text().encode(), **report}
    output.publish(files)


def make_report(
    arguments: argparse.Namespace, log: output.RunLog, fresh: Mapping[str, bytes]
) -> dict[Path, bytes]:
    """Return the report's files on all records in the output folder, this run's among them.

    Args:
        arguments: the options.
        log: warned where there is no report.
        fresh: what this run is about to write there, by name.
    """
    if arguments.no_report:
        return {}
    try:
        from kit.report.files import files  # the template engine is needed only here

        return files(arguments.output_dir, arguments.lang, fresh)
    except Exception as error:  # no report is worth the loss of a measurement
        log.warning(f"No report: {type(error).__name__}: {error}")
        return {}
