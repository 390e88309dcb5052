"""The report's end: notes, and the exact commands that reproduce it."""

import re
import shlex

from kit.report.blocks import Block, Bullets, Cell, Code, Paragraph, Section
from kit.report.cells import Cells
from kit.report.fields import Node
from kit.report.shelf import Shelf

# Set by the driver's own script, by torchrun or by npu_patch: not the user's to repeat.
SET_BY_OTHERS = {
    "ASCEND_HOME_PATH",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "TORCH_COMPILE_DISABLE",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
}
COMMIT = re.compile(r"[0-9a-f]{7,64}")


def notes(shelf: Shelf, cells: Cells) -> Section:
    """Return what holds for every run, and what each run warned of, in its own words."""
    texts = cells.texts
    always = (texts.note_patch, texts.note_compile, texts.note_arithmetic, texts.note_size)
    blocks: list[Block] = [Bullets(tuple(Cell(note) for note in (*always, texts.note_output)))]
    for entry in shelf.found():
        node = entry.record.at("warnings")
        warnings = node.texts() if isinstance(node.value, list) else [texts.missing]
        if warnings:
            blocks.append(Paragraph(texts.warnings_of.format(script=f"{entry.script}.py")))
            blocks.append(Bullets(tuple(Cell(warning) for warning in warnings)))
    return Section("notes", texts.notes, tuple(blocks))


def reproduction(shelf: Shelf, cells: Cells) -> Section:
    """Return the commands; those of runs whose environments differ stand apart."""
    texts = cells.texts
    setups = {entry.script: setup_lines(entry.record) for entry in shelf.found()}
    blocks: list[Block] = [Paragraph(texts.reproduction_intro)]
    if len({tuple(lines) for lines in setups.values()}) == 1:
        lines = next(iter(setups.values()))
        commands = [command_line(entry.record, cells) for entry in shelf.found()]
        blocks.append(Code("bash", "\n".join([*lines, *commands]), texts.commands))
    else:
        blocks += [
            Code(
                "bash",
                "\n".join([*setups[entry.script], command_line(entry.record, cells)]),
                entry.file,
            )
            for entry in shelf.found()
        ]
    if not shelf.found():
        blocks = [Paragraph(texts.no_record_at_all)]
    return Section("reproduction", texts.reproduction, tuple(blocks))


def setup_lines(record: Node) -> list[str]:
    """Return how to get the same code and the same packages."""
    environment = record.at("environment")
    lines = []
    commit = (environment.at("git_commit").text() or "").partition("+")[0]
    if COMMIT.fullmatch(commit):
        lines.append(f"git checkout {commit}")
    pins = []
    for field, package in (
        ("torch", "torch"),
        ("transformers", "transformers"),
        ("numpy", "numpy"),
        ("pillow", "pillow"),
    ):
        version = public_version(environment.at(field))
        if version:
            pins.append(shlex.quote(f"{package}=={version}"))
    if pins:
        lines.append(f"pip install {' '.join(pins)}")
    npu = public_version(environment.at("torch_npu"))
    if npu:
        lines.append(f"pip install --no-deps {shlex.quote(f'torch-npu=={npu}')} pyyaml")
    return lines


def public_version(node: Node) -> str:
    """Return a version without its local part, which no package index has."""
    return (node.text() or "").partition("+")[0]


def command_line(record: Node, cells: Cells) -> str:
    """Return the command that made a record, with the variables that were set."""
    environment = record.at("environment")
    command = environment.at("command").texts()
    if not command:
        return f"# {record.at('script').text() or cells.texts.record}: {cells.texts.missing}"
    variables = {name: value.text() or "" for name, value in environment.at("variables").pairs()}
    parts = [
        f"{name}={shlex.quote(value)}"
        for name, value in sorted(variables.items())
        if name not in SET_BY_OTHERS and name.isidentifier()
    ]
    world_size = variables.get("WORLD_SIZE", "")
    if world_size.isdigit():
        parts += ["torchrun", "--nproc-per-node", world_size]
    else:
        parts.append("python3")
    # A line break in a file's name would end the command for whoever pastes it.
    words = [shlex.quote(word).replace("\n", "'$'\\n''") for word in command]
    return " ".join([*parts, *words])
