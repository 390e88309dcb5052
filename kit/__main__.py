"""Run inference.py, benchmark.py and accuracy.py one after the other, then write report and card.

Each script is a process of its own, so that one that dies does not take the others with it. An
option goes to every script that knows it, as in

    python3 -m kit --device npu:1 --iterations 100 --explain

What comes out beside the scripts' own files: output/report.html, output/report.md and output/card,
a model card to publish. The exit code is the worst of the three. It takes a few minutes.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import accuracy
import benchmark
import inference
from kit import distributed, output
from kit.errors import KitError
from kit.options import Options, shared_parser
from kit.run import EXIT_INTERRUPTED, ROOT, refuse, warned

SCRIPTS = {"inference.py": inference, "benchmark.py": benchmark, "accuracy.py": accuracy}
ENDINGS = {
    0: "passed",
    1: "failed its verdict",
    2: "could not run",
    EXIT_INTERRUPTED: "stopped",
    None: "not run",
}


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    script: str  # its file name
    code: int | None  # 128 + N where signal N killed it; None where it was not started
    took_s: float
    started: float = 0.0  # in s since 1970

    def line(self) -> str:
        """Return its row of the table of outcomes."""
        names = {128 + number: number.name for number in signal.Signals}
        died = f"died: {names.get(self.code or 0, f'exit code {self.code}')}"
        return f"{self.script:<14}{ENDINGS.get(self.code, died):<32}{self.took_s:>8.1f} s"


def shared_out(argv: Sequence[str], known: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Return the options that each script knows, with values; KitError for one that none knows."""
    found: dict[str, list[str]] = {script: [] for script in known}
    takers: list[str] = []
    for word in argv:
        if word.startswith("--") or not takers:
            name = word.partition("=")[0]
            takers = [script for script, names in known.items() if name in names]
            if not takers:
                raise KitError(f"no script knows {word[:60]!r} (see python3 -m kit --help)")
        for script in takers:
            found[script].append(word)
    return found


def parse(argv: Sequence[str]) -> tuple[Options, dict[str, list[str]]]:
    """Return the options that the scripts share, and each script's arguments, all of them checked.

    Raises KitError for an option that no script knows, or that makes no sense to one that does.
    """
    known = {script: module.make_parser().names() for script, module in SCRIPTS.items()}
    shared = set.intersection(*known.values())
    own = [f"  {script}: {' '.join(sorted(names - shared))}" for script, names in known.items()]
    parser = shared_parser("kit", __doc__ or "")
    parser.prog = "python3 -m kit"
    parser.epilog = "\n".join(["one script's own options (see its --help):", *own])
    if {"-h", "--help"} & {*argv}:
        parser.parse_args(["--help"])
    if distributed.place().world_size > 1:
        raise KitError("torchrun starts one script on all devices: give it that script, not -m kit")
    if "--coverage" not in argv:
        known["accuracy.py"].discard("--modes")  # which are its coverage's: benchmark.py's alone
    arguments = shared_out(argv, known)
    options = [module.parse_options(arguments[script]) for script, module in SCRIPTS.items()]
    return options[0], arguments


def run_all(arguments: Mapping[str, Sequence[str]], log: output.RunLog) -> list[Ended]:
    """Run the scripts one after the other; Ctrl-C and SIGTERM stop the one that runs and the rest.

    A script gets SIGTERM once for either, in a session of its own, so that a terminal's Ctrl-C,
    which goes to all processes of a session, does not reach it a second time.
    """
    running: subprocess.Popen[bytes] | None = None
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        if running is not None:
            running.send_signal(signal.SIGTERM)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in signals}
    found = []
    try:
        for place, (script, words) in enumerate(arguments.items(), 1):
            if stopped:
                found.append(Ended(script, None, 0.0))
                continue
            log.info(f"{place} of {len(arguments)}: {shlex.join(['python3', script, *words])}")
            command = [sys.executable, os.path.relpath(ROOT / script), *words]
            start, started = time.monotonic(), time.time()
            running = subprocess.Popen(command, start_new_session=True)
            if stopped:  # between the check above and the start
                running.send_signal(signal.SIGTERM)
            code = running.wait()
            running = None
            if stopped and code == -signal.SIGTERM:  # before or after it listens for it
                code = EXIT_INTERRUPTED
            code = code if code >= 0 else 128 - code
            found.append(Ended(script, code, time.monotonic() - start, started))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return found


def write(options: Options, ended: Sequence[Ended], log: output.RunLog) -> None:
    """Write report and card on what the scripts left; an error in it is a warning."""
    folder = options.output_dir
    for one in ended:
        record = folder / Path(one.script).with_suffix(".json")
        if record.exists() and (one.code is None or record.stat().st_mtime < one.started - 1):
            log.warning(f"{record} is of an earlier run")
    if options.no_report:
        return
    with warned(log, "No report and no card"):
        # The template engine is needed only here.
        from kit.report.render import UPLOADS, files, outdated

        made = files(folder, options.lang, card=True)
        output.publish(made, outdated(folder, made))
        log.info(f"Wrote {', '.join(str(path) for path in made if path.parent == folder)}")
        if folder / "card" / "README.md" in made:
            log.info(f"Wrote {folder / 'card'}, to publish with one of")
            for upload in UPLOADS:
                log.line(f"    {upload.format(shlex.quote(str(folder / 'card')))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all three and return the worst of their exit codes; 2 where the options make no sense."""
    log = output.RunLog()
    try:
        options, arguments = parse(sys.argv[1:] if argv is None else argv)
        output.require_writable(options.output_dir)
        ended = run_all(arguments, log)
        for line in (output.RULE, "Outcomes", output.RULE, *(one.line() for one in ended)):
            log.line(line)
        log.line(output.RULE)
        write(options, ended, log)
    except KitError as error:
        return refuse(str(error))
    except BrokenPipeError:
        output.detach_stdout()
        return refuse("the reader of the console output went away")
    return max(EXIT_INTERRUPTED if one.code is None else one.code for one in ended)


if __name__ == "__main__":
    sys.exit(main())
