"""Masked words for the token ids of a batch. Everything is drawn from torch's global generator."""

from typing import Protocol

import torch
from torch import Tensor

from common.masking import mlm_mask

PAD = 0
MOST_MASKED = 512  # tokens that a whole-word mask hides in a row at most, as in RetroMAE's code


class Vocabulary(Protocol):
    """What masking must know of a tokenizer; `continues`: (V,) bool, the pieces that go on with a word."""

    cls: int
    sep: int
    mask: int

    @property
    def special_ids(self) -> list[int]: ...
    @property
    def continues(self) -> Tensor: ...
    def __len__(self) -> int: ...


class MaskWords:
    """(B, N) ids, `[PAD]` = 0 at the end of rows -> (inputs, labels): `rate` of the tokens hidden as BERT hides them
    (80 % `[MASK]`, 10 % a random id, 10 % kept), labels -100 elsewhere. Special tokens are never chosen.

    Every token is chosen with probability `rate` for itself; with whole_words whole words are, as many as
    `whole_word_masks` takes for `rate` of the row.
    """

    def __init__(self, vocabulary: Vocabulary, rate: float, whole_words: bool = False) -> None:
        self.vocabulary, self.rate, self.whole_words = vocabulary, rate, whole_words
        self.special = torch.tensor(vocabulary.special_ids)

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        chosen, rate = ~torch.isin(tokens, self.special), self.rate
        if self.whole_words:
            lengths = tokens.ne(PAD).sum(1)
            chosen, rate = chosen & whole_word_masks(self.words(tokens), lengths, rate, draws=1)[:, 0], 1.0
        return mlm_mask(tokens, chosen, ratio=rate, mask_id=self.vocabulary.mask, vocab_size=len(self.vocabulary))

    def words(self, tokens: Tensor) -> Tensor:
        """(B, N) int64, see word_index. `[UNK]` is a word: it may be chosen, although nothing is done to it then."""
        return word_index(tokens, text(tokens, self.vocabulary), self.vocabulary.continues)


def text(tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(B, N) bool: False at `[CLS]`, `[SEP]` and padding."""
    return tokens.ne(PAD) & tokens.ne(vocabulary.cls) & tokens.ne(vocabulary.sep)


def word_index(tokens: Tensor, text: Tensor, continues: Tensor) -> Tensor:
    """(B, N) int64: which word of its row a token belongs to, counted from 0; -1 outside the text.

    tokens: (B, N) ids; text: (B, N) bool, False at special tokens and padding; continues: (V,) bool, the pieces that go
    on with a word. A text that begins with such a piece (it was cut there) begins a word with it.
    """
    first = text & ~text.roll(1, dims=1)
    starts = text & (~continues[tokens] | first)
    return (starts.cumsum(dim=1) - 1).masked_fill(~text, -1)


def whole_word_masks(words: Tensor, lengths: Tensor, ratio: float, draws: int) -> Tensor:
    """(B, draws, N) bool: independent masks, True at the tokens of the chosen words.

    words: (B, N) from `word_index`; lengths: (B,) tokens of every row, special ones included. Words are taken in random
    order while round(ratio * length) tokens, at least one, have room for them; one that does not fit is passed over.
    """
    count = int(words.max()) + 1
    if not count:
        return torch.zeros(len(words), draws, words.shape[1], dtype=torch.bool, device=words.device)
    real = words >= 0
    sizes = torch.zeros(len(words), count, dtype=torch.int64, device=words.device)
    sizes.scatter_add_(1, words.clamp(min=0), real.long())
    budget = (ratio * lengths.double()).round().clamp(1, MOST_MASKED).long()[:, None]
    order = torch.rand(len(words), draws, count, device=words.device).argsort(dim=2)
    sizes = sizes[:, None].expand(-1, draws, -1).gather(2, order)
    taken = torch.zeros(len(words), draws, dtype=torch.int64, device=words.device)
    fits = []
    for size in sizes.unbind(2):
        fit = taken + size <= budget
        taken = taken + size * fit
        fits.append(fit)
    chosen = torch.zeros_like(order, dtype=torch.bool).scatter_(2, order, torch.stack(fits, dim=2))
    return chosen.gather(2, words.clamp(min=0)[:, None].expand(-1, draws, -1)) & real[:, None]
