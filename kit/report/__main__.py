"""Write the report on an output folder again, for example on a machine without torch.

python3 -m kit.report [FOLDER] [--lang zh|en]
"""

import argparse
import sys
from pathlib import Path

from kit import output
from kit.errors import KitError
from kit.options import OneLineParser, add_language
from kit.report.files import files


def main() -> int:
    """Write report.html and report.md; return 0, or 2 where that cannot be done."""
    parser = OneLineParser(
        prog="kit.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("output"), metavar="FOLDER")
    add_language(parser)
    try:
        arguments = parser.parse_args()
        if not arguments.folder.is_dir():
            parser.error(f"{arguments.folder} is not a folder: give the one with the records")
        made = files(arguments.folder, arguments.lang)
        output.publish(made)
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line on stderr
        return 2
    print("Wrote " + ", ".join(str(path) for path in made))  # noqa: T201 - what it did
    return 0


if __name__ == "__main__":
    sys.exit(main())
