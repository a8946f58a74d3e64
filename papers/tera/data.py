"""Pre-training data: LibriSpeech on disk in micro-batches of near-equal length, stored features, small corpora.

A pre-training batch is {"inputs", "targets": (B, L, H), "mask": (B, L, H) bool, "lengths": (B,)}; see alteration.alter.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import EncoreError
from common.formats.audio import load_audio, resample
from common.formats.speech import Bucketed, BucketLoaders, Entry, buckets, crop, length_table, pad, read_table
from common.training.loaders import seeded
from common.worlds.sounds import SoundClips
from papers.tera.alteration import Policy, alter, named_policy
from papers.tera.features import HOP, SAMPLE_RATE, Kind, cmvn, extract, log_mel, set_level

Batch = dict[str, Tensor]
IGNORED = -100  # label of a frame that is not scored
SHORTEST, LONGEST = 200, 1500  # frames; shorter utterances are dropped, longer ones cropped at random
MICRO_BATCH = 8


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


class Altered(BucketLoaders):
    """Buckets altered by the policy of an ablation name."""

    def __init__(self, *, alteration: str = "T-F-M", noise_std: float = 0.2, **loaders: Any) -> None:
        super().__init__(**loaders)
        self.policy = named_policy(alteration, noise_std)

    def collate(self, items: Sequence[Tensor]) -> Batch:
        return altered_batch(items, self.policy)


class LibriSpeechData(Altered):
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
        tables: str | None = None,
        **altered: Any,
    ) -> None:
        super().__init__(**altered)
        self.root, self.subsets, self.features, self.stored_dim = Path(root), tuple(subsets), features, stored_dim
        self.tables = None if tables is None else Path(tables)

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
        self.train = Bucketed(segments, batches)


class InMemory(Altered):
    """Features of a small corpus, whole utterances bucketed by length. One of five in a row is held out, another in
    each ten, so that every class of the generated sounds, which take turns, is in both parts.

    source: "emodb" or "fsdd" (named sources) or "sounds", `num_clips` generated ones of one second.
    """

    def __init__(self, source: Literal["emodb", "fsdd", "sounds"], *, num_clips: int = 60, **altered: Any) -> None:
        super().__init__(**altered)
        self.source, self.num_clips = source, num_clips

    def setup(self, stage: str | None = None) -> None:
        if self.source == "sounds":
            clips = SoundClips(self.num_clips, seconds=1.0, sample_rate=SAMPLE_RATE, seed=self.seed)
            waveforms = [clips[i][0] for i in range(len(clips))]
        else:
            waveforms, _ = load_source(self.source)
        features = [extract(waveform, "mel") for waveform in waveforms]
        held_out = [x for i, x in enumerate(features) if (i + i // 10) % 5 == 0]
        train = [x for i, x in enumerate(features) if (i + i // 10) % 5]
        self.train = Bucketed(train, buckets([len(x) for x in train], self.batch_size))
        self.valid = Bucketed(held_out, buckets([len(x) for x in held_out], self.batch_size))

    def val_dataloader(self) -> DataLoader:
        """Held-out batches, altered in the same way every time."""
        with seeded(self.seed):
            batches = [self.collate(self.valid[i]) for i in range(len(self.valid))]
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
