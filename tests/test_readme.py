"""The READMEs: in step with each other and with the scripts."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

import accuracy
import benchmark
import inference

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh-CN.md")
PARSERS = {
    "inference.py": inference.parse_arguments,
    "benchmark.py": benchmark.parse_arguments,
    "accuracy.py": accuracy.parse_arguments,
}


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def commands(name: str) -> list[str]:
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text(name), re.M | re.S)
    return [line.strip() for block in blocks for line in block.splitlines()]


def headings(name: str) -> list[int]:
    without_code = re.sub(r"^ *```.*?^ *```", "", text(name), flags=re.M | re.S)
    return [len(marks) for marks in re.findall(r"^(#+) ", without_code, re.M)]


def test_both_languages_have_the_same_headings_and_table_rows() -> None:
    assert headings(READMES[0]) == headings(READMES[1])
    rows = [[line.count("|") for line in text(name).splitlines() if line.startswith("|")]
            for name in READMES]  # fmt: skip
    assert rows[0] == rows[1]


def test_both_languages_have_the_same_commands_and_output() -> None:
    assert commands(READMES[0]) == commands(READMES[1])
    outputs = [re.findall(r"^```text\n(\[INFO\].*?)^```", text(name), re.M | re.S)
               for name in READMES]  # fmt: skip
    assert outputs[0] == outputs[1] != []


@pytest.mark.parametrize("name", READMES)
def test_every_link_leads_to_a_file(name: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", text(name))
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("name", READMES)
def test_every_file_that_is_named_exists(name: str) -> None:
    files = set(re.findall(r"`((?:docs|tests|kit|data)/[\w./-]+)`", text(name)))
    for file in files - {"data/val2017/000000000139.jpg"}:  # the user's own
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("command", commands(READMES[0]))
def test_every_command_names_options_that_exist(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command.rsplit("&&", maxsplit=1)[-1].removeprefix("KIT_REQUIRE_NPU=1 "))
    scripts = [word for word in words if word in PARSERS]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").write_text("{}")
    if scripts:
        argv = words[words.index(scripts[0]) + 1 :]
        assert isinstance(PARSERS[scripts[0]](argv), argparse.Namespace)
    else:
        assert words[0].endswith(("pip", "python", "python3", "modelscope"))


def test_the_readme_s_options_are_those_of_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inference.parse_arguments(["--help"])
    of_parser = set(re.findall(r"^  (--[a-z0-9-]+)", capsys.readouterr().out, re.M))
    in_table = set(re.findall(r"^\| `(--[a-z0-9-]+)", text(READMES[0]), re.M))
    assert of_parser - {"--save-features"} == in_table
