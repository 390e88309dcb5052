"""benchmark.py's options: what is accepted, and the one line that answers nonsense."""

import subprocess
import sys
from pathlib import Path

import pytest

import accuracy
import benchmark
from kit.errors import KitError
from kit.options import Mode

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--iterations", "0"], "'0' is not a whole number from 1"),
        (["--iterations", "-3"], "'-3' is not a whole number from 1"),
        (["--iterations", "many"], "'many' is not a whole number"),
        (["--iterations", "1e3"], "'1e3' is not a whole number"),
        (["--iterations", "99999999999"], "is not a whole number from 1 to 1000000"),
        (["--warmup", "-1"], "'-1' is not a whole number from 0"),
        (["--warmup", "2.5"], "'2.5' is not a whole number from 0"),
        (["--min-seconds", "-1"], "'-1' is not a number of seconds from 0"),
        (["--min-seconds", "nan"], "'nan' is not a number of seconds"),
        (["--min-seconds", "inf"], "'inf' is not a number of seconds"),
        (["--batch-sizes", ""], "'' is neither auto nor batch sizes"),
        (["--batch-sizes", "1,,2"], "'1,,2' is neither auto nor batch sizes"),
        (["--batch-sizes", "0,1"], "'0,1' is neither auto nor batch sizes"),
        (["--batch-sizes", "1,-2"], "'1,-2' is neither auto nor batch sizes"),
        (["--batch-sizes", "1,two"], "'1,two' is neither auto nor batch sizes"),
        (["--batch-sizes", "70000"], "'70000' is neither auto nor batch sizes from 1 to 65536"),
        (["--batch-sizes", "2,1,2"], "'2,1,2' names a batch size twice"),
        (["--modes", "fp64"], "'fp64' is no mode"),
        (["--modes", "bf16-graph-sdpa"], "'bf16-graph-sdpa' is no mode"),
        (["--modes", "bf16-graph-compile"], "'bf16-graph-compile' is no mode"),
        (["--modes", ""], "'' is no mode"),
        (["--max-regression", "10"], "--max-regression needs --baseline"),
        (["--baseline", "x.json", "--max-regression", "-5"], "'-5' is not a number of percent"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = benchmark.main(["--output-dir", str(tmp_path), *options])
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_nonsense_is_answered_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys, benchmark\n"
        f"code = benchmark.main(['--output-dir', {str(tmp_path)!r}, '--iterations', '0'])\n"
        "sys.exit(code + 10 * ('torch' in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert done.returncode == 2


def test_batch_sizes_are_put_in_ascending_order_and_auto_is_none() -> None:
    assert benchmark.parse_options(["--batch-sizes", "8, 1,4"]).batch_sizes == (1, 4, 8)
    assert benchmark.parse_options(["--batch-sizes", "auto"]).batch_sizes is None
    assert benchmark.parse_options([]).batch_sizes == (1, 2, 4, 8)


def test_without_modes_the_shared_options_say_the_one_mode() -> None:
    arguments = benchmark.parse_options(["--dtype", "bf16", "--attention", "eager"])
    assert arguments.modes == (Mode("bf16", "eager"),)
    assert not arguments.ladder
    strict = benchmark.parse_options(["--strict-fp32"])
    assert strict.modes == (Mode("strict-fp32", "sdpa"),)
    assert strict.dtype == "fp32"


def test_all_modes_begin_with_the_shared_options_own_and_end_with_what_is_compiled() -> None:
    arguments = benchmark.parse_options(["--modes", "all", "--dtype", "bf16"])
    names = [mode.name for mode in arguments.modes]
    assert names[:3] == ["bf16-sdpa", "fp32-sdpa", "fp32-sdpa-graph"]
    assert len(names) == len(set(names)) == 25
    assert names[16:19] == [
        "bf16-sdpa-chip-gelu", "bf16-sdpa-graph-chip-gelu", "fp32-sdpa-fast-math",
    ]  # fmt: skip
    assert names[-3:] == [f"{dtype}-sdpa-compile" for dtype in ("fp32", "bf16", "fp16")]
    assert {"strict-fp32-eager-graph", "fp16-sdpa", "bf16-sdpa-channels-last"} <= set(names)
    assert not arguments.named


def test_a_mode_has_each_part_that_its_name_has() -> None:
    arguments = benchmark.parse_options(["--modes", "fp32-channels-last-fast-math-compile-graph"])
    expected = Mode("fp32", "sdpa", graph=True, channels_last=True, compiled=True, fast_math=True)
    assert arguments.modes == (expected,)
    assert expected.name == "fp32-sdpa-channels-last-fast-math-compile-graph"
    assert arguments.named


def test_accuracy_leaves_the_modes_of_the_ladder_alone_out() -> None:
    names = [mode.name for mode in accuracy.parse_options(["--coverage", "--modes", "all"]).modes]
    assert not any(name.endswith("chip-gelu") for name in names)
    assert len(names) == 16
    with pytest.raises(KitError, match=r"bf16-sdpa-compile is a mode of benchmark\.py's ladder"):
        accuracy.parse_options(["--coverage", "--modes", "fp32,bf16-compile"])
    with pytest.raises(KitError, match=r"fp32-sdpa-chip-gelu is a mode of benchmark\.py's ladder"):
        accuracy.parse_options(["--coverage", "--modes", "fp32-chip-gelu"])


def test_a_mode_without_an_attention_takes_the_shared_options_own() -> None:
    arguments = benchmark.parse_options(
        ["--modes", "bf16-graph, fp16-sdpa", "--attention", "eager"]
    )
    assert [mode.name for mode in arguments.modes] == ["bf16-eager-graph", "fp16-sdpa"]
    assert arguments.dtype == "bf16"
    assert arguments.ladder


def test_modes_together_with_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(KitError, match="one mode under torchrun"):
        benchmark.parse_options(["--modes", "fp32,bf16"])
    assert benchmark.parse_options(["--modes", "bf16"]).ladder
    with pytest.raises(KitError, match="--device npu:1 under torchrun"):
        benchmark.parse_options(["--device", "npu:1"])
