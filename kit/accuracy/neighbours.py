"""Do the device's features find the same nearest images as the reference's?"""

import numpy as np
import numpy.typing as npt

from kit.records import NeighbourAgreement

# A product's last bits depend on where a row stands, and two copies of an image must tie.
EQUAL_DECIMALS = 12
SIMILARITIES_AT_ONCE = 1 << 18  # of the matrix of all, so that thousands of images fit


def agreement(
    device: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]
) -> NeighbourAgreement:
    """Compare the nearest neighbours of every image among all others, by cosine.

    Args:
        device: images x width, the device's pooler_output.
        reference: the same images in the same order, the reference's.

    Returns:
        top-1 and top-5 agreement; None where there are too few images for one.
    """
    count = len(device)
    if count < 3:  # with two images the only other one is always the nearest
        return NeighbourAgreement(count, None, None)
    width = min(5, count - 1)
    ours, theirs = (nearest(side, width) for side in (device, reference))
    same_first = int((ours[:, 0] == theirs[:, 0]).sum())
    in_common = sum(
        len(set(left) & set(right))
        for left, right in zip(ours.tolist(), theirs.tolist(), strict=True)
    )
    top5 = in_common / (count * width) if count > 6 else None
    return NeighbourAgreement(count, same_first / count, top5)


def unit_rows(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the rows at length 1, in fp64; zero and non-finite rows as zeros."""
    wide = np.nan_to_num(features.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: npt.NDArray[np.float64] = wide / np.where(norms > 0, norms, 1.0)
    return unit


def nearest(features: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.int64]:
    """Return for every image the numbers of the `width` nearest others, the nearest first.

    Images at the same distance are in the order of their numbers.
    """
    unit = unit_rows(features)
    count = len(unit)
    found = np.empty((count, width), np.int64)
    step = max(1, SIMILARITIES_AT_ONCE // count)
    for start in range(0, count, step):
        similarity = unit[start : start + step] @ unit.T
        np.round(similarity, EQUAL_DECIMALS, out=similarity)
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        found[start : start + step] = np.argsort(-similarity, axis=1, kind="stable")[:, :width]
    return found
