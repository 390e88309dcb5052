"""What every script's main does: parse, run, write, and turn errors into exit codes."""

import contextlib
import gc
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType

from kit import distributed, output
from kit.errors import KitError, one_line
from kit.options import AnyOptions, Options, Parse
from kit.records import Record, encode

ROOT = Path(__file__).resolve().parent.parent  # the kit's folder, whatever the current one is
OUR_MODULES = ("kit", "npu_patch")
EXIT_PASSED = 0
EXIT_FAILED_VERDICT = 1
EXIT_COULD_NOT_RUN = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

Draw = Callable[[], bytes]


@dataclass(frozen=True)
class Outcome:
    """What a run measured: nothing of it has been written yet."""

    record: Record  # for output/<script>.json
    report: Sequence[str]  # the lines that stand at the end of the console output
    files: Mapping[Path, bytes] = field(default_factory=dict)  # such as saved features, by path
    # What draws each picture, by its name in the output folder, once the record is on the disk.
    pictures: Mapping[str, Draw] = field(default_factory=dict)
    exit_code: int = EXIT_PASSED  # 1 for a failed verdict, 130 for a partial result after Ctrl-C
    # Measures what is not worth the record, which is on the disk by then; what it returns takes
    # this outcome's place, and its report follows this one's.
    afterwards: Callable[[], "Outcome"] | None = None


Run = Callable[[AnyOptions, output.RunLog], Outcome]


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


def run_script(
    parse: Parse[AnyOptions], run: Run[AnyOptions], argv: Sequence[str] | None = None
) -> int:
    """Run one script and return its exit code.

    0: done and passed. 1: done, and the verdict is a failure. 2: could not run. 130: Ctrl-C or
    SIGTERM. An error is one line on stderr and leaves earlier results as they were. Of torchrun's
    ranks the first one prints and writes.
    """
    # The run's own log prints npu_patch's line; logging's last resort must not print it again.
    logging.getLogger("npu_patch").addHandler(logging.NullHandler())
    options: AnyOptions | None = None
    written: list[Path] = []  # so that what is said of a run that breaks off is true
    try:
        with terminated_as_interrupted():
            options = parse(argv)
            leads = distributed.place().leads
            if leads:
                output.require_writable(options.output_dir)
            log = output.RunLog(silent=not leads)
            outcome = run(options, log)
            if leads:
                write(options, log, outcome, written)
    except KitError as error:
        return refuse(str(error))
    except BrokenPipeError:
        output.detach_stdout()
        return refuse(f"the reader of the console output went away; {kept(written)}")
    except KeyboardInterrupt:
        output.complain(f"interrupted: {kept(written)}")
        return EXIT_INTERRUPTED
    except Exception as error:  # the last resort: a crash is no failed verdict
        return refuse(crash(error, options))
    return outcome.exit_code


def refuse(message: str) -> int:
    """Print an error's line on stderr and return the exit code of a run that could not be done."""
    output.complain(f"error: {message}")
    return EXIT_COULD_NOT_RUN


def kept(written: Sequence[Path]) -> str:
    """Return what a run that broke off has left behind."""
    if not written:
        return "nothing was written"
    return f"{', '.join(str(path) for path in written)} had been written before"


def named(error: Exception) -> str:
    """Return an error's type and its message, on one line."""
    name, words = type(error).__name__, one_line(error, 300)
    return name if words == name else f"{name}: {words}"


def crash(error: Exception, options: Options | None) -> str:
    """Return an unexpected error's line, and keep its traceback in <script>.error.log."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name and name not in OUR_MODULES:
        return f"the package {name} is not installed: pip install -r requirements.txt"
    line = named(error)
    if options is None:
        return line
    path = options.output_dir / f"{options.script}.error.log"
    try:
        text = "".join(traceback.format_exception(error))
        output.publish({path: text.encode("utf-8", "backslashreplace")})
    except KitError as problem:
        return f"{line} (no traceback: {problem})"
    return f"{line} (a fault of the kit or its libraries; the traceback is in {path})"


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM act as Ctrl-C does within the block, and neither be lost in it.

    What a destructor or a weak reference's callback raises, Python drops: an interrupt that comes
    in the middle of one is sent once more when it has ended.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def send() -> None:
        main = threading.main_thread().ident
        if main is not None and signal.getsignal(signal.SIGTERM) is interrupt:  # still in the block
            signal.pthread_kill(main, signal.SIGTERM)  # which ends a wait, as no flag does

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            hook(what)
            return
        again = threading.Timer(0.01, send)
        again.daemon = True
        again.start()

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, which alone may change signals
        yield
        return
    hook, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook


def write(options: Options, log: output.RunLog, outcome: Outcome, written: list[Path]) -> None:
    """Write the record and the log, then the other results, the pictures and the report.

    A picture or a report that fails is a warning, a record or a result that was asked for and
    cannot be written a KitError. `written` gets each path once it is on the disk.
    """
    record, text_log = (options.output_dir / f"{options.script}.{end}" for end in ("json", "log"))
    lines = "".join(f"{line}\n" for line in outcome.report)
    output.publish({record: encode(outcome.record), text_log: output.encoded(log.text() + lines)})
    written += [record, text_log]
    for line in outcome.report:
        log.line(line)
    if outcome.afterwards is not None:
        with warned(log, "No profile"):
            outcome = outcome.afterwards()
            output.publish({record: encode(outcome.record)})
            for line in outcome.report:
                log.line(line)
    for path, content in outcome.files.items():
        output.publish({path: content})
        written.append(path)
    for name, draw in outcome.pictures.items():
        with warned(log, f"No {name}"):
            output.publish({options.output_dir / name: draw()})
            written.append(options.output_dir / name)
    if not options.no_report:
        with warned(log, "No report"):
            from kit.report.render import files  # the template engine is needed only here

            report = files(options.output_dir, options.lang)
            output.publish(report)
            written += report
    log.info(f"Wrote {', '.join(str(path) for path in written)}")
    with warned(log, f"{text_log} lacks its last lines"):
        output.publish({text_log: output.encoded(log.text())})


@contextlib.contextmanager
def warned(log: output.RunLog, what: str) -> Iterator[None]:
    """Turn any error in the block into a warning: nothing in it is worth a measurement."""
    try:
        yield
    except ModuleNotFoundError as error:
        log.warning(f"{what}: the package {error.name} is not installed")
    except Exception as error:
        words = one_line(error, 300) if isinstance(error, KitError) else named(error)
        log.warning(f"{what}: {words}")
