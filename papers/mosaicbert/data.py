"""Masked-word batches: C4 in the hub's shards, or the sentences of a small text; and GLUE's.

A document is one row of ids, `[CLS]` pieces `[SEP]`, cut to max_length; documents are never packed together. A batch is
(tokens, valid, labels), each (B, N), N the longest document in it: valid is True at real tokens, labels are -100 where
nothing is to be predicted.
"""

import gzip
import hashlib
import json
import multiprocessing
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import EncoreError
from common.formats import corpora
from common.formats.labelled_text import Examples, GLUETask, Labelled, collate_labels, cut_longest
from common.formats.text_corpus import MaskedCorpus, TextBlocks, document_blocks, pad
from common.formats.wordpiece import PAD, WordPiece
from common.masking.words import MaskWords

Batch = tuple[Tensor, Tensor, Tensor]
Blocks = Sequence[list[int]]

EVALUATION_RATIO = 0.15  # whatever the ratio in training, so that runs can be compared
EVALUATION_SEED = 17


class Masking:
    """Collates rows into a batch and hides `ratio` of the tokens that are neither special nor padding."""

    def __init__(self, tokenizer: WordPiece, ratio: float) -> None:
        self.ratio, self.mask = ratio, MaskWords(tokenizer, ratio)

    def __call__(self, rows: Sequence[Tensor]) -> Batch:
        tokens = pad(rows)
        inputs, labels = self.mask(tokens)
        return inputs, tokens.ne(PAD), labels


class _Masked(MaskedCorpus):
    """What both data modules share: `mask_ratio` of the words hidden in training, 15 % in validation."""

    fixed_seed = EVALUATION_SEED

    def __init__(self, max_length: int, mask_ratio: float, **loaders: int) -> None:
        super().__init__(**loaders)
        self.max_length, self.mask_ratio = max_length, mask_ratio

    def build(self) -> tuple[WordPiece, Any, Any]:
        """Tokenizer, and blocks of ids to train on and to validate on."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            tokenizer, train, valid = self.build()
            self.train, self.valid = (TextBlocks(blocks, tokenizer, self.max_length) for blocks in (train, valid))
            self.collate, self.fixed_collate = (Masking(tokenizer, r) for r in (self.mask_ratio, EVALUATION_RATIO))


class Sentences(_Masked):
    """Sentences of a named source ("wikitext2", or "sklearn": comes with scikit-learn) as documents.

    A WordPiece of vocab_size is trained on the training sentences.
    """

    def __init__(
        self,
        source: corpora.Source = "sklearn",
        vocab_size: int = 2048,
        max_length: int = 64,
        mask_ratio: float = 0.3,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(max_length, mask_ratio, batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.source, self.vocab_size = source, vocab_size

    def build(self) -> tuple[WordPiece, Any, Any]:
        train, valid = corpora.sentences(self.source)
        tokenizer = WordPiece.train(train, self.vocab_size, rarest=5)
        return tokenizer, document_blocks(train, tokenizer), document_blocks(valid, tokenizer)


# ------------------------------------------------------------------------------------------------------------------ C4


class C4(_Masked):
    """C4 `en`: one document a sample, cut to max_length.

    path: folder with the hub's shards. cache: where their rows are kept, one .npy a shard, 252 bytes a document of 128
    tokens; each shard is encoded once, in num_workers processes, and an interrupted preparation goes on with the next.
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
        super().__init__(max_length, mask_ratio, batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.path, self.tokenizer_path, self.cache = Path(path), tokenizer, Path(cache)

    def prepare_data(self) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        jobs = [
            (file, target, self.tokenizer_path, self.max_length - 2)
            for split in ("train", "validation")
            for file, target in self.shards(split)
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

    def shards(self, split: Literal["train", "validation"]) -> list[tuple[Path, Path]]:
        """The hub's files c4-train.00000-of-01024.json.gz, ..., in order (a part of them will do), and their rows'."""
        files = sorted(self.path.glob(f"c4-{split}.*.json.gz"))
        if not files:
            raise EncoreError(
                f"{self.path}: no c4-{split}.*.json.gz; point to the folder `en` of C4 as the hub has it, shards of "
                "JSON lines"
            )
        vocabulary = WordPiece.load(self.tokenizer_path).vocabulary
        key = hashlib.sha256(repr((sorted(vocabulary.items()), self.max_length, "ids")).encode()).hexdigest()[:12]
        return [(file, self.cache / f"{file.name.removesuffix('.json.gz')}.{key}.npy") for file in files]

    def build(self) -> tuple[WordPiece, Any, Any]:
        train, valid = (MappedBlocks([rows for _, rows in self.shards(split)]) for split in ("train", "validation"))
        return WordPiece.load(self.tokenizer_path), train, valid


class MappedBlocks:
    """Blocks of ids in .npy files, rows filled with [PAD], mapped into memory when they are needed."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.ends = np.cumsum([len(_mapped(file)) for file in files])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> list[int]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        row = _mapped(self.files[part])[index - (self.ends[part - 1] if part else 0)]
        return row[row != PAD].tolist()


@lru_cache(maxsize=256)  # open files are few, shards are many
def _mapped(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise EncoreError(
            f"{file}: not a whole .npy file ({error}); delete it, and its shard is encoded anew"
        ) from None


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


def encode_shard(file: Path, target: Path, tokenizer: str, length: int) -> None:
    """Writes the rows of one shard, (documents, length) ids, to `target`, whole or not at all."""
    pieces = WordPiece.load(tokenizer)
    texts, parts, done = read_shard(file), [], 0
    while chunk := list(islice(texts, 10_000)):
        rows = np.zeros((len(chunk), length), dtype=np.uint16 if len(pieces) <= 2**16 else np.uint32)
        for row, ids in zip(rows, document_blocks(chunk, pieces, str(file), first=done + 1)):
            row[: len(ids)] = ids[:length]
        parts.append(rows)
        done += len(chunk)
    if not parts:
        raise EncoreError(f"{file}: has no documents; remove it")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.npy")
    try:
        np.save(temporary, np.concatenate(parts))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------- GLUE


class GLUE(GLUETask):
    """Batches (tokens, valid, segments, labels) of `[CLS]` a `[SEP]`, or `[CLS]` a `[SEP]` b `[SEP]` with b in segment
    1, of at most max_length tokens."""

    def __init__(
        self,
        path: str,
        task: str,
        tokenizer: str,
        batch_size: int,
        max_length: int = 256,
        num_workers: int = 0,
        seed: int = 19,
    ) -> None:
        super().__init__(path, task, batch_size=batch_size, max_length=max_length, num_workers=num_workers, seed=seed)
        self.tokenizer_path = tokenizer

    def rows(self, examples: Examples) -> Dataset:
        tokenizer = WordPiece.load(self.tokenizer_path)
        join = RowOfTexts(tokenizer, self.max_length)
        return Labelled([tokenizer.encode_batch(texts) for texts in examples.texts], examples.labels, join)

    def collate(self, items: Sequence[tuple[tuple[Tensor, Tensor], float]]) -> tuple[Tensor, ...]:
        """Padded to the longest."""
        tokens, segments = (pad([row[i] for row, _ in items]) for i in (0, 1))
        return tokens, tokens.ne(PAD), segments, collate_labels(items, regression=self.task.num_classes == 1)


class RowOfTexts:
    """The ids of one or two texts as (tokens, segments), (N,) each."""

    def __init__(self, tokenizer: WordPiece, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, parts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        ids, segments = [self.tokenizer.cls], [0]
        for number, part in enumerate(cut_longest(parts, self.max_length - 1 - len(parts))):
            ids += [*part, self.tokenizer.sep]
            segments += [number] * (len(part) + 1)
        return torch.tensor(ids), torch.tensor(segments)
