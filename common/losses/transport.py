"""Optimal transport with an entropy term, by Sinkhorn's scaling (Cuturi 2013)."""

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def sinkhorn(scores: Tensor, *, eps: float, iterations: int = 10) -> Tensor:
    """Soft assignments (N, K) float32 of this process's N rows to K columns, given their scores (N, K).

    Solves min_Q <Q, -scores> - eps H(Q) with equal marginals: starts from exp(scores / eps) and in turns gives every
    column the same mass, over the rows of all processes, and every row the same mass. The rows come last: they sum to
    1 always, columns over all processes to N_all / K at convergence. Constant factors of the marginals cancel, so they
    are left out.
    """
    logits = scores.float() / eps
    q = (logits - _over_ranks(logits.max(), dist.ReduceOp.MAX)).exp()
    for _ in range(iterations):
        q /= _over_ranks(q.sum(0))
        q /= q.sum(1, keepdim=True)
    return q


def _over_ranks(x: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """x reduced in place over all processes; x itself when there is one process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x, op=op)
    return x
