"""Draw the sample picture: a cabin by a mountain lake, with a photograph's detail.

The kit needs a picture that it may ship, with several kinds of things in it, so that the features
of its patches differ. Everything in this one is computed: no photograph and no drawing went in.
It takes about ten seconds on one core, and the same numbers are drawn on each run.

    python3 data/draw_sample.py
    python3 data/draw_sample.py --output /tmp/lake.jpg
"""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sample_scene.cabin import paint_cabin
from sample_scene.canvas import Canvas
from sample_scene.lens import expose
from sample_scene.meadow import paint_meadow
from sample_scene.plants import paint_birches, paint_spruces
from sample_scene.sky import paint_sky
from sample_scene.view import paint_land, see_land
from sample_scene.water import paint_lake

WIDTH, HEIGHT = 640, 427
JPEG_QUALITY = 92
# Drawn this much larger, then averaged: edges and distant texture come out without stair-steps.
OVERSAMPLING = 2
_SEED = 139
_COMMENT = b"Drawn by data/draw_sample.py of the DINOv3 NPU validation kit. Apache-2.0."


def draw(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Return the picture, (height, width, 3) uint8 sRGB, the same on every call."""
    random = np.random.default_rng(_SEED)
    canvas = Canvas.blank(width * OVERSAMPLING, height * OVERSAMPLING)
    paint_sky(canvas)
    land = see_land(canvas)
    paint_land(canvas, land)
    paint_cabin(canvas)
    paint_birches(canvas, random)
    # What is drawn from here on stands before the lake and is not mirrored in it.
    paint_lake(canvas, land)
    paint_spruces(canvas, random)
    paint_meadow(canvas, random)
    return expose(canvas, OVERSAMPLING, random)


def save(pixels: NDArray[np.uint8], output: Path) -> None:
    """Write ``pixels`` (h, w, 3) to ``output`` as a JPEG, whole or not at all.

    Raises:
        OSError: the folder is missing or cannot be written to.

    """
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as stream:
            Image.fromarray(pixels).save(
                stream, format="JPEG", quality=JPEG_QUALITY, comment=_COMMENT
            )
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="Draw the sample picture that the kit ships.")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent / "sample.jpg",
        help="the JPEG to write (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write the picture; return 0, 2 if it cannot be written, 130 on Ctrl-C."""
    arguments = parse_arguments(argv)
    try:
        if not arguments.output.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "its folder is missing")
        save(draw(), arguments.output)
    except OSError as error:
        sys.stderr.write(f"draw_sample.py: cannot write {arguments.output}: {error.strerror}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{arguments.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
