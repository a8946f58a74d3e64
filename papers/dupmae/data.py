"""Batches for pre-training, and unsupervised fine-tuning examples; judged queries are common.eval.ranking_data's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from common.errors import EncoreError
from common.eval.ranking_data import Group, RankingData
from common.formats import corpora
from common.formats.collection import Passage, cranfield
from common.formats.text_corpus import MaskedCorpus, TextBlocks, pad, sentence_blocks, sentences
from common.formats.wordpiece import PAD, WordPiece
from common.masking.words import MaskWords, text
from papers.dupmae.blocks import load_from_disk
from papers.dupmae.masking import decoder_mask
from papers.dupmae.model import Batch


class MaskedText:
    """Collates rows of token ids into a Batch (Sec. 3.1, 3.2): whole words are hidden from the encoder, and every row
    of the decoder gets a mask of its own."""

    def __init__(self, tokenizer: WordPiece, encoder_ratio: float = 0.3, decoder_ratio: float = 0.5) -> None:
        self.hide, self.decoder_ratio = MaskWords(tokenizer, encoder_ratio, whole_words=True), decoder_ratio

    def __call__(self, rows: Sequence[Tensor]) -> Batch:
        tokens = pad(rows)
        inputs, labels = self.hide(tokens)
        allowed = decoder_mask(self.hide.words(tokens), tokens.ne(PAD), self.decoder_ratio)
        return Batch(tokens, text(tokens, self.hide.vocabulary), inputs, labels, allowed)


class SavedBlocks(Dataset):
    """Token ids of the rows of a folder written by papers.dupmae.blocks or the RetroMAE repository's script."""

    def __init__(self, path: str | Path) -> None:
        self.rows = load_from_disk(path)
        if "token_ids" not in self.rows.column_names:
            raise EncoreError(f"{path}: no column 'token_ids'; it has {', '.join(self.rows.column_names)}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[int]:
        return self.rows[index]["token_ids"]


def named_texts(source: Literal["bundled", "cranfield"]) -> list[str]:
    """Texts of a named source: scikit-learn's descriptions, or the abstracts of Cranfield."""
    if source == "bundled":
        return [" ".join(" ".join(lines).split()) for lines in corpora.paragraphs()]
    return [passage.text for passage in cranfield().corpus.values() if passage.text]


class Corpus(MaskedCorpus):
    """Pre-training batches.

    paths: folders of blocks (see papers.dupmae.blocks); without them the named `source` is cut into blocks here.
    tokenizer: folder of a published vocabulary; without it one of `vocab_size` is trained on the source.
    held_out: that many blocks, spread evenly over the corpus, are for validation.
    """

    def __init__(
        self,
        paths: list[str] | None = None,
        source: Literal["bundled", "cranfield"] = "bundled",
        tokenizer: str | None = None,
        vocab_size: int = 2048,
        length: int = 512,
        encoder_ratio: float = 0.3,
        decoder_ratio: float = 0.5,
        batch_size: int = 32,
        held_out: int = 1000,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if paths and not tokenizer:
            raise EncoreError("Corpus: blocks of token ids need the tokenizer that made them; give its folder")
        self.paths, self.source, self.tokenizer_path, self.vocab_size = paths, source, tokenizer, vocab_size
        self.length, self.ratios, self.held_out = length, (encoder_ratio, decoder_ratio), held_out

    def setup(self, stage: str | None = None) -> None:
        if self.train is not None:
            return
        blocks: Any
        texts = [] if self.paths else named_texts(self.source)
        path = self.tokenizer_path
        tokenizer = WordPiece.load(path) if path else WordPiece.train(texts, self.vocab_size)
        if self.paths:
            blocks = ConcatDataset([SavedBlocks(path) for path in self.paths])
        else:
            blocks = list(sentence_blocks(texts, tokenizer, self.length - 2))
        held_out = {len(blocks) * (2 * i + 1) // (2 * self.held_out) for i in range(self.held_out)}
        if len(held_out) >= len(blocks):
            raise EncoreError(f"Corpus: {self.held_out} of {len(blocks)} blocks cannot be held out; lower held_out")
        rows = TextBlocks(blocks, tokenizer, self.length)
        self.train = Subset(rows, [i for i in range(len(rows)) if i not in held_out])
        self.valid = Subset(rows, sorted(held_out))
        self.mask = MaskedText(tokenizer, *self.ratios)

    def collate(self, rows: Sequence[Tensor]) -> Batch:
        """Rows of ids -> a batch."""
        return self.mask(rows)


class Cloze(Dataset):
    """(query, passages, None): a random sentence of a text, and the rest of it (inverse cloze task, Lee et al. 2019).

    With probability `keep` the sentence stays in the passage too, so that equal words count as well.
    """

    def __init__(self, texts: Sequence[str], keep: float = 0.1) -> None:
        self.texts = [parts for text in texts if len(parts := sentences(text)) > 1]
        self.keep = keep
        if not self.texts:
            raise EncoreError("no text has two sentences; the inverse cloze task needs some")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Group:
        parts = self.texts[index]
        at = int(torch.randint(len(parts), ()))
        rest = parts if torch.rand(()) < self.keep else parts[:at] + parts[at + 1 :]
        return Passage("", parts[at]), [Passage("", " ".join(rest))], None


class InverseCloze(RankingData):
    """Unsupervised fine-tuning on Cranfield's abstracts; validation and test on its queries, as in RankingData."""

    def training_groups(self) -> Dataset:
        assert self.collection is not None
        return Cloze([passage.text for passage in self.collection.corpus.values()])
