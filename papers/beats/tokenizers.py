"""Acoustic tokenizers: a frozen random projection (iteration 1), and one distilled from an encoder (iteration 2 on)."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from common.layers.quantizer import EMAQuantizer
from papers.beats.model import Encoder, TransformerStack, crop_to_patches, init_normal


class RandomProjectionTokenizer(nn.Module):
    """z_t = argmin_i || v_i - W x_t ||^2 with W and V drawn once from `seed` and never trained (Sec. 3.2.1).

    x_t is the normalised patch, flattened. V lies on the unit sphere: with unequal norms a handful of short codes would
    win almost every patch. layer_norm: a parameter-free LayerNorm of W x_t, as in the open re-training.
    """

    projection: Tensor
    codebook: Tensor

    def __init__(
        self, *, patch_size: int = 16, dim: int = 256, num_codes: int = 1024, layer_norm: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self.patch_size, self.num_codes, self.layer_norm = patch_size, num_codes, layer_norm
        generator = torch.Generator().manual_seed(seed)
        inputs = patch_size**2
        projection = torch.randn(inputs, dim, generator=generator, device="cpu") * (2 / (inputs + dim)) ** 0.5
        codebook = F.normalize(torch.randn(num_codes, dim, generator=generator, device="cpu"), dim=-1)
        self.register_buffer("projection", projection)
        self.register_buffer("codebook", codebook)

    @torch.no_grad()
    def tokenize(self, spectrogram: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, 1, T, M) -> (B, N) codes; padding is ignored, every patch is looked up on its own."""
        x = crop_to_patches(spectrogram, self.patch_size)
        patches = rearrange(x, "b 1 (t p) (f q) -> b (t f) (p q)", p=self.patch_size, q=self.patch_size)
        projected = patches @ self.projection
        if self.layer_norm:
            projected = F.layer_norm(projected, projected.shape[-1:])
        # ||v||^2 - 2 v.Wx: ||Wx||^2 is the same for every code
        return (self.codebook.pow(2).sum(-1) - 2 * projected @ self.codebook.T).argmin(dim=-1)


class DistilledTokenizer(nn.Module):
    """Encoder, a small head and the quantizer: the part of the self-distilled tokenizer that survives training."""

    def __init__(self, encoder: Encoder, *, num_codes: int = 1024, code_dim: int = 256) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(encoder.dim, encoder.dim), nn.Tanh(), nn.Linear(encoder.dim, code_dim))
        self.head.apply(init_normal)
        self.quantizer = EMAQuantizer(num_codes, code_dim)
        self.num_codes = num_codes

    def forward(self, spectrogram: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1, T, M) -> straight-through codes (B, N, code_dim), commitment loss, indices (B, N)."""
        return self.quantizer(self.head(self.encoder(spectrogram, padding)), padding)

    @torch.no_grad()
    def tokenize(self, spectrogram: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, 1, T, M) -> (B, N) codes. Put the module in eval mode first; the codebook does not move."""
        return self.quantizer.lookup(F.normalize(self.head(self.encoder(spectrogram, padding)), dim=-1).float())


class TokenEstimator(nn.Module):
    """Predicts the teacher's output per token from the codes; dropped after the tokenizer is trained.

    Output width is `dim` (teacher's hidden states), or num_classes (logits of a fine-tuned teacher, iter3+).
    """

    def __init__(
        self, *, code_dim: int = 256, dim: int = 768, depth: int = 3, num_classes: int | None = None, **stack: Any
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(code_dim, dim)
        self.stack = TransformerStack(dim, depth, **{"num_heads": 12, "mlp_dim": 3072, **stack})
        self.head = nn.Identity() if num_classes is None else nn.Linear(dim, num_classes)
        self.proj.apply(init_normal)
        self.head.apply(init_normal)

    def forward(self, codes: Tensor, padding: Tensor | None = None) -> Tensor:
        """codes: (B, N, code_dim) -> (B, N, dim or classes)."""
        return self.head(self.stack(self.proj(codes), padding))


def distillation_loss(predicted: Tensor, target: Tensor, padding: Tensor | None = None) -> Tensor:
    """Mean over non-padded tokens of 1 - cos(o_t, teacher's o_t); both (B, N, width)."""
    distance = 1 - F.cosine_similarity(predicted, target, dim=-1)
    return distance.mean() if padding is None else distance[~padding].mean()


def random_projection_1024() -> RandomProjectionTokenizer:
    """Iteration 1's tokenizer: flattened 16 x 16 patch -> 256, 1024 codes."""
    return RandomProjectionTokenizer()


def beats_base_tokenizer() -> DistilledTokenizer:
    """Tokenizer of iterations 2 and 3: a base encoder of its own, 1024 codes of width 256."""
    return DistilledTokenizer(Encoder())
