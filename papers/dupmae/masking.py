"""The masks of enhanced decoding: every row sees a random part of the text and never itself."""

import torch
from torch import Tensor

from common.masking.words import whole_word_masks

MOST_DRAWS = 256  # masks drawn a text for the decoder; its rows pick among them


def decoder_mask(words: Tensor, valid: Tensor, ratio: float) -> Tensor:
    """(B, N, N) bool: which keys (last dimension) every row of the decoder may attend to.

    words: (B, N) the word of its row that a token belongs to, -1 outside the text; valid: (B, N) bool, not padding.
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
