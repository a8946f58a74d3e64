"""Random masks over tokens, dropping and putting back tokens (MAE, He et al. 2022, Sec. 3), masked words (BERT)."""

import torch
from torch import Tensor


def random_mask(
    batch: int,
    length: int,
    num_masked: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """(batch, length) bool, True = masked; exactly num_masked in every row, uniform over all such rows."""
    if not 0 <= num_masked <= length:
        raise ValueError(f"cannot mask {num_masked} of {length} tokens")
    order = torch.rand(batch, length, generator=generator, device=device).argsort(dim=1)
    return order < num_masked


def keep_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """x: (B, N, ...), keep: (B, N) bool with the same number K of True in every row -> (B, K, ...), in order."""
    return x[keep].unflatten(0, (x.shape[0], -1))


def put_tokens(kept: Tensor, keep: Tensor, fill: Tensor | float = 0.0) -> Tensor:
    """Inverse of keep_tokens: kept (B, K, D) goes back to where keep (B, N) is True, `fill` (scalar or (D,))
    elsewhere."""
    fill = torch.as_tensor(fill, dtype=kept.dtype, device=kept.device)
    full = fill.expand(*keep.shape, kept.shape[-1]).clone()
    full[keep] = kept.flatten(0, 1)
    return full


def mlm_mask(
    tokens: Tensor,
    eligible: Tensor,
    *,
    ratio: float,
    mask_id: int,
    vocab_size: int,
    words: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """BERT's masked-word corruption (Devlin et al. 2019, Sec. 3.1).

    tokens: (B, N) ids; eligible: (B, N) bool, False at special tokens and padding, which are never chosen. Every
    eligible token is chosen with probability `ratio`; of the chosen 80 % become mask_id, 10 % a random id, 10 % stay.
    words: (B, N) index of the word a token belongs to, within its row; given, the tokens of a word are chosen together.

    Returns (inputs, labels), (B, N) each; labels hold the original id at chosen positions and -100 elsewhere.
    """
    draw = torch.rand(tokens.shape, device=tokens.device)
    chosen = eligible & ((draw if words is None else draw.gather(1, words)) < ratio)
    kind = torch.rand(tokens.shape, device=tokens.device)
    inputs = tokens.masked_fill(chosen & (kind < 0.8), mask_id)
    inputs = torch.where(chosen & (kind >= 0.9), torch.randint_like(tokens, vocab_size), inputs)
    return inputs, tokens.masked_fill(~chosen, -100)
