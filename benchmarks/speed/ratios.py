"""The papers' own efficiency claims as measured ratios, and how the cost of a step grows with tokens and width.

In a claim's Paired the paper's way is `ours`, what it is compared with `theirs`. The claims are in papers/*/speed.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.speed import pairs
from benchmarks.speed.measure import exponent, timed
from common.fast.pairs import Step


def of_papers() -> dict[str, Callable[[], tuple[Step, Step]]]:
    """{name: function that gives the two steps} of the papers' speed.py."""
    return {
        name: steps for module in pairs.of_papers().values() for name, steps in getattr(module, "RATIOS", {}).items()
    }


TOKENS, WIDTHS = (64, 128, 256, 512, 1024), (64, 128, 256, 512)


def growth(rounds: int, tokens: Sequence[int] = TOKENS, widths: Sequence[int] = WIDTHS) -> dict[str, Any]:
    """Seconds of a training step of a four-layer encoder against tokens (width 128) and width (128 tokens), and the
    exponents fitted to each. Multiply-adds would give 1 to 2 in tokens and 1 to 2 in width."""
    by_tokens = [_encoder_seconds(n, 128, rounds) for n in tokens]
    by_width = [_encoder_seconds(128, dim, rounds) for dim in widths]
    return {
        "tokens": {"x": list(tokens), "seconds": by_tokens, "exponent": exponent(tokens, by_tokens)},
        "width": {"x": list(widths), "seconds": by_width, "exponent": exponent(widths, by_width)},
    }


def _encoder_seconds(tokens: int, dim: int, rounds: int) -> float:
    from common.layers import Transformer

    torch.manual_seed(0)
    model = Transformer(4, dim, dim // 32, 4 * dim)
    x = torch.randn(4, tokens, dim)

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = F.mse_loss(model(x), x)
        loss.backward()
        return loss.item()

    timed(step, 2)
    return min(timed(step, 2) for _ in range(rounds))
