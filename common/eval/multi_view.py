"""Multi-view testing of videos: scores of temporal clips and spatial crops averaged per video."""

import torch
from torch import Tensor

from common.errors import EncoreError


def average_views(logits: Tensor, videos: Tensor, views: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean of the views' softmax scores, (V, C), and the V video ids, ascending.

    logits: (N, C), one row a view (clip x crop); videos: (N,) id of the row's video. views: (N,) number of the view
    within its video; when given, a view seen twice (a sampler that pads its last batch) counts once.
    """
    if len(logits) != len(videos):
        raise EncoreError(f"multi-view: {len(logits)} rows of logits for {len(videos)} video ids")
    if views is not None:
        pairs = torch.stack([videos, views], 1)
        _, inverse = pairs.unique(dim=0, return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(pairs), device=inverse.device)
        first.scatter_reduce_(0, inverse, torch.arange(len(pairs), device=inverse.device), "amin")
        logits, videos = logits[first], videos[first]
    ids, index, counts = videos.unique(return_inverse=True, return_counts=True)
    scores = logits.double().softmax(-1)
    total = scores.new_zeros(len(ids), scores.shape[1]).index_add_(0, index, scores)
    return total / counts[:, None], ids
