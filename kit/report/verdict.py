"""The report's verdict over all records: validated, failed, or incomplete and what is missing."""

from kit.report.agreement import differences, stale
from kit.report.blocks import Verdict
from kit.report.cells import Cells, device_label
from kit.report.fields import Node
from kit.report.proofs import proofs_table
from kit.report.shelf import SHOWN_DAMAGE, Entry, Shelf
from kit.report.texts import Texts

TENSORS = ("pooler_output", "last_hidden_state")


def conclude(shelf: Shelf, cells: Cells) -> Verdict:
    """Return the verdict.

    Failed: a record says so, or contradicts itself. Validated: all three records are there, whole
    and of one set-up, on an NPU with real weights and no operator on the CPU, and nothing failed.
    Incomplete: everything else.
    """
    texts = cells.texts
    failed = unique(failures(shelf, texts))
    missing = unique(lacking(shelf, cells))
    remark = unique(remarks(shelf, cells))
    proofs = proofs_table(shelf, cells)
    if failed:
        return Verdict(
            "failed", texts.failed, texts.failed_sentence, proofs, failed, missing, remark
        )
    if missing:
        return Verdict(
            "incomplete", texts.incomplete, texts.incomplete_sentence, proofs, (), missing, remark
        )
    chip = cells.word(shelf.entries["accuracy"].record.at("device", "name"))
    sentence = texts.validated_sentence.format(chip=chip)
    return Verdict("validated", texts.validated, sentence, proofs, (), (), remark)


def unique(sentences: list[str]) -> tuple[str, ...]:
    """Return the sentences once each, in order."""
    return tuple(dict.fromkeys(sentences))


def failures(shelf: Shelf, texts: Texts) -> list[str]:
    """Return what failed."""
    found = []
    results = shelf.entries["inference"].record.at("results")
    if any(results.at(name, "finite").flag() is False for name in TENSORS):
        found.append(texts.not_finite_output)
    results = shelf.entries["accuracy"].record.at("results")
    if results.at("outcome").text() == "fail":
        reasons = "; ".join(results.at("reasons").texts()) or texts.missing
        found.append(texts.accuracy_failed.format(reasons=reasons))
    elif contradicts_itself(results):
        found.append(texts.contradiction)
    results = shelf.entries["benchmark"].record.at("results")
    if results.at("regression", "passed").flag() is False:
        names = [
            row.at("name").text() or texts.missing
            for row in results.at("regression", "comparisons").items()
            if row.at("status").text() == "regression"
        ]
        found.append(texts.regression_failed.format(names=", ".join(names)))
    found += [
        texts.main_mode_failed.format(mode=row.at("mode").text())
        for row in results.at("ladder").items()
        if row.at("mode").there
        and row.at("mode").value == results.at("mode").value
        and (row.at("verdict").text() or "").startswith("FAIL")
    ]
    return found


def contradicts_itself(results: Node) -> bool:
    """Return whether a record claims to pass with a figure beyond its limit."""
    limits = results.at("limits")
    for name in TENSORS:
        tensor = results.at(name)
        if tensor.at("passed").flag() is False:
            return True
        error, cosine = tensor.at("relative_error"), tensor.at("cosine")
        most, least = limits.at("relative_error").number(), limits.at("cosine").number()
        for value, too_far in (
            (error, most is not None and (error.number() or 0.0) >= most),
            (cosine, least is not None and (cosine.number() or 1.0) <= least),
        ):
            if value.null or too_far:
                return True
    return False


def lacking(shelf: Shelf, cells: Cells) -> list[str]:
    """Return what keeps the records from proving everything."""
    texts = cells.texts
    found = []
    for entry in shelf.entries.values():
        found += lacking_in_entry(entry, cells)
    if any(entry.record.at("model", "source").text() == "random" for entry in shelf.found()):
        found.insert(0, texts.random_weights)
    if any(
        entry.record.at("environment", "variables", "EMULATED_NPU").text()
        for entry in shelf.found()
    ):
        found.insert(0, texts.emulated_npu)
    kinds = {device_label(entry.record.at("device")) for entry in shelf.found()} - {None, "NPU"}
    if kinds:
        found.insert(0, texts.not_an_npu.format(kinds=", ".join(sorted(filter(None, kinds)))))
    return found + differences(shelf, texts)


def lacking_in_entry(entry: Entry, cells: Cells) -> list[str]:
    """Return what one record lacks."""
    texts, script = cells.texts, f"{entry.script}.py"
    if entry.state == "absent":
        return [texts.record_absent.format(file=entry.file, script=script)]
    if entry.state == "unreadable":
        return [texts.record_unreadable.format(file=entry.file, problem=entry.problem)]
    found = []
    if entry.record.at("status").text() == "partial":
        found.append(texts.record_partial.format(file=entry.file, script=script))
    if entry.damaged:
        fields = ", ".join(entry.damaged[:SHOWN_DAMAGE])
        fields += ", …" if len(entry.damaged) > SHOWN_DAMAGE else ""
        found.append(texts.fields_missing.format(file=entry.file, fields=fields))
    fallen = entry.record.at("device", "cpu_fallbacks").texts()
    if fallen:
        found.append(texts.operators_fell_back.format(script=script, names=", ".join(fallen)))
    results = entry.record.at("results")
    if entry.script == "accuracy" and results.at("outcome").text() == "self-check":
        found.append(texts.only_self_check)
    return found


def remarks(shelf: Shelf, cells: Cells) -> list[str]:
    """Return what a reader must know besides."""
    texts = cells.texts
    accuracy, benchmark = (shelf.entries[name].record for name in ("accuracy", "benchmark"))
    results = accuracy.at("results")
    found = []
    if results.at("first_unexplained_block").there and results.at("outcome").text() != "fail":
        reasons = "; ".join(results.at("reasons").texts()) or texts.missing
        found.append(texts.unexplained.format(reasons=reasons))
    broken = results.at("folder", "broken").items()
    if broken:
        names = ", ".join(cells.word(image.at("image")) for image in broken[:SHOWN_DAMAGE])
        found.append(texts.broken_images.format(names=names))
    found += unsupported(benchmark.at("results"), cells)
    found += other_doubts(benchmark.at("results"), cells)
    found += stale(shelf, texts)
    for entry in shelf.found():
        commit = entry.record.at("environment", "git_commit")
        if commit.null:
            found.append(texts.no_commit.format(file=entry.file))
        elif (commit.text() or "").endswith("+dirty"):
            found.append(texts.dirty_commit.format(file=entry.file, commit=commit.text()))
        if entry.record.at("warnings").items():
            found.append(texts.has_warnings.format(script=f"{entry.script}.py"))
    return found


def latencies(results: Node, cells: Cells) -> list[tuple[str, Node]]:
    """Return every latency in a benchmark's results, with what it is of."""
    texts = cells.texts
    found = [(texts.latency, results.at("latency"))]
    for row in results.at("throughput").items():
        batch = cells.whole(row.at("batch_size")).text
        found.append((f"batch_size {batch}", row.at("latency")))
    for row in results.at("ladder").items():
        found.append((cells.word(row.at("mode")), row.at("latency")))
    for rank in results.at("ranks", "ranks").items():
        found.append((f"rank {cells.whole(rank.at('rank')).text}", rank.at("latency")))
    return found


def unsupported(results: Node, cells: Cells) -> list[str]:
    """Return which figures stand on too few samples, those of the same kind in one sentence."""
    alike: dict[tuple[str, str], list[str]] = {}
    for label, latency in latencies(results, cells):
        names = ", ".join(latency.at("unsupported").texts())
        if names:
            count = cells.whole(latency.at("iterations")).text
            alike.setdefault((names, count), []).append(label)
    return [
        cells.texts.unsupported_percentiles.format(
            names=names, count=count, where=", ".join(labels)
        )
        for (names, count), labels in alike.items()
    ]


def other_doubts(results: Node, cells: Cells) -> list[str]:
    """Return what else makes a benchmark doubtful."""
    texts = cells.texts
    shaky = [
        label
        for label, latency in latencies(results, cells)
        if latency.at("warm_up", "steady").flag() is False
    ]
    found = [texts.not_steady.format(where=", ".join(shaky))] if shaky else []
    failed = [
        cells.word(row.at("mode"))
        for row in results.at("ladder").items()
        if (row.at("verdict").text() or "").startswith("FAIL")
        and row.at("mode").value != results.at("mode").value
    ]
    if failed:
        found.append(texts.modes_failed.format(modes=", ".join(failed)))
    return found
