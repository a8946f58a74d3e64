"""Image files: one reader, with one rule, for every paper.

* Formats: those of FORMATS, whatever the file is called; the first frame of several.
* Turned as its EXIF orientation says, as every viewer shows it. An EXIF block that cannot be read turns nothing.
* 8 bits a channel as Pillow decodes them. 16-bit grey is scaled by 255 / 65535, floating point from [0, 1] to
  [0, 255], both rounded; other ranges (32-bit integers, floats beyond [0, 1]) are refused, for nothing says what they
  mean.
* On white where transparent, unless RGBA is asked for.
* At most MAX_PIXELS, before anything is decoded.

A released code that reads otherwise is matched by an option of its paper, which begins with `opened`.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import EncoreError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow's limit: a gigabyte at 12 bytes a pixel


def load_image(source: str | Path | bytes, mode: str = "RGB", name: str | None = None) -> Image.Image:
    """An image file, or its bytes, in `mode` ("RGB", "L" or "RGBA") by the rule above.

    EncoreError, naming the file (or `name`), when it cannot be decoded to its end, is of another format, is too large,
    or has pixels without a known range.
    """
    name = name or _named(source)
    image = opened(source, name)
    stored_in = image.format
    with suppress(Exception):  # of a broken EXIF block the library raises what it likes
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image, stored_in, name)
    try:
        if mode != "RGBA" and image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode)
    except Exception as error:
        raise _unreadable(name, error) from None


def opened(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """The first frame as it is stored: not turned, any mode. EncoreError as of load_image."""
    name = name or _named(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            stream = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
                image.load()
                return image
    except Image.DecompressionBombError as error:
        raise EncoreError(f"{name}: too large ({error}); at most {MAX_PIXELS:,} pixels: make it smaller") from None
    except Exception as error:  # decoders raise what they like on broken files
        raise _unreadable(name, error) from None


def _named(source: str | Path | bytes) -> str:
    return f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _unreadable(name: str, error: Exception) -> EncoreError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return EncoreError(f"{name}: cannot be decoded ({reason}); replace it with a whole {', '.join(FORMATS)}")


def _to_8_bits(image: Image.Image, stored_in: str | None, name: str) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode == "F":
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 1):  # so for NaN too
            raise EncoreError(f"{name}: floating point pixels from {low:g} to {high:g}; save it with [0, 1] or 8 bits")
        scaled = pixels.astype(np.float64) * 255
    else:
        if image.mode == "I" and stored_in not in ("PNG", "PPM"):  # there of 16 bits
            raise EncoreError(f"{name}: integer pixels of 32 bits; save it with 8 or 16 bits")
        scaled = pixels / 257
        if isinstance(clear := image.info.get("transparency"), int):
            scaled = np.where(pixels == clear, 255, scaled)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


class LabelledImages(Dataset[dict[str, Any]]):
    """{image, label} of files, or of uint8 arrays (H, W) or (H, W, 3), in RGB through a transform."""

    def __init__(
        self,
        items: Sequence[Any] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        transform: Callable[[Image.Image], Tensor],
        read: Callable[[str | Path], Image.Image] = load_image,
    ) -> None:
        self.items, self.labels, self.transform, self.read = items, np.asarray(labels), transform, read

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        image = Image.fromarray(item).convert("RGB") if isinstance(item, np.ndarray) else self.read(item)
        return {"image": self.transform(image), "label": int(self.labels[index])}
