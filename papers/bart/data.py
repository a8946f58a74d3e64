"""Text for BART: raw corpora cut into blocks and corrupted on the fly."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import EncoreError
from common.formats.corpora import Document, Source, documents
from common.formats.tables import read_text
from common.formats.tokenizers import ByteBPE, load_byte_bpe, train_byte_bpe
from common.training.loaders import Loaders
from papers.bart.model import BOS, EOS, PAD
from papers.bart.noise import Flags, Noise, Tokens, Vocabulary

Pair = tuple[Tokens, Tokens]


def split_documents(text: str) -> Iterator[Document]:
    """Documents of a raw corpus: runs of non-blank lines between blank ones. Only a line feed ends a line."""
    for document in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in document.split("\n") if line.strip()]
        if lines:
            yield lines


def noise_vocabulary(tokenizer: ByteBPE) -> Vocabulary:
    """What the noise must know of a tokenizer. Full stops are "." and " ." alike; only "." exists in detached text."""
    if tokenizer.mask is None:
        raise EncoreError("the tokenizer has no <mask> token; BART's vocabulary has one as its last entry")
    full_stop = np.zeros(len(tokenizer), dtype=bool)
    for piece in (".", " ."):
        ids = tokenizer.encode(piece)
        if len(ids) == 1:
            full_stop[ids] = True
    return Vocabulary(tokenizer.starts_word().numpy(), full_stop, tokenizer.mask)


def blocks(ids: Tokens, full_stop: Flags, length: int) -> Iterator[Tokens]:
    """Blocks `<s> ...

    </s>` of up to `length` tokens out of one document: as many whole sentences as fit; a sentence that is longer than a
    block is cut. ids: (N,), full_stop: (N,) bool.
    """
    room = length - 2
    ends = np.append(np.flatnonzero(full_stop[ids]) + 1, len(ids))
    start = 0
    while start < len(ids):
        fitting = ends[(ends > start) & (ends <= start + room)]
        stop = int(fitting[-1]) if len(fitting) else min(start + room, len(ids))
        yield np.concatenate([[BOS], ids[start:stop], [EOS]])
        start = stop


class Blocks(Dataset):
    """Blocks of a corpus, one after the other in `tokens` (in memory or mapped); block i ends at `offsets`[i + 1]."""

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray) -> None:
        self.tokens, self.offsets = tokens, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tokens:
        return np.asarray(self.tokens[self.offsets[index] : self.offsets[index + 1]], dtype=np.int64)

    @classmethod
    def of(cls, documents: Iterable[Document], tokenizer: ByteBPE, length: int) -> "Blocks":
        """Encode and cut documents, in memory."""
        made = list(encode_blocks(documents, tokenizer, length))
        if not made:
            raise EncoreError("the corpus has no text; a document is a run of non-blank lines")
        return cls(np.concatenate(made), np.cumsum([0, *map(len, made)]))

    @classmethod
    def cached(cls, files: Sequence[Path], tokenizer: ByteBPE, length: int, cache: Path) -> "Blocks":
        """Encode files once into `cache` (one file at a time, nothing half-written) and map the result into memory."""
        key = hashlib.sha256(repr((len(tokenizer), tokenizer.tokenizer.to_str(), length)).encode())
        for file in files:
            key.update(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
        stem = cache / key.hexdigest()[:16]
        tokens, offsets = stem.with_suffix(".tokens"), stem.with_suffix(".offsets.npy")
        if not offsets.exists():
            cache.mkdir(parents=True, exist_ok=True)
            ends, temporary = [0], stem.with_suffix(f".tmp{os.getpid()}")
            with temporary.open("wb") as out:
                for file in files:
                    for block in encode_blocks(split_documents(read_text(file)), tokenizer, length):
                        out.write(block.astype(np.uint32).tobytes())
                        ends.append(ends[-1] + len(block))
            if len(ends) == 1:
                temporary.unlink()
                raise EncoreError(f"{files[0].parent}: the text files are empty")
            os.replace(temporary, tokens)
            np.save(temporary.with_suffix(".npy"), np.array(ends))
            os.replace(temporary.with_suffix(".npy"), offsets)  # last, so that it vouches for the tokens
        return cls(np.memmap(tokens, dtype=np.uint32, mode="r"), np.load(offsets))


def encode_blocks(documents: Iterable[Document], tokenizer: ByteBPE, length: int) -> Iterator[Tokens]:
    """Blocks of many documents. Lines of a document are joined by a space, so that every line starts a word."""
    full_stop = noise_vocabulary(tokenizer).full_stop
    for document in documents:
        yield from blocks(np.array(tokenizer.encode(" ".join(document)), dtype=np.int64), full_stop, length)


class Denoised(Dataset):
    """(corrupted, original) blocks. Noise is a function of (noise.seed, epoch, index).

    In training (epoch None) the loader's generator, seeded for every batch of the run, draws the epoch number: the
    noise differs whenever a block comes again, and a resumed run repeats it exactly.
    """

    def __init__(self, dataset: Blocks, vocabulary: Vocabulary, noise: Noise, epoch: int | None = None) -> None:
        self.blocks, self.vocabulary, self.noise, self.epoch = dataset, vocabulary, noise, epoch

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Pair:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        epoch = int(torch.randint(2**31, ())) if self.epoch is None else self.epoch
        return [(self.noise(x, self.vocabulary, epoch=epoch, index=i), x) for i in indices for x in [self.blocks[i]]]


def pad(rows: Sequence[Tokens]) -> Tensor:
    """Rows of ids -> (B, longest) int64, filled with `<pad>` on the right."""
    out = torch.full((len(rows), max(map(len, rows))), PAD)
    for target, row in zip(out, rows):
        target[: len(row)] = torch.as_tensor(row)
    return out


def collate_pairs(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Pairs of rows -> padded source (B, N), target (B, T)."""
    return pad([source for source, _ in pairs]), pad([target for _, target in pairs])


def wrap(tokenizer: ByteBPE, texts: Sequence[str], max_length: int) -> list[Tokens]:
    """`<s> text </s>` of every text, cut to max_length with `</s>` kept."""
    return [np.array([BOS, *ids[: max_length - 2], EOS]) for ids in tokenizer.encode_batch(texts)]


class Corpus(Loaders):
    """Denoising batches (source, target) from a raw text corpus.

    path: a directory with train/*.txt and valid/*.txt (or .txt.gz), one sentence or paragraph a line and a blank line
        between documents. Without it the named `source` is used (see common.formats.corpora).
    tokenizer: directory of a published byte-level BPE; without it one of `vocab_size` is trained on the training text.
    cache: where encoded blocks of `path` are kept, so that they are encoded once.
    """

    def __init__(
        self,
        path: str | None = None,
        source: Source = "sklearn",
        tokenizer: str | None = None,
        vocab_size: int = 2000,
        block_length: int = 512,
        noise: Noise = Noise(),  # noqa: B008 (a frozen dataclass)
        batch_size: int = 32,
        num_workers: int = 0,
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.path, self.cache = Path(path) if path else None, Path(cache) if cache else None
        self.source, self.tokenizer_path, self.vocab_size = source, tokenizer, vocab_size
        self.block_length, self.noise = block_length, noise

    def prepare_data(self) -> None:
        if self.cache is not None:
            self._build()  # writes the cache, on one process

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            self.tokenizer, train, valid = self._build()
            vocabulary = noise_vocabulary(self.tokenizer)
            self.train = Denoised(train, vocabulary, self.noise)
            self.valid = Denoised(valid, vocabulary, self.noise, epoch=0)

    def collate(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        return collate_pairs(pairs)

    def _build(self) -> tuple[ByteBPE, Blocks, Blocks]:
        if self.path is None:
            splits = documents(self.source)
            tokenizer = self._tokenizer([" ".join(document) for document in splits[0]])
            train, valid = (Blocks.of(split, tokenizer, self.block_length) for split in splits)
            return tokenizer, train, valid
        files = {split: text_files(self.path / split) for split in ("train", "valid")}
        tokenizer = self._tokenizer(" ".join(d) for f in files["train"] for d in split_documents(read_text(f)))
        if self.cache is not None:
            made = [Blocks.cached(files[s], tokenizer, self.block_length, self.cache) for s in ("train", "valid")]
        else:
            texts = ([d for f in files[s] for d in split_documents(read_text(f))] for s in ("train", "valid"))
            made = [Blocks.of(part, tokenizer, self.block_length) for part in texts]
        return tokenizer, made[0], made[1]

    def _tokenizer(self, texts: Iterable[str]) -> ByteBPE:
        if self.tokenizer_path:
            return load_byte_bpe(Path(self.tokenizer_path))
        return train_byte_bpe(texts, self.vocab_size)


def text_files(folder: Path) -> list[Path]:
    """The .txt and .txt.gz files of a folder, in order of their names."""
    files = sorted([*folder.glob("*.txt"), *folder.glob("*.txt.gz")])
    if not files:
        raise EncoreError(f"{folder}: no .txt or .txt.gz files; a corpus has folders train and valid with text files")
    return files
