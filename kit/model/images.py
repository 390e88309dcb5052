"""What a run is given: images found and decoded, weights found and hashed in the background.

No torch: bad input is refused within a fraction of a second, and the weights are hashed in a
thread beside the imports of torch and transformers.
"""

import hashlib
import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from kit.errors import KitError
from kit.model import weights
from kit.model.weights import Weights
from kit.options import Options
from kit.output import RunLog
from kit.outside import cannot_read, kind_of, read_bytes
from kit.records import BrokenImage

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
DEFAULT_IMAGE = Path("data/val2017/000000000139.jpg")
SAMPLE_IMAGE = Path("data/sample.jpg")
LARGEST_IMAGE_BYTES = 1 << 30
T = TypeVar("T")
R = TypeVar("R")
SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I"})


@dataclass(frozen=True)
class DecodedImage:
    """One image file, decoded."""

    path: Path
    sha256: str  # of the file's bytes
    pixels: npt.NDArray[np.uint8]  # rows x columns x 3, RGB, upright

    @property
    def width(self) -> int:
        """Columns of the upright image."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Rows of the upright image."""
        return int(self.pixels.shape[0])

    @property
    def pixels_sha256(self) -> str:
        """SHA-256 of the shape in words, such as 426x640, and the pixels' bytes."""
        digest = hashlib.sha256(f"{self.height}x{self.width}".encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()


def find(given: Path | None, root: Path) -> tuple[Path, ...]:
    """Return a run's image files, sorted: the one that --image gives, a folder's, or the default.

    A folder is searched with its subfolders, by suffix; hidden files are left out. `root` is the
    folder of the scripts, which holds data/. Raises KitError for a path or images that are missing,
    or a folder that may not be read.
    """
    if given is None:
        default = root / DEFAULT_IMAGE
        return (default if default.is_file() else root / SAMPLE_IMAGE,)
    kind = kind_of(given, "--image")
    if kind == "missing":
        raise KitError(f"image {given} does not exist: check the path given to --image")
    if kind != "folder":
        return (given,)

    def refuse(error: OSError) -> None:
        raise cannot_read(Path(error.filename or given), "folder", error) from error

    found = sorted(
        path
        for parent, _, names in os.walk(given, onerror=refuse)
        for path in (Path(parent) / name for name in names)
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise KitError(
            f"folder {given} holds no image ({' '.join(sorted(SUFFIXES))}): "
            "give a folder of images or one file"
        )
    return tuple(found)


def decode(path: Path) -> DecodedImage:
    """Read and decode one image as transformers' load_image does, with 16 bits scaled to 8.

    The EXIF orientation is applied, then everything becomes RGB: palettes are looked up, CMYK
    is converted, alpha is dropped (what transformers feeds its models too). Sixteen-bit grey
    is scaled by 255/65535 where Pillow alone would clip it to white. Raises KitError where the
    file cannot be read or decoded, or is beyond Pillow's bomb limit.
    """
    content = read_bytes(path, "image", LARGEST_IMAGE_BYTES)
    if not content:
        raise KitError(f"image {path} is empty: give a file with an image in it")
    try:
        with warnings.catch_warnings():
            # Pillow only warns between its limit and twice that; one limit is one rule.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                pixels = rgb_pixels(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise KitError(
            f"image {path} has more than {Image.MAX_IMAGE_PIXELS} pixels, "
            "Pillow's limit against decompression bombs: scale it down first"
        ) from error
    except UnidentifiedImageError as error:
        raise KitError(f"{path} is not an image that Pillow can read: give another") from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise KitError(f"image {path} is damaged ({error}): give a whole file") from error
    return DecodedImage(path, hashlib.sha256(content).hexdigest(), pixels)


def decode_or_tell(path: Path) -> DecodedImage | BrokenImage:
    """Decode one image; a broken one is a result, not an error."""
    try:
        return decode(path)
    except KitError as error:
        return BrokenImage(str(path), str(error))


def rgb_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the image's first frame as a uint8 array of rows x columns x 3."""
    if image.mode in SIXTEEN_BIT_MODES:
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        eight_bits = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(eight_bits[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


@dataclass(frozen=True)
class Inputs:
    """Images and weights of a run. A folder is listed once: what changes in it later is ignored."""

    is_folder: bool  # whether a folder of images was given
    paths: tuple[Path, ...]  # image files, at least one; the first is the decoded one
    broken: tuple[BrokenImage, ...]  # the files before it, which cannot be decoded
    first: DecodedImage  # the first image that could be decoded
    weights: Weights
    weights_sha256: Future[str] | None  # their hash, ready some time later; None for random weights

    def others(self, log: RunLog) -> Iterator[DecodedImage]:
        """Yield the images after the first; a broken one is named in a warning and left out."""
        with ThreadPoolExecutor(1, "decode") as pool:
            yield from sound(ahead(pool, decode_or_tell, self.paths[1:], 1), log, [])


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], most: int
) -> Iterator[R]:
    """Yield the work's result of each item in order, so many more being worked on meanwhile."""
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) > most:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def sound(found: Iterable[T | BrokenImage], log: RunLog, broken: list[BrokenImage]) -> Iterator[T]:
    """Yield what could be decoded; warn of what is `broken`, and put it there."""
    for image in found:
        if isinstance(image, BrokenImage):
            log.warning(f"Left out: {image.reason}")
            broken.append(image)
        else:
            yield image


def gather(options: Options, root: Path, log: RunLog) -> Inputs:
    """Find and check the images and the weights that the options name.

    Weights are downloaded or identified where the options ask for it. Raises KitError where
    something is missing or broken; in a folder of images, where all are.
    """
    paths = find(options.image, root)
    if options.download is not None:
        found = weights.fetch(options.download, options.weights, root, log)
    else:
        found = weights.find(options.weights, root)
        if options.identify is not None:
            found = weights.identify(options.identify, found, log)
    broken: list[BrokenImage] = []
    if len(paths) == 1:
        first = decode(paths[0])
    elif (decoded := next(sound(map(decode_or_tell, paths), log, broken), None)) is not None:
        first = decoded
    else:
        raise KitError(f"none of the {len(paths)} images can be decoded: see the warnings above")
    is_folder = options.image is not None and paths != (options.image,)
    hashed = hash_in_background(found)
    return Inputs(is_folder, paths[len(broken) :], tuple(broken), first, found, hashed)


def hash_in_background(found: Weights) -> Future[str] | None:
    """Start hashing the weights' files; the interpreter is free meanwhile."""
    if found.folder is None:
        return None
    with_one_thread = ThreadPoolExecutor(1, "hash")
    future = with_one_thread.submit(weights.sha256_of_files, found.files)
    with_one_thread.shutdown(wait=False)
    return future
