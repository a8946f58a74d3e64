"""Prototypes, optimal-transport assignment of space-time tubes to them, and the symmetric prediction of assignments.

The two features of a tube, x_phi of the projection network and x_psi of the video model, are scored against the same
unit prototypes. Entropic transport with equal marginals (min_Q <Q, -S> - eps H(Q), every prototype 1/K of the mass,
every tube 1/N) turns each branch's scores into assignments, and each branch predicts the other's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.losses.transport import sinkhorn

MIN_EPS = 0.025
"""Cosines span 2, and exp(-2 / eps) must not underflow in float32, or a prototype could lose all its mass."""


class Prototypes(nn.Module):
    """K learnable directions C, shared by both branches."""

    def __init__(self, num_prototypes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_prototypes, dim))

    @torch.no_grad()
    def normalise_(self) -> None:
        """Put every prototype back on the unit sphere, in place and outside the graph."""
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, x: Tensor, *, detach: bool) -> Tensor:
        """Cosines (N, K) of the rows of x (N, D) with the (unit) prototypes, in float32 under autocast too.

        detach: no gradient reaches the prototypes.
        """
        weight = self.weight.detach() if detach else self.weight
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(x.float(), dim=-1) @ weight.float().T


def assign(scores: Tensor, *, eps: float, iterations: int = 10, hard: bool = True) -> Tensor:
    """Targets from scores (N, K): the most likely prototype (N,) int64, or with hard=False the distribution (N, K)."""
    q = sinkhorn(scores.detach(), eps=eps, iterations=iterations)
    return q.argmax(1) if hard else q


def symmetric_loss(
    scores_phi: Tensor, scores_psi: Tensor, target_phi: Tensor, target_psi: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Each branch predicts the other's assignment: CE(s_phi / t, q_psi) + CE(s_psi / t, q_phi), means over tubes.

    scores: (N, K); targets: (N,) int64 or (N, K). Returns a scalar; 2 log K for equal scores.
    """
    from_phi = F.cross_entropy(scores_phi / temperature, target_psi)
    from_psi = F.cross_entropy(scores_psi / temperature, target_phi)
    return from_phi + from_psi
