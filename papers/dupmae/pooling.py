"""Max-pooled vocabulary logits of all ordinary tokens, without ever holding the logits of all positions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = -1000.0  # added to the logits of padding, as in the released code


class _MaxPooledLinear(torch.autograd.Function):
    """max over n of hidden[:, n] @ weight.T + bias + offset[:, n].

    Only the winning position of every word gets a gradient, so the backward pass costs one position a word.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, offset: Tensor, chunk: int) -> Tensor:
        best = hidden.new_full((len(hidden), len(weight)), -torch.inf)
        winner = torch.zeros_like(best, dtype=torch.int64)
        for start in range(0, hidden.shape[1], chunk):
            part = slice(start, start + chunk)
            value, at = (F.linear(hidden[:, part], weight, bias) + offset[:, part, None]).max(dim=1)
            winner = torch.where(value > best, at + start, winner)
            best = torch.maximum(best, value)
        ctx.save_for_backward(hidden, weight, winner)
        return best

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, winner = ctx.saved_tensors
        grad = grads[0].to(weight.dtype)
        grad_hidden, grad_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
        for row, states, position, g in zip(grad_hidden, hidden, winner, grad):
            row.index_add_(0, position, (g[:, None] * weight).to(row.dtype))
            grad_weight.addcmul_(g[:, None], states.to(weight.dtype)[position])
        return grad_hidden, grad_weight, grad.sum(0), None, None


def max_pooled_logits(hidden: Tensor, weight: Tensor, bias: Tensor, valid: Tensor, chunk: int = 16) -> Tensor:
    """mu, (B, V): for every word of the vocabulary its largest logit over the real positions (Sec. 3.2, OT decoding).

    hidden: (B, N, D), ready for the output matrix; weight: (V, D); bias: (V,); valid: (B, N) bool. Raw logits: no ReLU,
    no softmax. `chunk` positions at a time are held, whatever N is, and a gradient needs (V, D) numbers on top.
    """
    offset = (~valid).to(hidden.dtype) * PADDING
    return _MaxPooledLinear.apply(hidden, weight, bias, offset, chunk)
