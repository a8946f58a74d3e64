"""Frames and facts of video files, decoded with PyAV."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from common.errors import EncoreError


@dataclass(frozen=True)
class VideoInfo:
    """frames: number of frames; fps: average frames a second, 0 when unknown; width, height in pixels."""

    frames: int
    fps: float
    width: int
    height: int


@contextmanager
def _open(path: Path | str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream; whatever breaks inside becomes an EncoreError that names the file."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise EncoreError(f"{path}: has no video stream; remove it from the list or replace it")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        raise EncoreError(f"{path}: cannot be decoded ({error}); remove it from the list or replace it") from None


def probe(path: Path | str) -> VideoInfo:
    """Facts of the first video stream, as it is shown: upright, without frames that an edit list hides.

    Where the container does not state the number of frames its packets are counted.
    """
    with _open(path) as (container, stream):
        frames, sideways = stream.frames, False
        for packet in container.demux(stream):
            pictures = packet.decode()
            if pictures:
                sideways = _quarters(pictures[0]) % 2 == 1
                break
        if frames and "mp4" in container.format.name:  # counts what a cut by stream copy left in front, too
            frames = sum(not entry.is_discard for entry in stream.index_entries)
        if not frames:
            container.seek(0)
            frames = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
        if frames == 0:
            raise EncoreError(f"{path}: holds no frames; remove it from the list or replace it")
        width, height = (stream.height, stream.width) if sideways else (stream.width, stream.height)
        return VideoInfo(frames, float(stream.average_rate or 0), width, height)


def _quarters(frame: av.VideoFrame) -> int:
    """Quarter turns against the clock after which a frame is upright (its display matrix, as phones write it)."""
    return round(frame.rotation / 90) % 4


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) RGB uint8, upright."""
    return np.rot90(frame.to_ndarray(format="rgb24"), _quarters(frame))


def read_frames(path: Path | str, indices: Sequence[int], pad: Literal["error", "repeat"] = "error") -> np.ndarray:
    """Frames by number, upright RGB uint8 (len(indices), H, W, 3), in the order asked (numbers may repeat).

    Decodes from the start up to the largest index: exact for every codec, where seeking depends on sound time stamps. A
    video that ends earlier is an EncoreError, or with pad="repeat" its last frame stands in for all later ones.
    """
    if not len(indices) or min(indices) < 0:
        raise EncoreError(f"{path}: frame numbers must be non-negative and at least one, not {list(indices)}")
    wanted, last = set(indices), max(indices)
    frames: dict[int, np.ndarray] = {}
    final, count = None, 0
    with _open(path) as (container, stream):
        for final in container.decode(stream):
            if count in wanted:
                frames[count] = _pixels(final)
            count += 1
            if count > last:
                break
        if final is None:
            raise EncoreError(f"{path}: holds no frames; remove it from the list or replace it")
        if count <= last:
            if pad == "error":
                raise EncoreError(
                    f"{path}: has {count} frames, frame {last} was asked for; "
                    'remove it from the list, sample fewer frames, or read with pad="repeat"'
                )
            ending = _pixels(final)
            frames |= {index: ending for index in wanted if index >= count}
    shapes = {frame.shape for frame in frames.values()}
    if len(shapes) > 1:
        raise EncoreError(f"{path}: the frame size changes within the video ({sorted(shapes)}); re-encode it")
    return np.stack([frames[index] for index in indices])
