"""The public list-file format, and which frames a clip takes.

A list has one clip a line, fields separated by blanks, relative paths below a root folder:

    pre-training:  video.mp4 0 -1                   or   frame_folder start_index total_frames
    labelled:      video.mp4 label                  or   frame_folder total_frames label

A frame folder holds numbered images; labelled ones are numbered from 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from common.errors import EncoreError
from common.formats.video import probe, read_frames


@dataclass(frozen=True)
class Entry:
    """One line. frames: number of images from number `start` on in a frame folder, or -1 for a video file."""

    path: Path
    start: int
    frames: int
    label: int = -1


def read_pretraining_list(path: str | Path, root: str | Path = "") -> list[Entry]:
    """`video 0 -1` and `frame_folder start total` lines."""
    return _read(path, lambda f: Entry(Path(root, f[0]), int(f[1]), int(f[2])), (2,), "path start total_frames")


def read_label_list(path: str | Path, root: str | Path = "") -> list[Entry]:
    """`video label` and `frame_folder total_frames label` lines (one kind a file)."""

    def entry(fields: list[str]) -> Entry:
        if len(fields) == 2:
            return Entry(Path(root, fields[0]), 0, -1, int(fields[1]))
        return Entry(Path(root, fields[0]), 1, int(fields[1]), int(fields[2]))

    return _read(path, entry, (1, 2), "path label, or path total_frames label")


def _read(path: str | Path, entry: Callable[[list[str]], Entry], numbers: tuple[int, ...], form: str) -> list[Entry]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EncoreError(f"{path}: the list file cannot be read ({error})") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split()
        count = 0
        while count < max(numbers) and count < len(fields) - 1 and _is_integer(fields[-1 - count]):
            count += 1
        if count not in numbers:
            raise EncoreError(f"{path}, line {number}: expected '{form}', found '{line.strip()}'")
        entries.append(entry([line.rsplit(maxsplit=count)[0].strip(), *fields[len(fields) - count :]]))
    if not entries:
        raise EncoreError(f"{path}: the list is empty; it needs one '{form}' a line")
    return entries


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdigit()


def count_frames(entry: Entry) -> int:
    """Frames of the video file (probed) or of the frame folder (stated in the list)."""
    return probe(entry.path).frames if entry.frames < 0 else entry.frames


def read_clip(entry: Entry, indices: Sequence[int], template: str = "img_{:05}.jpg") -> Tensor:
    """(len(indices), 3, H, W) uint8; indices count from 0 at the entry's first frame. EncoreError names a bad file."""
    if entry.frames < 0:
        return torch.from_numpy(read_frames(entry.path, indices)).permute(0, 3, 1, 2)
    images = {}
    for index in set(indices):
        file = entry.path / template.format(entry.start + index)
        try:
            images[index] = decode_image(str(file), ImageReadMode.RGB)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise EncoreError(
                f"{file}: cannot be read as an image ({reason}); remove its line or replace it"
            ) from error
    return torch.stack([images[index] for index in indices])


def require_frames(entry: Entry, total: int, needed: int) -> None:
    """A clip of `needed` frames from fewer ones would only repeat them: that is an error, which a loader may skip."""
    if total < needed:
        raise EncoreError(f"{entry.path}: has {total} frames, a clip needs {needed}; remove it or use shorter clips")


def strided(total: int, frames: int, stride: int, start: int) -> list[int]:
    """Dense sampling for pre-training: every stride-th frame from `start`; at the end the last one repeats."""
    return [min(start + stride * i, total - 1) for i in range(frames)]


def spread(total: int, frames: int, stride: int, start: int) -> list[int]:
    """Dense sampling for fine-tuning: `frames` positions spread over [start, start + frames * stride].

    Both ends count, so the step is a little over the stride (as in the public code); a shorter video repeats its last
    frame.
    """
    span = frames * stride
    if total <= span:
        short = torch.linspace(0, total, total // stride).tolist() + [total] * (frames - total // stride)
        return [min(int(i), total - 1) for i in short]
    return [min(int(i), start + span - 1) for i in torch.linspace(start, start + span, frames, dtype=torch.float64)]


def segments(total: int, frames: int, offsets: Sequence[int]) -> list[int]:
    """Uniform (TSN) sampling: one frame of each of `frames` equal segments, `offsets[i]` into segment i."""
    return [i * (total // frames) + offset for i, offset in enumerate(offsets)]


def test_clips(total: int, frames: int, stride: int, clips: int, *, uniform: bool) -> list[list[int]]:
    """Frame numbers of the `clips` temporal views of a video.

    Dense: windows of every stride-th frame, evenly placed from the first to the last (one clip: the middle).
    Uniform: clip c takes the point (c + 1/2, for one clip) c / clips of each segment.
    """
    if uniform:
        tick = total / frames
        shifts = [0.5] if clips == 1 else [c / clips for c in range(clips)]
        return [[int(tick * (shift + i)) for i in range(frames)] for shift in shifts]
    every = list(range(0, total, stride))
    every += [every[-1]] * (frames - len(every))
    room = len(every) - frames
    starts = [room // 2] if clips == 1 else [int(c * room / (clips - 1)) for c in range(clips)]
    return [every[start : start + frames] for start in starts]
