"""Image-text pairs from WebDataset tar shards, as an endless stream that a stopped run can rejoin exactly.

A shard is a tar file; members with one stem are one sample: an image (jpg, jpeg, png or webp) and a caption (txt).
Unusable samples are skipped and counted by reason (SKIP_REASONS); the data module reports the counts at the end.
"""

import itertools
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from braceexpand import braceexpand
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from common.errors import EncoreError
from common.formats.images import load_image
from common.interop.weights import refuse_pointer
from common.training.loaders import seeded

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SKIP_REASONS = ("empty caption", "no image or no caption", "image cannot be decoded", "damaged shard")
MOST_SKIPPED_IN_A_ROW = 1000
GZIP = b"\x1f\x8b"


def expand_shards(pattern: str) -> list[str]:
    """Paths of a brace pattern ("data/{00000..00331}.tar"). Raises EncoreError that names what does not exist."""
    shards = list(braceexpand(pattern))
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        raise EncoreError(
            f"{missing[0]}: no such shard ({len(missing)} of {len(shards)} in {pattern!r} are missing); "
            "check data.init_args.shards"
        )
    for shard in shards:
        refuse_pointer(shard)
        with open(shard, "rb") as file:
            if file.read(2) == GZIP:
                raise EncoreError(f"{shard}: is compressed, which gains nothing on images; unpack it with gunzip")
    return shards


def pairs(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs in what WebDataset takes for one sample: a name's part before its first dot, and all that have it.

    Members 7.jpg and 7.txt are a pair, and what else has that stem (7.seg.png) is passed over. Without such a pair,
    stems with dots are meant: photo.1.jpg and photo.1.txt are one, photo.2.jpg and photo.2.txt another.
    """
    if "txt" in sample or any(suffix in sample for suffix in IMAGE_SUFFIXES):
        return [sample]
    stems: dict[str, dict[str, Any]] = {}
    for name, data in sample.items():
        stem, dot, suffix = name.rpartition(".")
        if dot and not name.startswith("__"):
            stems.setdefault(stem, {"__url__": sample["__url__"]})[suffix] = data
    found = [each for each in stems.values() if "txt" in each and any(suffix in each for suffix in IMAGE_SUFFIXES)]
    return found or [sample]


def ends_properly(path: str) -> bool:
    """Whether a tar file has its end mark, two blocks of zeros. A file that was cut between members reads without
    error.
    """
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) < 1024:
            return False
        file.seek(-1024, os.SEEK_END)
        return not any(file.read())


class CaptionShards(IterableDataset):
    """Batches {image (B, 3, R, R), tokens (B, N), position (2,)} of this rank, without end.

    Each pass shuffles the shards and deals them to the rank's workers; a worker shuffles samples in a buffer. All of
    it is a function of (seed, rank, worker): `position` = (worker, samples drawn so far) says how far a worker had
    come, and `positions` given back after a restart makes it go on with the next sample. Only the bytes are read
    again, not decoded.
    """

    def __init__(
        self,
        shards: list[str],
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        shuffle_buffer: int = 1000,
        positions: dict[int, int] | None = None,
        first_batch: int = 0,
        read: Callable[[bytes], Image.Image] = load_image,
    ) -> None:
        super().__init__()
        self.shards, self.transform, self.tokenizer, self.read = shards, transform, tokenizer, read
        self.batch_size, self.seed, self.shuffle_buffer = batch_size, seed, shuffle_buffer
        self.rank, self.world, self.positions, self.first_batch = rank, world, positions or {}, first_batch
        self.skipped = torch.zeros(len(SKIP_REASONS), dtype=torch.int64).share_memory_()  # seen by all workers

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # The loader asks its workers in turn, from 0, after a restart too.
        worker = (worker + self.first_batch) % workers
        drawn = self.positions.get(worker, 0)
        samples = itertools.islice(enumerate(self._raw(worker, workers)), drawn, None)
        rows: list[tuple[Tensor, str]] = []
        in_a_row = 0
        for number, sample in samples:
            pair = self._decode(sample, number, worker)
            in_a_row = in_a_row + 1 if pair is None else 0
            if in_a_row == MOST_SKIPPED_IN_A_ROW:
                raise EncoreError(
                    f"{sample['__url__']}: the last {in_a_row} samples were all unusable, in all {self.report()}; "
                    "members must be pairs like 00001.jpg and 00001.txt"
                )
            if pair is not None:
                rows.append(pair)
            if len(rows) == self.batch_size:
                images, captions = zip(*rows)
                rows = []
                yield {
                    "image": torch.stack(images),
                    "tokens": self.tokenizer(list(captions)),
                    "position": torch.tensor([worker, number + 1]),
                }

    def _raw(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        """Undecoded samples of all passes, shuffled."""
        slot, slots = self.rank * workers + worker, self.world * workers
        if len(self.shards) < slots:
            raise EncoreError(
                f"{len(self.shards)} shards cannot feed {slots} workers ({self.world} processes x {workers}); "
                "lower data.init_args.num_workers or cut the data into more shards"
            )
        choice = random.Random(f"{self.seed} {slot}")
        buffer: list[dict[str, Any]] = []
        for number in itertools.count():
            order = np.random.default_rng([self.seed, number]).permutation(len(self.shards))
            urls = [{"url": self.shards[i]} for i in order[slot::slots]]
            self._count("damaged shard", sum(not ends_properly(url["url"]) for url in urls))
            empty = True
            for sample in wds.tarfile_samples(urls, handler=self._broken_shard):
                empty = False
                for pair in pairs(sample):
                    if len(buffer) < self.shuffle_buffer:
                        buffer.append(pair)
                        continue
                    index = choice.randrange(len(buffer))
                    buffer[index], pair = pair, buffer[index]
                    yield pair
            if empty:
                raise EncoreError(f"{urls[0]['url']}: no samples there nor in the shards dealt with it; are they tars?")
            choice.shuffle(buffer)  # the pass ends with what is left, so every sample comes exactly once a pass
            yield from buffer
            buffer = []

    def _broken_shard(self, error: Exception) -> bool:
        if not isinstance(error, tarfile.ReadError):  # a shard that breaks off was counted when its turn came
            self._count("damaged shard")
        return True  # go on with the next shard

    def _decode(self, sample: dict[str, Any], number: int, worker: int) -> tuple[Tensor, str] | None:
        data = next((sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample), None)
        if data is None or "txt" not in sample:
            self._count("no image or no caption")
            return None
        caption = sample["txt"].decode("utf-8", errors="replace").strip()
        if not caption:
            self._count("empty caption")
            return None
        try:
            image = self.read(data)
        except EncoreError:
            self._count("image cannot be decoded")
            return None
        with seeded(self.seed, self.rank, worker, number):
            return self.transform(image), caption

    def _count(self, reason: str, number: int = 1) -> None:
        self.skipped[SKIP_REASONS.index(reason)] += number

    def report(self) -> dict[str, int]:
        """How many samples (or shards) were skipped, by reason."""
        return dict(zip(SKIP_REASONS, self.skipped.tolist()))
