"""What the records of an output folder prove together: validated, failed, or incomplete and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from pathlib import PurePath
from typing import Any, Literal

import numpy as np

from kit.language import Words, translated
from kit.options import BUDGET_FACTOR
from kit.records import (
    AccuracyRecord,
    AccuracyResults,
    BenchmarkRecord,
    BenchmarkResults,
    InferenceRecord,
    Latency,
    Record,
    Statistics,
)
from kit.report.checks import CHECKED_ROWS, OUTPUTS, Claim, check, held_to, median, real
from kit.report.load import SCRIPTS, Records, started_at

State = Literal["validated", "failed", "incomplete"]
Kind = Literal["good", "bad", "doubtful"]
Answer = tuple[str, Kind]  # the key of its words, and how it is marked
Sentence = tuple[str, Mapping[str, object]]  # the key of its words, and what is filled in

STALE_AFTER = timedelta(days=1)  # between the runs of one report
OLD_AFTER = timedelta(days=365)  # a validation is of its time's versions
LEAST_ITERATIONS = 20  # of the published table, and benchmark.py's default
NAMED = 6  # of many alike, the first ones are named
# Parameters of the published model, by how the folder of its weights is called.
PARAMETERS = {"dinov3-vitb16": 85_660_416}
HUBS = ("modelscope", "huggingface")
# Set by CANN's own script, by torchrun or by npu_patch: not the user's to set, or to set again.
SET_BY_OTHERS = {
    "ASCEND_HOME_PATH", "LOCAL_RANK", "RANK", "WORLD_SIZE",
    "TORCH_COMPILE_DISABLE", "TORCH_DEVICE_BACKEND_AUTOLOAD",
}  # fmt: skip
SAME = (
    "model.sha256", "model.dtype", "model.attention", "input.sha256",
    "device.type", "device.name", "device.torch_device", "device.matmul_fp32",
    "device.convolution_fp32", "device.jit_compile", "device.internal_format",
    "environment.python", "environment.torch", "environment.torch_npu",
    "environment.transformers", "environment.numpy", "environment.pillow", "environment.cann",
    "environment.driver", "environment.platform", "environment.cpu", "environment.git_commit",
    "environment.host_id", "environment.cann_library",
)  # fmt: skip


@dataclass(frozen=True)
class Headline:
    """The figures that a reader looks for first, computed again; None where there is none."""

    latency_ms: float | None = None  # median, of one image
    throughput_ips: float | None = None  # most images per second
    batch_size: int | None = None  # that gave it
    utilization: float | None = None  # the share of the device's own limit at that batch size
    relative_error: float | None = None  # the larger one of the two outputs
    share_of_limit: float | None = None  # how near the kit's limits they come: 1 is the limit


@dataclass(frozen=True)
class Verdict:
    """What was proven and what was not."""

    state: State  # for programs and colours
    answers: Mapping[str, Answer]  # by script
    headline: Headline
    failures: tuple[str, ...]  # what failed or contradicts itself
    reasons: tuple[str, ...]  # what else keeps this from being validated
    remarks: tuple[str, ...]  # what a reader must note too
    checks: tuple[Claim, ...]


def conclude(records: Records, words: Words, now: datetime) -> Verdict:
    """Return the verdict on one output folder's records, at the time of the report.

    Failed: a record says so, or contradicts itself. Validated: all three records are there, whole
    and of one setup, on an NPU with identified weights and no operator on the CPU, at the kit's
    defaults or stricter, and nothing failed. Incomplete: everything else.
    """
    checks = tuple(check(records, now))
    wrong = [one for one in checks if one.agrees is False]
    contradictions = (
        sentence("contradiction", **{**vars(one), "method": words["methods"][one.method]})
        for one in wrong
    )
    failures, reasons, remarked = (
        tuple(dict.fromkeys(say(words, key, **values) for key, values in found))
        for found in (
            [*failed_runs(records), *contradictions],
            [*why_not(records), *apart(records, now)],
            remarks(records),
        )
    )
    return Verdict(
        state="failed" if failures else "incomplete" if reasons else "validated",
        answers={
            **answers(records),
            **{one.file.removesuffix(".json"): ("contradicted", "bad") for one in wrong},
        },
        headline=headline(records),
        failures=failures,
        reasons=reasons,
        remarks=remarked,
        checks=checks,
    )


def sentence(key: str, **values: object) -> Sentence:
    """Return a sentence in no language yet."""
    return key, values


def say(words: Words, key: str, **values: object) -> str:
    """Return a sentence in a language: of a list its first entries, a record's words translated."""

    def filled(name: str, value: object) -> object:
        if isinstance(value, str | int | float):
            return value
        entries = [str(one) for one in value]  # type: ignore[attr-defined] # a list or a tuple
        if name != "images":  # their names are not the kit's words
            entries = [translated(one, words["language"][:2]) for one in entries]
        more = ["…"] if len(entries) > NAMED else []
        return str(words["comma"]).join([*entries[:NAMED], *more])

    return str(words[key]).format(**{name: filled(name, one) for name, one in values.items()})


# ---- The first figures and answers ---------------------------------------------------------------


def answers(records: Records) -> dict[str, Answer]:
    """Return each script's answer: does it run, how fast is it, are its numbers right."""
    found: dict[str, Answer] = dict.fromkeys(SCRIPTS, ("not_shown", "doubtful"))
    if records.inference is not None:
        found["inference"] = runs(records.inference)
    if records.benchmark is not None:
        found["benchmark"] = is_fast(records.benchmark)
    if records.accuracy is not None:
        outcome = records.accuracy.results.outcome
        kinds: dict[str, Kind] = {"pass": "good", "fail": "bad"}
        found["accuracy"] = (outcome, kinds.get(outcome, "doubtful"))
    return found


def runs(record: InferenceRecord) -> Answer:
    """Return whether the model runs on the NPU."""
    if not (record.results.pooler_output.finite and record.results.last_hidden_state.finite):
        return "not_finite", "bad"
    if record.results.failures:
        return "fail", "bad"
    if record.device.type != "npu":
        return "elsewhere", "doubtful"
    if record.device.cpu_fallbacks:
        return "partly_cpu", "doubtful"
    return "runs", "good" if record.device.cpu_fallbacks == () else "doubtful"


def is_fast(record: BenchmarkRecord) -> Answer:
    """Return whether its speed was measured."""
    if (regression := record.results.regression) is not None and not regression.passed:
        return "slower", "bad"
    if any(map(failed, main_rows(record.results))):
        return "fail", "bad"
    if record.results.latency is None or record.status == "partial":
        return "interrupted", "doubtful"
    return ("measured", "good") if record.device.type == "npu" else ("elsewhere", "doubtful")


def headline(records: Records) -> Headline:
    """Return the first figures, from samples and the kit's limits."""
    found: dict[str, Any] = {}
    if records.benchmark is not None:
        results = records.benchmark.results
        if results.latency is not None and not failed(results.latency):
            found["latency_ms"] = median(results.latency.samples_ms)
        rates = [
            (real(row.batch_size) * 1e3 / mean, row.batch_size, row.utilization)
            for row in results.throughput
            if row.latency is not None
            and row.latency.samples_ms
            and not failed(row.latency)
            and (mean := float(np.mean(row.latency.samples_ms))) > 0
        ]
        if rates:
            best = max(rates, key=lambda rate: rate[:2])
            found |= zip(("throughput_ips", "batch_size", "utilization"), best, strict=True)
    if records.accuracy is not None:
        limits, errors, shares = held_to(records.accuracy), [], []
        for tensor in (getattr(records.accuracy.results, name) for name in OUTPUTS):
            error, cosine = tensor.relative_error, tensor.cosine
            token = tensor.worst_token.relative_error
            if error is None or cosine is None or token is None:
                return Headline(**found)
            errors.append(error)
            shares += [error / limits.relative_error, (1 - cosine) / (1 - limits.cosine)]
            shares.append(token / limits.token_relative_error)
        found |= {"relative_error": max(errors), "share_of_limit": max(shares)}
    return Headline(**found)


# ---- What is said --------------------------------------------------------------------------------


def failed_runs(records: Records) -> Iterator[Sentence]:
    """Yield what the records themselves say has failed."""
    if records.inference is not None and runs(records.inference)[0] == "not_finite":
        yield sentence("not_finite_output")
    if records.inference is not None and records.inference.results.failures:
        yield sentence("inference_failed", reasons=records.inference.results.failures)
    if records.accuracy is not None and records.accuracy.results.outcome == "fail":
        yield sentence("accuracy_failed", reasons=records.accuracy.results.reasons)
    if records.benchmark is None:
        return
    results = records.benchmark.results
    if results.regression is not None and not results.regression.passed:
        slower = [one.name for one in results.regression.comparisons if one.status == "regression"]
        yield sentence("regression_failed", names=slower)
    rows = filter(failed, main_rows(results))
    if wrong := [", ".join(row.check.reasons) for row in rows if row.check]:
        yield sentence("check_failed", reasons=wrong)
    if results.mode in failing_modes(results):
        yield sentence("main_mode_failed", mode=results.mode)


def main_rows(results: BenchmarkResults) -> list[Latency]:
    """Return the main mode's times, at batch 1 and over the batch sizes."""
    every = [results.latency, *(row.latency for row in results.throughput)]
    return [one for one in every if one is not None]


def failed(latency: Latency) -> bool:
    """Return whether what was timed is wrong, so that its figures are no result."""
    return latency.check is not None and latency.check.verdict == "FAIL"


def failing_modes(results: BenchmarkResults) -> list[str]:
    """Return the modes whose features are beyond their limits."""
    return [row.mode for row in results.ladder if row.verdict == "FAIL"]


def why_not(records: Records) -> Iterator[Sentence]:
    """Yield what keeps the records from proving everything, the gravest first."""
    found = records.found()
    if kinds := {record.device.type for record in found} - {"npu"}:
        yield sentence("not_an_npu", kinds=sorted("GPU" if k == "cuda" else "CPU" for k in kinds))
    if any(map(emulated, found)):
        yield sentence("emulated_npu")
    if any(record.model.source == "random" for record in found):
        yield sentence("random_weights")
    elif found and not identified(records):
        yield sentence("not_identified")
    for script in SCRIPTS:
        yield from why_not_script(script, records)
    if records.benchmark is not None:
        yield from why_not_fast(records.benchmark.results)
    if records.accuracy is not None:
        yield from why_not_right(records.accuracy.results)


def why_not_script(script: str, records: Records) -> Iterator[Sentence]:
    """Yield what one record lacks."""
    names, record = {"file": f"{script}.json", "script": f"{script}.py"}, getattr(records, script)
    if script in records.problems:
        yield sentence("record_unreadable", **names, problem=[records.problems[script]])
    elif record is None:
        yield sentence("record_absent", **names)
    else:
        name, count = PurePath(record.model.weights or "").name, record.model.parameters
        for model, parameters in PARAMETERS.items():
            if name.lower().startswith(model) and count != parameters:
                yield sentence("another_model", name=name, count=count, parameters=parameters)
        if record.status == "partial":
            yield sentence("record_partial", **names)
        if record.device.cpu_fallbacks is None:
            yield sentence("fallbacks_unknown", **names)
        elif record.device.cpu_fallbacks:
            yield sentence("operators_fell_back", **names, names=record.device.cpu_fallbacks)
        if record.device.known_answer_checks < 1 and record.device.type != "cpu":
            yield sentence("no_known_answers", **names)


def why_not_fast(results: BenchmarkResults) -> Iterator[Sentence]:
    """Yield what keeps a benchmark from standing for the device."""
    if results.latency is not None and results.latency.iterations < LEAST_ITERATIONS:
        yield sentence("few_iterations", count=results.latency.iterations, least=LEAST_ITERATIONS)
    modes = [row.mode for row in results.ladder if row.graph and row.bits_equal_eager is None]
    if modes:
        yield sentence("graph_unchecked", modes=modes)
    every = latencies(results)
    if rows := [name for name, one in every if isinstance(one, Latency) and one.check is None]:
        yield sentence("rows_unchecked", rows=rows)
    tables = (results.throughput, results.ladder, *(row.throughput for row in results.ladder))
    if any(len(one) > CHECKED_ROWS for one in tables):
        yield sentence("too_many_rows", count=CHECKED_ROWS)


def why_not_right(results: AccuracyResults) -> Iterator[Sentence]:
    """Yield what keeps an accuracy record from standing for the device."""
    if results.outcome == "self-check":
        yield sentence("only_self_check")
    if results.features is not None and results.features.reviewed:
        yield sentence("only_reviewed")
    if results.limits.budget_factor > BUDGET_FACTOR:
        factor = f"{results.limits.budget_factor:g}"
        yield sentence("wide_expectation", factor=factor, default=f"{BUDGET_FACTOR:g}")


def emulated(record: Record) -> bool:
    """Return whether a run was on the emulated NPU, as far as its record shows it."""
    home = record.environment.variables.get("ASCEND_HOME_PATH", "")
    traces = f"{record.device.name} {record.environment.cann_library} {home}".lower()
    return "fake_cann" in traces or "emulated" in traces


def identified(records: Records) -> bool:
    """Return whether the weights are known to be published ones: a hub gave a file of this hash.

    The records' hashes agree, or they are named as mixed: one run that fetched them stands for all.
    """
    return any(record.model.source in HUBS for record in records.found())


def apart(records: Records, now: datetime) -> Iterator[Sentence]:
    """Yield the runs long before the newest one or this report, then those of another setup."""
    mixed = []
    if (newest := records.newest()) is None:
        return
    for record in records.found():
        names: dict[str, object] = {
            "file": f"{record.script}.json",
            "started_at": record.started_at,
            "anchor": f"{newest.script}.json",
            "anchor_started_at": newest.started_at,
        }
        if started_at(newest) - started_at(record) > STALE_AFTER:
            yield sentence("stale", **names)
        if now - started_at(record) > OLD_AFTER:
            yield sentence("old", **names)
        pairs = zip(setup(record).items(), setup(newest).values(), strict=True)
        if unlike := [f"{name}: {mine} ≠ {its}" for (name, mine), its in pairs if mine != its]:
            mixed.append(sentence("mixed", **names, differences="; ".join(unlike)))
    yield from mixed


def setup(record: Record) -> dict[str, str]:
    """Return what must be the same in all records, by its place."""
    rows = record.device.arithmetic.operators if record.device.arithmetic else ()
    # accuracy.py alone asks for the chip's own GELU too, which no script computes with.
    found = [f"{row.operator} {row.found}" for row in rows if row.operator != "GELU of the chip"]
    return {
        **{path: str(attrgetter(path)(record)) for path in SAME},
        "device.arithmetic": ", ".join(found),
        "input.shape": str(list(record.input.shape[1:])),
        "environment.variables": " ".join(settings(record)),
    }


def settings(record: Record) -> list[str]:
    """Return the environment variables that a user chose, as NAME=value."""
    chosen = sorted(record.environment.variables.items())
    return [f"{name}={value}" for name, value in chosen if name not in SET_BY_OTHERS]


def remarks(records: Records) -> Iterator[Sentence]:
    """Yield what a reader must note too."""
    if records.inference is not None and records.inference.results.repeats.differing:
        repeats = records.inference.results.repeats
        apart = repeats.largest_difference
        largest = "NaN" if apart is None else f"{apart:.3g}"
        yield sentence("repeats_differ", **{**vars(repeats), "largest": largest})
    if records.accuracy is not None:
        yield from accuracy_remarks(records.accuracy)
    if records.benchmark is not None:
        yield from doubts(records.benchmark.results)
    for record in records.found():
        commit = record.environment.git_commit
        if commit is None:
            yield sentence("no_commit")
        elif commit.endswith("+dirty"):
            yield sentence("dirty_commit", commit=commit)
    if warned := [f"{record.script}.py" for record in records.found() if record.warnings]:
        yield sentence("has_warnings", script=warned)


def accuracy_remarks(record: AccuracyRecord) -> Iterator[Sentence]:
    """Yield what accuracy.py did not explain or left out."""
    results, measured = record.results, record.device.arithmetic
    if results.outcome == "unexplained":
        yield sentence("unexplained", reasons=results.reasons)
    rows = measured.operators if measured else ()
    if unknown := [row.operator for row in rows if row.found != row.nearest]:
        yield sentence("undocumented", names=unknown)
    if results.folder is not None and results.folder.broken:
        yield sentence("broken_images", images=[one.image for one in results.folder.broken])


def doubts(results: BenchmarkResults) -> Iterator[Sentence]:
    """Yield what makes a benchmark doubtful: few samples, an unsteady warm-up, modes that fail."""
    few: dict[tuple[tuple[str, ...], int], list[str]] = {}
    for label, one in latencies(results):
        if one.unsupported:
            few.setdefault((one.unsupported, one.iterations), []).append(label)
    for (names, count), where in few.items():
        yield sentence("too_few_samples", names=names, count=count, where=where)
    every = latencies(results)
    if where := [k for k, one in every if isinstance(one, Latency) and not one.warm_up.steady]:
        yield sentence("not_steady", where=where)
    if failing := [mode for mode in failing_modes(results) if mode != results.mode]:
        yield sentence("modes_failed", modes=failing)


def latencies(results: BenchmarkResults) -> Iterator[tuple[str, Statistics]]:
    """Yield every list of times in a benchmark, with what it is of."""
    if results.latency is not None:
        yield "Latency of one image", results.latency
    for row in results.throughput:
        if row.latency is not None:
            yield f"batch_size {row.batch_size}", row.latency
    for mode in results.ladder:
        yield mode.mode, mode.latency
    for rank in results.ranks.ranks if results.ranks is not None else ():
        yield f"rank {rank.rank}", rank.latency
