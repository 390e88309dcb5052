"""From a folder's images to what the record holds of them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from kit.accuracy.judge import judge
from kit.accuracy.limits import LIMITS, Arithmetic, Limits
from kit.accuracy.loader import Loaded
from kit.accuracy.neighbours import agreement
from kit.accuracy.results import finite
from kit.model.model import Features
from kit.records import FolderAccuracy, ImageAccuracy, Percentile
from kit.statistics import percentiles_of

if TYPE_CHECKING:
    from kit.accuracy.folder import FolderDone  # it imports this module

WORST_SHOWN = 10


def image_accuracy(
    image: Loaded, device: Features, reference: Features, arithmetic: Arithmetic
) -> ImageAccuracy:
    """Return one image's figures, its features judged by the limits' table."""
    pooled = judge(reference.pooler_output, device.pooler_output, arithmetic)
    tokens = judge(reference.last_hidden_state, device.last_hidden_state, arithmetic)
    return ImageAccuracy(
        image=str(image.path),
        sha256=image.sha256,
        pooler_relative_error=finite(pooled.comparison.relative_error),
        pooler_cosine=finite(pooled.comparison.cosine),
        relative_error=finite(tokens.comparison.relative_error),
        cosine=finite(tokens.comparison.cosine),
        max_abs_diff=finite(tokens.comparison.max_abs_diff),
        token_relative_error=finite(tokens.tokens.worst_relative),
        token=tokens.tokens.worst,
        passed=pooled.passed and tokens.passed,
    )


def badness(image: ImageAccuracy, limits: Limits) -> float:
    """Return how close an image is to its nearest limit; above 1 it is beyond it."""
    if None in (image.relative_error, image.cosine, image.pooler_relative_error):
        return math.inf
    return max(
        (image.relative_error or 0.0) / limits.relative_error,
        (image.pooler_relative_error or 0.0) / limits.relative_error,
        (1 - (image.cosine or 0.0)) / (1 - limits.cosine),
        (1 - (image.pooler_cosine or 0.0)) / (1 - limits.cosine),
        (math.inf if image.token_relative_error is None else image.token_relative_error)
        / limits.token_relative_error,
    )


def worst_first(done: "FolderDone", arithmetic: Arithmetic) -> Sequence[ImageAccuracy]:
    """Return all images, those nearest to or furthest beyond a limit first."""
    limits = LIMITS[arithmetic]
    images = [entry.accuracy for entry in done.entries]
    return sorted(images, key=lambda image: (image.passed, -badness(image, limits), image.image))


def folder_accuracy(done: "FolderDone", arithmetic: Arithmetic, ranks: int) -> FolderAccuracy:
    """Return the folder's part of the record."""
    ordered = worst_first(done, arithmetic)
    errors = [
        math.inf if image.relative_error is None else image.relative_error for image in ordered
    ]
    percentiles = percentiles_of(torch.tensor(errors, dtype=torch.float64))
    sides = [
        np.stack([getattr(entry, side) for entry in done.entries])
        for side in ("device", "reference")
    ]
    return FolderAccuracy(
        images=len(ordered),
        failed=sum(not image.passed for image in ordered),
        broken=tuple(done.broken),
        resumed=done.resumed,
        cached=done.cached,
        percentiles=tuple(Percentile(percent, finite(error)) for percent, error in percentiles),
        worst=tuple(ordered[:WORST_SHOWN]),
        neighbours=agreement(*sides),
        ranks=ranks,
    )
