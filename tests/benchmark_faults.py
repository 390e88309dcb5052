"""Forwards that are wrong in some shapes or calls only, and which script finds each.

What is wrong in every forward of one image in one mode is accuracy.py's to find as well: a run of
inference.py has no reference, only its own forwards to compare.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from transformers import PreTrainedModel

from kit.benchmark import check
from kit.model import model, runner
from kit.model.model import Features


@dataclass(frozen=True)
class Call:
    """One forward: its input's shape and dtype, the attention, and its number among those alike."""

    batch: int
    rows: int
    columns: int
    dtype: torch.dtype
    attention: str
    number: int


Fault = Callable[[Features, Call], Features]
BOTH, BENCHMARK = ("inference", "benchmark"), ("benchmark",)
MODES = ("--modes", "fp32,fp32-eager,bf16", "--batch-sizes", "1,2")


@dataclass(frozen=True)
class Case:
    """A fault, the scripts whose numbers it falsifies and that find it, and their options."""

    fault: Fault
    found_by: tuple[str, ...]
    options: tuple[str, ...] = ()
    benchmark_options: tuple[str, ...] = ()


def scaled(factor: float) -> Fault:
    """Return the fault that stretches all features."""
    return lambda features, call: Features(
        features.pooler_output * factor, features.last_hidden_state * factor
    )


def pooler_off(features: Features, call: Call) -> Features:
    return Features(features.pooler_output * 1.02, features.last_hidden_state)


def not_a_number(features: Features, call: Call) -> Features:
    hidden = features.last_hidden_state.clone()
    hidden[-1, -1, -1] = math.nan
    return Features(features.pooler_output, hidden)


def token_off(features: Features, call: Call) -> Features:
    hidden = features.last_hidden_state.clone()
    hidden[-1, 2] *= -1
    return Features(features.pooler_output, hidden)


def order(places: Callable[[int], list[int]]) -> Fault:
    """Return the fault that gives each place another place's features."""

    def fault(features: Features, call: Call) -> Features:
        found = places(call.batch)
        return Features(features.pooler_output[found], features.last_hidden_state[found])

    return fault


def last_is_zero(features: Features, call: Call) -> Features:
    pooled, hidden = features.pooler_output.clone(), features.last_hidden_state.clone()
    pooled[-1], hidden[-1] = 0, 0
    return Features(pooled, hidden)


neighbours = order(lambda n: [0, 2, 1, *range(3, n)])
repeated = order(lambda n: [*range(n - 1), max(n - 2, 0)])
first_only = order(lambda n: [0] * n)
reversed_ = order(lambda n: [*reversed(range(n))])
rotated = order(lambda n: [*range(1, n), 0])
halves = order(lambda n: [*range(n // 2, n), *range(n // 2)])


def where(when: Callable[[Call], bool], fault: Fault) -> Fault:
    """Return a fault that strikes some forwards only."""
    return lambda features, call: fault(features, call) if when(call) else features


@dataclass
class Stale:
    """The fault of an answer that is kept: the last forward's, or the first one's for ever."""

    forever: bool
    kept: dict[int, Features] = field(default_factory=dict)

    def __call__(self, features: Features, call: Call) -> Features:
        """Return what is kept."""
        old = self.kept.get(call.batch, features)
        if call.batch not in self.kept or not self.forever:
            self.kept[call.batch] = features
        return old


FAULTS: dict[str, Case] = {
    # By the number of the forward.
    "every seventh forward": Case(where(lambda c: c.number % 7 == 0, scaled(1.1)), BOTH),
    "NaN after the first forward": Case(where(lambda c: c.number > 1, not_a_number), BOTH),
    "the warm-up alone is right": Case(where(lambda c: c.number > 1, scaled(1.1)), BOTH),
    "the warm-up alone is wrong": Case(where(lambda c: c.number == 1, scaled(1.1)), BOTH),
    "one forward": Case(where(lambda c: c.number == 5, scaled(1.1)), BOTH),
    "one token of one forward": Case(where(lambda c: c.number == 5, token_off), BOTH),
    "pooler_output of every third": Case(where(lambda c: c.number % 3 == 0, pooler_off), BOTH),
    "from the sixth forward on": Case(where(lambda c: c.number >= 6, token_off), BOTH),
    # By the batch.
    "neighbours exchanged from batch 4 on": Case(
        where(lambda c: c.batch >= 4, neighbours), BENCHMARK
    ),
    "the last image repeated": Case(repeated, BENCHMARK),
    "the first image in every place": Case(first_only, BENCHMARK),
    "a batch in reverse order": Case(reversed_, BENCHMARK),
    "a batch moved by one place": Case(rotated, BENCHMARK),
    "the halves of batch 8 exchanged": Case(where(lambda c: c.batch == 8, halves), BENCHMARK),
    "batch 2 alone": Case(
        where(lambda c: c.batch == 2, scaled(1.02)), BENCHMARK, (), ("--batch-sizes", "1,2,4")
    ),
    "odd batches alone": Case(
        where(lambda c: c.batch == 3, scaled(1.02)), BENCHMARK, (), ("--batch-sizes", "2,3")
    ),
    "the last of a full batch": Case(where(lambda c: c.batch == 8, last_is_zero), BENCHMARK),
    "one token of batch 4's last image": Case(where(lambda c: c.batch == 4, token_off), BENCHMARK),
    "beyond the first eight": Case(
        where(lambda c: c.batch > 8, last_is_zero), BENCHMARK, (), ("--batch-sizes", "16")
    ),
    "the first eight repeated": Case(
        where(lambda c: c.batch == 16, order(lambda n: [place % 8 for place in range(n)])),
        BENCHMARK, (), ("--batch-sizes", "16"),
    ),
    # By the input's size.
    "an odd number of patches": Case(
        where(lambda c: c.columns // 16 % 2 == 1, token_off), BENCHMARK, ("--size", "48")
    ),
    "a width beyond 64": Case(where(lambda c: c.columns > 64, pooler_off), BENCHMARK,
                              ("--size", "80")),
    "a large input in every second forward": Case(
        where(lambda c: c.rows > 64 and c.number % 2 == 0, token_off), BOTH, ("--size", "80")
    ),
    # By the mode.
    "bf16 alone": Case(
        where(lambda c: c.dtype == torch.bfloat16, scaled(1.2)), BENCHMARK, (), MODES
    ),
    "eager attention alone": Case(
        where(lambda c: c.attention == "eager", pooler_off), BENCHMARK, (), MODES
    ),
    "bf16 at batch 2 alone": Case(
        where(lambda c: c.dtype == torch.bfloat16 and c.batch == 2, repeated), BENCHMARK, (), MODES
    ),
    # By the input's content.
    "the first answer for ever": Case(Stale(forever=True), BENCHMARK),
    "the answer to the last question": Case(Stale(forever=False), BENCHMARK),
}  # fmt: skip


def break_forward(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Let what both scripts run on the device, and not the reference on the CPU, have a fault."""
    original = model.forward
    counts: dict[tuple[object, ...], int] = {}

    def wrong(module: PreTrainedModel, pixel_values: torch.Tensor) -> Features:
        batch, _, rows, columns = pixel_values.shape
        attention = str(module.config._attn_implementation)
        alike = batch, rows, columns, pixel_values.dtype, attention
        counts[alike] = counts.get(alike, 0) + 1
        return fault(original(module, pixel_values), Call(*alike, number=counts[alike]))

    monkeypatch.setattr(check, "forward", original)  # the reference keeps it
    monkeypatch.setattr(runner, "forward", wrong)
    monkeypatch.setattr(model, "forward", wrong)
