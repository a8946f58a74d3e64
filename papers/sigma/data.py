"""Data: videos in the authors' list format, and clips with object masks (DAVIS, YouTube-VOS).

Labelled videos and moving digits come from VideoMAE V2's data modules.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from common.errors import EncoreError
from common.formats.images import load_image, opened
from common.formats.lines import text_lines
from common.formats.video_clips import Entry, Sample, count_frames, indices, read_labelled, standardise
from common.training.loaders import Loaders
from papers.videomae_v2.data import UnlabelledVideos


def read_video_list(path: str | Path, root: str | Path = "") -> list[Entry]:
    """`video label` lines; the label is not used, and a name without extension means an .mp4 file."""
    entries = read_labelled(path, root)
    folders = [entry for entry in entries if entry.frames >= 0]
    if folders:
        raise EncoreError(f"{path}: {folders[0].path} is listed as a frame folder; this list takes video files")
    return [entry if entry.path.suffix else replace(entry, path=entry.path.with_suffix(".mp4")) for entry in entries]


class PretrainingVideos(UnlabelledVideos):
    """Random clips of listed videos, one multi-scale crop each, with tube masks. batch_size counts clips a process.

    Batches: video (B, 3, T, S, S), hidden (B, N) bool, skipped (bad videos that were replaced).
    """

    read_list = staticmethod(read_video_list)

    def __init__(self, train_list: str, *, mask_ratio: float = 0.9, **options: Any) -> None:
        super().__init__(train_list, repeats=1, encoder_ratio=mask_ratio, decoder="none", **options)


def open_image(path: Path, mode: str | None = None) -> np.ndarray:
    """Pixels of an image file; without `mode` a palette image keeps its indices (the objects' numbers)."""
    return np.array(opened(path) if mode is None else load_image(path, mode))


class ObjectClips(Dataset[Sample]):
    """One clip a sequence: video (3, T, S, S) standardised, mask (T, S, S) int64, 0 = background.

    The T frames lie in the middle of T equal parts of the sequence. Frames and masks are squeezed to S x S.
    """

    def __init__(self, root: Path, images: str, masks: str, sequences: list[str], num_frames: int, size: int) -> None:
        self.images, self.masks, self.sequences = root / images, root / masks, sequences
        self.num_frames, self.size = num_frames, size

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Sample:
        name = self.sequences[index]
        files = sorted((self.masks / name).glob("*.png"))
        count_frames(Entry(self.masks / name, 0, len(files)), at_least=self.num_frames)
        chosen = [files[i] for i in indices("segments", self.num_frames, len(files))]
        frames = [open_image(self.images / name / f"{file.stem}.jpg", "RGB") for file in chosen]
        objects = [open_image(file) for file in chosen]
        clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        mask = torch.from_numpy(np.stack(objects))
        if mask.dim() != 3:
            raise EncoreError(f"{chosen[0]}: a mask needs one number a pixel (palette or grey), not {mask.shape[3:]}")
        square = [self.size, self.size]
        return {
            "video": standardise(TF.resize(clip, square, antialias=True)),
            "mask": TF.resize(mask, square, TF.InterpolationMode.NEAREST).long(),
        }


class ObjectVideos(Loaders):
    """DAVIS or YouTube-VOS: root/images/<sequence>/<frame>.jpg, root/masks/<sequence>/<frame>.png with object numbers.

    sequences: file below root with one name a line (DAVIS: ImageSets/2017/val.txt). For `test` only.
    """

    def __init__(
        self,
        root: str,
        *,
        sequences: str,
        images: str,
        masks: str,
        num_frames: int = 16,
        image_size: int = 224,
        batch_size: int = 1,
        num_workers: int = 4,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        path = Path(root, sequences)
        names = [name for line in text_lines(path) for name in line.split()]
        if not names:
            raise EncoreError(f"{path}: names no sequence")
        self.test = ObjectClips(Path(root), images, masks, names, num_frames, image_size)
