"""What a chip computes in, found on the emulated NPU: verdicts on chips as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.emulated_npu import EmulatedNpu
from tests.trained_weights import small_trained_model

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


@pytest.mark.parametrize(
    "chip", [pytest.param("Ascend910B4", marks=pytest.mark.extended), "Ascend910_9362"]
)
def test_a_chip_whose_gelu_is_the_tanh_form_passes_and_the_form_is_said(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path, chip: str
) -> None:
    code, record, out = accuracy(npu_host, tiny_weights, photo, tmp_path, FAKECANN_SOC=chip)
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
    code, record, out = accuracy(npu_host, tiny_weights, photo, tmp_path, NPU_PATCH_GELU="chip")
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


@pytest.mark.extended
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FAKECANN_MATMUL": "bf16"}, {"matrix product": "bf16"}),
        ({"FAKECANN_MATMUL": "hf32"}, {"matrix product": "hf32"}),
        ({"FAKECANN_CONV": "fp16"}, {"convolution": "fp16 in and out"}),
        ({"FAKECANN_CONV": "fp32"}, {"convolution": "fp32"}),
        (
            {"FAKECANN_MATMUL": "fp16", "FAKECANN_CONV": "fp16"},
            {"matrix product": "fp16", "convolution": "fp16 in and out"},
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
        assert (
            f"[WARNING] {name} on Ascend910_9362 (emulated): {products} where" in out
        ) is less_exact


@pytest.mark.extended
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


@pytest.mark.extended
def test_a_function_that_the_model_does_not_use_is_named_all_the_same(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    variables = {"FAKECANN_POLYNOMIAL": "exp"}
    _, record, out = accuracy(npu_host, tiny_weights, photo, tmp_path, **variables)
    for operator in ("exp", "softmax", "attention"):
        assert found(record)[operator] == "none of the known ones"
        assert (
            f"[WARNING] {operator} on Ascend910_9362 (emulated): none of the known ones where fp32"
            in out
        )


COMPILED = (
    "Ascend310P3 (emulated) compiles operators at run time by default: CANN's compiled ones are "
    "used instead (jit_compile and allow_internal_format off)"
)
OLDER = {"FAKECANN_SOC": "Ascend310P3"}


def test_an_older_chip_passes_in_fp16_products_which_are_named_and_recorded(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    code, record, out = accuracy(npu_host, tiny_weights, photo, tmp_path, **OLDER)
    assert code == 0, out
    assert record["results"]["verdict"] == "PASS"
    device = record["device"]
    assert (device["matmul_fp32"], device["convolution_fp32"]) == ("fp16", "fp16 in and out")
    assert found(record)["attention"] == "fp16"
    assert (device["jit_compile"], device["internal_format"]) == (False, False)
    assert f"[INFO] {COMPILED}" in out
    assert (
        "[WARNING] matrix product on Ascend310P3 (emulated): fp16 where fp32 was asked for" in out
    )
    assert "Overflow saturates on this chip: the largest number counts as infinity" in out
    assert record["results"]["declared"].startswith(
        "fp32 (matrix products fp16, convolutions fp16 in and out)"
    )


def older(
    npu: EmulatedNpu, weights: Path, photo: Path, folder: Path, *command: str
) -> dict[str, Any]:
    """Run a script on an older chip and return its record."""
    argv: list[str | Path] = [*command, "--weights", weights, "--image", photo, "--no-report"]
    done = npu.run([*argv, "--output-dir", folder], environment=OLDER)
    assert done.returncode == 0, done.stderr
    assert f"[INFO] {COMPILED}" in done.stdout
    record: dict[str, Any] = json.loads(
        (folder / command[0].replace(".py", ".json")).read_text("utf-8")
    )
    assert record["device"]["matmul_fp32"] == "fp16"
    assert found(record)["convolution"] == "fp16 in and out"
    return record


def test_inference_runs_on_an_older_chip(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    older(npu_host, tiny_weights, photo, tmp_path, "inference.py")


@pytest.mark.extended
def test_the_ladder_has_both_forms_of_gelu_and_no_strict_fp32_where_products_are_fp16(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    modes = "fp32-sdpa,fp32-sdpa-chip-gelu,fp32-sdpa-graph-chip-gelu,strict-fp32-sdpa"
    command = ("benchmark.py", "--modes", modes, "--iterations", "3", "--batch-sizes", "1")
    results = older(npu_host, tiny_weights, photo, tmp_path, *command)["results"]
    erf, *chips = results["ladder"]
    assert [row["mode"] for row in chips] == modes.split(",")[1:3]
    assert all(row["verdict"] == "PASS" for row in chips)
    assert all(row["relative_error"] != erf["relative_error"] for row in chips)
    assert chips[0]["relative_error"] == chips[1]["relative_error"]
    (skipped,) = results["skipped_modes"]
    assert skipped["reason"] == "fp32 products are fp16 here, whatever is set: the same as fp32"


def test_strict_fp32_is_refused_where_products_stay_reduced(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    argv: list[str | Path] = ["accuracy.py", "--strict-fp32", "--weights", tiny_weights]
    argv += ["--image", photo, "--output-dir", tmp_path]
    done = npu_host.run(argv, environment={"FAKECANN_MATMUL": "fp16"})
    assert done.returncode == 2
    reason = (
        "--strict-fp32: Ascend910_9362 (emulated) computes matrix product in fp16 whatever is set"
    )
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert reason in error  # torch_npu's own lines may stand around it
    assert not (tmp_path / "accuracy.json").exists()


def test_what_saturates_counts_as_an_overflow(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_bytes((tiny_weights / "config.json").read_bytes())
    tensors = load_file(tiny_weights / "model.safetensors")
    tensors["embeddings.patch_embeddings.weight"] *= 1e7
    save_file(tensors, weights / "model.safetensors", {"format": "pt"})
    code, record, out = accuracy(npu_host, weights, photo, tmp_path, **OLDER)
    assert code == 1, out
    assert record["results"]["verdict"] == "FAIL"
    assert any("block -1" in one and "infinity" in one for one in record["results"]["reasons"])
    assert record["results"]["last_hidden_state"]["relative_error"] is not None  # norms hide it
    code, _, out = accuracy(npu_host, weights, photo, tmp_path)  # on a chip with fp32's range
    assert code == 0, out


def test_an_output_at_the_types_largest_number_is_no_result() -> None:
    from kit.errors import KitError
    from kit.model.model import Features, require_finite, to_host

    half = torch.ones(1, 2, 3, dtype=torch.float16)
    require_finite(to_host(Features(half[:, 0], half)))
    half[0, 1, 2] = -65504
    with pytest.raises(KitError, match=r"last_hidden_state holds 1 values .* at \(0, 1, 2\)"):
        require_finite(to_host(Features(half[:, 0], half)))


@pytest.mark.parametrize(
    "chip", ["Ascend910_9362", pytest.param("Ascend310P3", marks=pytest.mark.extended)]
)
def test_weights_as_training_leaves_them_pass_on_sound_chips(
    npu_host: EmulatedNpu, photo: Path, tmp_path: Path, chip: str
) -> None:
    weights = tmp_path / "weights"
    small_trained_model().save_pretrained(weights)
    code, record, out = accuracy(npu_host, weights, photo, tmp_path, FAKECANN_SOC=chip)
    assert code == 0, out
    assert record["results"]["verdict"] == "PASS"
