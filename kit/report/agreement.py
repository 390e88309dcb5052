"""Whether the records belong together: the same weights, device, versions and commit."""

from datetime import timedelta

from kit.report.fields import Node
from kit.report.shelf import Entry, Shelf
from kit.report.texts import Texts

SAME = (
    ("model", "sha256"),
    ("model", "source"),
    ("model", "dtype"),
    ("model", "attention"),
    ("device", "type"),
    ("device", "name"),
    ("device", "matmul_fp32"),
    ("device", "convolution_fp32"),
    ("environment", "python"),
    ("environment", "torch"),
    ("environment", "torch_npu"),
    ("environment", "transformers"),
    ("environment", "numpy"),
    ("environment", "pillow"),
    ("environment", "cann"),
    ("environment", "driver"),
    ("environment", "platform"),
    ("environment", "cpu"),
    ("environment", "git_commit"),
)
STALE_AFTER = timedelta(days=1)


def newest(shelf: Shelf) -> Entry | None:
    """Return the entry that started last; None where none says when."""
    dated = [entry for entry in shelf.found() if entry.started_at is not None]
    return max(dated, key=lambda entry: entry.started_at, default=None)  # type: ignore[arg-type, return-value] # none of them is None


def differences(shelf: Shelf, texts: Texts) -> list[str]:
    """Return a sentence for each record that does not belong with the newest."""
    found = shelf.found()
    anchor = newest(shelf) or (found[0] if found else None)
    if anchor is None:
        return []
    return [
        texts.mixed.format(
            file=entry.file,
            started_at=when(entry, texts),
            anchor=anchor.file,
            anchor_started_at=when(anchor, texts),
            differences="; ".join(unlike),
        )
        for entry in found
        if entry is not anchor and (unlike := unlike_fields(entry.record, anchor.record))
    ]


def unlike_fields(one: Node, other: Node) -> list[str]:
    """Return `field: value ≠ value` for each field in which two records differ.

    A field that a record lacks is named as missing elsewhere.
    """
    pairs = [(keys, one.at(*keys), other.at(*keys)) for keys in SAME]
    return [
        f"{'.'.join(keys)}: {shown(mine)} ≠ {shown(theirs)}"
        for keys, mine, theirs in pairs
        if not mine.missing and not theirs.missing and mine.value != theirs.value
    ]


def shown(node: Node) -> str:
    """Return a value for a sentence."""
    return "null" if node.null else str(node.value)


def when(entry: Entry, texts: Texts) -> str:
    """Return when a record's run started."""
    return entry.record.at("started_at").text() or texts.missing


def stale(shelf: Shelf, texts: Texts) -> list[str]:
    """Return a sentence for each record that is more than a day older than the newest."""
    anchor = newest(shelf)
    if anchor is None or anchor.started_at is None:
        return []
    return [
        texts.stale.format(
            file=entry.file,
            started_at=when(entry, texts),
            anchor=anchor.file,
            anchor_started_at=when(anchor, texts),
        )
        for entry in shelf.found()
        if entry.started_at is not None and anchor.started_at - entry.started_at > STALE_AFTER
    ]
