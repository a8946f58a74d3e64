"""The one reader of pictures: depth, orientation, transparency, formats, size."""

import io

import numpy as np
import pytest
from PIL import Image

from common.errors import EncoreError
from common.formats.images import MAX_PIXELS, load_image, opened
from common.formats.tables import decode_image

RAMP = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def both(path):
    """The pixels by way of a file and of a cell, which are the same."""
    direct, cell = np.asarray(load_image(path)), np.asarray(decode_image(path.read_bytes()))
    assert np.array_equal(direct, cell)
    return direct


def test_a_deep_ramp_keeps_its_mean(tmp_path):
    (tmp_path / "grey.pgm").write_bytes(b"P5\n64 8\n65535\n" + RAMP.astype(">u2").tobytes())
    files = [
        tmp_path / "grey.pgm",
        saved(tmp_path / "grey.png", Image.fromarray(RAMP)),
        saved(tmp_path / "grey.tiff", Image.fromarray(RAMP)),
        saved(tmp_path / "float.tiff", Image.fromarray((RAMP / 65535).astype(np.float32))),
    ]
    for file in files:
        pixels = both(file)
        assert pixels.mean() == pytest.approx(127.5, abs=0.01), file
        assert (pixels.min(), pixels.max(), len(np.unique(pixels))) == (0, 255, 64), file


@pytest.mark.parametrize(
    "pixels", [RAMP.astype(np.int32), RAMP.astype(np.float32), np.full((4, 4), np.nan, np.float32)]
)
def test_pixels_without_a_known_range_are_refused(pixels, tmp_path):
    with pytest.raises(EncoreError, match=r"x\.tiff: (integer|floating point) pixels .*; save it with .*8"):
        load_image(saved(tmp_path / "x.tiff", Image.fromarray(pixels)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_a_turned_picture_is_shown_upright(suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right to see it
    picture = Image.new("RGB", (80, 40), "red")
    picture.paste("blue", (0, 0, 40, 40))
    pixels = both(saved(tmp_path / f"turned.{suffix}", picture, exif=exif))
    assert pixels.shape == (80, 40, 3)
    assert pixels[10, 20, 2] > 200  # left came to the top
    assert pixels[70, 20, 0] > 200


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_turns_nothing(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (8, 4)), exif=b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + b"x" * 20)
    assert load_image(path).size == (8, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_and_opaque_ones_stay(mode, tmp_path):
    hidden = np.zeros((8, 8, 4), np.uint8)
    hidden[..., :3], hidden[0, 0] = 90, (90, 90, 90, 255)
    image = Image.fromarray(hidden).convert(mode) if mode != "P" else Image.fromarray(hidden).quantize(4)
    pixels = both(saved(tmp_path / "clear.png", image))
    assert pixels[0, 0].tolist() == [90] * 3
    assert pixels[1, 1].tolist() == [255] * 3
    grey = saved(tmp_path / "grey.png", Image.fromarray(RAMP), transparency=int(RAMP[0, 5]))
    assert both(grey)[0, 4:6, 0].tolist() == [16, 255]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_ordinary_pictures_are_what_pillow_decodes(mode, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    suffix = "jpg" if mode == "CMYK" else "png"
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(noise).convert(mode))
    for wanted in ("RGB", "L"):
        with Image.open(path) as image:
            expected = np.asarray(image.convert(wanted))
        assert np.array_equal(np.asarray(load_image(path, wanted)), expected)


def test_of_several_frames_the_first(tmp_path):
    for name, kind in (("a.gif", "GIF"), ("a.jpg", "MPO"), ("a.tiff", "TIFF"), ("a.webp", "WEBP")):
        frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
        path = saved(tmp_path / name, frames[0], format=kind, save_all=True, append_images=frames[1:])
        assert both(path)[0, 0, 0] > 240, kind


def test_other_formats_and_too_many_pixels_are_one_line(tmp_path):
    for name in ("a.ico", "a.pcx", "a.sgi"):
        path = saved(tmp_path / name, Image.new("RGB", (32, 32)))
        with pytest.raises(EncoreError, match=r"cannot be decoded .*; replace it with a whole BMP, GIF, JPEG"):
            load_image(path)
    buffer = io.BytesIO()
    Image.new("1", (10_000, MAX_PIXELS // 10_000 + 1)).save(buffer, "PNG")
    (tmp_path / "large.png").write_bytes(buffer.getvalue())
    for read in (load_image, opened):
        with pytest.raises(EncoreError, match=r"large\.png: too large"):
            read(tmp_path / "large.png")
