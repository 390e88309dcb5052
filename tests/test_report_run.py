"""The report as a run leaves it: after any script, never in the way of a result."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.report import files as report_files
from kit.report import model, render, shelf
from kit.report.blocks import Table
from kit.run import ROOT
from tests.report_records import everything, write
from tests.report_states import HOSTILE, hostile

Run = Callable[..., tuple[int, Path]]


def test_a_run_writes_the_report_in_chinese_and_its_block_is_the_consoles(
    run_inference: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = run_inference()
    out = capsys.readouterr().out
    text = (folder / "report.md").read_text("utf-8")
    assert code == 0
    assert "验证不完整" in text
    block = out[out.index("=" * 60) : out.rindex("=" * 60)]
    assert block in text
    assert f"{folder / 'report.html'}, {folder / 'report.md'}" in out.splitlines()[-1]
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 1
    # The only address is the name of SVG in the script, which nothing is fetched from.
    assert page.count("http://") == page.count("http://www.w3.org/2000/svg") == 1
    assert "https://" not in page
    assert (folder / "inference.log").read_text("utf-8") == out


def test_the_language_is_chosen_and_the_report_can_be_left_out(run_inference: Run) -> None:
    _, folder = run_inference("--lang", "en")
    english = (folder / "report.md").read_text("utf-8")
    assert "## Incomplete" in english
    run_inference("--no-report", "--lang", "zh")
    assert (folder / "report.md").read_text("utf-8") == english


def test_a_broken_old_record_never_makes_a_good_run_fail(run_inference: Run) -> None:
    folder = run_inference()[1]
    (folder / "benchmark.json").write_bytes(b'{"script": "benchmark", \xff')
    (folder / "accuracy.json").mkdir()
    code, _ = run_inference("--lang", "en")
    text = (folder / "report.md").read_text("utf-8")
    assert code == 0
    assert "benchmark.json cannot be read (no JSON" in text
    assert "accuracy.json cannot be read (not a plain file)" in text


def test_a_report_that_fails_is_a_warning_and_the_results_are_written(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of the report")

    monkeypatch.setattr(report_files, "files", fail)
    code, folder = run_inference()
    assert code == 0
    assert "[WARNING] No report: ZeroDivisionError: of the report" in capsys.readouterr().out
    assert (folder / "inference.json").is_file()
    assert not (folder / "report.html").exists()


def test_no_run_leaves_a_warning_about_the_report(
    run_inference: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run_inference()
    assert "No report" not in capsys.readouterr().out


def command(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kit.report", str(folder), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_report_is_made_again_without_torch(tmp_path: Path) -> None:
    write(tmp_path, everything())
    done = command(tmp_path, "--lang", "en")
    assert done.returncode == 0, done.stderr
    assert " torch\n" not in done.stderr and " matplotlib\n" not in done.stderr
    assert "## Validated" in (tmp_path / "report.md").read_text("utf-8")
    missing = command(tmp_path / "no")
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("error: ")


def test_reproduction_repeats_the_run_word_for_word(tmp_path: Path) -> None:
    records = everything()
    options = ["--image", "my photo.jpg", "--weights", "a'b"]
    records["inference"]["environment"]["command"] = ["inference.py", *options]
    records["benchmark"]["environment"]["variables"].update(WORLD_SIZE="2", LOCAL_RANK="0")
    write(tmp_path, records)
    text = report_files.files(tmp_path, "en")[tmp_path / "report.md"].decode()
    lines = text.split("```bash\n")[1].split("\n```")[0].splitlines()
    assert lines[0] == "git checkout 0123456789abcdef0123456789abcdef01234567"
    assert lines[1] == "pip install torch==2.9.0 transformers==4.57.6 numpy==1.26.4 pillow==11.3.0"
    assert lines[2] == "pip install --no-deps torch-npu==2.9.0.post1 pyyaml"
    assert lines[4].startswith("TASK_QUEUE_ENABLE=2 torchrun --nproc-per-node 2 benchmark.py ")
    echo = lines[3].replace("python3 inference.py", "printf '%s\\n'")
    said = subprocess.run(["sh", "-c", echo], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == options


def test_markdown_tables_keep_their_columns_and_names_stay_text(tmp_path: Path) -> None:
    records = everything()
    hostile(records)
    write(tmp_path, records)
    text = report_files.files(tmp_path, "en")[tmp_path / "report.md"].decode()
    outside, fenced, width = [], False, 0
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        if fenced or line.startswith("```"):
            continue
        bars = len(line.replace("\\\\", "").replace("\\|", "").split("|"))
        width = (width or bars) if line.startswith("|") else 0
        assert not width or bars == width, line
        outside.append(line)
    # Code spans show markup as it is: here they are longer than the one backtick of the name.
    plain = "\n".join(outside)
    while "``" in plain:
        start = plain.index("``")
        end = plain.index("``", start + 2)
        plain = plain[:start] + plain[end + 2 :]
    assert "<" not in plain.replace("\\<", "")
    assert HOSTILE.splitlines()[1] not in plain.splitlines()
    headings = [line for line in outside if line.startswith("#")]
    assert len(headings) == 9


def test_markdown_reads_as_the_page_does(tmp_path: Path) -> None:
    reader = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    records = everything()
    hostile(records)
    write(tmp_path, records)
    report = model.build(shelf.load(tmp_path), "en")
    page = reader.MarkdownIt("gfm-like", {"linkify": False, "html": True})
    tokens = page.parse(render.markdown(report))
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "link_open", "em_open", "s_open", "hr"}
    assert sum(child.type == "image" for child in inline) == 5
    tables = [
        block for section in report.sections for block in section.blocks if isinstance(block, Table)
    ]
    cells = [
        cell for table in (report.verdict.proofs, *tables) for row in table.rows for cell in row
    ]
    read = [
        "".join(c.content for c in tokens[at + 1].children or ())
        for at, token in enumerate(tokens)
        if token.type == "td_open"
    ]
    assert len(read) == len(cells)
    for found, cell in zip(read, cells, strict=True):
        assert found.split() == render.visible(cell.text).split()


def test_the_records_of_the_tests_are_records(tmp_path: Path) -> None:
    found = shelf.load(write(tmp_path, everything()))
    assert [entry.damaged for entry in found.found()] == [(), (), ()]
    assert json.loads((tmp_path / "accuracy.json").read_text())["script"] == "accuracy"
