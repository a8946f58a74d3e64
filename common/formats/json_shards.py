"""Corpora in shards of JSON lines with a field `text`, as C4 has them, encoded once and mapped into memory."""

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

import numpy as np

from common.errors import EncoreError
from common.formats.text_corpus import document_blocks
from common.formats.wordpiece import PAD, WordPiece


class EncodedShards:
    """The shards of a folder whose names fit `pattern`, and their rows of at most `length` ids in the folder `cache`.

    tokenizer: folder of a WordPiece; another one, and another length, has other rows.
    """

    def __init__(self, folder: Path, pattern: str, tokenizer: str, length: int, cache: Path) -> None:
        files = sorted(folder.glob(pattern))
        if not files:
            raise EncoreError(f"{folder}: no {pattern}; point to the folder of the corpus as the hub has it")
        vocabulary = WordPiece.load(tokenizer).vocabulary
        key = hashlib.sha256(repr((sorted(vocabulary.items()), length)).encode()).hexdigest()[:12]
        self.tokenizer, self.length, self.cache = tokenizer, length, cache
        self.targets = [(file, cache / f"{file.name.removesuffix('.json.gz')}.{key}.npy") for file in files]

    def encode(self, num_workers: int) -> None:
        """Encodes every shard once, in so many processes; when interrupted it goes on with the next shard."""
        self.cache.mkdir(parents=True, exist_ok=True)
        jobs = [(*pair, self.tokenizer, self.length) for pair in self.targets if not pair[1].exists()]
        if num_workers == 0:
            for job in jobs:
                encode_shard(*job)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
            for _ in pool.map(encode_shard, *zip(*jobs)):
                pass

    def blocks(self) -> "MappedBlocks":
        """The documents' ids, in the order of the shards."""
        return MappedBlocks([target for _, target in self.targets])


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
        with gzip.open(file, "rt", encoding="utf-8-sig") as stream:
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
