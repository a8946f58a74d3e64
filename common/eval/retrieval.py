"""Cross-modal retrieval: ranks, recall@k and median rank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import EncoreError


def ranks(similarity: Tensor, positives: Tensor | None = None) -> Tensor:
    """Rank (1 = first) of the best positive in every row, int64 (N,). similarity: (N, M).

    positives: bool (N, M), at least one in a row; default: the diagonal. A negative with equal similarity, and NaN,
    ranks before the positive, so that a collapsed model scores nothing.
    """
    if positives is None:
        if similarity.shape[0] != similarity.shape[1]:
            raise EncoreError(
                f"retrieval: similarity is {tuple(similarity.shape)}; say which pairs match with positives="
            )
        positives = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    if not positives.any(1).all():
        raise EncoreError(f"retrieval: row {int(positives.any(1).int().argmin())} has no positive")
    best = similarity.masked_fill(~positives, -torch.inf).amax(1, keepdim=True)
    return 1 + (~(similarity < best) & ~positives).sum(1)


def retrieval(
    similarity: Tensor,
    positives: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    names: tuple[str, str] = ("image_to_text", "text_to_image"),
) -> dict[str, float]:
    """Recall@k in percent and median rank, rows to columns (names[0]) and columns to rows (names[1]).

    similarity: (N, M); positives as in `ranks`. Keys: ``image_to_text_recall@1``, ..., ``text_to_image_median_rank``.
    """
    metrics = {}
    transposed = None if positives is None else positives.T
    for name, rank in zip(names, (ranks(similarity, positives), ranks(similarity.T, transposed))):
        for k in ks:
            metrics[f"{name}_recall@{k}"] = 100 * (rank <= k).double().mean().item()
        metrics[f"{name}_median_rank"] = rank.double().quantile(0.5).item()
    return metrics
