"""What a device computes in is recognized where it is documented, and never explained where not."""

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from kit.device import arithmetic
from kit.device.arithmetic import (
    ROUNDED_PROBABILITIES,
    UNKNOWN,
    Match,
    Operators,
    Probe,
    attended,
    rounded_to,
)
from kit.device.device import choose
from kit.records import DeviceArithmetic, OperatorArithmetic

Tensor = torch.Tensor
CPU = choose("cpu", patched=False, patch_reason="")
PRODUCTS = ("matrix product", "convolution", "attention")
REDUCED = ("hf32", "tf32", "bf16", "fp16")
STORED_TYPES = ("bf16 in and out", "fp16 in and out")


def found(operators: Operators, dtype: str = "fp32") -> dict[str, str]:
    """Return what each operator is found to compute in."""
    return names(arithmetic.measure(CPU, dtype, {"GELU": "erf"}, operators))


def names(measured: DeviceArithmetic) -> dict[str, str]:
    return {one.operator: one.found for one in measured.operators}


def in_(name: str) -> Callable[[Tensor], Tensor]:
    return lambda tensor: rounded_to(name, tensor)


def product_in(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda left, right: change(left) @ change(right)


def stored_in(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda left, right: rounded_to(name, product_in(in_(name))(left, right))


def convolution_in(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda image, weight: functional.conv2d(change(image), change(weight), stride=16)


def attention_in(name: str, where: str = "before division") -> Callable[..., Tensor]:
    return lambda q, k, v: attended(name, q, k, v, where).float()


def composite_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scale query and key by the root each before their product, as torch does on older chips."""
    product, root = product_in(in_("fp16")), (1 / math.sqrt(q.shape[-1])) ** 0.5
    return product(functional.softmax(product(q * root, (k * root).mT), -1), v)


def truncated(bits: int) -> Callable[[Tensor], Tensor]:
    mask = -(1 << (23 - bits))
    return lambda tensor: (tensor.contiguous().view(torch.int32) & mask).view(torch.float32)


def rounded(bits: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: arithmetic.round_mantissa(tensor, bits)


def in_blocks(left: Tensor, right: Tensor) -> Tensor:
    parts = zip(left.chunk(24, -1), right.chunk(24, 0), strict=True)
    return sum((a @ b for a, b in parts), torch.zeros(()))


def added_up_in_fp16(left: Tensor, right: Tensor) -> Tensor:
    total = torch.zeros(len(left), right.shape[1], dtype=torch.float16)
    for a, b in zip(left.chunk(24, -1), right.chunk(24, 0), strict=True):
        total = total + (a.half().float() @ b.half().float()).half()
    return total.float()


def one_by_one(left: Tensor, right: Tensor) -> Tensor:
    total = torch.zeros(len(left), right.shape[1])
    for index in range(left.shape[1]):
        total = total + left[:, index, None] * right[index]
    return total


def erf_by_polynomial(x: Tensor) -> Tensor:
    """Abramowitz and Stegun 7.1.25, off by 2.5e-5 at most."""
    z = x.abs() / math.sqrt(2)
    t = 1 / (1 + 0.47047 * z)
    erf = 1 - (0.3480242 * t - 0.0958798 * t**2 + 0.7478556 * t**3) * torch.exp(-z * z)
    return 0.5 * x * (1 + torch.sign(x) * erf)


def rsqrt_of_12_bits(rows: Tensor) -> Tensor:
    mean, variance = rows.mean(-1, keepdim=True), rows.var(-1, keepdim=True, correction=0)
    return (rows - mean) * arithmetic.round_mantissa(torch.rsqrt(variance.float() + 1e-5), 12)


def exp_by_squaring(x: Tensor) -> Tensor:
    return (1 + x / 4096) ** 4096


def only_fp32(
    call: Callable[[Tensor], Tensor], fault: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return the faulty function for the device's fp32, the sound one for the fp64 prediction."""
    return lambda x: fault(x) if x.dtype == torch.float32 else call(x)


SOUND = (
    dict.fromkeys(PRODUCTS, "fp32")
    | {"GELU": "erf"}
    | dict.fromkeys(("norm", "softmax", "exp", "sin", "cos"), "fp32")
)
PLAIN = Operators()
DOCUMENTED = {
    **{
        f"{name} products": (replace(PLAIN, matmul=product_in(in_(name))), {"matrix product": name})
        for name in REDUCED
    },
    **{
        f"{name} convolution": (
            replace(PLAIN, convolution=convolution_in(in_(name))),
            {"convolution": name},
        )
        for name in REDUCED
    },
    **{
        f"{name} attention, rounded {where}": (
            replace(PLAIN, attention=attention_in(name, where)),
            {"attention": name},
        )
        for name in REDUCED
        for where in ROUNDED_PROBABILITIES
    },
    "fp16 products stored in fp16": (
        replace(PLAIN, matmul=stored_in("fp16 in and out")),
        {"matrix product": "fp16 in and out"},
    ),
    "torch's composite attention with fp16 products": (
        replace(PLAIN, attention=composite_attention),
        {"attention": "fp16"},
    ),
    "tanh GELU": (
        replace(PLAIN, gelu=lambda x: functional.gelu(x, approximate="tanh")),
        {"GELU": "tanh"},
    ),
    "tanh GELU as CANN documents it": (
        replace(PLAIN, gelu=lambda x: x / (1 + torch.exp(-1.5957691 * (x + 0.044715 * x**3)))),
        {"GELU": "tanh"},
    ),
    "HF32 convolution and tanh GELU": (
        Operators(
            convolution=convolution_in(in_("hf32")),
            gelu=lambda x: functional.gelu(x, approximate="tanh"),
        ),
        {"convolution": "hf32", "GELU": "tanh"},
    ),
    "fp16 products and bf16 attention": (
        Operators(
            matmul=product_in(in_("fp16")),
            attention=attention_in("bf16"),
        ),
        {"matrix product": "fp16", "attention": "bf16"},
    ),
    "another order of adding up": (replace(PLAIN, matmul=in_blocks), {}),
    "one product after the other": (replace(PLAIN, matmul=one_by_one), {}),
    "exp off by two places": (
        replace(PLAIN, exp=only_fp32(torch.exp, lambda x: torch.exp(x) * (1 + 2 * 2.0**-23))),
        {},
    ),
}
UNDOCUMENTED = {
    "11 bits, cut off": (replace(PLAIN, matmul=product_in(truncated(11))), "matrix product"),
    "9 bits": (replace(PLAIN, matmul=product_in(rounded(9))), "matrix product"),
    "12 bits": (replace(PLAIN, matmul=product_in(rounded(12))), "matrix product"),
    "8 bits in the convolution": (
        replace(PLAIN, convolution=convolution_in(rounded(8))),
        "convolution",
    ),
    "a scale 1e-4 off": (replace(PLAIN, matmul=lambda a, b: 1.0001 * (a @ b)), "matrix product"),
    "added up in fp16": (replace(PLAIN, matmul=added_up_in_fp16), "matrix product"),
    "a result of 11 bits": (
        replace(PLAIN, matmul=lambda a, b: arithmetic.round_mantissa(a @ b, 11)),
        "matrix product",
    ),
    "a product left out": (
        replace(PLAIN, matmul=lambda a, b: a[:, 1:] @ b[1:]),
        "matrix product",
    ),
    "one operand in bf16": (
        replace(PLAIN, matmul=lambda a, b: rounded_to("bf16", a) @ b),
        "matrix product",
    ),
    "attention's scale 1e-3 off": (
        replace(
            PLAIN,
            attention=lambda q, k, v: functional.scaled_dot_product_attention(
                q, k, v, scale=0.125 * 1.001
            ),
        ),
        "attention",
    ),
    "GELU by a sigmoid": (replace(PLAIN, gelu=lambda x: x * torch.sigmoid(1.702 * x)), "GELU"),
    "GELU by a polynomial": (replace(PLAIN, gelu=erf_by_polynomial), "GELU"),
    "a norm of 12 bits": (
        replace(PLAIN, norm=only_fp32(PLAIN.norm, rsqrt_of_12_bits)),
        "norm",
    ),
    "a norm of another epsilon": (
        replace(
            PLAIN,
            norm=only_fp32(PLAIN.norm, lambda x: functional.layer_norm(x, x.shape[-1:], eps=1e-4)),
        ),
        "norm",
    ),
    "exp by squaring": (replace(PLAIN, exp=only_fp32(torch.exp, exp_by_squaring)), "exp"),
    "softmax of squared powers": (
        replace(
            PLAIN,
            softmax=only_fp32(
                PLAIN.softmax,
                lambda x: functional.normalize(exp_by_squaring(x - x.amax(-1, True)), p=1, dim=-1),
            ),
        ),
        "softmax",
    ),
    "sin of a frequency 1e-5 off": (
        replace(PLAIN, sin=only_fp32(torch.sin, lambda x: torch.sin(x * 1.00001))),
        "sin",
    ),
    "cos by a parabola near zero": (
        replace(
            PLAIN,
            cos=only_fp32(
                torch.cos, lambda x: torch.where(x.abs() < 0.3, 1 - x * x / 2, torch.cos(x))
            ),
        ),
        "cos",
    ),
}


def test_a_sound_device_computes_in_what_was_asked_for() -> None:
    assert found(PLAIN) == SOUND


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_sound_device_is_known_in_16_bits_too(dtype: str) -> None:
    expected = {name: "erf" if name == "GELU" else dtype for name in SOUND}
    assert found(PLAIN, dtype) == expected
    tanh = replace(PLAIN, gelu=lambda x: functional.gelu(x, approximate="tanh"))
    assert found(tanh, dtype) == expected | {"GELU": "tanh"}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_documented_arithmetic_is_recognized(name: str) -> None:
    operators, differs = DOCUMENTED[name]
    assert found(operators) == SOUND | differs


@pytest.mark.parametrize("name", UNDOCUMENTED)
def test_what_nobody_documents_is_none_of_the_known_ones(name: str) -> None:
    operators, differs = UNDOCUMENTED[name]
    assert found(operators) == SOUND | {differs: UNKNOWN}


def entries(operator: str) -> dict[str, Operators]:
    """Return a device for each entry of the list."""
    known = ("fp32", *REDUCED)
    if operator == "matmul":
        plain = {name: replace(PLAIN, matmul=product_in(in_(name))) for name in known}
        return plain | {name: replace(PLAIN, matmul=stored_in(name)) for name in STORED_TYPES}
    if operator == "convolution":
        return {name: replace(PLAIN, convolution=convolution_in(in_(name))) for name in known}
    if operator == "attention":
        return {name: replace(PLAIN, attention=attention_in(name)) for name in known}
    return {"erf": PLAIN, "tanh": DOCUMENTED["tanh GELU"][0]}


@pytest.mark.parametrize("operator", ["matmul", "convolution", "attention", "gelu"])
def test_no_two_entries_are_nearer_than_ten_tolerances(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    considered: list[arithmetic.Match] = []
    original = arithmetic.nearest

    def keep(matches: list[arithmetic.Match]) -> arithmetic.Match:
        considered[:] = matches
        return original(matches)

    monkeypatch.setattr(arithmetic, "nearest", keep)
    devices = entries(operator)
    for name, other in itertools.permutations(devices, 2):
        getattr(Probe(CPU, torch.float32, devices[name]), operator)()
        # What is stored in 16 bits is only considered where every number of a result is.
        ratios = (m.residual / m.tolerance for m in considered if m.nearest == other)
        least = min(ratios, default=math.inf if other in STORED_TYPES else 0)
        assert least >= 10, (name, other)


def test_saturation_and_other_bits_on_a_second_call_are_seen() -> None:
    def saturating(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right).clamp(-3.4028e38, 3.4028e38)

    assert arithmetic.measure(CPU, "fp32", {}).overflow == "infinity"
    assert arithmetic.measure(CPU, "fp16", {}).overflow == "infinity"
    changed = replace(PLAIN, matmul=saturating)
    assert arithmetic.measure(CPU, "fp32", {}, changed).overflow == "saturates"

    def partly(left: Tensor, right: Tensor) -> Tensor:
        product = left @ right
        product[0, 0] = 1.0
        return product

    probe = Probe(CPU, torch.float32, replace(PLAIN, matmul=partly))
    assert probe.overflow() == "infinity"
    count = itertools.count()
    drifting = replace(PLAIN, matmul=lambda a, b: (a @ b) + 1e-9 * (next(count) % 2))
    assert arithmetic.measure(CPU, "fp32", {}).repeatable
    assert not arithmetic.measure(CPU, "fp32", {}, drifting).repeatable


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_overflows_is_the_product_and_not_its_inputs(dtype: torch.dtype) -> None:
    seen: list[Tensor] = []

    def look(left: Tensor, right: Tensor) -> Tensor:
        seen.extend((left, right))
        return left @ right

    assert Probe(CPU, dtype, replace(PLAIN, matmul=look)).overflow() == "infinity"
    assert all(tensor.dtype == dtype and tensor.isfinite().all() for tensor in seen)


def test_functions_are_probed_at_both_ends_of_the_rotary_embeddings_angles() -> None:
    def outside(call: Callable[[Tensor], Tensor], low: float, high: float) -> Operators:
        def broken(x: Tensor) -> Tensor:
            return torch.where((x < low) | (x > high), call(x) + 0.001, call(x))

        changed = only_fp32(call, broken)
        return replace(PLAIN, sin=changed) if call is torch.sin else replace(PLAIN, cos=changed)

    for call in (torch.sin, torch.cos):
        for low, high in ((-6.0, 9.0), (-9.0, 6.0)):  # the angles reach 2 pi
            assert found(outside(call, low, high)) == SOUND | {call.__name__: UNKNOWN}
        assert found(outside(call, -9.0, 9.0)) == SOUND


def test_each_operator_is_probed_at_the_models_sizes_and_where_its_entries_differ() -> None:
    given: dict[str, tuple[Tensor, ...]] = {}

    def spied(name: str) -> Callable[..., Tensor]:
        call: Callable[..., Tensor] = getattr(PLAIN, name)

        def look(*inputs: Tensor) -> Tensor:
            given.setdefault(name, tuple(tensor.double() for tensor in inputs))
            return call(*inputs)

        return look

    fields = ("matmul", "convolution", "attention", "gelu", "norm", "softmax", "exp", "sin", "cos")
    assert found(Operators(**{name: spied(name) for name in fields})) == SOUND
    width, tokens, head, patch = 768, 1 + 4 + 14 * 14, 64, 16  # ViT-B/16, registers, 224 pixels
    shapes = {name: [tuple(one.shape) for one in inputs] for name, inputs in given.items()}
    assert shapes["matmul"] == [(32, width), (width, width)]
    assert shapes["convolution"] == [(1, 3, 6 * patch, 6 * patch), (width, 3, patch, patch)]
    assert shapes["attention"] == [(1, 2, tokens, head)] * 3
    assert (shapes["norm"], shapes["softmax"]) == ([(32, width)], [(32, tokens)])
    assert float(given["softmax"][0].std()) == pytest.approx(3, rel=0.05)  # scores that matter
    (gelu,) = given["gelu"]  # where 16 bits tell the two forms apart
    assert (float(gelu.min()), float(gelu.max())) == (-4, -1)
    (exp,) = given["exp"]  # a softmax takes it of differences from the largest
    assert (float(exp.min()), float(exp.max())) == (-20, 1)
    for name in ("sin", "cos"):
        assert 2 * math.pi < float(given[name][0].max()) == -float(given[name][0].min()) < 8


def test_the_operators_are_those_of_the_model() -> None:
    rows = arithmetic.normal(2, 3, 5, seed=1).double()
    mean, variance = rows.mean(-1, keepdim=True), rows.var(-1, keepdim=True, correction=0)
    torch.testing.assert_close(PLAIN.norm(rows), (rows - mean) / torch.sqrt(variance + 1e-5))
    powers = torch.exp(rows)
    torch.testing.assert_close(PLAIN.softmax(rows), powers / powers.sum(-1, keepdim=True))


def test_what_an_operator_multiplies_in_is_as_found_or_as_set_where_nobody_knows() -> None:
    rows = tuple(
        OperatorArithmetic(operator, "fp32", found, "fp32", 0.0, 1.0)
        for operator, found in (("matrix product", "hf32"), ("attention", UNKNOWN))
    )
    measured = DeviceArithmetic(rows, "infinity", repeatable=True)
    assert arithmetic.found(measured, "matrix product") == "hf32"
    assert arithmetic.found(measured, "attention") == UNKNOWN
    assert arithmetic.found(measured, "convolution") is None
    assert arithmetic.found(None, "matrix product") is None
    assert arithmetic.multiplies_in(measured, "matrix product", "tf32") == "hf32"
    assert arithmetic.multiplies_in(measured, "attention", "tf32") == "tf32"
    assert arithmetic.multiplies_in(None, "matrix product", "bf16") == "bf16"


def test_what_was_asked_for_stands_beside_what_was_found() -> None:
    asked = {"matrix product": "fp32", "convolution": "hf32", "GELU": "erf"}
    rows = {one.operator: one for one in arithmetic.measure(CPU, "fp32", asked).operators}
    assert (rows["convolution"].asked, rows["convolution"].found) == ("hf32", "fp32")
    assert rows["attention"].asked == "fp32"
    assert rows["GELU"].asked == "erf"
    assert all(one.residual is not None for one in rows.values())


@pytest.mark.parametrize(
    ("found", "asked", "less"),
    [
        ("fp32", "fp32", False),
        ("hf32", "fp32", True),
        ("fp32", "hf32", False),  # more exact than declared is no fault
        ("hf32", "tf32", False),
        ("tf32", "hf32", True),
        ("tf32", "tf32", False),
        ("fp16", "tf32", True),
        ("fp16 in and out", "fp16", True),
        ("bf16", "fp16 in and out", True),
        ("bf16 in and out", "bf16", True),
        ("fp16", "bf16", False),
        ("bf16", "bf16 in and out", False),
        ("tanh", "erf", True),
        ("erf", "erf", False),
        (arithmetic.UNKNOWN, "fp32", True),
        (arithmetic.UNKNOWN, "bf16", True),
    ],
)
def test_less_exact_is_what_has_fewer_bits_or_is_unknown(
    found: str, asked: str, less: bool
) -> None:
    row = OperatorArithmetic("matrix product", asked, found, found, 0.125, 1.0)
    assert arithmetic.is_less_exact(row) is less
    assert arithmetic.residual_words(row) == "0.12"
    assert arithmetic.residual_words(replace(row, residual=None)) == "not finite"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_any_order_stay_within_the_tolerance_of_stored_ones(dtype: torch.dtype) -> None:
    apart = []
    for seed in range(0, 60, 2):
        left = arithmetic.normal(arithmetic.ROWS, arithmetic.WIDTH, seed=seed)
        right = arithmetic.normal(arithmetic.WIDTH, arithmetic.WIDTH, seed=seed + 1)
        left, right = (one.to(dtype).float() for one in (left, right))
        exact = (left.double() @ right.double()).to(dtype).double()
        in_order = torch.zeros(len(left), right.shape[1])
        for column, row in zip(left.T, right, strict=True):
            in_order += column[:, None] * row
        apart += [
            arithmetic.rows_apart(exact, one.to(dtype).double()) for one in (in_order, left @ right)
        ]
    assert max(apart) < arithmetic.stored_tolerance(dtype) < 10 * max(apart)


@pytest.mark.parametrize("bits", [7, 10, 11])
def test_mantissas_are_rounded_to_nearest_and_ties_to_even(bits: int) -> None:
    place = 2.0**-bits
    ties = torch.tensor([1 + place / 2, 1 + 1.5 * place, -1 - place / 2, -1 - 1.5 * place])
    even = torch.tensor([1.0, 1 + 2 * place, -1.0, -1 - 2 * place])
    assert torch.equal(arithmetic.round_mantissa(ties, bits), even)
    values = torch.cat([arithmetic.normal(4096, seed=3) * 2.0**power for power in (-90, 0, 90)])
    mantissa, exponent = torch.frexp(values.double())
    scale = 2.0 ** (bits + 1)
    expected = torch.ldexp(torch.round(mantissa * scale) / scale, exponent)
    assert torch.equal(arithmetic.round_mantissa(values, bits).double(), expected)
    odd = torch.tensor([math.inf, -math.inf, math.nan])
    assert torch.equal(arithmetic.round_mantissa(odd, bits)[:2], odd[:2])
    assert arithmetic.round_mantissa(odd, bits)[2].isnan()


@pytest.mark.parametrize("where", [*ROUNDED_PROBABILITIES, arithmetic.ROOT_FIRST])
def test_attention_is_imitated_with_its_products_inputs_rounded(where: str) -> None:
    def rounded(tensor: Tensor) -> Tensor:
        return tensor.float().to(torch.bfloat16).double()

    query, key, value = (arithmetic.normal(1, 2, 9, arithmetic.HEAD, seed=s) for s in (1, 2, 3))
    root = arithmetic.HEAD**-0.25
    if where == arithmetic.ROOT_FIRST:
        scores = rounded(query * root) @ rounded(key * root).mT
    else:
        scores = rounded(query) @ rounded(key).mT * root**2
    if where in ("after division", arithmetic.ROOT_FIRST):
        expected = rounded(torch.softmax(scores, -1)) @ rounded(value)
    else:
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        summed = rounded(weights) if where == "before the sum" else weights
        expected = rounded(weights) @ rounded(value) / summed.sum(-1, keepdim=True)
    found = attended("bf16", query, key, value, where)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_each_row_has_its_entry_its_tolerance_and_its_place() -> None:
    measured = arithmetic.measure(CPU, "fp32", {}, own_gelu=contextlib.nullcontext)
    operators = [one.operator for one in measured.operators]
    assert operators == [
        *("matrix product", "convolution", "attention", "GELU", arithmetic.CHIPS_GELU),
        *("norm", "softmax", "exp", "sin", "cos"),
    ]
    rows = {one.operator: one for one in measured.operators}
    assert {rows[name].nearest for name in ("GELU", arithmetic.CHIPS_GELU)} == {"erf"}
    assert rows["matrix product"].tolerance == arithmetic.TOLERANCES["sum"]
    assert rows["GELU"].tolerance == arithmetic.TOLERANCES["form"]
    fp16, bf16 = (arithmetic.stored_tolerance(one) for one in (torch.float16, torch.bfloat16))
    assert fp16 == arithmetic.TOLERANCES["stored sum"]
    units = arithmetic.UNIT_ROUNDOFF
    assert bf16 / fp16 == units[torch.bfloat16] / units[torch.float16]
    assert all(unit == torch.finfo(dtype).eps / 2 for dtype, unit in units.items())
    for name, dtype in arithmetic.HALF_TYPES.items():
        halves = {one.operator: one for one in arithmetic.measure(CPU, name, {}).operators}
        unit = arithmetic.UNIT_ROUNDOFF[dtype]
        assert halves["matrix product"].tolerance == arithmetic.stored_tolerance(dtype)
        assert halves["attention"].tolerance == 2 * unit
        assert halves["norm"].tolerance == unit
        assert halves["GELU"].tolerance == arithmetic.TOLERANCES["stored form"]
        assert all((one.residual or 0.0) < one.tolerance for one in halves.values())


def test_the_nearest_entry_is_the_nearest_in_its_own_tolerance() -> None:
    near, wide = Match("x", "near", 2e-5, 1e-5), Match("x", "wide", 4e-5, 4e-5)
    assert arithmetic.nearest([near, wide]) == wide
    assert (near.found, wide.found) == (UNKNOWN, "wide")


def test_rows_are_apart_by_their_worst_group_and_a_nan_is_no_entry() -> None:
    expected = torch.ones(4, 3, dtype=torch.float64)
    result = expected.clone()
    result[1::2] *= 1.25
    assert arithmetic.rows_apart(expected, result) == 0.25
    result[0, 0] = math.nan
    assert arithmetic.rows_apart(expected, result) == math.inf
    assert torch.equal(arithmetic.normal(5, seed=3), arithmetic.normal(5, seed=3))
