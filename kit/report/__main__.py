"""Write the report on an output folder again, or check what its records claim; without torch.

python3 -m kit.report [FOLDER] [--lang zh|en] [--card]
python3 -m kit.report --verify [FOLDER]

--card makes the model card in FOLDER/card too. --verify prints each claim of the records with how
it was checked, writes nothing, and exits with 0 where the records are validated, else 1.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from kit import output
from kit.errors import KitError
from kit.options import OneLineParser, add_language, some_path
from kit.run import refuse


def verify(folder: Path, language: str) -> tuple[list[str], int]:
    """Return each claim with how it was checked, then the verdict; and the exit code."""
    from kit.language import load_words
    from kit.report.load import load_records
    from kit.report.render import visible
    from kit.report.verdict import conclude, say

    words = load_words(language)
    verdict = conclude(load_records(folder), words, datetime.now(timezone.utc))
    lines = []
    for one in verdict.checks:
        state = {True: "agrees", False: "contradicts", None: "unconfirmed"}[one.agrees]
        method = words["methods"][one.method]
        values = {**vars(one), "method": method, "agrees": state}
        lines.append(say(words, f"verify_{state}", **values))
    lines += ["", *verdict.failures, *verdict.reasons, words["unsigned"]]
    lines.append(words["states"][verdict.state])
    return [visible(line) for line in lines], int(verdict.state != "validated")


def main(argv: Sequence[str] | None = None) -> int:
    """Write report.html and report.md; return 0, or 2 where that cannot be done."""
    parser = OneLineParser(
        prog="python3 -m kit.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder",
        type=some_path,
        nargs="?",
        default=Path("output"),
        metavar="FOLDER",
        help="the output folder (default: %(default)s)",
    )
    parser.add_argument("--card", action="store_true", help="write FOLDER/card, a model card, too")
    parser.add_argument("--verify", action="store_true", help="check the records' claims only")
    add_language(parser)
    log = output.RunLog()
    try:
        options = parser.parse_args(argv)
        if not options.folder.is_dir():
            parser.error(f"{options.folder} is not a folder: give the one with the records")
        if options.verify:
            lines, code = verify(options.folder, options.lang)
            for line in lines:
                log.line(line)
            return code
        from kit.report.render import files, outdated

        made = files(options.folder, options.lang, card=options.card)
        output.publish(made, outdated(options.folder, made) if options.card else ())
        log.line(f"Wrote {', '.join(str(path) for path in made)}")
    except KitError as error:
        return refuse(str(error))
    except BrokenPipeError:
        output.detach_stdout()
        return refuse("the reader of the console output went away")
    except ModuleNotFoundError as error:
        return refuse(f"the package {error.name} is not installed: pip install {error.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
