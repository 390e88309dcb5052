"""What a run is given, looked over before torch is imported: images and weights.

Bad input is answered within a fraction of a second, and the weights are hashed in a thread
beside the imports of torch and transformers.
"""

import argparse
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kit import images, weights
from kit.errors import KitError
from kit.images import DecodedImage
from kit.output import RunLog
from kit.weights import Weights


@dataclass(frozen=True)
class Inputs:
    """Images and weights of a run.

    Attributes:
        paths: image files, at least one; the first is the decoded one.
        first: the first image that could be decoded.
        weights: where the weights are.
        weights_sha256: their hash, ready some time later; None for random weights.
    """

    paths: tuple[Path, ...]
    first: DecodedImage
    weights: Weights
    weights_sha256: Future[str] | None

    def others(self, log: RunLog) -> Iterator[DecodedImage]:
        """Yield the images after the first, each decoded while the caller works on the last.

        An image that cannot be decoded is named in a warning and left out.
        """
        with ThreadPoolExecutor(1, "decode") as pool:
            pending: deque[Future[DecodedImage]] = deque()
            for path in self.paths[1:]:
                pending.append(pool.submit(images.decode, path))
                if len(pending) > 1:
                    yield from unless_broken(pending.popleft(), log)
            while pending:
                yield from unless_broken(pending.popleft(), log)


def unless_broken(image: Future[DecodedImage], log: RunLog) -> Iterator[DecodedImage]:
    """Yield the image, or warn where it cannot be decoded."""
    try:
        yield image.result()
    except KitError as error:
        log.warning(f"Left out: {error}")


def gather(arguments: argparse.Namespace, root: Path, log: RunLog) -> Inputs:
    """Find and check the images and the weights that the options name.

    Raises:
        KitError: where something is missing or broken; in a folder of images, where all are.
    """
    paths = images.find(arguments.image, root)
    found = find_weights(arguments, root, log)
    paths, first = first_decodable(paths, log)
    return Inputs(paths, first, found, hash_in_background(found))


def find_weights(arguments: argparse.Namespace, root: Path, log: RunLog) -> Weights:
    """Return the weights that the options name, downloaded first where they ask for it.

    Raises:
        KitError: where they are missing or broken, or cannot be downloaded.
    """
    if arguments.download is None:
        return weights.find(arguments.weights, root)
    from kit import download  # only this option needs the hub's client

    return download.fetch(arguments.download, arguments.weights, root, log)


def first_decodable(paths: tuple[Path, ...], log: RunLog) -> tuple[tuple[Path, ...], DecodedImage]:
    """Return the paths from the first decodable image on, and that image.

    Raises:
        KitError: where the only image is broken, or every one of a folder.
    """
    for position, path in enumerate(paths):
        try:
            return paths[position:], images.decode(path)
        except KitError as error:
            if len(paths) == 1:
                raise
            log.warning(f"Left out: {error}")
    raise KitError(f"none of the {len(paths)} images can be decoded: see the warnings above")


def hash_in_background(found: Weights) -> Future[str] | None:
    """Start hashing the weights' files; the interpreter is free meanwhile."""
    if found.folder is None:
        return None
    with_one_thread = ThreadPoolExecutor(1, "hash")
    future = with_one_thread.submit(weights.sha256_of_files, found.files)
    with_one_thread.shutdown(wait=False)
    return future
