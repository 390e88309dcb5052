"""How near the limit: what this device reaches itself, what a forward asks of it, what holds it.

The roofline model (Williams, Waterman, Patterson 2009): no forward is faster than its products at
the rate of bare ones, or its weights at the rate of a plain copy. Both rates are measured here.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel

from kit import statistics
from kit.device.device import DTYPES, device_errors, fast_math, strict_fp32
from kit.device.meters import Stopwatch
from kit.errors import OutOfDeviceMemoryError
from kit.model.model import forward
from kit.options import Mode
from kit.records import (
    BenchmarkResults,
    Bound,
    Latency,
    Limit,
    PrecisionLimit,
    Stage,
    ThroughputRow,
)

aten = torch.ops.aten
FORMULAS: Mapping[Any, Callable[..., int]] = {  # the CPU's attention is not in torch's own list
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    **flop_registry,
}
T = TypeVar("T")
Shape = tuple[int, int, int]  # rows of one image, inner, columns

PRODUCTS_S = 0.4  # for one precision, about
TIMED = 3  # of one product or copy; the first is its warm-up
QUEUED = 8  # products given without waiting where the device is no CPU
LARGEST_BATCH = 256
GAIN = 1.05  # by which one of two doublings must raise the rate for another
COPIED_BYTES = 128 << 20  # as many as the weights have, but no more
LEAST_COPIED_BYTES = 1 << 20
RATE_TOLERANCE = 0.1  # within which two rates, or a wait and nothing, are not told apart
EXPLAINED = 0.5  # of a forward's time, by products and copies, for it to have their bound
WRONG = 0.05  # relative error beyond which a product is no product in any precision
SEEDS = 8191  # random values of which the factors consist; no power of two


# ---- What a forward asks for ---------------------------------------------------------------------


@dataclass(frozen=True)
class Operator:
    """One operator of one image's forward."""

    flops: int  # by torch's formula; 0 where it has none
    weights: int  # elements of parameters that it reads
    others: int  # other elements that it reads and writes
    product: Shape | None = None  # of its matrix product, of a convolution's too


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own
    """Notes each operator that runs within the block, decomposed as torch.utils.flop_counter does.

    `found` is what ran; a view moves nothing and is left out.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Remember which memory is a parameter's."""
        super().__init__()  # type: ignore[no-untyped-call] # torch's own
        self.parameters = {one.untyped_storage().data_ptr() for one in model.parameters()}
        self.found: list[Operator] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - as torch has it
        """Run an operator and note it."""
        kwargs = kwargs or {}
        with self:
            output = func.decompose(*args, **kwargs)
        if output is not NotImplemented:
            return output
        output = func(*args, **kwargs)
        given = tensors((args, tuple(kwargs.values())))
        made = tensors(output)
        places = {one.untyped_storage().data_ptr() for one in given}
        is_view = all(one.untyped_storage().data_ptr() in places for one in made)
        if not is_view or func._schema.is_mutable:
            weights = [one for one in given if one.untyped_storage().data_ptr() in self.parameters]
            formula = FORMULAS.get(func.overloadpacket)
            self.found.append(
                Operator(
                    flops=formula(*args, **kwargs, out_val=output) if formula else 0,
                    weights=sum(map(elements, weights)),
                    others=sum(map(elements, given + made)) - sum(map(elements, weights)),
                    product=product_of(func.overloadpacket, args, output),
                )
            )
        return output


def tensors(value: object) -> list[torch.Tensor]:
    """Return the tensors in an operator's arguments or results."""
    if isinstance(value, torch.Tensor):
        return [value]
    return (
        [one for part in value for one in tensors(part)] if isinstance(value, tuple | list) else []
    )


def elements(tensor: torch.Tensor) -> int:
    """Return the elements that are in memory; an expanded tensor repeats them."""
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())


def product_of(operator: object, args: Sequence[Any], output: Any) -> Shape | None:  # noqa: ANN401
    """Return the shape of the product that an operator is; None for attention's and no product."""
    if operator in (aten.mm, aten.addmm):
        left, right = args[-2:]  # after what addmm adds
        return int(left.shape[0]), int(left.shape[1]), int(right.shape[1])
    if operator is aten.convolution and args[8] == 1:  # groups
        weight = args[1]
        return output.shape[2:].numel(), weight.shape[1:].numel(), int(weight.shape[0])
    return None


def operators(model: PreTrainedModel, pixels: torch.Tensor) -> tuple[Operator, ...]:
    """Return the operators of a forward of one image, 1 x 3 x rows x columns in fp32 on the CPU."""
    with Operators(model) as noted:
        forward(model, pixels)
    return tuple(noted.found)


# ---- What the device reaches ---------------------------------------------------------------------


def products_rate(
    stopwatch: Stopwatch,
    shapes: Mapping[Shape, int],
    dtype: torch.dtype,
    budget_s: float = PRODUCTS_S,
) -> tuple[float, int]:
    """Return the most FLOP/s of bare products, and the batch size whose products reach it.

    `shapes` says how many products of one image have each. The batch is doubled until neither of
    two doublings raises the rate, or about `budget_s` is up. An ArithmeticError where there is no
    product, or one comes back wrong.
    """
    if not shapes:
        raise ArithmeticError("the model has no matrix products")
    start = time.monotonic()
    best, best_batch, worse, batch = 0.0, 0, 0, 1
    while True:
        before = time.monotonic()
        try:
            with device_errors(f"multiplying as for batch {batch}"):
                rate = rate_of(stopwatch, shapes, dtype, batch, start + budget_s)
        except OutOfDeviceMemoryError:
            if not best:
                raise
            return best, best_batch
        worse = 0 if rate > GAIN * best else worse + 1
        if rate > best:
            best, best_batch = rate, batch
        now = time.monotonic()
        if worse == 2 or batch >= LARGEST_BATCH or now + 2 * (now - before) > start + budget_s:
            return best, best_batch
        batch *= 2


def rate_of(
    stopwatch: Stopwatch,
    shapes: Mapping[Shape, int],
    dtype: torch.dtype,
    batch: int,
    deadline: float,
) -> float:
    """Return the FLOP/s of the products for a batch; of the smallest alone where they take long."""
    device = stopwatch.device.torch_device
    repeats = 1 if stopwatch.device.type == "cpu" else QUEUED
    flops = took_ms = 0.0
    for (rows, inner, columns), number in sorted(shapes.items()):
        left = random_values(batch * rows, inner).to(device, dtype)
        right = random_values(columns, inner).to(device, dtype).T
        out = torch.empty(batch * rows, columns, dtype=dtype, device=device)

        def call(left: torch.Tensor = left, right: torch.Tensor = right, out: Any = out) -> None:  # noqa: ANN401
            for _ in range(repeats):
                torch.mm(left, right, out=out)

        with torch.inference_mode():
            once_ms = shortest_ms(stopwatch, call) / repeats
        if batch == 1:
            require_product(left[0], right, out[0])
        flops += 2.0 * batch * rows * inner * columns * number
        took_ms += once_ms * number
        if time.monotonic() > deadline:
            break
    return flops / took_ms * 1e3


def random_values(rows: int, columns: int) -> torch.Tensor:
    """Return rows x columns normal values on the CPU, cheap to make: the same ones repeat."""
    seeds = torch.randn(SEEDS, generator=torch.Generator().manual_seed(0))
    return seeds.repeat(math.ceil(rows * columns / SEEDS))[: rows * columns].view(rows, columns)


def require_product(left: torch.Tensor, right: torch.Tensor, found: torch.Tensor) -> None:
    """Raise an ArithmeticError where one row of a product is not the CPU's in fp64."""
    expected = left.cpu().double() @ right.cpu().double()
    error = torch.linalg.vector_norm(found.cpu().double() - expected)
    if not error <= WRONG * torch.linalg.vector_norm(expected):
        raise ArithmeticError("a bare product came back wrong")


def shortest_ms(stopwatch: Stopwatch, call: Callable[[], object]) -> float:
    """Return the shortest of a few calls' times, by the device's clock where it has one."""
    samples = [stopwatch.time(call) for _ in range(TIMED)]
    return min(one.wall_ms if one.device_ms is None else one.device_ms for one in samples)


def copy_rate(stopwatch: Stopwatch, size: int) -> float:
    """Return the bytes per second that a plain copy of `size` bytes reads and writes.

    An ArithmeticError where the copy is another.
    """
    with device_errors("copying on the device"):
        source = torch.ones(size // 4, device=stopwatch.device.torch_device)
        target = torch.zeros_like(source)
        took_ms = shortest_ms(stopwatch, lambda: target.copy_(source))
        if not bool((target == 1).all()):
            raise ArithmeticError("a copy came back wrong")
    return 2 * size / took_ms * 1e3


# ---- What holds a forward back -------------------------------------------------------------------


def shares_ms(
    asked: Sequence[Operator], batch: int, itemsize: int, flops_per_s: float, bytes_per_s: float
) -> tuple[float, float]:
    """Return the least ms in operators that compute longer than they move bytes, and in the rest.

    For a batch of so many images, from the operators of one, an element's bytes, and both rates.
    """
    compute = memory = 0.0
    for one in asked:
        computing = one.flops * batch / flops_per_s * 1e3
        moving = (one.weights + one.others * batch) * itemsize / bytes_per_s * 1e3
        if computing >= moving:
            compute += computing
        else:
            memory += moving
    return compute, memory


def bound_of(latency: Latency, compute_ms: float, memory_ms: float) -> Bound:
    """Return what holds a row's forwards back, as docs/benchmark.md has it, by its shares_ms."""
    took_ms = latency.p50_ms
    explained = compute_ms + memory_ms >= EXPLAINED * took_ms
    noise_ms = statistics.spread(latency.samples_ms)
    if latency.host_samples_ms is not None:
        pairs = zip(latency.samples_ms, latency.host_samples_ms, strict=True)
        waits = [wall - host for wall, host in pairs]  # for the device, once it has all the work
        wait_ms, wait_noise_ms = statistics.median(waits), statistics.spread(waits)
        if wait_ms + wait_noise_ms < RATE_TOLERANCE * took_ms:
            return "undecided" if explained else "host"
        if wait_ms - wait_noise_ms <= RATE_TOLERANCE * took_ms:
            return "undecided"
    margin_ms = noise_ms + RATE_TOLERANCE * max(compute_ms, memory_ms)
    if not explained or abs(compute_ms - memory_ms) <= margin_ms:
        return "undecided"
    return "compute" if compute_ms > memory_ms else "memory"


def bound_of_stream(
    stages_ms: Mapping[Stage, float], noise_ms: float, own: Bound | None
) -> Bound | None:
    """Return what holds back a stream of images: 'transfer', or its forwards' `own` bound.

    By each stage's ms for one image, and the noise of the forward's.
    """
    forward_ms = stages_ms["forward"]
    feed_ms = max(took for stage, took in stages_ms.items() if stage != "forward")
    if abs(feed_ms - forward_ms) <= noise_ms + RATE_TOLERANCE * forward_ms:
        return "undecided"
    return "transfer" if feed_ms > forward_ms else own


def pipeline(stages_ms: Mapping[Stage, float], *, on_cpu: bool) -> tuple[float, Stage]:
    """Return the images per second of a pipeline, and its slowest stage, by each one's ms.

    On the CPU the stages share the processor, one after the other.
    """
    slowest = max(stages_ms, key=lambda stage: stages_ms[stage])
    return 1e3 / (sum(stages_ms.values()) if on_cpu else stages_ms[slowest]), slowest


# ---- The record ----------------------------------------------------------------------------------


def precision_of(mode: Mode) -> str:
    """Return what decides how fast a mode's products are."""
    return mode.precision + ("-fast-math" if mode.fast_math else "")


def measure(
    stopwatch: Stopwatch, asked: Sequence[Operator], parameters: int, modes: Sequence[Mode]
) -> Limit:
    """Measure what the device reaches in each precision of the modes.

    `asked` are the operators of one image's forward, `parameters` the elements of the model's. A
    DeviceError where the device fails other than for want of memory.
    """
    start = time.perf_counter()
    flops = sum(one.flops for one in asked)
    shapes = Counter(one.product for one in asked if one.product is not None)
    size = min(max(4 * parameters, LEAST_COPIED_BYTES), COPIED_BYTES)
    bytes_per_s, problem = tried(lambda: copy_rate(stopwatch, size))
    found: dict[str, PrecisionLimit] = {}
    for mode in modes:
        name, dtype = precision_of(mode), DTYPES[mode.dtype]
        if name in found:
            continue
        with strict_fp32(mode.strict), fast_math(mode.fast_math):
            reached, reason = tried(partial(products_rate, stopwatch, shapes, dtype))
        rate, batch = reached or (None, None)
        weight_bytes = parameters * dtype.itemsize
        found[name] = PrecisionLimit(
            precision=name,
            flops_per_s=rate,
            batch_size=batch,
            weight_bytes=weight_bytes,
            attainable_latency_ms=None
            if rate is None or bytes_per_s is None
            else least_ms(1, flops, weight_bytes, rate, bytes_per_s),
            attainable_throughput_ips=None if rate is None else rate / flops,
            reason=reason or problem,
        )
    return Limit(
        flops_per_image=flops,
        bytes_per_image=4 * sum(one.others for one in asked),
        bytes_per_s=bytes_per_s,
        precisions=tuple(found.values()),
        bound=None,
        summary="",
        measuring_ms=(time.perf_counter() - start) * 1e3,
    )


def tried(call: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return what a call returns, or why it cannot: too little memory, or a wrong result."""
    try:
        return call(), None
    except (OutOfDeviceMemoryError, ArithmeticError) as error:
        return None, str(error)


def least_ms(
    batch: int, flops: int, weight_bytes: int, flops_per_s: float, bytes_per_s: float
) -> float:
    """Return the least time for a batch: its products at their rate, or the weights at theirs."""
    return max(batch * flops / flops_per_s, weight_bytes / bytes_per_s) * 1e3


def applied(
    results: BenchmarkResults, found: Limit, asked: Sequence[Operator], modes: Sequence[Mode]
) -> BenchmarkResults:
    """Return the results with the limit, and with each row's utilization and bound.

    A row that is faster than its limit shows that this was not measured well: it has no
    utilization, and the precision says why.
    """
    by_mode = {mode.name: mode for mode in modes}
    reached = {one.precision: one for one in found.precisions}

    def judged(name: str, latency: Latency) -> dict[str, Any]:
        mode, batch = by_mode[name], latency.batch_size
        one, utilization, shares = reached[precision_of(mode)], None, (0.0, 0.0)
        flops_per_s, bytes_per_s = one.flops_per_s, found.bytes_per_s
        if flops_per_s is not None and bytes_per_s is not None:
            rates = flops_per_s, bytes_per_s
            least = least_ms(batch, found.flops_per_image, one.weight_bytes, *rates)
            if least > latency.mean_ms:
                reason = (
                    f"a forward of batch {batch} took {latency.mean_ms:.2f} ms, less than its "
                    f"limit of {least:.2f} ms: bare products or copies were measured too slow, "
                    "beside other work or in too little time; measure again"
                )
                reached[one.precision] = replace(one, reason=reason)
            else:
                utilization = least / latency.mean_ms
                shares = shares_ms(asked, batch, DTYPES[mode.dtype].itemsize, *rates)
        return {"utilization": utilization, "bound": bound_of(latency, *shares)}

    def rows(name: str, sweep: Sequence[ThroughputRow]) -> tuple[ThroughputRow, ...]:
        return tuple(
            replace(row, **judged(name, row.latency))
            if row.latency is not None and row.status == "measured"
            else row
            for row in sweep
        )

    ladder = []
    for rung in results.ladder:
        swept = replace(rung, throughput=rows(rung.mode, rung.throughput))
        passes = rung.latency.check is None or rung.latency.check.verdict != "FAIL"
        ladder.append(replace(swept, **judged(rung.mode, rung.latency)) if passes else swept)
    throughput = rows(results.mode, results.throughput)
    limit = replace(found, precisions=tuple(reached.values()))
    return replace(results, limit=limit, ladder=tuple(ladder), throughput=throughput)


def best_row(results: BenchmarkResults) -> ThroughputRow | None:
    """Return the main mode's row with the most images per second."""
    rows = (row for row in results.throughput if row.status == "measured")
    return max(rows, key=attrgetter("throughput_ips"), default=None)


def summary(results: BenchmarkResults, mode: Mode) -> str:
    """Return the best batch's utilization in a sentence, and the next step where it was measured.

    Of results with the limit and the rows' utilization, `mode` being the main one.
    """
    row, limit = best_row(results), results.limit
    assert limit is not None
    one = next(one for one in limit.precisions if one.precision == precision_of(mode))
    if row is None or row.utilization is None:
        return f"no share of the limit: {one.reason or 'no batch size was measured'}"
    assert one.flops_per_s is not None  # what has a share was measured, and so was its limit
    assert row.avg_latency_ms is not None
    assert row.throughput_ips is not None
    products_ms = row.batch_size * limit.flops_per_image / one.flops_per_s * 1e3
    by_products = products_ms >= row.utilization * row.avg_latency_ms * (1 - 1e-9)
    what = (
        "of what this device's own matrix products reach"
        if by_products
        else "of what this device's own memory bandwidth allows"
    )
    words = f"batch {row.batch_size} in {one.precision} uses {row.utilization * 100:.2g} % {what}"
    gains = [
        (rung.best_throughput_ips / row.throughput_ips, rung)
        for rung in results.ladder
        if rung.verdict != "FAIL" and rung.best_throughput_ips is not None
    ]
    if gains:
        gain, best = max(gains, key=itemgetter(0))
        if gain > 1 + RATE_TOLERANCE:
            words += (
                f"; {best.mode} at batch {best.best_batch_size} would be the next step: "
                f"{gain:.1f} times the images/s"
            )
    return words
