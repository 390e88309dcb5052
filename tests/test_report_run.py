"""The report as a run leaves it: after any script, never in the way of a result."""

import html
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from kit.report import __main__ as report_command
from kit.report import render
from kit.report.load import load_records
from kit.run import ROOT
from tests.report_records import NOW, everything, write
from tests.report_states import HOSTILE, hostile

Run = Callable[..., tuple[int, Path]]


def test_a_run_writes_the_report_in_chinese_and_its_block_is_the_consoles(
    run_inference: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = run_inference()
    out = capsys.readouterr().out
    text = (folder / "report.md").read_text("utf-8")
    assert code == 0
    assert "未通过验证" in text
    block = out[out.index("Inference Results") : out.rindex("=" * 60)]
    assert block.replace("=" * 60 + "\n", "") in text
    assert f"{folder / 'report.html'}, {folder / 'report.md'}" in out.splitlines()[-1]
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 1
    assert "://" not in page.replace(render.CPU_WHEELS, "") and "<script" not in page
    assert (folder / "inference.log").read_text("utf-8") == out


def test_the_language_is_chosen_and_the_report_can_be_left_out(run_inference: Run) -> None:
    _, folder = run_inference("--lang", "en")
    english = (folder / "report.md").read_text("utf-8")
    assert "## Not validated" in english
    run_inference("--no-report", "--lang", "zh")
    assert (folder / "report.md").read_text("utf-8") == english


def test_a_broken_old_record_never_makes_a_good_run_fail(run_inference: Run) -> None:
    folder = run_inference()[1]
    (folder / "benchmark.json").write_bytes(b'{"script": "benchmark", \xff')
    (folder / "accuracy.json").mkdir()
    code, _ = run_inference("--lang", "en")
    text = (folder / "report.md").read_text("utf-8")
    assert code == 0
    assert "benchmark.json cannot be used (JSON is malformed" in text
    assert "accuracy.json cannot be used (record is not a plain file" in text


def test_a_report_that_fails_is_a_warning_and_the_results_are_written(
    run_inference: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of the report")

    monkeypatch.setattr(render, "files", fail)
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


@pytest.mark.parametrize("package", ["jinja2", "msgspec"])
def test_without_a_package_of_the_report_a_run_warns_once_and_the_command_says_so(
    run_inference: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
) -> None:
    for name in [name for name in sys.modules if name.startswith("kit.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    code, folder = run_inference()
    out = capsys.readouterr().out
    assert code == 0
    assert out.count(f"[WARNING] No report: the package {package} is not installed") == 1
    assert report_command.main([str(folder)]) == 2
    problem = f"error: the package {package} is not installed: pip install {package}\n"
    assert capsys.readouterr().err == problem


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
    records = everything()
    for record in records.values():
        record["started_at"] = datetime.now(timezone.utc).isoformat()
    write(tmp_path, records)
    done = command(tmp_path, "--lang", "en")
    assert done.returncode == 0, done.stderr
    assert " torch\n" not in done.stderr and " matplotlib\n" not in done.stderr
    assert "## Validated" in (tmp_path / "report.md").read_text("utf-8")
    missing = command(tmp_path / "no")
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("error: ")


def test_a_reader_that_goes_away_ends_verify_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, everything(), pictures=False)
    shell = f"{sys.executable} -m kit.report --verify {tmp_path} | head -n 1"
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.splitlines() in ([], ["error: the reader of the console output went away"])


def report(folder: Path) -> str:
    return render.files(folder, "en", NOW)[folder / "report.md"].decode()


def test_reproduction_repeats_the_run_word_for_word(tmp_path: Path) -> None:
    records = everything()
    options = ["--image", "my photo.jpg", "--weights", "a'b"]
    records["inference"]["environment"]["command"] = ["/root/a clone/inference.py", *options]
    records["benchmark"]["environment"]["variables"].update(WORLD_SIZE="2", LOCAL_RANK="0")
    text = report(write(tmp_path, records))
    lines = text.rsplit("```bash\n", 1)[1].split("\n```")[0].splitlines()
    folder = "/opt/atomgit/weight/dinov3-vitb16-pretrain-lvd1689m"
    assert lines[:8] == [
        "git clone https://example.com/npu/kit.git npu-kit && cd npu-kit",
        "git checkout 0123456789abcdef0123456789abcdef01234567",
        "pip install torch==2.9.0 --index-url https://download.pytorch.org/whl/cpu",
        "pip install -r requirements.txt transformers==4.57.6 numpy==1.26.4 pillow==11.3.0",
        "pip install --no-deps torch-npu==2.9.0.post1 pyyaml",
        "source /usr/local/Ascend/set_env.sh",
        "pip install modelscope",
        "modelscope download --model facebook/dinov3-vitb16-pretrain-lvd1689m "
        f"--local_dir {folder}",
    ]
    assert lines[9].startswith("TASK_QUEUE_ENABLE=2 torchrun --nproc-per-node 2 benchmark.py ")
    echo = lines[8].replace("python3 inference.py", "printf '%s\\n'")
    said = subprocess.run(["sh", "-c", echo], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == options


def test_reproduction_names_no_folder_of_a_home_or_of_tmp(tmp_path: Path) -> None:
    records = everything()
    options = [
        "--weights",
        "/root/w/tiny",
        "--image=/home/al/a=b c.jpg",
        "--output-dir",
        "/tmp/x/o/",
    ]
    for record in records.values():
        record["environment"]["command"] = ["/home/al/kit/inference.py", *options, "--seed=1"]
        record["model"]["weights"] = "/Users/al/dinov3-vitb16-pretrain-lvd1689m"
    fastest = "python3 benchmark.py --modes bf16-sdpa --weights /root/w/tiny"
    records["benchmark"]["results"]["fastest_passing_command"] = fastest
    text = report(write(tmp_path, records))
    assert "\npython3 benchmark.py --modes bf16-sdpa --weights tiny\n" in text
    commands = text.rsplit("```bash\n", 1)[1]
    assert "--weights tiny '--image=a=b c.jpg' --output-dir o --seed=1\n" in commands
    assert "--local_dir dinov3-vitb16-pretrain-lvd1689m\n" in commands


def test_the_limits_summary_is_a_sentence(tmp_path: Path) -> None:
    write(tmp_path, everything())
    text = report(tmp_path)
    assert "\nBatch 8 in fp32 uses 43 % of what this device's own matrix products reach.\n" in text
    chinese = render.files(tmp_path, "zh", NOW)[tmp_path / "report.md"].decode()
    assert "\nBatch size 为 8（fp32）时，利用率为 43 %（相对本设备矩阵乘实测上限）。\n" in chinese


def test_without_a_public_address_it_says_so_and_clones_nothing(tmp_path: Path) -> None:
    records = everything()
    for record in records.values():
        record["environment"]["git_origin"] = None
    text = report(write(tmp_path, records))
    assert "The records name no public address of the kit's repository." in text
    assert "git clone" not in text


def test_an_emulated_run_is_repeated_on_the_emulated_npu(tmp_path: Path) -> None:
    records = everything()
    for record in records.values():
        record["environment"]["variables"] = {"ASCEND_HOME_PATH": "/stub"}
        record["device"]["name"] += " (emulated)"
    text = report(write(tmp_path, records))
    assert "python3 tests/fake_cann/run.py accuracy.py --weights" in text
    assert "pip install --no-deps --target build/torch-npu torch-npu==2.9.0.post1 pyyaml" in text
    assert "set_env.sh" not in text.rsplit("```bash", 1)[1]
    assert "Ascend910_9362 (emulated)" in text.splitlines()[2]


def test_markdown_tables_keep_their_columns_and_names_stay_text(tmp_path: Path) -> None:
    records = everything()
    hostile(records)
    text = report(write(tmp_path, records))
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
    assert len(headings) == 10


def test_markdown_reads_as_the_page_does(tmp_path: Path) -> None:
    reader = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    records = everything()
    hostile(records)
    write(tmp_path, records)
    assert load_records(tmp_path).problems == {}
    made = render.files(tmp_path, "en", NOW)
    tokens = reader.MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(
        made[tmp_path / "report.md"].decode()
    )
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "link_open", "em_open", "s_open", "hr"}
    assert sum(child.type == "image" for child in inline) == 7
    read = [
        "".join(child.content for child in tokens[at + 1].children or ()).split()
        for at, token in enumerate(tokens)
        if token.type == "td_open"
    ]
    page = made[tmp_path / "report.html"].decode()
    page = re.sub(r'<span class="(sign|hidden)".*?</span>', "", page)
    cells = re.findall(r'role="(?:rowheader|cell)".*?>(.*?)</t[hd]>', page)
    assert len(cells) > 300
    # The first figures are no table in the page.
    assert read[8:] == [html.unescape(re.sub(r"<.*?>", "", cell)).split() for cell in cells]
