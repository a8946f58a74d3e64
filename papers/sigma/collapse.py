"""How far features have collapsed, and how evenly assignments use the prototypes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def spread(x: Tensor) -> Tensor:
    """Mean standard deviation of the dimensions of the normalised rows of x (N, D), times sqrt(D); a scalar.

    About 1 for directions that cover the sphere evenly, 0 when all rows point the same way.
    """
    return F.normalize(x.float(), dim=-1).std(0).mean() * math.sqrt(x.shape[1])


@torch.no_grad()
def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the squared singular values (as shares) of the normalised, uncentred rows of x (N, D).

    1 when all rows point the same way, D when they cover all dimensions evenly.
    """
    share = torch.linalg.svdvals(F.normalize(x.double(), dim=-1)).square()
    share = share / share.sum()
    return math.exp(float(torch.special.entr(share).sum()))


@torch.no_grad()
def usage_entropy(assignment: Tensor, num_prototypes: int) -> Tensor:
    """Entropy of how often each prototype is assigned, over log K; 1 when all equally often. assignment: (N,) int64."""
    share = torch.bincount(assignment, minlength=num_prototypes).float() / len(assignment)
    return torch.special.entr(share).sum() / math.log(num_prototypes)
