"""What a chip computes in, found on the emulated NPU: verdicts on chips as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.emulated_npu import EmulatedNpu

Run = tuple[int, dict[str, Any], str]


def accuracy(npu: EmulatedNpu, weights: Path, photo: Path, folder: Path, **variables: str) -> Run:
    """Run accuracy.py --strict on the tiny model; returns exit code, record and console."""
    options: list[str | Path] = ["--weights", weights, "--image", photo, "--no-report"]
    options += ["--output-dir", folder]
    done = npu.run(["accuracy.py", "--strict", *options], environment=variables)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads((folder / "accuracy.json").read_text("utf-8")), done.stdout


def found(record: dict[str, Any]) -> dict[str, str]:
    """Return what each operator was found to compute in."""
    return {one["operator"]: one["found"] for one in record["device"]["arithmetic"]["operators"]}


@pytest.mark.parametrize("chip", ["Ascend910B4", "Ascend910_9362"])
def test_a_chip_whose_gelu_is_the_tanh_form_passes_and_the_form_is_said(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path, chip: str
) -> None:
    variables = {"FAKECANN_GELU": "tanh", "FAKECANN_SOC": chip}
    code, record, out = accuracy(npu_host, tiny_weights, photo, tmp_path, **variables)
    assert code == 0
    assert record["results"]["verdict"] == "PASS"
    assert found(record)["GELU"] == "erf"
    assert found(record)["GELU of the chip"] == "tanh"
    line = "GELU is the tanh form on this chip (asked: erf); npu_patch computes erf instead"
    assert line in out.splitlines()
    own, results = record["results"]["chip_gelu"], record["results"]
    assert own["form"] == "tanh"
    assert own["relative_error"] != results["last_hidden_state"]["relative_error"]


def test_the_chips_own_gelu_is_explained_where_it_is_left_in_place(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    variables = {"FAKECANN_GELU": "tanh", "NPU_PATCH_GELU": "chip"}
    code, record, out = accuracy(npu_host, tiny_weights, photo, tmp_path, **variables)
    assert code == 0
    results = record["results"]
    assert results["verdict"] == "PASS"
    assert results["declared"].endswith("with the tanh form of GELU")
    explained = results["last_hidden_state"]["expected_error"]
    line = (
        "GELU is the tanh form on this chip (asked: erf), which with all else that it computes in"
    )
    assert f"{line} explains {explained:.2g}" in out
    assert results["chip_gelu"] is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FAKECANN_MATMUL": "bf16"}, {"matrix product": "bf16"}),
        ({"FAKECANN_MATMUL": "hf32"}, {"matrix product": "hf32"}),
        ({"FAKECANN_CONV": "fp16"}, {"convolution": "fp16"}),
        ({"FAKECANN_CONV": "fp32"}, {"convolution": "fp32"}),
        (
            {"FAKECANN_MATMUL": "fp16", "FAKECANN_CONV": "fp16"},
            {"matrix product": "fp16", "convolution": "fp16"},
        ),
        ({"FAKECANN_SUM_ORDER": "reversed"}, {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_documented_arithmetic_is_named_and_explains_its_error(
    npu_host: EmulatedNpu,
    tiny_weights: Path,
    photo: Path,
    tmp_path: Path,
    variables: dict[str, str],
    expected: dict[str, str],
) -> None:
    code, record, out = accuracy(npu_host, tiny_weights, photo, tmp_path, **variables)
    assert code == 0, out
    sound = {"matrix product": "fp32", "convolution": "hf32", "attention": "fp32"}
    names = found(record)
    assert {name: names[name] for name in sound} == sound | expected
    asked = {one["operator"]: one["asked"] for one in record["device"]["arithmetic"]["operators"]}
    for name, products in expected.items():
        less_exact = products != "fp32" and products != asked[name]
        assert (f"[WARNING] {name} on Ascend910_9362: {products} where" in out) is less_exact


@pytest.mark.parametrize(
    ("variables", "operator"),
    [
        ({"FAKECANN_MANTISSA": "aclnnMatmul:*:9"}, "matrix product"),
        ({"FAKECANN_POLYNOMIAL": "erf"}, "GELU"),
        ({"FAKECANN_POLYNOMIAL": "rsqrt"}, "norm"),
        ({"FAKECANN_WRONG": "aclnnConvolution:*:0.001"}, "convolution"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else value,
)
def test_what_nobody_documents_explains_nothing(
    npu_host: EmulatedNpu,
    tiny_weights: Path,
    photo: Path,
    tmp_path: Path,
    variables: dict[str, str],
    operator: str,
) -> None:
    code, record, out = accuracy(npu_host, tiny_weights, photo, tmp_path, **variables)
    assert code == 1, out
    assert found(record)[operator] == "none of the known ones"
    assert record["results"]["outcome"] in ("unexplained", "fail")


def test_a_function_that_the_model_does_not_use_is_named_all_the_same(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    variables = {"FAKECANN_POLYNOMIAL": "exp"}
    _, record, out = accuracy(npu_host, tiny_weights, photo, tmp_path, **variables)
    for operator in ("exp", "softmax", "attention"):
        assert found(record)[operator] == "none of the known ones"
        assert f"[WARNING] {operator} on Ascend910_9362: none of the known ones where fp32" in out
