"""Attention masks. Everywhere in Encore a bool mask means True = may attend, as in torch's
scaled_dot_product_attention."""

import torch
from torch import Tensor


def key_padding_mask(valid: Tensor, length: int | None = None) -> Tensor:
    """Mask that hides padded keys.

    valid: (B, N) bool, True at real tokens; or (B,) integer lengths, then `length` is N (default: the longest).
    Returns (B, 1, 1, N) bool, broadcastable over heads and queries.
    """
    if valid.dim() == 1:
        positions = torch.arange(length or int(valid.max()), device=valid.device)
        valid = positions[None, :] < valid[:, None]
    return valid.bool()[:, None, None, :]
