"""Random masks over tokens, and dropping and putting back tokens (MAE, He et al. 2022, Sec. 3)."""

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
