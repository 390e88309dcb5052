"""The model card: all that the published card shows, and nothing that the records do not prove."""

import json
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from kit.accuracy.limits import validation_block
from kit.inference.report import report
from kit.language import load_words
from kit.records import AccuracyRecord, InferenceRecord, decode
from kit.report import __main__ as report_command
from kit.report.render import files
from tests.report_records import NOW, Json, everything, write
from tests.report_states import hostile

# What the published card of this model shows, section by section, as patterns over its Markdown.
PUBLISHED = {
    "模型下载": [
        r"^modelscope download --model facebook/dinov3-vitb16-pretrain-lvd1689m --local_dir \S+$",
        r"^python3 -m atomgit download hf_mirrors/facebook/dinov3-vitb16-pretrain-lvd1689m -d \S+$",
    ],
    "安装依赖": [
        r"^pip install torch==2\.9\.0 --index-url \S+$",
        r"^pip install .*transformers==4\.57\.6",
        r"^pip install .*torch-npu==2\.9\.0\.post1",
        r"^- .*torch-npu.*CANN 版本匹配",
        r"^- transformers 用于加载模型",
        r"pip install modelscope",
    ],
    "运行环境": [
        r"^\| Python \| `3\.11\.14` \|$",
        r"^\| PyTorch \| `2\.9\.0\+cpu` \|$",
        r"^\| torch-npu \| `2\.9\.0\.post1` \|$",
        r"^\| transformers \| `4\.57\.6` \|$",
        r"^\| CANN \| `8\.5\.0` \|$",
        r"^- 2 × NPU（Ascend910_9362）$",
        r"/opt/atomgit/weight/dinov3-vitb16-pretrain-lvd1689m",
    ],
    "推理验证": [
        r"^!\[.+\]\(inference_features\.png\)$",
        r"^.*python3 inference\.py",
        r"^\[INFO\] Applied NPU monkey-patch \(torch\.cuda -> torch\.npu\)$",
        r"^\[INFO\] Loading image from: data/val2017/000000000139\.jpg$",
        r"^\[INFO\] Loading model from: /opt/atomgit/weight/dinov3-vitb16-pretrain-lvd1689m$",
        r"^\[INFO\] Model moved to NPU device: Ascend910_9362$",
        r"^\[INFO\] Input shape: torch\.Size\(\[1, 3, 224, 224\]\)$",
        r"^\[INFO\] Device: npu:0$",
        r"^\[INFO\] Warm-up inference\.\.\.$",
        r"^\[INFO\] Running timed inference\.\.\.$",
        r"^={60}\nInference Results\n={60}$",
        r"^Device: NPU \(Ascend910_9362\)$",
        r"^Latency: 9\.17 ms$",
        r"^Pooled output shape: torch\.Size\(\[1, 768\]\)$",
        r"^Last hidden state shape: torch\.Size\(\[1, 201, 768\]\)$",
        r"^Pooled output dtype: torch\.float32$",
        r"^Pooled output device: npu:0$",
        r"^Pooled output first 5 values: "
        r"\[-0\.4071133 -0\.19327313 -0\.13654466 -0\.55771327 0\.03880494\]$",
        r"^\*\*验证结论\*\*$",
        r"^- .*NPU.*完成前向推理",
        r"^- 224×224 图片的推理延迟为 9\.17 ms",
        r"^- 输出形状为 .*1, 768.*1, 201, 768",
    ],
    "性能测试": [
        r"^.*python3 benchmark\.py",
        *(rf"^\| `{name}` \| [\d.]+" for name in ("iterations", "mean_ms", "stddev_ms", "min_ms")),
        *(rf"^\| `{name}` \| [\d.]+ ms" for name in ("max_ms", "p50_ms", "p90_ms", "p99_ms")),
        r"^\| batch_size \| throughput_ips \| avg_latency_ms \|",
        *(rf"^\| {batch} \| [\d.]+ \| [\d.]+ \|" for batch in (1, 2, 4, 8)),
        r"^\*\*验证结论\*\*$",
        r"^- 单图平均延迟 [\d.]+ ms",
        r"^- 吞吐最高 732\.00 images/s",
    ],
    "精度验证": [
        r"^.*python3 accuracy\.py",
        r"^={60}\nAccuracy Validation Results\n={60}$",
        r"^pooler_output:\nShape: \(1, 768\)\nVector Relative Error: 0\.006521 \(PASS\)\n"
        r"Cosine Similarity: [\d.]+ \(PASS\)\nMSE: [\d.]+\nMax Absolute Diff: [\d.]+\n"
        r"Overall: PASS$",
        r"^last_hidden_state:\nShape: \(1, 201, 768\)\nVector Relative Error: 0\.003887 \(PASS\)$",
        r"^OVERALL: PASS \(vector-level relative error < 1% and cosine similarity > 0\.999\)$",
        r"^\| Pooler Output 向量相对误差 \| .*0\.65 %.* \| .*0\.01 \| PASS \|$",
        r"^\| Pooler Output 余弦相似度 \| [\d.]+ \| .*0\.999 \| PASS \|$",
        r"^\| Last Hidden State 向量相对误差 \| .*0\.39 %.* \| .*0\.01 \| PASS \|$",
        r"^\| Last Hidden State 余弦相似度 \| [\d.]+ \| .*0\.999 \| PASS \|$",
        r"^\*\*验证结论\*\*$",
        r"^- 两个输出的向量相对误差均小于 1 %",
        r"^- 两个输出的余弦相似度均大于 0\.999",
    ],
    "注意事项": [
        r"torch\.cuda 的调用转到 torch\.npu",
        r"TORCH_COMPILE_DISABLE",
        r"patch size 的整数倍",
        r"JSON.*日志.*accuracy\.json.*benchmark\.json.*inference\.json",
    ],
}


def card(folder: Path, records: dict[str, Json], language: str = "zh") -> str:
    """Return the card on some records."""
    made = files(write(folder, records), language, NOW, card=True)
    return made[folder / "card" / "README.md"].decode()


def front_matter(text: str) -> dict[str, Any]:
    """Return a card's front matter as a YAML parser reads it."""
    _, front, _ = text.split("---\n", 2)
    found = yaml.safe_load(front)
    assert isinstance(found, dict)
    return found


def sections(text: str) -> dict[str, str]:
    """Return a card's sections by their headings."""
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tokens(text: str) -> list[Token]:
    """Return a card's body as a Markdown parser reads it."""
    return MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])


def test_the_card_shows_everything_that_the_published_one_does(tmp_path: Path) -> None:
    found = sections(card(tmp_path, everything()))
    assert list(found) == list(PUBLISHED)
    missing = [
        (section, pattern)
        for section, patterns in PUBLISHED.items()
        for pattern in patterns
        if not re.search(pattern, found[section], re.M)
    ]
    assert missing == []


def test_its_console_blocks_are_the_scripts_own(tmp_path: Path) -> None:
    text, records = card(tmp_path, everything()), everything()
    inference = decode(json.dumps(records["inference"]).encode(), InferenceRecord)
    accuracy = decode(json.dumps(records["accuracy"]).encode(), AccuracyRecord)
    assert "\n".join(report(inference)[:11]) in text
    assert "\n".join(validation_block(accuracy.results)) in text


@pytest.mark.parametrize("language", ["zh", "en"])
def test_hubs_can_read_its_front_matter(tmp_path: Path, language: str) -> None:
    front = front_matter(card(tmp_path, everything(), language))
    assert front == {
        "license": "other",
        "license_name": "dinov3-license",
        "license_link": "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
        "library_name": "transformers",
        "base_model": ["facebook/dinov3-vitb16-pretrain-lvd1689m"],
        "pipeline_tag": "image-feature-extraction",
        "frameworks": ["PyTorch"],
        "hardware": ["NPU"],
        "hardwares": ["NPU"],
        "language": [language],
    }


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_markdown_parser_reads_its_tables_code_and_pictures(
    tmp_path: Path, language: str
) -> None:
    text = card(tmp_path, everything(), language)
    found = tokens(text)
    kinds = [token.type for token in found]
    ruled = [line for line in text.splitlines() if line.startswith("| ---")]
    assert kinds.count("table_open") == len(ruled) == 5
    assert kinds.count("fence") == text.count("```") // 2
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", text, re.M)
    inline = [child for token in found for child in token.children or ()]
    assert [child.attrs["src"] for child in inline if child.type == "image"] == pictures


def test_pictures_logs_and_records_lie_beside_it(tmp_path: Path) -> None:
    write(tmp_path, everything())
    for script in ("inference", "benchmark", "accuracy"):
        (tmp_path / f"{script}.log").write_text(f"log of {script}\n")
    assert report_command.main([str(tmp_path), "--lang", "en", "--card"]) == 0
    text = (tmp_path / "card" / "README.md").read_text("utf-8")
    for name in re.findall(r"^!\[.+\]\((.+)\)$", text, re.M):
        assert (tmp_path / "card" / name).read_bytes() == (tmp_path / name).read_bytes()
    for script in ("inference", "benchmark", "accuracy"):
        for name in (f"{script}.json", f"{script}.log"):
            assert (tmp_path / "card" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_picture_is_asked_for_only_where_there_is_something_to_draw(tmp_path: Path) -> None:
    records = everything()
    records["benchmark"]["results"].update(ladder=[], latency=None)
    write(tmp_path, records, pictures=False)
    made = files(tmp_path, "en", NOW, card=True)
    for name in (tmp_path / "card" / "README.md", tmp_path / "report.md"):
        asked = set(re.findall(r"benchmark_\w+\.png", made[name].decode()))
        assert asked == {"benchmark_throughput.png"}
    page = made[tmp_path / "report.html"].decode()
    assert "benchmark_ladder.png" not in page and "benchmark_latency.png" not in page


def test_what_an_earlier_run_left_beside_it_goes(tmp_path: Path) -> None:
    write(tmp_path, everything())
    report_command.main([str(tmp_path), "--card"])
    (tmp_path / "card" / "my own notes.txt").touch()
    (tmp_path / "benchmark.json").unlink()
    (tmp_path / "accuracy_pca.png").unlink()
    report_command.main([str(tmp_path), "--card"])
    left = {path.name for path in (tmp_path / "card").iterdir()}
    assert not left & {"benchmark.json", "accuracy_pca.png"}
    assert {"README.md", "accuracy.json", "accuracy_layers.png", "my own notes.txt"} <= left


def random_weights(record: Json) -> None:
    record["model"].update(source="random", weights=None)


def on_the_cpu(record: Json) -> None:
    record["device"].update(type="cpu", name="AMD EPYC", torch_device="cpu", arithmetic=None)


def emulated(record: Json) -> None:
    record["device"]["name"] += " (emulated)"


@pytest.mark.parametrize(
    ("edit", "words", "hardware"),
    [
        (random_weights, "Random weights:", "NPU"),
        (on_the_cpu, "Computed on CPU: this validates no NPU.", "CPU"),
        (emulated, "Computed on the emulated NPU:", "CPU"),
    ],
)
def test_the_first_line_says_what_is_not_proven(
    tmp_path: Path, edit: Callable[[Json], None], words: str, hardware: str
) -> None:
    records = everything()
    for record in records.values():
        edit(record)
    text = card(tmp_path, records, "en")
    body = text.split("---\n", 2)[2].lstrip("\n")
    assert body.splitlines()[0].startswith(("> **Not validated.** ", "> **Failed.** "))
    assert words in body.splitlines()[0]
    assert front_matter(text)["hardware"] == [hardware]
    assert ("base_model" in front_matter(text)) == (edit is not random_weights)


def test_an_error_beyond_its_limit_is_not_concluded_away(tmp_path: Path) -> None:
    records = everything()
    results = records["accuracy"]["results"]
    results.update(outcome="fail", verdict="FAIL", reasons=["pooler_output is 3 % off"])
    results["pooler_output"].update(relative_error=0.03, relative_error_passed=False, passed=False)
    text = card(tmp_path, records, "en")
    assert "> **Failed.** Accuracy: pooler" in text
    assert "An output's relative error is not below 1 %." in text
    assert "Both outputs have a relative error" not in text
    assert "pooler_output is 3 % off" in sections(text)[load_words("en")["accuracy"]]


def test_what_was_timed_and_is_wrong_is_no_result(tmp_path: Path) -> None:
    records = everything()
    latency = records["benchmark"]["results"]["latency"]
    latency["check"].update(verdict="FAIL", reasons=["token is off"], within_published_limits=False)
    text = card(tmp_path, records, "en")
    assert "> **Failed.** What the benchmark timed is wrong: token is off." in text
    assert "One image takes" not in text
    assert "| Results checked against the CPU | FAIL |" in text.replace("**", "")


@pytest.mark.parametrize("missing", ["inference", "benchmark", "accuracy"])
def test_a_script_that_has_not_run_leaves_its_section_with_what_to_do(
    tmp_path: Path, missing: str
) -> None:
    records = everything()
    del records[missing]
    text = card(tmp_path, records, "en")
    assert f"{missing}.json is missing: run {missing}.py." in text
    assert len(sections(text)) == len(PUBLISHED)


def test_a_record_that_cannot_be_read_is_called_so_in_its_section(tmp_path: Path) -> None:
    records = everything()
    records["benchmark"]["results"] = 5
    text = card(tmp_path, records, "en")
    assert "benchmark.json cannot be used (" in text
    assert "benchmark.json is missing" not in text


def test_without_records_there_is_no_card(tmp_path: Path) -> None:
    made = files(tmp_path, "en", datetime.now(timezone.utc), card=True)
    assert {path.name for path in made} == {"report.html", "report.md"}


def test_no_text_of_a_record_becomes_markup(tmp_path: Path) -> None:
    records = everything()
    hostile(records)
    text = card(tmp_path, records, "en")
    assert isinstance(front_matter(text), dict)
    kinds = {child.type for token in tokens(text) for child in token.children or ()}
    assert not {"html_inline", "link_open"} & kinds
    assert "html_block" not in {token.type for token in tokens(text)}
