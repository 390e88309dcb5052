"""accuracy.py on the emulated NPU: sound it passes, with a fault it never does."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import accuracy
from kit.accuracy import evidence
from tests.accuracy_runs import SCRIPT, make_images, results_of
from tests.emulated_npu import EmulatedNpu

# What accuracy.py launches for the tiny ViT.
OPERATORS = tuple(
    f"aclnn{name}"
    for name in (
        "Add", "Addmm", "Arange", "Cat", "Convolution", "Cos", "Divs", "FlashAttentionScore",
        "GeluV2", "InplaceCopy", "InplaceOne", "LayerNorm", "Matmul", "Mul", "Muls", "Neg",
        "Repeat", "Sin", "Stack", "Subs",
    )
)  # fmt: skip

# What else the device is asked for when its arithmetic is measured.
PROBED_ALONE = ("aclnnExp", "aclnnGelu", "aclnnSoftmax")

# Those among them that the device is asked with a known answer before the model runs.
ASKED_FIRST = ("aclnnAdd", "aclnnGeluV2", "aclnnInplaceOne", "aclnnMatmul")


@pytest.fixture
def run_npu(npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path) -> Any:  # noqa: ANN401 - a function with options
    """Run accuracy.py on the emulated NPU; returns the process and its output folder."""

    def run(
        *options: str | Path, environment: Mapping[str, str] | None = None, fresh: bool = False
    ) -> Any:  # noqa: ANN401 - as above
        folder = tmp_path / "out"
        given = [str(option) for option in options]
        argv: list[str | Path] = [SCRIPT, "--weights", tiny_weights, "--output-dir", folder, *given]
        if "--image" not in given:
            argv += ["--image", photo]
        return npu_host.run(argv, environment=environment, fresh=fresh), folder

    return run


def test_a_sound_npu_passes_and_its_hf32_is_explained(run_npu: Any) -> None:  # noqa: ANN401 - the fixture
    done, folder = run_npu("--strict", fresh=True)
    assert done.returncode == 0, done.stderr
    results = results_of(folder)
    assert results["verdict"] == "PASS"
    assert results["reference"] == "CPU fp32"
    assert results["limits"]["arithmetic"] == "hf32"
    assert results["pooler_output"]["device"] == "npu:0"
    assert results["first_unexplained_block"] is None
    tokens = results["last_hidden_state"]
    assert tokens["fp64_relative_error"] > 10 * tokens["cpu_fp64_relative_error"]
    assert tokens["fp64_relative_error"] == pytest.approx(tokens["expected_error"], rel=0.5)
    assert "OVERALL: PASS (vector-level relative error < 1% and cosine similarity > 0.999)" in (
        done.stdout
    )


def test_strict_fp32_brings_the_npu_back_to_fp32s_own_noise(run_npu: Any) -> None:  # noqa: ANN401 - the fixture
    done, folder = run_npu("--strict-fp32", "--device", "npu:1")
    results = results_of(folder)
    assert done.returncode == 0, done.stderr
    assert results["limits"]["arithmetic"] == "fp32"
    assert results["last_hidden_state"]["device"] == "npu:1"
    assert results["last_hidden_state"]["fp64_relative_error"] < 5e-6


def test_explain_names_hf32_convolution_as_what_it_removes(run_npu: Any) -> None:  # noqa: ANN401 - the fixture
    done, folder = run_npu("--explain")
    assert done.returncode == 0, done.stderr
    causes = {cause["cause"]: cause for cause in results_of(folder)["explain"]}
    assert causes["HF32 convolution off"]["removes"] > 0.95
    assert causes["eager attention"]["removes"] < 0.1


def test_saved_features_of_an_npu_pass_again_without_one(
    run_npu: Any,  # noqa: ANN401 - the fixture
    tiny_weights: Path,
    photo: Path,
) -> None:
    done, folder = run_npu("--no-report")
    assert done.returncode == 0, done.stderr
    argv = ["--weights", str(tiny_weights), "--image", str(photo), "--output-dir", str(folder)]
    assert accuracy.main([*argv, "--features", str(folder / evidence.FILE)]) == 0
    review = json.loads((folder / "accuracy_review.json").read_text("utf-8"))["results"]
    measured = results_of(folder)
    assert (review["verdict"], review["reference"]) == ("PASS", "CPU fp32")
    assert "Ascend910_9362 (emulated)" in review["features"]["device"]
    error = review["last_hidden_state"]["relative_error"]
    assert error == pytest.approx(measured["last_hidden_state"]["relative_error"], rel=1e-3)


def test_a_soak_finds_the_call_that_goes_wrong_and_a_sound_npu_repeats_its_bits(
    run_npu: Any,  # noqa: ANN401 - the fixture
) -> None:
    done, folder = run_npu("--no-report", "--soak-forwards", "10")
    assert done.returncode == 0, done.stderr
    soak = results_of(folder)["soak"]
    assert [one["distinct_results"] for one in soak["batches"]] == [1] * 5
    done, folder = run_npu(
        "--no-report", "--soak-forwards", "40",
        environment={"FAKECANN_NAN": "aclnnFlashAttentionScore:60"},
    )  # fmt: skip
    results = results_of(folder)
    assert done.returncode == 1, done.stderr
    assert results["pooler_output"]["passed"]
    assert all(cell["passed"] for cell in results["coverage"])
    assert results["soak"]["beyond_limits"] == 1
    assert results["soak"]["first_deviation"]["forward"] > 10
    assert results["soak"]["device_peak_bytes"] == results["soak"]["early_device_peak_bytes"] > 0


@pytest.mark.extended
def test_coverage_holds_graphs_and_types_against_the_cpu_too(run_npu: Any) -> None:  # noqa: ANN401 - the fixture
    modes = "fp32,fp32-sdpa-graph,strict-fp32,bf16-eager"
    done, folder = run_npu("--no-report", "--coverage", "--modes", modes)
    assert done.returncode == 0, done.stderr
    cells = results_of(folder)["coverage"]
    assert len(cells) == 4 * 5 * 5
    assert {cell["mode"] for cell in cells} == {
        "fp32-sdpa", "fp32-sdpa-graph", "strict-fp32-sdpa", "bf16-eager",
    }  # fmt: skip
    strict = [cell for cell in cells if cell["mode"] == "strict-fp32-sdpa"]
    assert all(cell["relative_error"] < 1e-5 for cell in strict)


# The first call of each is the probe of the device's arithmetic; GeluV2 is asked before that.
@pytest.mark.parametrize(
    ("fault", "block", "operator"),
    [
        ("FAKECANN_NAN=aclnnConvolution:2", -1, "embedding"),
        ("FAKECANN_NAN=aclnnFlashAttentionScore:3", 1, "attention"),
        ("FAKECANN_WRONG_TOKEN=aclnnGeluV2:4:200", 1, "MLP"),
        ("FAKECANN_WRONG=aclnnLayerNorm:*:1.5", 0, "norm"),
    ],
)
def test_a_wrong_result_of_an_operator_fails_and_is_located(
    run_npu: Any, fault: str, block: int, operator: str  # noqa: ANN401 - the fixture
) -> None:  # fmt: skip
    name, _, value = fault.partition("=")
    done, folder = run_npu(environment={name: value})
    results = results_of(folder)
    assert done.returncode == 1, done.stderr
    assert results["verdict"] == "FAIL"
    assert results["first_unexplained_block"] == block
    assert results["first_unexplained_operator"]["operator"] == operator
    assert "Verdict: PASS" not in done.stdout


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_two_percent_off_never_passes(run_npu: Any, operator: str) -> None:  # noqa: ANN401 - the fixture
    done, folder = run_npu("--no-report", environment={"FAKECANN_WRONG": operator})
    if operator in ASKED_FIRST:
        assert done.returncode == 2
        assert "known answer came back wrong" in done.stderr
        assert not (folder / "accuracy.json").exists()
    else:
        assert done.returncode == 1, done.stderr
        assert results_of(folder)["verdict"] == "FAIL"


def test_these_are_all_operators_of_the_forward(run_npu: Any) -> None:  # noqa: ANN401 - the fixture
    done, _ = run_npu("--no-report", environment={"FAKECANN_LOG": "3"})
    assert set(re.findall(r"aclnn\w+", done.stderr)) == {*OPERATORS, *PROBED_ALONE}


@pytest.mark.parametrize("call", [1, 2, 3], ids=["query", "value", "output"])
def test_a_projection_less_than_one_percent_off_is_not_called_its_rope_or_norm(
    run_npu: Any, call: int  # noqa: ANN401 - the fixture
) -> None:  # fmt: skip
    done, folder = run_npu(environment={"FAKECANN_WRONG": f"aclnnAddmm:{call}:1.006"})
    results = results_of(folder)
    assert done.returncode == 0, done.stderr
    assert results["verdict"] == "PASS, unexplained error from block 0"
    assert results["first_unexplained_operator"]["operator"] == "attention"


def test_an_operator_two_thousandths_off_is_unexplained_and_fails_under_strict(
    run_npu: Any,  # noqa: ANN401 - the fixture
) -> None:
    fault = {"FAKECANN_WRONG": "aclnnLayerNorm:4:1.002"}
    done, folder = run_npu("--strict", environment=fault)
    assert done.returncode == 1, done.stderr
    assert "OVERALL: PASS" in done.stdout
    assert results_of(folder)["verdict"] == "PASS, unexplained error from block 1"
    assert results_of(folder)["first_unexplained_operator"]["operator"] == "norm"


@pytest.mark.parametrize(
    ("fault", "queue"),
    [
        ("FAKECANN_WRONG_TOKEN=aclnnGeluV2:1:3", "1"),  # the known answer that is asked first
        ("FAKECANN_FAIL=aclnnGeluV2:2", "0"),
        ("FAKECANN_FAIL=aclnnGeluV2:2", "1"),
        ("FAKECANN_HBM_GIB=0.0001", "1"),
    ],
)
def test_a_failing_device_ends_with_exit_code_2_and_no_record(
    run_npu: Any, fault: str, queue: str  # noqa: ANN401 - the fixture
) -> None:  # fmt: skip
    name, _, value = fault.partition("=")
    done, folder = run_npu(environment={name: value, "TASK_QUEUE_ENABLE": queue})
    assert done.returncode == 2, done.stdout
    assert "error: " in done.stderr
    assert not (folder / "accuracy.json").exists()


@pytest.mark.parametrize("kind", ["WRONG_TOKEN", "NAN"])
def test_a_fault_in_the_middle_of_a_folder_fails_one_image_or_its_batch(
    run_npu: Any, tmp_path: Path, kind: str  # noqa: ANN401 - the fixture
) -> None:  # fmt: skip
    images = make_images(tmp_path / "images", 5)
    fault = {f"FAKECANN_{kind}": "aclnnGeluV2:6:3"}
    options = ["--image", images, "--batch-size", "1", "--no-references", "--workers", "1"]
    done, folder = run_npu(*options, environment=fault)
    assert done.returncode == 1, done.stderr
    results = results_of(folder)
    assert results["verdict"] == "FAIL"
    assert results["folder"]["failed"] == 1
    assert results["folder"]["images"] == 5
