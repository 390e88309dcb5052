"""The emulated NPU's arithmetic: it agrees with the CPU's, and differs where the chip's does."""

import json

import pytest

from tests.emulated_npu import EmulatedNpu

COMPARE = "tests/fake_cann/compare_operators.py"
# Compared with the CPU without npu_patch, GELU has to be the form that torch asks for.
ERF = {"FAKECANN_GELU": "erf"}

MODEL = """
import json, torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

torch.manual_seed(0)
torch.set_num_threads(1)

def vit(attention="sdpa"):
    model = DINOv3ViTModel(DINOv3ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        num_register_tokens=4, pos_embed_rescale=None))
    model.set_attn_implementation(attention)
    return model.eval()

def error(actual, expected):
    assert actual.device.type == "npu"
    actual = actual.float().cpu()
    return float((actual - expected).norm() / expected.norm())

report = {}
pixels = torch.randn(2, 3, 64, 64)
"""

# One child per task-queue mode: what the mode must not change.
MODES = """
for attention in ("eager", "sdpa"):
    model = vit(attention)
    with torch.inference_mode():
        expected = model(pixels).last_hidden_state
        model.to("npu")
        images = pixels.to("npu")
        torch.npu.conv.allow_hf32 = True
        report[attention + " hf32"] = error(model(images).last_hidden_state, expected)
        torch.npu.conv.allow_hf32 = False
        report[attention + " fp32"] = error(model(images).last_hidden_state, expected)
        torch.npu.matmul.allow_hf32 = True
        report[attention + " hf32 matmul"] = error(model(images).last_hidden_state, expected)
        torch.npu.matmul.allow_hf32 = False
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("npu", dtype):
                report[f"{attention} autocast {dtype}"] = error(
                    model(images).last_hidden_state, expected)
            cast = vit(attention)
            cast.load_state_dict(model.state_dict())
            out = cast.to("npu", dtype)(images.to(dtype)).last_hidden_state
            assert out.dtype == dtype
            report[f"{attention} cast {dtype}"] = error(out, expected)
    with torch.no_grad():
        report[attention + " no_grad"] = error(model(images).last_hidden_state, expected)
print("REPORT", json.dumps(report))
"""


@pytest.mark.parametrize("task_queue", ["0", "1", "2"])
def test_a_vit_agrees_with_the_cpu_in_every_precision_and_task_queue_mode(
    npu_host: EmulatedNpu, task_queue: str
) -> None:
    environment = {"TASK_QUEUE_ENABLE": task_queue, **ERF}
    finished = npu_host.run_code(MODEL + MODES, environment=environment)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.split("REPORT")[1])
    for attention in ("eager", "sdpa"):
        assert 3e-5 < report[f"{attention} hf32"] < 1e-3
        assert 0 < report[f"{attention} fp32"] < 2e-6
        assert 0 < report[f"{attention} no_grad"] < 2e-6
        assert 5e-6 < report[f"{attention} hf32 matmul"] < 1e-3
        assert 3e-4 < report[f"{attention} autocast torch.bfloat16"] < 2e-2
        assert 3e-4 < report[f"{attention} cast torch.bfloat16"] < 2e-2
        assert 5e-5 < report[f"{attention} autocast torch.float16"] < 3e-3
        assert 5e-5 < report[f"{attention} cast torch.float16"] < 3e-3


def test_hf32_keeps_11_bits_of_mantissa_and_rounds_ties_to_even(npu_host: EmulatedNpu) -> None:
    source = """
import torch
one = torch.ones(1, 1, device="npu")
values = torch.tensor([1 + 2**-11, 1 + 2**-12, 1 + 3 * 2**-12, 1 + 2**-12 + 2**-20, 1e-39,
                       float("inf")]).reshape(-1, 1).to("npu")
torch.npu.matmul.allow_hf32 = True
print([value.hex() for value in (values @ one).flatten().tolist()])
"""
    finished = npu_host.run_code(source)
    expected = [1 + 2**-11, 1.0, 1 + 2**-10, 1 + 2**-11, 0.0, float("inf")]
    assert str([value.hex() for value in expected]) in finished.stdout, finished.stderr


GELU = """
import json, torch, torch_npu
from torch.nn.functional import gelu

x, grad = torch.linspace(-6, 6, 4001), torch.randn(4001)

def forward_and_backward(function, device):
    leaf = x.clone().to(device).requires_grad_()
    y = function(leaf)
    y.backward(grad.to(device))
    return y.detach().cpu(), leaf.grad.cpu()

def form(function):
    values = forward_and_backward(function, "npu")
    distances = {}
    for name in ("none", "tanh"):
        expected = forward_and_backward(lambda leaf: gelu(leaf, approximate=name), "cpu")
        distances[name] = [float((a - b).abs().max()) for a, b in zip(values, expected)]
    return [min(distances, key=lambda name: distances[name][side]) for side in (0, 1)] + [
        max(min(one, other) for one, other in zip(*distances.values()))]

print("REPORT", json.dumps({
    "gelu none": form(gelu),
    "gelu tanh": form(lambda leaf: gelu(leaf, approximate="tanh")),
    "npu_gelu none": form(lambda leaf: torch_npu.npu_gelu(leaf, approximate="none")),
    "npu_gelu tanh": form(lambda leaf: torch_npu.npu_gelu(leaf, approximate="tanh")),
}))
"""


@pytest.mark.parametrize(
    ("environment", "of_gelu"),
    [
        ({}, ("tanh", "tanh")),
        (ERF, ("none", "none")),
        ({"TORCH_NPU_USE_COMPATIBLE_IMPL": "1"}, ("none", "tanh")),
    ],
)
def test_gelu_has_the_chips_form_and_npu_gelu_or_the_compatible_mode_the_one_asked_for(
    npu_host: EmulatedNpu, environment: dict[str, str], of_gelu: tuple[str, str]
) -> None:
    finished = npu_host.run_code(GELU, environment=environment)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.split("REPORT")[1])
    forms = dict(zip(report, [*of_gelu, "none", "tanh"], strict=True))
    for function, form in forms.items():
        assert report[function][:2] == [form, form], (function, report)
        assert report[function][2] < 2e-6


# What a unit keeps of 1 + 2^-k, 1e-30 and 1e5; what overflow and an invalid operation give.
ARITHMETIC = """
import json, torch, torch_npu
from torch.nn.functional import conv2d

torch.npu.set_compile_mode(jit_compile=False)
torch.npu.config.allow_internal_format = False
one = torch.ones(1, 1, device="npu")

def matmul(value):
    return (torch.full((1, 1), value, device="npu") @ one).item()

def convolution(value):
    return conv2d(torch.full((1, 1, 1, 1), value, device="npu"), one.reshape(1, 1, 1, 1)).item()

def attention(value):
    ones = torch.ones(1, 1, 1, 16, device="npu")
    values = torch.full_like(ones, value)
    return torch_npu.npu_fusion_attention(ones, ones, values, 1, "BNSD")[0].flatten()[0].item()

def kept(function):
    bits = [k for k in range(1, 24) if function(1 + 2.0**-k) == 1 + 2.0**-k]
    return [max(bits), function(1e-30) > 0, round(function(1e5), -2)]

report = {function.__name__: kept(function) for function in (matmul, convolution, attention)}
half = torch.tensor([6e4, -1.0]).half().to("npu")
report["half"] = [(half * 2)[0].item(), half.sqrt()[1].item(), half.div(0)[0].item()]
report["inf"] = (torch.full((1,), float("inf"), device="npu") * 2).item()
try:
    report["bf16"] = torch.ones(1, device="npu", dtype=torch.bfloat16).item()
except RuntimeError as error:
    report["bf16"] = "DT_BFLOAT16" in str(error)
print("REPORT", json.dumps(report))
"""
INFINITY, NAN = float("inf"), float("nan")
FP32, HF32, TF32 = [23, True, 1e5], [11, True, 1e5], [10, True, 1e5]
BF16, FP16, SATURATED = [7, True, 99800], [10, False, INFINITY], [10, False, 65500]


@pytest.mark.parametrize(
    ("environment", "matmul", "convolution", "attention", "saturates"),
    [
        pytest.param(
            {"FAKECANN_SOC": "Ascend910B4"}, FP32, HF32, FP32, False, marks=pytest.mark.extended
        ),
        pytest.param(
            {"INF_NAN_MODE_FORCE_DISABLE": "1"}, FP32, HF32, FP32, True, marks=pytest.mark.extended
        ),
        ({"FAKECANN_SOC": "Ascend310P3"}, SATURATED, SATURATED, SATURATED, True),
        pytest.param(
            {"FAKECANN_SOC": "Ascend910A"},
            SATURATED,
            SATURATED,
            SATURATED,
            True,
            marks=pytest.mark.extended,
        ),
        (
            {
                "FAKECANN_MATMUL": "tf32",
                "FAKECANN_CONV": "bf16",
                "FAKECANN_ATTENTION": "hf32",
                "FAKECANN_SUM_ORDER": "blocks",
            },
            *(TF32, BF16, HF32, False),
        ),
        ({"FAKECANN_MATMUL": "fp16", "FAKECANN_CONV": "fp32"}, FP16, FP32, FP32, False),
    ],
)
def test_products_overflow_and_types_are_those_of_the_chip_or_of_the_switches(
    npu_host: EmulatedNpu,
    environment: dict[str, str],
    matmul: list[float],
    convolution: list[float],
    attention: list[float],
    saturates: bool,
) -> None:
    finished = npu_host.run_code(ARITHMETIC, environment=environment)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.split("REPORT")[1])
    assert report["matmul"] == matmul
    assert report["convolution"] == convolution
    assert report["attention"] == attention
    half = [65504.0, 0.0, 65504.0] if saturates else [INFINITY, NAN, INFINITY]
    assert report["half"] == pytest.approx(half, nan_ok=True)
    assert report["inf"] == INFINITY  # what is put in is not an overflow
    older = environment.get("FAKECANN_SOC") in ("Ascend310P3", "Ascend910A")
    assert report["bf16"] == (True if older else 1.0)


OLDER_CHIP = """
def forward(attention, dtype):
    model = vit(attention)
    with torch.inference_mode():
        expected = model(pixels).last_hidden_state
        model.to("npu", dtype)
        return error(model(pixels.to("npu", dtype)).last_hidden_state, expected)

def both():
    return [forward("eager", torch.float32), forward("eager", torch.float16)]

report["compiling"] = [torch.npu.is_jit_compile_false(), *both()]
torch.npu.set_compile_mode(jit_compile=False)
torch.npu.config.allow_internal_format = False
report["binaries"] = [torch.npu.is_jit_compile_false(), *both()]
report["sdpa"] = forward("sdpa", torch.float32)
print("REPORT", json.dumps(report))
"""


def test_an_older_chip_computes_in_fp16_by_the_older_interface_and_without_it(
    npu_host: EmulatedNpu,
) -> None:
    finished = npu_host.run_code(
        MODEL + OLDER_CHIP, environment={"FAKECANN_SOC": "Ascend310P3", **ERF}
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.split("REPORT")[1])
    compiling, fp32, fp16 = report["compiling"]
    assert not compiling
    assert 5e-5 < fp32 < 2e-3
    assert 5e-5 < fp16 < 3e-3
    assert report["binaries"] == pytest.approx([True, fp32, fp16], rel=0.3)
    assert report["sdpa"] == pytest.approx(fp32, rel=0.3)


def test_a_fault_meets_its_operator_in_the_older_interface_too(npu_host: EmulatedNpu) -> None:
    source = """
import torch
x = torch.full((3,), 2.0, device="npu")
print("gelu", torch.nn.functional.gelu(x)[0].item(), "cosine", torch.cos(x)[0].item())
try:
    torch.exp(x.bfloat16())
except RuntimeError as error:
    print("bf16", "DT_BFLOAT16" in str(error))
"""
    environment = {
        "FAKECANN_SOC": "Ascend910A",
        "FAKECANN_WRONG": "aclnnGelu:*:2",
        **ERF,
        "TASK_QUEUE_ENABLE": "0",
    }
    finished = npu_host.run_code(source, environment=environment)
    assert finished.returncode == 0, finished.stderr
    words = finished.stdout.split()
    assert float(words[1]) == pytest.approx(2 * 1.9545)
    assert float(words[3]) == pytest.approx(-0.41615, rel=1e-4)
    assert words[4:] == ["bf16", "True"]


def test_another_order_of_adding_up_moves_only_the_last_bits(npu_host: EmulatedNpu) -> None:
    source = """
import torch
torch.manual_seed(0)
torch.npu.conv.allow_hf32 = False
a, b, pixels = torch.randn(8, 768), torch.randn(768, 8), torch.randn(1, 3, 16, 16)
kernel = torch.randn(4, 3, 16, 16)
product = (a.to("npu") @ b.to("npu")).cpu()
pixel = torch.nn.functional.conv2d(pixels.to("npu"), kernel.to("npu")).cpu()
exact = a.double() @ b.double()
exact_pixel = torch.nn.functional.conv2d(pixels.double(), kernel.double())
print("close", bool((product - exact).norm() < 1e-6 * exact.norm()),
      bool((pixel - exact_pixel).norm() < 1e-6 * exact_pixel.norm()))
print("BITS", product.flatten().tolist(), "BITS", pixel.flatten().tolist())
"""
    results = []
    for order in ("halves", "reversed", "blocks"):
        finished = npu_host.run_code(source, environment={"FAKECANN_SUM_ORDER": order})
        assert "close True True" in finished.stdout, finished.stderr
        results.append(finished.stdout.split("BITS")[1:])
    assert len({product for product, _ in results}) == 3
    assert len({pixel for _, pixel in results}) == 3


def test_an_operators_inputs_can_lose_bits_by_rounding_or_by_cutting(npu_host: EmulatedNpu) -> None:
    source = """
import torch
x = torch.full((1, 1), 1 + 3 * 2**-11).to("npu")
one = torch.ones_like(x)
print((x @ one).item() - 1, torch.mm(x, one).item() - 1, (x + 0).item() - 1)
"""
    finished = npu_host.run_code(
        source,
        environment={"FAKECANN_MANTISSA": "aclnnMatmul", "FAKECANN_TRUNCATE": "aclnnMm:*:9"},
    )
    assert f"{2**-9} 0.0 {3 * 2**-11}\n" in finished.stdout, finished.stderr


POLYNOMIALS = """
import json, torch
from torch.nn.functional import gelu, layer_norm, softmax
import torch_npu
x = torch.linspace(-3, 3, 601)
functions = {
    "exp": torch.exp, "erf": torch.erf, "rsqrt": lambda v: torch.rsqrt(v.abs() + 0.1),
    "sin": torch.sin, "cos": torch.cos, "softmax": lambda v: softmax(v, -1) * 100,
    "layer_norm": lambda v: layer_norm(v, v.shape), "gelu": gelu,
}
on_npu = dict(functions, gelu=torch_npu.npu_gelu)
print("REPORT", json.dumps({
    name: float((on_npu[name](x.to("npu")).cpu() - functions[name](x.double())).abs().max())
    for name in functions}))
"""


def test_functions_can_be_the_polynomials_that_nobody_documents(npu_host: EmulatedNpu) -> None:
    errors = []
    for functions in ("exp,erf,rsqrt,sin,cos", ""):
        finished = npu_host.run_code(POLYNOMIALS, environment={"FAKECANN_POLYNOMIAL": functions})
        assert finished.returncode == 0, finished.stderr
        errors.append(json.loads(finished.stdout.split("REPORT")[1]))
    rough, exact = errors
    assert all(error < 3e-6 for error in exact.values()), exact
    assert all(1e-5 < error < 2e-2 for error in rough.values()), rough


def test_every_line_of_the_operator_cases_agrees_with_the_cpu(npu_host: EmulatedNpu) -> None:
    finished = npu_host.run([COMPARE], environment=ERF)
    assert finished.returncode == 0, finished.stdout
    assert "\n0 of 4" in f"\n{finished.stdout}"  # more than four hundred cases were compared


@pytest.mark.parametrize("operator", ["aclnnGelu", "aclnnMm", "aclnnLayerNorm"])
def test_the_comparison_is_not_vacuous_it_sees_one_operator_2_percent_off(
    npu_host: EmulatedNpu, operator: str
) -> None:
    finished = npu_host.run([COMPARE, "F."], environment={**ERF, "FAKECANN_WRONG": operator})
    assert finished.returncode == 1
    assert "AssertionError" in finished.stdout
    assert "\n0 of " not in finished.stdout


TRAINING = """
import copy, functools

def train(model, device, optimizer_class, half):
    model = copy.deepcopy(model).to(device)
    optimizer = optimizer_class(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0, enabled=half)
    losses = []
    for _ in range(3):
        with torch.autocast(device, torch.float16, enabled=half):
            out = model(pixels.to(device)).pooler_output
        loss = torch.nn.functional.mse_loss(out.float(), target.to(device))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses

torch.npu.conv.allow_hf32 = False
target = torch.randn(2, 64)
model = vit()
optimizers = {
    "SGD": torch.optim.SGD,
    "AdamW": torch.optim.AdamW,
    "fused AdamW": functools.partial(torch.optim.AdamW, fused=True),
}
for name, optimizer_class in optimizers.items():
    cpu = train(model, "cpu", optimizer_class, False)
    report[name] = [cpu, train(model, "npu", optimizer_class, False)]
    report[name + " half"] = [cpu, train(model, "npu", optimizer_class, True)]
print("REPORT", json.dumps(report))
"""


def test_training_with_sgd_adamw_and_a_gradient_scaler_follows_the_cpu(
    npu_host: EmulatedNpu,
) -> None:
    finished = npu_host.run_code(MODEL + TRAINING, environment=ERF)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.split("REPORT")[1])
    assert len(report) == 6
    for name, (cpu, npu) in report.items():
        assert cpu[2] < cpu[0]
        assert npu == pytest.approx(cpu, rel=2e-2 if "half" in name else 1e-3)


OTHER_MODELS = """
from transformers import (
    Dinov2Config, Dinov2Model, DINOv3ConvNextConfig, DINOv3ConvNextModel, ViTConfig, ViTModel)

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
torch.npu.conv.allow_hf32 = False
for model in (
    DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])),
    Dinov2Model(Dinov2Config(**sizes, image_size=112)),
    ViTModel(ViTConfig(**sizes, intermediate_size=64, image_size=64)),
):
    model.eval()
    with torch.inference_mode():
        expected = model(pixels).last_hidden_state
        out = model.to("npu")(pixels.to("npu")).last_hidden_state
    report[type(model).__name__] = error(out, expected)
print("REPORT", json.dumps(report))
"""


def test_dinov3_convnext_dinov2_and_vit_run_and_agree_with_the_cpu(npu_host: EmulatedNpu) -> None:
    finished = npu_host.run_code(MODEL + OTHER_MODELS)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.split("REPORT")[1])
    assert set(report) == {"DINOv3ConvNextModel", "Dinov2Model", "ViTModel"}
    assert all(error < 2e-6 for error in report.values()), report


RANDOM = """
import torch
from torch import nn
torch.manual_seed(1)
first = torch.randn(1000, device="npu")
torch.manual_seed(1)
print("repeats", torch.equal(first, torch.randn(1000, device="npu")))
print("spread", 0.9 < first.std().item() < 1.1)
dropped = nn.functional.dropout(torch.ones(10000, device="npu"), 0.25)
print("dropout", 0.72 < (dropped > 0).float().mean().item() < 0.78)
weight = nn.init.trunc_normal_(torch.empty(10000, device="npu"), std=0.02)
print("truncated", 0.018 < weight.std().item() < 0.022)
print("permutation", sorted(torch.randperm(9, device="npu").tolist()) == list(range(9)))
draws = torch.randint(3, 7, (1000,), device="npu")
print("integers", draws.min().item() == 3 and draws.max().item() == 6)
coin = torch.bernoulli(torch.full((1000,), 0.3, device="npu"))
print("bernoulli", 0.2 < coin.mean().item() < 0.4)
"""


def test_random_numbers_follow_the_seed_and_have_the_right_spread(npu_host: EmulatedNpu) -> None:
    finished = npu_host.run_code(RANDOM)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count(" True\n") == 7
    assert "False" not in finished.stdout
