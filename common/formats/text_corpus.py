"""Running text for masked words: rows of token ids, and batches that are the same in every validation."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from common.errors import EncoreError
from common.formats.wordpiece import PAD, WordPiece
from common.training.loaders import Loaders, seeded


class TextBlocks(Dataset):
    """Rows `[CLS]` ids `[SEP]` of at most `length` tokens, int64 (n,).

    blocks: the ids of each row without special tokens, in anything that has a length and takes an index; what is too
    long is cut.
    """

    def __init__(self, blocks: Any, tokenizer: WordPiece, length: int) -> None:
        self.blocks, self.tokenizer, self.length = blocks, tokenizer, length

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Tensor:
        return wrap(self.tokenizer, self.blocks[index], self.length)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


def wrap(tokenizer: WordPiece, ids: Sequence[int], length: int) -> Tensor:
    """`[CLS]` ids `[SEP]` as int64, the ids cut so that the row has at most `length` tokens."""
    return torch.tensor([tokenizer.cls, *ids[: length - 2], tokenizer.sep])


def pad(rows: Sequence[Tensor]) -> Tensor:
    """Rows of ids -> (B, longest) int64, `[PAD]` on the right."""
    return pad_sequence(list(rows), batch_first=True, padding_value=PAD)


def document_blocks(texts: Sequence[str], tokenizer: WordPiece, where: str = "text", first: int = 1) -> list[list[int]]:
    """The ids of texts, one block each. EncoreError for an empty text, by its number, counted from `first`."""
    encoded = tokenizer.encode_batch(texts)
    for number, ids in enumerate(encoded, first):
        if not ids:
            raise EncoreError(f"{where}:{number}: an empty document; remove the line")
    return encoded


def sentences(text: str) -> list[str]:
    """Sentences of a text: cut after . ! ? (and quotes or brackets that close behind it) before white space."""
    return [part for part in re.split(r"(?<=[.!?])[\"')\]]*\s+", text.strip()) if part]


def sentence_blocks(texts: Iterable[str], tokenizer: WordPiece, length: int) -> Iterator[list[int]]:
    """Blocks of whole sentences of a text; none reaches over the end of its text."""
    for text in texts:
        yield from join(tokenizer.encode_batch(sentences(text)), length)


def join(encoded: Iterable[Sequence[int]], length: int) -> Iterator[list[int]]:
    """Blocks of whole sentences. encoded: token ids of sentences in order; a block ends with the sentence that brings
    it to `length` tokens or more (what is too much is cut when a row is made of it)."""
    block: list[int] = []
    for ids in encoded:
        if len(block) >= length:
            yield block
            block = []
        block.extend(ids)
    if block:
        yield block


class FixedBatches(Dataset):
    """Consecutive batches, each collated under a seed of its own: the same in every validation."""

    def __init__(self, rows: Any, batch_size: int, collate: Callable[[list[Any]], Any], seed: int = 0) -> None:
        self.rows, self.batch_size, self.collate, self.seed = rows, batch_size, collate, seed

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, number: int) -> Any:
        first = number * self.batch_size
        rows = [self.rows[i] for i in range(first, min(first + self.batch_size, len(self.rows)))]
        with seeded(self.seed, number):
            return self.collate(rows)


class MaskedCorpus(Loaders):
    """Loaders over TextBlocks whose collate function draws masks. `fixed_collate` makes the batches of validation;
    they are the same every time, and every process takes its share of them."""

    fixed_collate: Any = None
    fixed_seed = 0

    def val_dataloader(self) -> DataLoader:
        batches = FixedBatches(self.valid, self.eval_batch_size, self.fixed_collate or self.collate, self.fixed_seed)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            batches,
            batch_size=None,
            sampler=range(rank, len(batches), world),
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),  # workers' seeds must not come from the training's
        )
