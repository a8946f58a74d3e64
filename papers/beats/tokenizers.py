"""Acoustic tokenizers: a frozen random projection (iteration 1), and one distilled from an encoder (iteration 2 on)."""

from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import EncoreError
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


class EMAQuantizer(nn.Module):
    """Vector quantizer on the unit sphere whose codebook follows an EMA of normalised cluster means (Sec. 3.2.2).

    Not trained by gradients. Unused codes keep their vector; the first training batch initialises the codebook by
    cosine k-means. Under distributed training cluster sums are reduced over ranks, so all ranks hold one codebook.
    """

    codebook: Tensor
    usage: Tensor
    initialised: Tensor
    embed_avg: Tensor
    init_counts: Tensor

    def __init__(self, num_codes: int = 1024, dim: int = 256, *, decay: float = 0.99, kmeans_rounds: int = 10) -> None:
        super().__init__()
        self.num_codes, self.decay, self.kmeans_rounds = num_codes, decay, kmeans_rounds
        self.register_buffer("codebook", torch.zeros(num_codes, dim))
        self.register_buffer("usage", torch.zeros(num_codes))  # EMA of tokens a batch and code
        self.register_buffer("initialised", torch.zeros(1))
        # released checkpoints carry these two as well; the normalised EMA never reads them
        self.register_buffer("embed_avg", torch.zeros(num_codes, dim))
        self.register_buffer("init_counts", torch.zeros(num_codes))

    def set_codebook(self, vectors: Tensor, counts: Tensor | None = None) -> None:
        """vectors: (K, dim), normalised here and taken as the codebook; counts: (K,) cluster sizes behind them."""
        self.codebook.copy_(F.normalize(vectors, dim=-1))
        self.init_counts.copy_(torch.zeros(self.num_codes) if counts is None else counts)
        self.initialised.fill_(1)

    def lookup(self, e: Tensor) -> Tensor:
        """e: (..., dim), l2-normalised -> (...) index of the nearest code. EncoreError before any initialisation."""
        if not self.initialised:
            raise EncoreError("the tokenizer's codebook is empty; train the tokenizer or load its weights first")
        return (self.codebook.pow(2).sum(-1) - 2 * e @ self.codebook.T).argmin(dim=-1)

    def forward(self, e: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """e: (B, N, dim), not normalised -> straight-through codes (B, N, dim), commitment loss, indices (B, N).

        The commitment loss is the mean square over elements of non-padded tokens; in training the codebook moves
        after the lookup.
        """
        e = F.normalize(e, dim=-1)
        audio = torch.ones(e.shape[:2], dtype=torch.bool, device=e.device) if padding is None else ~padding
        flat = e.detach()[audio].float()
        if self.training and not self.initialised:
            self.set_codebook(*_kmeans(flat, self.num_codes, self.kmeans_rounds))
        indices = self.lookup(e.detach().float())
        quantized = self.codebook[indices].to(e.dtype)
        if self.training:
            self._move_codebook(flat, indices[audio])
        return e + (quantized - e).detach(), F.mse_loss(e[audio], quantized[audio]), indices

    @torch.no_grad()
    def _move_codebook(self, flat: Tensor, indices: Tensor) -> None:
        counts, sums = _cluster_sums(flat, indices, self.num_codes)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.usage.lerp_(counts, 1 - self.decay)
        means = torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1), self.codebook)
        self.codebook.copy_(F.normalize(self.codebook.lerp(means, 1 - self.decay), dim=-1))


def _cluster_sums(samples: Tensor, indices: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    counts = torch.bincount(indices, minlength=num_clusters).to(samples.dtype)
    sums = samples.new_zeros(num_clusters, samples.shape[-1]).index_add_(0, indices, samples)
    return counts, sums


@torch.no_grad()
def _kmeans(samples: Tensor, num_clusters: int, rounds: int) -> tuple[Tensor, Tensor]:
    """Cosine k-means of (n, dim) unit vectors from random samples -> means (K, dim), counts (K,), one for all ranks."""
    if len(samples) >= num_clusters:
        start = torch.randperm(len(samples), device=samples.device)[:num_clusters]
    else:
        start = torch.randint(len(samples), (num_clusters,), device=samples.device)
    means = samples[start]
    counts = samples.new_zeros(num_clusters)
    for _ in range(rounds):
        counts, sums = _cluster_sums(samples, (samples @ means.T).argmax(dim=-1), num_clusters)
        means = torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1), means)
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(means, src=0)
        dist.broadcast(counts, src=0)
    return means, counts


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
