"""Whole-word masks, and the masks of enhanced decoding: every row sees a random part of the text and never itself.

Everything draws from torch's global generator. True = masked in a mask, True = may attend in what attention gets.
"""

import torch
from torch import Tensor

from common.masking import mlm_mask

MOST_MASKED = 512  # tokens masked in a row at most, in the released code
MOST_DRAWS = 256  # masks drawn a text for the decoder; its rows pick among them


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


def encoder_mask(
    tokens: Tensor, words: Tensor, lengths: Tensor, *, ratio: float, mask_id: int, unknown: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """(inputs, labels), (B, N) each: whole words hidden as BERT hides tokens (80 / 10 / 10), labels -100 elsewhere.

    `[UNK]`, id `unknown`, may be chosen, but is neither changed nor predicted.
    """
    chosen = whole_word_masks(words, lengths, ratio, draws=1)[:, 0] & tokens.ne(unknown)
    return mlm_mask(tokens, chosen, ratio=1.0, mask_id=mask_id, vocab_size=vocab_size)


def decoder_mask(words: Tensor, valid: Tensor, ratio: float) -> Tensor:
    """(B, N, N) bool: which keys (last dimension) every row of the decoder may attend to.

    min(length, 256) whole-word masks are drawn a text (as many as the longest text of the batch needs); each row picks
    one of its text's, and its own position is hidden on top. `[CLS]` (key 0) is visible to every other row. Padding is
    hidden; the rows of padding, which no loss reads, see `[CLS]` alone.
    """
    lengths = valid.sum(1)
    draws = lengths.clamp(max=MOST_DRAWS)
    masks = whole_word_masks(words, lengths, ratio, int(draws.max()))
    pick = (torch.rand(valid.shape, device=valid.device) * draws[:, None]).long()
    hidden = masks.gather(1, pick[..., None].expand(-1, -1, valid.shape[1]))
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    allowed = ~hidden & ~itself & valid[:, None, :] & valid[:, :, None]
    allowed[..., 0] |= ~valid
    return allowed
