"""Pre-training data: LibriSpeech on disk in micro-batches of near-equal length, stored features, small corpora.

A pre-training batch is {"inputs", "targets": (B, L, H), "mask": (B, L, H) bool, "lengths": (B,)}; see alteration.alter.
"""

import csv
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from common.errors import EncoreError
from common.formats.audio import load_audio, resample
from common.training.loaders import seeded, train_loader
from common.worlds.sounds import SoundClips
from papers.tera.alteration import Policy, alter, named_policy
from papers.tera.features import HOP, SAMPLE_RATE, Kind, cmvn, extract, log_mel, set_level

Batch = dict[str, Tensor]
IGNORED = -100  # label of a frame that is not scored
SHORTEST, LONGEST = 200, 1500  # frames; shorter utterances are dropped, longer ones cropped at random
MICRO_BATCH = 8
Entry = tuple[str, int]  # path below the root, length in samples (audio) or frames (stored features)


def length_table(root: Path, subset: str, tables: Path | None = None) -> list[Entry]:
    """Audio files of root/subset (root/subset/speaker/chapter/*.flac) with their samples, longest first.

    With `tables` given, tables/<subset>.csv in the released layout (index,file_path,length,label) is read, or written
    when it is not there: reading the headers of 281,000 files takes a while.
    """
    table = None if tables is None else tables / f"{subset}.csv"
    if table is not None and table.exists():
        return read_table(table)
    files = sorted((root / subset).rglob("*.flac"))
    if not files:
        raise EncoreError(f"{root / subset}: no .flac files below it; expected LibriSpeech's speaker/chapter/*.flac")
    entries = [(path.relative_to(root).as_posix(), _samples(path)) for path in files]
    entries.sort(key=lambda entry: -entry[1])
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["", "file_path", "length", "label"])
            writer.writerows([i, path, length, ""] for i, (path, length) in enumerate(entries))
    return entries


def read_table(table: Path) -> list[Entry]:
    """A length table (index,file_path,length,label), longest first."""
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        entries = [(row["file_path"], int(row["length"])) for row in rows]
    except OSError as error:
        raise EncoreError(f"{table}: cannot be read ({error.strerror}); check the data folder") from None
    except (KeyError, TypeError, ValueError):
        raise EncoreError(f"{table}: expected the columns file_path,length; write it anew or delete it") from None
    return sorted(entries, key=lambda entry: -entry[1])


def _samples(path: Path) -> int:
    try:
        return soundfile.info(str(path)).frames
    except (soundfile.LibsndfileError, OSError) as error:
        raise EncoreError(f"{path}: not a readable audio file ({error}); remove or replace it") from None


def buckets(lengths: Sequence[int], size: int, *, longer_than: int = 0, fewest: int = 2) -> list[list[int]]:
    """Indices of utterances in batches of `size` of nearly equal length: sorted, longest first, cut in a row.

    Only utterances longer than `longer_than`; an incomplete last batch stays when it holds at least `fewest`.
    """
    order = sorted((i for i, length in enumerate(lengths) if length > longer_than), key=lambda i: -lengths[i])
    cut = [order[i : i + size] for i in range(0, len(order), size)]
    return [batch for batch in cut if len(batch) >= min(size, fewest)]


def crop(x: Tensor, longest: int) -> Tensor:
    """`longest` entries of the first dimension from a random place, or x when it has no more."""
    spare = len(x) - longest
    start = int(torch.randint(spare + 1, ())) if spare > 0 else 0
    return x[start : start + longest]


def pad(items: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[(L_i, H), ...] -> (B, L, H) padded with zeros, and the lengths (B,)."""
    return pad_sequence(list(items), batch_first=True), torch.tensor([len(item) for item in items])


def altered_batch(items: Sequence[Tensor], policy: Policy) -> Batch:
    """Features [(L_i, H), ...] -> an altered batch."""
    return alter(*pad(items), policy)._asdict()


class AudioSegments:
    """Map-style dataset of features (L, H) from audio files below root, at most `longest` frames of each.

    "mel": the whole file is set to -25 dBFS, cropped to longest * 160 samples (longest + 1 centred frames), and
    normalised over the crop. Kaldi's kinds: normalised over the whole file, then cropped.
    """

    def __init__(self, root: Path, paths: Sequence[str], kind: Kind, longest: int = LONGEST) -> None:
        self.root, self.paths, self.kind, self.longest = root, list(paths), kind, longest

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self.root / self.paths[index]
        waveform, _ = load_audio(path, SAMPLE_RATE)
        if self.kind == "mel":
            return cmvn(log_mel(crop(set_level(waveform), self.longest * HOP), name=str(path)))
        return crop(extract(waveform, self.kind, str(path)), self.longest)


class StoredSegments:
    """Map-style dataset of features (L, dim) stored as .npy below root, at most `longest` frames of each, as they are.

    So the fMLLR features of a Kaldi recipe come, already normalised.
    """

    def __init__(self, root: Path, paths: Sequence[str], dim: int, longest: int = LONGEST) -> None:
        self.root, self.paths, self.dim, self.longest = root, list(paths), dim, longest

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self.root / self.paths[index]
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise EncoreError(f"{path}: not a readable .npy file ({error}); remove or replace it") from None
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise EncoreError(f"{path}: expected features of shape (frames, {self.dim}), got {array.shape}")
        return crop(torch.from_numpy(array.astype(np.float32)), self.longest)


class Bucketed:
    """Map-style dataset whose item i is the list of a dataset's items in bucket i."""

    def __init__(self, dataset: Any, batches: Sequence[Sequence[int]]) -> None:
        self.dataset, self.batches = dataset, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[Any]:
        return [self.dataset[i] for i in self.batches[index]]


def bucket_loader(
    dataset: Bucketed,
    collate: Callable[[list[Any]], Batch],
    *,
    trainer: L.Trainer | None,
    seed: int,
    num_workers: int = 0,
) -> DataLoader:
    """Training batches from buckets in random order.

    An epoch is a multiple of the trainer's accumulation, so that every optimizer step has all its micro-batches.
    """
    world, accumulate = (1, 1) if trainer is None else (trainer.world_size, trainer.accumulate_grad_batches)
    return train_loader(
        dataset,
        1,
        seed=seed,
        num_batches=math.ceil(len(dataset) / world / accumulate) * accumulate,
        trainer=trainer,
        collate_fn=partial(_collate_bucket, collate),
        num_workers=num_workers,
    )


def _collate_bucket(collate: Callable[[list[Any]], Batch], one: list[list[Any]]) -> Batch:
    return collate(one[0])


class _Altered(L.LightningDataModule):
    """Loaders over self.train_set (Bucketed), altered by the policy of an ablation name."""

    def __init__(self, alteration: str, noise_std: float, num_workers: int, seed: int) -> None:
        super().__init__()
        self.policy = named_policy(alteration, noise_std)
        self.num_workers, self.seed = num_workers, seed
        self.train_set: Bucketed | None = None

    def train_dataloader(self) -> DataLoader:
        assert self.train_set is not None
        return bucket_loader(
            self.train_set,
            partial(altered_batch, policy=self.policy),
            trainer=self.trainer,
            seed=self.seed,
            num_workers=self.num_workers,
        )


class LibriSpeechData(_Altered):
    """LibriSpeech's own layout, root/<subset>/<speaker>/<chapter>/<utterance>.flac, or features stored beside tables.

    features: "mel", "fbank", "mfcc" (computed on the fly), or "stored": root/<subset>.csv lists .npy files of
    stored_dim columns with their frames. tables: where length tables of audio are kept, see length_table.
    Utterances of up to 200 frames are dropped, those over 1,500 cropped. A batch here is a micro-batch; set
    trainer.accumulate_grad_batches to 4 for the paper's 32.
    """

    def __init__(
        self,
        root: str,
        *,
        subsets: Sequence[str] = ("train-clean-100",),
        features: Literal["mel", "fbank", "mfcc", "stored"] = "mel",
        stored_dim: int = 40,
        alteration: str = "T-F-M",
        noise_std: float = 0.2,
        tables: str | None = None,
        batch_size: int = MICRO_BATCH,
        num_workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(alteration, noise_std, num_workers, seed)
        self.root, self.subsets, self.features, self.stored_dim = Path(root), tuple(subsets), features, stored_dim
        self.tables = None if tables is None else Path(tables)
        self.batch_size = batch_size

    def setup(self, stage: str | None = None) -> None:
        entries: list[Entry] = []
        for subset in self.subsets:
            if self.features == "stored":
                entries += read_table(self.root / f"{subset}.csv")
            else:
                entries += length_table(self.root, subset, self.tables)
        paths = [path for path, _ in entries]
        per_frame = 1 if self.features == "stored" else HOP
        batches = buckets([length for _, length in entries], self.batch_size, longer_than=SHORTEST * per_frame)
        if not batches:
            raise EncoreError(
                f"{self.root}: none of {len(entries)} utterances of {', '.join(self.subsets)} is longer than "
                f"{SHORTEST} frames; check the subsets and the length tables"
            )
        segments: Any
        if self.features == "stored":
            segments = StoredSegments(self.root, paths, self.stored_dim)
        else:
            segments = AudioSegments(self.root, paths, self.features)
        self.train_set = Bucketed(segments, batches)


class InMemory(_Altered):
    """Features of a small corpus, whole utterances bucketed by length. One of five in a row is held out, another in
    each ten, so that every class of the generated sounds, which take turns, is in both parts.

    source: "emodb" or "fsdd" (named sources) or "sounds", `num_clips` generated ones of one second.
    """

    def __init__(
        self,
        source: Literal["emodb", "fsdd", "sounds"],
        *,
        num_clips: int = 60,
        alteration: str = "T-F-M",
        noise_std: float = 0.2,
        batch_size: int = MICRO_BATCH,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(alteration, noise_std, num_workers, seed)
        self.source, self.num_clips, self.batch_size = source, num_clips, batch_size
        self.val_set: Bucketed | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.source == "sounds":
            clips = SoundClips(self.num_clips, seconds=1.0, sample_rate=SAMPLE_RATE, seed=self.seed)
            waveforms = [clips[i][0] for i in range(len(clips))]
        else:
            waveforms, _ = load_source(self.source)
        features = [extract(waveform, "mel") for waveform in waveforms]
        held_out = [x for i, x in enumerate(features) if (i + i // 10) % 5 == 0]
        train = [x for i, x in enumerate(features) if (i + i // 10) % 5]
        self.train_set = Bucketed(train, buckets([len(x) for x in train], self.batch_size))
        self.val_set = Bucketed(held_out, buckets([len(x) for x in held_out], self.batch_size))

    def val_dataloader(self) -> DataLoader:
        """Held-out batches, altered in the same way every time."""
        assert self.val_set is not None
        with seeded(self.seed):
            batches = [altered_batch(self.val_set[i], self.policy) for i in range(len(self.val_set))]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def load_source(name: str) -> tuple[list[Tensor], dict[str, list[Any]]]:
    """A named source of speech (fsdd: its train and test files): waveforms (samples,) at 16 kHz, and the columns."""
    from common import sources
    from common.formats.tables import decode_audio
    from common.formats.tables import read_table as read_parquet

    files = sources.locate(name)
    columns: dict[str, list[Any]] = {}
    for file in sorted(files, reverse=True):  # train before test
        for column, values in read_parquet(files[file]).items():
            columns.setdefault(column, []).extend(values)
    waveforms = []
    for cell in columns.pop("audio"):
        samples, rate = decode_audio(cell)
        waveforms.append(resample(torch.from_numpy(samples), rate, SAMPLE_RATE))
    return waveforms, columns
