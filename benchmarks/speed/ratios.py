"""The papers' own efficiency claims as measured ratios, and how the cost of a step grows with tokens and width.

In a claim's Paired the paper's way is `ours`, what it is compared with `theirs`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.speed.measure import Paired, Step, exponent, paired, timed


def dual_masking(rounds: int, dim: int = 384, depth: int = 12) -> Paired:
    """VideoMAE V2 (Sec. 3.2): a step that decodes half of the hidden cubes against one that decodes all."""
    half, whole = (_video_step(dim, depth, decoder=decoder) for decoder in ("running_cell", "none"))
    return paired(half, whole, rounds)


def visible_only(rounds: int, dim: int = 384, depth: int = 12) -> Paired:
    """An encoder that reads the visible tenth of the cubes against one that reads all of them."""
    from papers.videomae_v2.masking import tube_mask
    from papers.videomae_v2.model import true_indices

    model = _video_mae(dim, depth).encoder
    video = torch.rand(1, 3, 16, 224, 224)
    visible = true_indices(~tube_mask((8, 14, 14), 0.9, 1))

    def step(chosen: Any) -> Step:
        def run() -> float:
            model.zero_grad(set_to_none=True)
            out = model(video, chosen).mean()
            out.backward()
            return out.item()

        return run

    return paired(step(visible), step(None), rounds)


def _video_mae(dim: int, depth: int) -> Any:
    from papers.videomae_v2.model import VideoMAE

    return VideoMAE(
        image_size=224, patch_size=16, num_frames=16, tubelet_size=2, dim=dim, depth=depth, num_heads=dim // 64,
        mlp_dim=4 * dim,
        decoder_dim=dim // 2, decoder_heads=dim // 128, decoder_mlp_dim=2 * dim, decoder_depth=4,
    )  # fmt: skip


def _video_step(dim: int, depth: int, decoder: str) -> Step:
    from papers.videomae_v2.masking import DualMasking
    from papers.videomae_v2.module import Pretraining

    torch.manual_seed(0)
    module = Pretraining(_video_mae(dim, depth), lr=1e-5)
    hidden, decoded = DualMasking((8, 14, 14), encoder_ratio=0.9, decoder=decoder, decoder_ratio=0.5)(1)
    batch = {"video": torch.rand(1, 3, 16, 224, 224), "hidden": hidden, "decoded": decoded}

    def step() -> float:
        module.zero_grad(set_to_none=True)
        loss = module.loss(batch)
        loss.backward()
        return loss.item()

    return step


CLAIMS = {"dual masking": dual_masking, "visible tokens only": visible_only}

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
