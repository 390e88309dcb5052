"""The report's two files, ready to be published with a run's own."""

from collections.abc import Mapping
from pathlib import Path

from kit.report import model, render, shelf

NAMES = ("report.html", "report.md")


def files(
    folder: Path, language: str, fresh: Mapping[str, bytes] | None = None
) -> dict[Path, bytes]:
    """Return report.html and report.md on all records in a folder.

    Args:
        folder: the output folder.
        language: zh or en.
        fresh: files that are about to be written there, by name.
    """
    report = model.build(shelf.load(folder, fresh), language)
    return {
        folder / "report.html": render.html(report).encode(),
        folder / "report.md": render.markdown(report).encode(),
    }
