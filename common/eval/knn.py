"""k-nearest-neighbour classification by cosine similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import EncoreError


def knn_classify(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    *,
    k: int = 20,
    temperature: float | None = 0.07,
    num_classes: int | None = None,
    chunk: int = 1024,
) -> Tensor:
    """Votes per class, (N, num_classes); the prediction is their argmax.

    A neighbour with cosine similarity s votes exp(s / temperature) (instance discrimination, Wu et al. 2018, sec. 3.4;
    DINO), or 1 when temperature is None; then of equally many votes the class with the larger summed similarity wins.
    Nothing is left out: a query that is in the training set finds itself. train_features (M, D), train_labels (M,),
    features (N, D); normalised here.
    """
    if not 0 < k <= len(train_features):
        raise EncoreError(
            f"knn: k = {k} neighbours of {len(train_features)} training samples; choose k between 1 and that"
        )
    if not (torch.isfinite(train_features).all() and torch.isfinite(features).all()):
        raise EncoreError("knn: features hold NaN or infinity; the encoder has diverged")
    num_classes = num_classes or int(train_labels.max()) + 1
    bank = F.normalize(train_features, dim=-1)
    votes = []
    for queries in F.normalize(features, dim=-1).split(chunk):
        similarity, nearest = (queries @ bank.T).topk(k, dim=-1)
        labels = train_labels[nearest]
        if temperature is None:
            # one whole vote each, plus a share of at most 1/2 in all that only decides between equal counts
            weights = 1 + (similarity + 1) / (4 * k + 4)
        else:
            weights = (
                (similarity - 1) / temperature
            ).exp()  # similarity - 1: the same votes up to a factor, without overflow
        votes.append(weights.new_zeros(len(queries), num_classes).scatter_add_(1, labels, weights))
    return torch.cat(votes)
