"""Counting multiply-adds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def flop_counter() -> FlopCounterMode:
    """torch's counter, which also sees attention's CPU kernel."""
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


def multiply_adds(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Multiply-adds of the matrix products, convolutions and attention in fn(*args, **kwargs), forward only.

    Works on `meta` tensors: nothing is computed. One multiply-add is two of torch's FLOPs.
    """
    with torch.no_grad(), flop_counter() as counter:
        fn(*args, **kwargs)
    return counter.get_total_flops() // 2


def parameter_count(module: torch.nn.Module, *, trainable: bool = False) -> int:
    """Number of (trainable) parameters; shared ones count once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def batch_rows(batch: Any) -> int:
    """Samples in a batch: the first dimension of its first tensor, or its length."""
    if isinstance(batch, Tensor):
        return batch.shape[0]
    if isinstance(batch, dict):
        return batch_rows(next(iter(batch.values())))
    if isinstance(batch, list | tuple) and batch:
        return batch_rows(batch[0])
    return len(batch)
