"""Decoding: every kind of file becomes upright RGB."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kit.errors import KitError
from kit.model import images

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type] # Pillow types them per format
    return path


def test_an_rgb_file_is_decoded_as_it_is(tmp_path: Path) -> None:
    decoded = images.decode(saved(Image.fromarray(PIXELS), tmp_path / "a.png"))
    assert np.array_equal(decoded.pixels, PIXELS)
    assert (decoded.width, decoded.height) == (6, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    stored = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / "a.png", exif=exif)
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: PIXELS[::-1].transpose(1, 0, 2),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: PIXELS[:, ::-1].transpose(1, 0, 2),
    }
    assert np.array_equal(images.decode(path).pixels, turned[orientation])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_other_modes_become_what_transformers_feeds_its_models(tmp_path: Path, mode: str) -> None:
    from transformers.image_utils import load_image

    source = Image.fromarray(PIXELS).convert(mode)
    path = saved(source, tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    assert np.array_equal(images.decode(path).pixels, np.asarray(load_image(str(path))))


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    path = saved(image, tmp_path / "a.png", transparency=0)
    assert images.decode(path).pixels.tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    decoded = images.decode(saved(Image.fromarray(values), tmp_path / name))
    assert decoded.pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert np.array_equal(decoded.pixels[..., 0], decoded.pixels[..., 2])


def test_a_big_endian_sixteen_bit_file_reads_the_same(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    decoded = images.decode(saved(image, tmp_path / "a.tif"))
    assert decoded.pixels[0, :, 0].tolist() == [0, 1, 255]


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert images.decode(path).pixels[0, 0].tolist() == [255, 0, 0]


def test_the_sha256_is_of_the_files_bytes(tmp_path: Path) -> None:
    import hashlib

    path = saved(Image.fromarray(PIXELS), tmp_path / "a.png")
    assert images.decode(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_a_decompression_bomb_is_refused_at_pillows_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    path = saved(Image.new("L", (20, 20)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(400 / factor))
    with pytest.raises(KitError, match=r"bomb\.png has more than .* pixels"):
        images.decode(path)


def test_the_default_image_is_the_users_coco_picture_where_it_is(tmp_path: Path) -> None:
    assert images.find(None, tmp_path) == (tmp_path / "data/sample.jpg",)
    coco = tmp_path / "data/val2017/000000000139.jpg"
    coco.parent.mkdir(parents=True)
    coco.touch()
    assert images.find(None, tmp_path) == (coco,)


def test_a_folder_is_searched_deeply_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", ".hidden.png", "c.txt", "a/b.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in images.find(tmp_path, tmp_path)]
    assert found == ["a/b.jpeg", "a/z.png", "b.JPG"]
