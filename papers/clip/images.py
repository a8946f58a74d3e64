"""How CLIP's images are prepared (Sec. 2.5, App. A)."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def image_transform(image_size: int, *, train: bool, as_released: bool = False) -> Callable[[Image.Image], Tensor]:
    """Short side to image_size (bicubic), then a random (training) or central square crop, normalised (Sec. 2.5, App.
    A). It takes RGB, or with as_released any mode, which becomes RGB after the crop only.
    """
    return v2.Compose(
        [
            v2.Resize(image_size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomCrop(image_size) if train else v2.CenterCrop(image_size),
            *([v2.RGB()] if as_released else []),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
