"""Symmetric InfoNCE, on one process or over all ranks."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def gather_with_grad(x: Tensor) -> Tensor:
    """x: (N, D) on every rank -> (world * N, D), ranks in order; gradients flow back to every rank's part.

    Without an initialised process group (or with one rank) it returns x. All ranks must hold equally many rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return torch.cat(all_gather(x), dim=0)


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float, *, gather: bool = False) -> Tensor:
    """Symmetric InfoNCE (CLIP, Fig. 3): mean of the cross entropies of a -> b and b -> a; pair i of a belongs to
    pair i of b.

    a, b: (N, D), L2-normalised; scale: inverse temperature that multiplies the cosines. Returns a scalar.

    gather: the candidates are the pairs of all ranks, each rank scores its own N rows and columns. Averaged over ranks
    (what DDP does with gradients) loss and gradient equal those of one process with the whole batch.
    """
    all_a, all_b, first = a, b, 0
    if gather:
        all_a, all_b = gather_with_grad(a), gather_with_grad(b)
        first = dist.get_rank() * a.shape[0] if all_a.shape[0] != a.shape[0] else 0
    target = torch.arange(first, first + a.shape[0], device=a.device)
    return 0.5 * (F.cross_entropy(scale * a @ all_b.T, target) + F.cross_entropy(scale * b @ all_a.T, target))
