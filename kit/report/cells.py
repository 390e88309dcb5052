"""From a record's values to cells: one form for each kind of value, "missing" where it is not."""

from dataclasses import dataclass

from kit.report.blocks import Cell, CellKind
from kit.report.fields import Node
from kit.report.texts import Texts

MIB = 1 << 20
DEVICE_LABELS = {"npu": "NPU", "cuda": "GPU", "cpu": "CPU"}


@dataclass(frozen=True)
class Cells:
    """Makes cells in one language."""

    texts: Texts

    def missing(self) -> Cell:
        """Return the cell of a value that should be there and is not."""
        return Cell(self.texts.missing, "missing")

    def none(self) -> Cell:
        """Return the cell of a value that the run did not have."""
        return Cell(self.texts.none)

    def number(self, node: Node, spec: str, unit: str = "", null: str = "") -> Cell:
        """Return a number in the format `spec`, followed by its unit.

        Args:
            node: the value.
            spec: a format specification, without a type for whole numbers.
            unit: what stands behind the number.
            null: what null means here; "none" where it is not given.
        """
        if node.null:
            return Cell(null or self.texts.none, "doubtful" if null else "text")
        value = node.number()
        if value is None:
            return self.missing()
        return Cell(f"{format(value, spec)}{unit}", "number", float(value))

    def whole(self, node: Node) -> Cell:
        """Return a whole number."""
        return self.number(node, "")

    def ms(self, node: Node) -> Cell:
        """Return a time in ms."""
        return self.number(node, ".2f", " ms")

    def error(self, node: Node) -> Cell:
        """Return a relative error or a difference; null means that it is not finite."""
        return self.number(node, "#.3g", null=self.texts.not_finite)

    def fixed(self, node: Node, places: int) -> Cell:
        """Return an error with so many decimals, as the console has it; a tiny one by its size.

        Null means that it is not finite.
        """
        value = node.number()
        tiny = value is not None and 0 < abs(value) < 10.0 ** (2 - places)
        return self.number(node, ".3g" if tiny else f".{places}f", null=self.texts.not_finite)

    def percent(self, node: Node, spec: str = ".0f") -> Cell:
        """Return a share as a percentage."""
        if node.null:
            return self.none()
        value = node.number()
        if value is None:
            return self.missing()
        return Cell(f"{format(value * 100, spec)} %", "number", float(value))

    def mib(self, node: Node) -> Cell:
        """Return a number of bytes in MiB."""
        if node.null:
            return self.none()
        value = node.number()
        if value is None:
            return self.missing()
        return Cell(f"{value / MIB:.0f} MiB", "number", float(value))

    def code(self, node: Node) -> Cell:
        """Return a name, a path or a version as it is."""
        return self.text(node, "code")

    def text(self, node: Node, kind: CellKind = "text") -> Cell:
        """Return a text of the record."""
        if node.null:
            return self.none()
        value = node.text()
        if value is None:
            return self.missing()
        return Cell(value, kind) if value.strip() else self.none()

    def shape(self, node: Node) -> Cell:
        """Return a tensor's shape."""
        if node.null:
            return self.none()
        sizes = node.numbers()
        if not sizes or len(sizes) != len(node.items()):
            return self.missing()
        return Cell(f"[{', '.join(f'{size:g}' for size in sizes)}]", "code")

    def passed(self, node: Node, *, good: str = "PASS", bad: str = "FAIL") -> Cell:
        """Return a verdict on one figure."""
        flag = node.flag()
        if flag is None:
            return self.none() if node.null else self.missing()
        return Cell(good, "good") if flag else Cell(bad, "bad")

    def yes(self, node: Node) -> Cell:
        """Return yes or no."""
        flag = node.flag()
        if flag is None:
            return self.none() if node.null else self.missing()
        return Cell(self.texts.yes if flag else self.texts.no)

    def names(self, node: Node) -> Cell:
        """Return a list of names; the word for none where it is empty."""
        if node.null:
            return self.none()
        if not isinstance(node.value, list):
            return self.missing()
        found = node.texts()
        return Cell(", ".join(found), "code") if found else self.none()

    def word(self, node: Node) -> str:
        """Return a text for the middle of a sentence."""
        return self.text(node).text


def device_label(device: Node) -> str | None:
    """Return NPU, GPU or CPU; None where the record does not say."""
    return DEVICE_LABELS.get(device.at("type").text() or "")
