"""The console lines of inference.py's results, which the report shows too; without torch."""

import numpy as np

from kit.inference.published import distances
from kit.output import RULE
from kit.records import InferenceRecord


def results_block(record: InferenceRecord) -> list[str]:
    """Return the lines of the `Inference Results` block."""
    device, pooled, tokens = (
        record.device,
        record.results.pooler_output,
        record.results.last_hidden_state,
    )
    label = {"cuda": "GPU"}.get(device.type, device.type.upper())
    with np.errstate(over="ignore"):  # of a record that somebody else wrote
        values = " ".join(str(np.float32(value)) for value in pooled.first_values)
    return [
        RULE,
        "Inference Results",
        RULE,
        f"Device: {label} ({device.name})",
        f"Latency: {record.results.latency_ms:.2f} ms",
        f"Pooled output shape: torch.Size({list(pooled.shape)})",
        f"Last hidden state shape: torch.Size({list(tokens.shape)})",
        f"Pooled output dtype: {pooled.dtype}",
        f"Pooled output device: {pooled.device}",
        f"Pooled output first 5 values: [{values}]",
        RULE,
    ]


def report(record: InferenceRecord) -> list[str]:
    """Return the block, then a folder's images, failures, and the distance from published cards."""
    results, lines = record.results, results_block(record)
    if len(results.images) > 1:
        lines += [f"{image.image}: {image.latency_ms:.2f} ms" for image in results.images]
    lines += [f"FAIL: {reason}" for reason in results.failures]
    lines += [
        f"First values against the published card ({one.chip}): relative error "
        f"{one.relative_error:.6f}, largest difference {one.largest_difference:.6f}"
        for one in distances(record)
    ]
    return lines
