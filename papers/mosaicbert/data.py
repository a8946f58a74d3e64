"""Masked-word batches: C4 in the hub's shards, or the sentences of a small text. Documents are never packed together.

A document is one row of ids, `[CLS]` pieces `[SEP]`, cut to max_length and filled with [PAD] = 0. A batch is (tokens,
valid, labels), each (B, N), N the longest document in it: valid is True at real tokens, labels are -100 where nothing
is to be predicted.
"""

import gzip
import hashlib
import importlib.resources
import json
import multiprocessing
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import sources
from common.errors import EncoreError
from common.formats.tables import read_text
from common.formats.wordpiece import WordPiece
from common.masking import mlm_mask
from common.training.loaders import seeded, train_loader

Rows = np.ndarray
Batch = tuple[Tensor, Tensor, Tensor]

EVALUATION_RATIO = 0.15  # whatever the ratio in training, so that runs can be compared
EVALUATION_SEED = 17


def encode(texts: Sequence[str], tokenizer: WordPiece, max_length: int, where: str = "text", first: int = 1) -> Rows:
    """Texts -> (texts, max_length) uint16 rows. EncoreError for an empty text, by its number, counted from `first`."""
    rows = np.zeros((len(texts), max_length), dtype=np.uint16)
    for i, ids in enumerate(tokenizer.encode_batch(texts)):
        if not ids:
            raise EncoreError(f"{where}:{first + i}: an empty document; remove the line")
        row = [tokenizer.cls, *ids[: max_length - 2], tokenizer.sep]
        rows[i, : len(row)] = row
    return rows


class Documents(Dataset):
    """Rows of arrays, or of .npy files that are mapped into memory when they are needed, one part after the other."""

    def __init__(self, parts: Sequence[Rows | Path]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(_rows(part)) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Rows:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return _rows(self.parts[part])[index - (self.ends[part - 1] if part else 0)]


def _rows(part: Rows | Path) -> Rows:
    return _mapped(part) if isinstance(part, Path) else part


@lru_cache(maxsize=256)  # open files are few, shards are many
def _mapped(file: Path) -> Rows:
    try:
        return np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise EncoreError(
            f"{file}: not a whole .npy file ({error}); delete it, and its shard is encoded anew"
        ) from None


class Masking:
    """Collates rows into a batch and hides words: `ratio` of the tokens that are neither special nor padding."""

    def __init__(self, tokenizer: WordPiece, ratio: float) -> None:
        self.ratio, self.mask_id, self.vocab_size = ratio, tokenizer.mask, len(tokenizer)
        self.special = torch.tensor(tokenizer.special_ids)

    def __call__(self, rows: Sequence[Rows]) -> Batch:
        tokens = stack(rows)
        eligible = ~torch.isin(tokens, self.special)  # [PAD] is one of them
        inputs, labels = mlm_mask(tokens, eligible, ratio=self.ratio, mask_id=self.mask_id, vocab_size=self.vocab_size)
        return inputs, tokens != 0, labels


def stack(rows: Sequence[Rows]) -> Tensor:
    """Rows of ids -> (B, N) int64, N the longest of them without its padding."""
    block = np.stack(rows)
    longest = int((block != 0).sum(axis=1).max())
    return torch.from_numpy(block[:, :longest].astype(np.int64))


class FixedBatches(Dataset):
    """Consecutive batches, each masked from a seed of its own: the same in every validation."""

    def __init__(self, documents: Documents, batch_size: int, masking: Masking) -> None:
        self.documents, self.batch_size, self.masking = documents, batch_size, masking

    def __len__(self) -> int:
        return -(-len(self.documents) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        first = number * self.batch_size
        rows = [self.documents[i] for i in range(first, min(first + self.batch_size, len(self.documents)))]
        with seeded(EVALUATION_SEED, number):
            return self.masking(rows)


class _Masked(L.LightningDataModule):
    """What both data modules share: `mask_ratio` of the words hidden in training, 15 % in validation."""

    def __init__(self, mask_ratio: float, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.mask_ratio, self.batch_size, self.num_workers, self.seed = mask_ratio, batch_size, num_workers, seed
        self.tokenizer: WordPiece | None = None

    def build(self) -> tuple[WordPiece, Documents, Documents]:
        """Tokenizer, training and validation documents."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self.tokenizer is None:
            self.tokenizer, self.train, self.valid = self.build()

    def train_dataloader(self) -> DataLoader:
        assert self.tokenizer is not None
        return train_loader(
            self.train,
            self.batch_size,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=Masking(self.tokenizer, self.mask_ratio),
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        """Every process takes its share of the batches."""
        assert self.tokenizer is not None
        batches = FixedBatches(self.valid, self.batch_size, Masking(self.tokenizer, EVALUATION_RATIO))
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        share = range(rank, len(batches), world)
        return DataLoader(batches, batch_size=None, sampler=share, num_workers=self.num_workers)


# ------------------------------------------------------------------------------------------------------------------ C4


def shards(folder: Path, split: Literal["train", "validation"]) -> list[Path]:
    """The hub's files c4-train.00000-of-01024.json.gz, ..., in order; a part of them will do."""
    files = sorted(folder.glob(f"c4-{split}.*.json.gz"))
    if not files:
        raise EncoreError(
            f"{folder}: no c4-{split}.*.json.gz; point to the folder `en` of C4 as the hub has it, shards of JSON lines"
        )
    return files


def read_shard(file: Path) -> Iterator[str]:
    """The field `text` of every line. EncoreError with file and line for anything else."""
    line = 0
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            for content in stream:
                line += 1
                text = json.loads(content)["text"]
                if not isinstance(text, str):
                    raise TypeError("its text is no string")
                yield text
    except (EOFError, OSError, zlib.error) as error:
        raise EncoreError(f"{file}: cut short or damaged after line {line} ({error}); fetch the shard again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EncoreError(f"{file}:{line}: not a JSON object with a text ({error}); fetch the shard again") from None


def encode_shard(file: Path, target: Path, tokenizer: str, max_length: int) -> None:
    """Writes the rows of one shard to `target`, whole or not at all."""
    pieces = WordPiece.load(tokenizer)
    texts, parts, done = read_shard(file), [], 0
    while chunk := list(islice(texts, 10_000)):
        parts.append(encode(chunk, pieces, max_length, str(file), first=done + 1))
        done += len(chunk)
    if not parts:
        raise EncoreError(f"{file}: has no documents; remove it")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.npy")
    try:
        np.save(temporary, np.concatenate(parts))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


class C4(_Masked):
    """C4 `en`: one document a sample, cut to max_length.

    path: folder with the hub's shards. cache: where their rows are kept, one .npy a shard, 256 bytes a document; each
    shard is encoded once, in num_workers processes, and an interrupted preparation goes on with the next shard.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str,
        cache: str,
        max_length: int = 128,
        mask_ratio: float = 0.3,
        batch_size: int = 128,
        num_workers: int = 8,
        seed: int = 17,
    ) -> None:
        super().__init__(mask_ratio, batch_size, num_workers, seed)
        self.path, self.tokenizer_path, self.cache, self.max_length = Path(path), tokenizer, Path(cache), max_length

    def prepare_data(self) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        jobs = [
            (file, target, self.tokenizer_path, self.max_length)
            for split in ("train", "validation")
            for file, target in self._targets(split)
            if not target.exists()
        ]
        if self.num_workers == 0:
            for job in jobs:
                encode_shard(*job)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.num_workers, mp_context=context) as pool:
            for _ in pool.map(encode_shard, *zip(*jobs)):
                pass

    def _targets(self, split: Literal["train", "validation"]) -> list[tuple[Path, Path]]:
        vocabulary = WordPiece.load(self.tokenizer_path).vocabulary
        key = hashlib.sha256(repr((sorted(vocabulary.items()), self.max_length)).encode()).hexdigest()[:12]
        return [
            (file, self.cache / f"{file.name.removesuffix('.json.gz')}.{key}.npy") for file in shards(self.path, split)
        ]

    def build(self) -> tuple[WordPiece, Documents, Documents]:
        train, valid = (Documents([target for _, target in self._targets(split)]) for split in ("train", "validation"))
        return WordPiece.load(self.tokenizer_path), train, valid


# ----------------------------------------------------------------------------------------------------------- small text


def wikitext_sentences(text: str) -> list[str]:
    """Sentences of WikiText, headings left out. Its ` @-@ ` becomes `-`, its `<unk>` the word `unk`."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(" = ")]
    joined = [re.sub(r" @(.)@ ", r"\1", line).replace("<unk>", "unk") for line in lines]
    return [part for line in joined for part in re.split(r"(?<= [.?!]) ", line.strip()) if len(part.split()) >= 4]


def bundled_sentences() -> list[str]:
    """Lines of prose that come with scikit-learn, the descriptions of its data sets: the same on every machine."""
    folder = importlib.resources.files("sklearn.datasets") / "descr"
    texts = [file.read_text() for file in sorted(folder.iterdir(), key=str) if file.name.endswith(".rst")]
    return [line.strip() for text in texts for line in text.splitlines() if len(re.findall(r"[a-z]{2,}", line)) >= 6]


def named_sentences(source: str) -> tuple[list[str], list[str]]:
    """Training and held-out sentences. WikiText-2's training text is not part of the source: its test text trains."""
    if source == "sklearn":
        lines = bundled_sentences()
        return [line for i, line in enumerate(lines) if i % 10 < 9], lines[9::10]
    files = sources.locate(source)
    train, valid = (wikitext_sentences(read_text(files[f"wikitext2_{part}.txt.gz"])) for part in ("test", "valid"))
    return train, valid


class Sentences(_Masked):
    """Sentences of a named source ("wikitext2", or "sklearn": comes with scikit-learn) as documents.

    A WordPiece of vocab_size is trained on the training sentences.
    """

    def __init__(
        self,
        source: Literal["wikitext2", "sklearn"] = "sklearn",
        vocab_size: int = 2048,
        max_length: int = 64,
        mask_ratio: float = 0.3,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(mask_ratio, batch_size, num_workers, seed)
        self.source, self.vocab_size, self.max_length = source, vocab_size, max_length

    def build(self) -> tuple[WordPiece, Documents, Documents]:
        splits = named_sentences(self.source)
        tokenizer = WordPiece.train(splits[0], self.vocab_size, rarest=5)
        train, valid = (Documents([encode(split, tokenizer, self.max_length)]) for split in splits)
        return tokenizer, train, valid
