"""The READMEs: in step with each other and with the scripts."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import accuracy
import benchmark
import inference
from kit.options import Options
from kit.run import ROOT

READMES = ("README.md", "README.zh-CN.md")
PARSERS = {
    "inference.py": inference.parse_options,
    "benchmark.py": benchmark.parse_options,
    "accuracy.py": accuracy.parse_options,
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


def test_both_languages_have_the_same_commands() -> None:
    assert commands(READMES[0]) == commands(READMES[1]) != []


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
    words = shlex.split(command.rsplit("&&", maxsplit=1)[-1])
    scripts = [word for word in words if word in PARSERS]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").write_text("{}")
    if scripts:
        argv = words[words.index(scripts[0]) + 1 :]
        assert isinstance(PARSERS[scripts[0]](argv), Options)
    else:
        assert words[0].endswith(("pip", "python", "python3", "modelscope", "source"))


def test_the_readme_s_options_are_those_of_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inference.parse_options(["--help"])
    of_parser = set(re.findall(r"^  (--[a-z0-9-]+)", capsys.readouterr().out, re.M))
    in_table = set(re.findall(r"^\| `(--[a-z0-9-]+)", text(READMES[0]), re.M))
    assert of_parser - {"--save-features"} == in_table


RUNNABLE = [
    command
    for command in commands(READMES[0])
    # Downloads have tests of their own; the first command and pip's are run by .ci/run.
    if command.startswith(("python3 ", "torchrun ")) and not command.endswith("modelscope")
    if command.split()[1] in {*PARSERS, "--nproc-per-node"}
]


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> Path:
    """A folder as the commands expect it: the scripts, photos, COCO images, an old record."""
    folder = tmp_path_factory.mktemp("user")
    for name in (*PARSERS, "npu_patch.py", "kit"):
        (folder / name).symlink_to(ROOT / name)
    for images in ("photos", "data/val2017"):
        (folder / images).mkdir(parents=True)
        for number in range(3):
            (folder / images / f"{number}.png").symlink_to(photo)
    (folder / "data" / "sample.jpg").symlink_to(ROOT / "data" / "sample.jpg")
    return folder


def run_command(command: str, folder: Path, weights: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the README's commands with this interpreter and the tiny weights."""
    program, *rest = shlex.split(command)
    torchrun = ["-m", "torch.distributed.run", "--standalone"] if program == "torchrun" else []
    return subprocess.run(
        [sys.executable, *torchrun, *rest],
        cwd=folder,
        env={**os.environ, "DINOV3_WEIGHTS": str(weights)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.extended
def test_every_command_that_computes_runs(users_folder: Path, tiny_weights: Path) -> None:
    assert len(RUNNABLE) == 8
    codes = {}
    for command in ["python3 benchmark.py --iterations 5", *RUNNABLE]:
        shortened = re.sub(r"--soak [0-9]+", "--soak 0.02", command)  # of minutes
        done = run_command(shortened, users_folder, tiny_weights)
        codes[command] = done.returncode
        record = users_folder / "output" / "benchmark.json"
        if "--iterations" in command:
            shutil.copy(record, users_folder / "old.json")
        elif "--baseline" not in command:  # whose verdict depends on the machine's noise
            assert done.returncode == 0, f"{command}: {done.stderr}"
    assert set(codes.values()) <= {0, 1}
