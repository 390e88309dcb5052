"""Whether a row computed what it should: features as on the CPU, and every forward alike.

A row runs on a batch of different images. Their features in fp32 on the CPU are the reference;
every timed forward is compared with the row's first one, on the device and outside the timed span.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch

from kit.accuracy.limits import LIMITS, Arithmetic
from kit.accuracy.references import declared_by
from kit.accuracy.verdict import Judgement, failures, judge_batch, same_bits
from kit.benchmark.modes import worst
from kit.device.device import device_errors, synchronize
from kit.device.meters import Stopwatch
from kit.distributed import Group
from kit.model import preprocessing
from kit.model.images import Inputs
from kit.model.model import TENSORS, Features, forward, to_host
from kit.model.runner import Call, Images, ModeRunner
from kit.model.setup import Setup, require_patch, views
from kit.output import RunLog
from kit.records import Latency, Repeats, RowCheck
from kit.statistics import compare, ratio

MOST_IMAGES = 8  # different ones; larger batches hold them again and again


# ---- Different images and their reference --------------------------------------------------------


def different_images(setup: Setup, inputs: Inputs, count: int, group: Group, log: RunLog) -> Images:
    """Return `count` inputs, the run's images first, then views of the first; and their features.

    The model is on the CPU in fp32; the ranks share the work. Warns where two images are so alike
    that an exchange of them would not show. A KitError where they are smaller than one patch.
    """
    decoded = [inputs.first, *islice(inputs.others(log), count - 1)]
    given = [preprocessing.preprocess(image.pixels, setup.steps) for image in decoded]
    pixels = torch.cat([*given, views(given[0], MOST_IMAGES)[1:]])[:count]
    require_patch(setup, pixels)
    rank, size = group.place.rank, group.size
    own = [forward(setup.model, pixels[one : one + 1]) for one in range(rank, count, size)]
    shares = group.gather(own, "the references")
    parts = [shares[one % size][one // size] for one in range(count)]
    expected = Features(*(torch.cat([getattr(part, name) for part in parts]) for name in TENSORS))
    hidden = expected.last_hidden_state
    pairs = itertools.combinations(hidden, 2)
    nearest = min(compare(one, other).relative_error for one, other in pairs)
    if not nearest > LIMITS["bf16"].relative_error:
        log.warning(
            f"Two images have features only {nearest:.2g} apart: an exchange of them in a batch "
            "would not show; give a picture with more in it"
        )
    return Images(pixels, expected)


# ---- One row -------------------------------------------------------------------------------------


class Checker:
    """Compares one row's forwards with its first one, and that one with the reference.

    `bits_equal_eager` is LadderRow's, known once a graph's row at batch 1 is finished. `warm_up` is
    the ms of the forward after the first, which is compared with it and begins the warm-up.
    """

    def __init__(
        self, runner: ModeRunner, stopwatch: Stopwatch, call: Call, pixel_values: torch.Tensor,
        first: Features,
    ) -> None:  # fmt: skip
        """Keep a copy of the first forward's features: a graph's next replay overwrites them."""
        self.runner, self.call, self.pixel_values = runner, call, pixel_values
        self.bits_equal_eager: bool | None = None
        self.first = Features(*(getattr(first, name).clone() for name in TENSORS))
        self.forwards, self.took_ms = 0, 0.0
        device = first.pooler_output.device
        self.errors = {name: torch.zeros_like(lengths(self.first, name)) for name in TENSORS}
        self.largest = torch.zeros((), device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.differing = torch.zeros((), dtype=torch.int64, device=device)
        # A batch that has the memory for this has it for the rest.
        sample = stopwatch.time(call)
        self.watch(sample.output)
        self.warm_up = (sample.wall_ms,)
        self.forwards, self.differing = 0, torch.zeros_like(self.differing)

    def watch(self, features: Features) -> None:
        """Compare one forward's features with the first one's; nothing is pending afterwards."""
        start = time.perf_counter()
        self.compare(features)
        synchronize(self.runner.setup.device)
        self.took_ms += (time.perf_counter() - start) * 1e3

    def watch_queued(self, count: int) -> None:
        """Make so many calls without waiting, as a queued measurement does, and compare each."""
        start = time.perf_counter()
        for _ in range(count):
            self.compare(self.call())
        synchronize(self.runner.setup.device)
        self.took_ms += (time.perf_counter() - start) * 1e3

    def compare(self, features: Features) -> None:
        """Give the device the comparison with the first forward; nothing is waited for."""
        self.forwards += 1
        differs = torch.zeros_like(self.finite)
        for name in TENSORS:
            first, now = getattr(self.first, name), getattr(features, name)
            difference = now.float() - first.float()
            error = torch.linalg.vector_norm(difference, dim=-1)
            self.errors[name] = torch.maximum(self.errors[name], error)
            self.largest = torch.maximum(self.largest, difference.abs().amax())
            self.finite = self.finite & torch.isfinite(now).all()
            differs = differs | (now != first).any()
        self.differing = self.differing + differs

    def finish(self, name: str) -> RowCheck:
        """Hold the first forward, and one on other input, against the reference.

        The other input is the batch with each image in the place of another: what does not read
        its input anew, as a graph may, is found by it.
        """
        start = time.perf_counter()
        runner, count = self.runner, len(self.pixel_values)
        with device_errors(f"checking {name}"):
            judged = [*self.judged(self.first, moved=0)]
            if runner.mode.graph and count == 1:
                self.bits_equal_eager = self.equals_eager(self.first)
            places = runner.images.places(count, moved=1)
            self.pixel_values.copy_(runner.images.pixels[places].to(self.pixel_values.dtype))
            other = self.call()
            judged += self.judged(other, moved=1)
            if self.bits_equal_eager:
                self.bits_equal_eager = self.equals_eager(other)
            repeats, reasons = self.repeats()
        runner.setup.health.after(f"the check of {name}")
        failing = [(words, one.reasons[0]) for words, one in judged if not one.passed]
        if failing:
            words, reason = failing[0]
            number = len({words.partition(",")[0] for words, _ in failing})
            reasons = (f"{number} of {2 * count} images are wrong: {words}: {reason}", *reasons)
        on_cpu = runner.setup.device.type == "cpu"
        whole = [one.comparison for _, one in judged]
        published = not reasons and not any(
            failures(one.comparison, one.tokens, LIMITS["fp32"]) for _, one in judged
        )
        return RowCheck(
            verdict="FAIL" if reasons else "SELF-CHECK" if on_cpu else "PASS",
            arithmetic=self.arithmetic,
            within_published_limits=published,
            images=2 * count,
            relative_error=worst([one.relative_error for one in whole], max),
            cosine_similarity=worst([one.cosine for one in whole], min),
            max_abs_diff=worst([one.max_abs_diff for one in whole], max),
            token_relative_error=worst([one.tokens.worst_relative for _, one in judged], max),
            repeats=repeats,
            reasons=reasons,
            check_ms=self.took_ms + (time.perf_counter() - start) * 1e3,
        )

    @property
    def arithmetic(self) -> Arithmetic:
        """The row of the limits' table for what the device was found to compute in."""
        return declared_by(self.runner.setup).arithmetic

    def judged(self, features: Features, moved: int) -> Iterator[tuple[str, Judgement]]:
        """Yield the words for each image and tensor of a batch, and the judgement on it."""
        images = self.runner.images
        order = images.places(len(self.pixel_values), moved)
        for place, name, one in judge_batch(images.expected, features, order, self.arithmetic):
            yield f"place {place}{' of the other batch' if moved else ''}, {name}", one

    def equals_eager(self, features: Features) -> bool:
        """Return whether features are the eager forward's of the same input, to the last bit."""
        eager = forward(self.runner.model, self.pixel_values)
        return same_bits(to_host(eager), to_host(features))

    def repeats(self) -> tuple[Repeats, tuple[str, ...]]:
        """Return what became of the forwards beside the first, and the reasons why that fails."""
        differing, limits = int(self.differing), LIMITS[self.arithmetic]
        if not bool(self.finite):
            reason = "a later forward of the same input gave values that are NaN or infinite"
            return Repeats(self.forwards, differing, None), (reason,)
        reasons = []
        for name in TENSORS:
            errors, sizes = (
                one.cpu().double().reshape(len(self.pixel_values), -1)
                for one in (self.errors[name], lengths(self.first, name))
            )
            token = largest_ratio(errors, sizes)
            whole = largest_ratio(errors.norm(dim=1), sizes.norm(dim=1))
            if whole >= limits.relative_error or token >= limits.token_relative_error:
                reasons.append(
                    f"{differing} of {self.forwards} forwards of the same input differ from the "
                    f"first: {name} by up to {whole:.3g}, one token by {token:.3g}"
                )
        return Repeats(self.forwards, differing, float(self.largest)), tuple(reasons)


def lengths(features: Features, name: str) -> torch.Tensor:
    """Return the Euclidean length of each vector along a tensor's last axis, in fp32."""
    found: torch.Tensor = torch.linalg.vector_norm(getattr(features, name).float(), dim=-1)
    return found


def largest_ratio(errors: torch.Tensor, sizes: torch.Tensor) -> float:
    """Return the largest quotient; 0 for 0 / 0, infinite for anything else over 0."""
    return max(map(ratio, errors.flatten().tolist(), sizes.flatten().tolist()))


def checked(latency: Latency, checker: Checker, name: str, group: Group, log: RunLog) -> Latency:
    """Return the row's times with its check; where another rank's fails, with that one's.

    Warns of a failure, and of forwards that differ in bits.
    """
    every = group.gather(checker.finish(name), "the checks")
    check = every[group.place.rank]
    for rank, one in enumerate(every):
        if one.verdict == "FAIL" and check.verdict != "FAIL":
            reasons = tuple(f"rank {rank}: {reason}" for reason in one.reasons)
            check = replace(one, reasons=reasons)
    repeats = check.repeats
    if check.verdict == "FAIL":
        log.warning(f"{name}: the check FAILED: {'; '.join(check.reasons)}")
    elif repeats.differing:
        log.warning(
            f"{name}: {repeats.differing} of {repeats.forwards} forwards of the same input differ "
            f"in bits from the first, by at most {repeats.largest_difference:.3g}"
        )
    return replace(latency, check=check)
