"""Image files."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

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


class LabelledImages(Dataset[dict[str, Any]]):
    """{image, label} of files, or of uint8 arrays (H, W) or (H, W, 3), in RGB through a transform."""

    def __init__(
        self,
        items: Sequence[Any] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        transform: Callable[[Image.Image], Tensor],
    ) -> None:
        self.items, self.labels, self.transform = items, np.asarray(labels), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        image = Image.fromarray(item).convert("RGB") if isinstance(item, np.ndarray) else load_image(item)
        return {"image": self.transform(image), "label": int(self.labels[index])}
