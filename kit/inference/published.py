"""How far a run's first values are from those that published cards print.

Identified weights are what a hub's client fetched (download.json beside them holds their hash). An
image is known by its file name and its size in pixels, for no card gives a hash of it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from kit.options import DOWNLOADS
from kit.records import InferenceRecord


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
    found = []
    for card in content["cards"]:
        mine, its = record.results.pooler_output.first_values, card["first_values"]
        if subject(record) == [card[name] for name in SUBJECT] and len(mine) == len(its):
            apart = [abs(a - b) for a, b in zip(mine, its, strict=True)]
            relative = math.hypot(*apart) / math.hypot(*its)
            found.append(Distance(card["chip"], card["source"], max(apart), relative))
    return found


SUBJECT = ("parameters", "image", "width", "height", "input_shape")


def subject(record: InferenceRecord) -> list[Any]:
    """Return what a card must be of, in the order of SUBJECT."""
    given = record.input
    name = PurePath(given.image).name
    return [record.model.parameters, name, given.width, given.height, list(given.shape[1:])]
