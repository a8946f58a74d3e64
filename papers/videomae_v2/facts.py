"""The paper's counted figures: tokens and multiply-adds. Called on the meta device by `encore facts`."""

import torch
from torch import Tensor, nn

from common.errors import EncoreError
from common.fast.flops import multiply_adds
from papers.videomae_v2 import model as models
from papers.videomae_v2.masking import Grid, token_counts
from papers.videomae_v2.model import VideoMAE

NORM_OPERATIONS = 5
"""What the common counter (fvcore) charges for an element of an affine LayerNorm beside the multiply-adds; the paper's
figures contain it."""


def tokens(grid: list[int], which: str, decoder_ratio: float = 0.5, encoder_ratio: float = 0.9) -> int:
    """Cubes a clip: total, visible, decoded, in_loss, or redundant (decoded although the encoder saw them)."""
    with torch.device("cpu"):
        counts = token_counts((grid[0], grid[1], grid[2]), encoder_ratio, decoder_ratio)
    counts["redundant"] = counts["decoded"] - counts["in_loss"]
    if which not in counts:
        raise EncoreError(f"no token count '{which}'; choose {', '.join(counts)}")
    return counts[which]


def pretraining_gflops(build: str, decoder_ratio: float, norms: bool = True) -> float:
    """Billions of multiply-adds of one clip's forward pass, counted as the paper does.

    All cubes are embedded (ours embeds the visible ones only), and the decoder's last block computes the encoded tokens
    too (ours leaves them out, see unread_multiply_adds); norms: add NORM_OPERATIONS an element of a LayerNorm.
    """
    model: VideoMAE = getattr(models, build)()
    counts = token_counts_of(model.encoder.grid, decoder_ratio)
    counted = reconstruction_multiply_adds(model, counts["visible"], counts["decoded"])
    hidden = counts["total"] - counts["visible"]
    counted += hidden * model.encoder.embed.proj.weight.numel()
    counted += unread_multiply_adds(model, counts["visible"], counts["decoded"])
    return (counted + norms * norm_operations(model, counts)) / 1e9


def token_counts_of(grid: Grid, decoder_ratio: float) -> dict[str, int]:
    """token_counts with 90 % of the cubes hidden, on the CPU whatever the default device is."""
    with torch.device("cpu"):
        return token_counts(grid, 0.9, decoder_ratio)


def reconstruction_multiply_adds(model: VideoMAE, visible: int, decoded: int) -> int:
    """Multiply-adds of our forward pass on one clip."""
    model = model.to("meta")
    video = torch.empty(1, *model.encoder.input_shape, device="meta")
    maps: list[Tensor] = [torch.empty(1, n, dtype=torch.int64, device="meta") for n in (visible, decoded)]
    return multiply_adds(model.reconstruct, video, *maps)


def unread_multiply_adds(model: VideoMAE, visible: int, decoded: int) -> int:
    """What the decoder's last block would spend on the encoded tokens, whose output nobody reads: query, attention over
    all tokens, output projection and MLP; keys and values are computed."""
    dim = model.positions.shape[1]
    weights = sum(p.numel() for p in list(model.decoder.blocks)[-1].parameters() if p.dim() == 2)
    return visible * (weights - 2 * dim**2 + 2 * dim * (visible + decoded))


def norm_operations(model: VideoMAE, counts: dict[str, int]) -> int:
    """NORM_OPERATIONS for every element that passes a LayerNorm, for one clip."""
    encoder_norms = sum(isinstance(m, nn.LayerNorm) for m in model.encoder.modules())
    decoder_norms = sum(isinstance(m, nn.LayerNorm) for m in model.decoder.blocks.modules())
    width, decoder_width = model.encoder.positions.shape[1], model.positions.shape[1]
    elements = encoder_norms * counts["visible"] * width
    elements += (decoder_norms * (counts["visible"] + counts["decoded"]) + counts["decoded"]) * decoder_width
    return NORM_OPERATIONS * elements


def classifier_gmacs(build: str, num_classes: int = 400) -> float:
    """Billions of multiply-adds (no LayerNorms) of one clip's forward pass through a fine-tuning model."""
    model = getattr(models, build)(num_classes=num_classes).to("meta").eval()
    return multiply_adds(model, torch.empty(1, *model.encoder.input_shape, device="meta")) / 1e9


def classifier_tokens(build: str) -> int:
    """Cubes a clip that the fine-tuning encoder computes."""
    return getattr(models, build)(num_classes=400).encoder.num_tokens
