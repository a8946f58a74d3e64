"""Figures of the paper that follow from the sizes alone, computed with the code that trains; named in paper.yaml."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.layers.positions import relative_bucket
from papers.beats.data import num_frames
from papers.beats.model import (
    BUCKETS,
    FBANK_MEAN,
    FBANK_STD,
    Encoder,
    GatedRelativeAttention,
    beats_base_predictor,
    deepnorm_alpha,
    deepnorm_beta,
    num_masked,
)
from papers.beats.tokenizers import beats_base_tokenizer


def frames(seconds: float) -> int:
    """Fbank frames of a clip."""
    return num_frames(seconds)


def tokens(seconds: float, num_mel_bins: int = 128) -> int:
    """Tokens of a clip through the base patch embedding."""
    encoder = Encoder()
    p = encoder.patch_size
    usable = num_frames(seconds) // p * p
    return encoder.patch_embed(torch.empty(1, 1, usable, num_mel_bins)).shape[1]


def masked_tokens(seconds: float) -> int:
    """Tokens that carry a loss in pre-training."""
    return num_masked(tokens(seconds))


def visible_tokens(seconds: float) -> int:
    """Tokens the encoder sees in pre-training."""
    return tokens(seconds) - masked_tokens(seconds)


def bucket(distance: int) -> int:
    """Relative-position bucket of key index - query index."""
    return int(relative_bucket(torch.tensor(distance, device="cpu"), **BUCKETS))


def bucket_mirror(distance: int) -> int:
    """Difference of the buckets of +distance and -distance."""
    return bucket(distance) - bucket(-distance)


def alpha() -> float:
    """DeepNorm's residual weight at 12 layers."""
    return deepnorm_alpha(12)


def beta() -> float:
    """DeepNorm's initial gain at 12 layers."""
    return deepnorm_beta(12)


def closed_gate() -> float:
    """Gate of the relative bias when its projection is zero."""
    with torch.device("cpu"):
        attention = GatedRelativeAttention(768, 12)
        nn.init.zeros_(attention.gate_proj.weight)
        nn.init.zeros_(attention.gate_proj.bias)
        gate = attention.gate(torch.ones(1, 12, 3, 64)).detach()
    return gate.mean().item()


def codebook_numbers() -> int:
    """Numbers of the learned tokenizer's quantizer that no gradient reaches, as a released file lists them."""
    quantizer = beats_base_tokenizer().quantizer
    return quantizer.codebook.numel() + quantizer.embed_avg.numel() + quantizer.init_counts.numel()


def uniform_loss() -> float:
    """Pre-training loss of uniform logits over the base codebook."""
    codes = beats_base_tokenizer().num_codes
    with torch.device("cpu"):
        loss = F.cross_entropy(torch.zeros(1, codes), torch.zeros(1, dtype=torch.long))
    return loss.item()


def codebook_decay() -> float:
    """Decay of the codebook's moving average."""
    return beats_base_tokenizer().quantizer.decay


def kmeans_rounds() -> int:
    """Rounds of k-means that start the codebook."""
    return beats_base_tokenizer().quantizer.kmeans_rounds


def dropouts() -> list[float]:
    """Dropout of hidden states and of attention in the base encoder's layers."""
    layer: Any = Encoder().stack.layers[0]
    return [layer.dropout.p, layer.attn.dropout]


def normalisation() -> list[float]:
    """AudioSet's filterbank mean and deviation."""
    return [FBANK_MEAN, FBANK_STD]


def predictor_depth() -> int:
    """Layers of the label predictor."""
    return len(beats_base_predictor().stack.layers)
