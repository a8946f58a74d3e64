"""Vector quantization with a codebook that an exponential moving average moves."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import EncoreError


class EMAQuantizer(nn.Module):
    """Vector quantizer on the unit sphere whose codebook follows an EMA of normalised cluster means (BEiT v2, Sec. 2.1;
    BEATs, Sec. 3.2.2).

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
            raise EncoreError("the codebook is empty; train the quantizer or load its weights first")
        return (self.codebook.pow(2).sum(-1) - 2 * e @ self.codebook.T).argmin(dim=-1)

    def forward(self, e: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """e: (B, N, dim), not normalised -> straight-through codes (B, N, dim), commitment loss, indices (B, N).

        The commitment loss is the mean square over elements of tokens that are not padding; in training the codebook
        moves after the lookup.
        """
        e = F.normalize(e, dim=-1)
        real = torch.ones(e.shape[:2], dtype=torch.bool, device=e.device) if padding is None else ~padding
        flat = e.detach()[real].float()
        if self.training and not self.initialised:
            self.set_codebook(*_kmeans(flat, self.num_codes, self.kmeans_rounds))
        indices = self.lookup(e.detach().float())
        quantized = self.codebook[indices].to(e.dtype)
        if self.training:
            self._move_codebook(flat, indices[real])
        return e + (quantized - e).detach(), F.mse_loss(e[real], quantized[real]), indices

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
