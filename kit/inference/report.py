"""The console lines of inference.py's results, which the report shows too; without torch.

And how far a run's first values are from those that published cards print. Identified weights are
what a hub's client fetched (download.json beside them holds their hash). An image is known by its
file name and its size in pixels, for no card gives a hash of it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from kit.options import DOWNLOADS
from kit.output import RULE
from kit.records import InferenceRecord


def results_block(record: InferenceRecord) -> list[str]:
    """Return the lines of the `Inference Results` block."""
    device, results = record.device, record.results
    pooled, tokens = results.pooler_output, results.last_hidden_state
    label = {"cuda": "GPU"}.get(device.type, device.type.upper())
    with np.errstate(over="ignore"):  # of a record that somebody else wrote
        values = " ".join(str(np.float32(value)) for value in pooled.first_values)
    return [
        RULE,
        "Inference Results",
        RULE,
        f"Device: {label} ({device.name})",
        f"Latency: {results.latency_ms:.2f} ms",
        f"Pooled output shape: torch.Size({list(pooled.shape)})",
        f"Last hidden state shape: torch.Size({list(tokens.shape)})",
        f"Pooled output dtype: {pooled.dtype}",
        f"Pooled output device: {pooled.device}",
        f"Pooled output first 5 values: [{values}]",
        RULE,
    ]


@dataclass(frozen=True)
class Distance:
    """A run's first values beside a published card's."""

    chip: str  # of the card, as is its source
    source: str
    largest_difference: float  # absolute, of a value
    relative_error: float  # L2 norm of the differences over that of the card's values


def distances(record: InferenceRecord) -> list[Distance]:
    """Return the distance from each card of the record's weights and image, none from others."""
    if record.model.source not in DOWNLOADS:
        return []
    content = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))
    given, found = record.input, []
    of = (PurePath(given.image).name, given.width, given.height, list(given.shape[1:]))
    for card in content["cards"]:
        mine, its = record.results.pooler_output.first_values, card["first_values"]
        same = of == tuple(card[name] for name in ("image", "width", "height", "input_shape"))
        if same and card["parameters"] == record.model.parameters and len(mine) == len(its):
            apart = [abs(a - b) for a, b in zip(mine, its, strict=True)]
            relative = math.hypot(*apart) / math.hypot(*its)
            found.append(Distance(card["chip"], card["source"], max(apart), relative))
    return found


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
