"""Image files."""

import warnings
from pathlib import Path

from PIL import Image

from common.errors import EncoreError


def load_image(path: str | Path) -> Image.Image:
    """An image file in RGB, the first frame of several.

    EncoreError, naming the file, when it cannot be decoded to its end or is so large (89 million pixels, Pillow's
    limit) that it may be a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise EncoreError(f"{path}: too large ({error}); make it smaller") from None
    except Exception as error:  # decoders raise what they like on broken files
        raise EncoreError(f"{path}: not a readable image ({error or type(error).__name__}); replace it") from None
