"""Masked-word batches: C4 in the hub's shards, or the sentences of a small text; and GLUE's.

A document is one row of ids, `[CLS]` pieces `[SEP]`, cut to max_length; documents are never packed together. A batch is
(tokens, valid, labels), each (B, N), N the longest document in it: valid is True at real tokens, labels are -100 where
nothing is to be predicted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from common.formats import corpora
from common.formats.json_shards import EncodedShards
from common.formats.labelled_text import BertRow, Examples, GLUETask, Labelled, collate_labels
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
            self.masking, self.fixed_collate = (Masking(tokenizer, r) for r in (self.mask_ratio, EVALUATION_RATIO))

    def collate(self, rows: Sequence[Tensor]) -> Batch:
        """Rows of ids -> a batch, masked as in training."""
        return self.masking(rows)


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
        for split in ("train", "validation"):
            self.shards(split).encode(self.num_workers)

    def shards(self, split: Literal["train", "validation"]) -> EncodedShards:
        """The hub's files c4-train.00000-of-01024.json.gz, ..., in order; a part of them will do."""
        return EncodedShards(self.path, f"c4-{split}.*.json.gz", self.tokenizer_path, self.max_length - 2, self.cache)

    def build(self) -> tuple[WordPiece, Any, Any]:
        train, valid = (self.shards(split).blocks() for split in ("train", "validation"))
        return WordPiece.load(self.tokenizer_path), train, valid


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
        join = BertRow(tokenizer, self.max_length)
        return Labelled([tokenizer.encode_batch(texts) for texts in examples.texts], examples.labels, join)

    def collate(self, items: Sequence[tuple[tuple[Tensor, Tensor], float]]) -> tuple[Tensor, ...]:
        """Padded to the longest."""
        tokens, segments = (pad([row[i] for row, _ in items]) for i in (0, 1))
        return tokens, tokens.ne(PAD), segments, collate_labels(items, regression=self.task.num_classes == 1)
