"""Unsupervised video object segmentation (benchmark II): K-means on a clip's tube features against its object masks."""

from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

from papers.sigma.interop import load_encoder
from papers.videomae_v2.model import Grid, VideoEncoder

Matching = Literal["hungarian", "greedy"]
BACKGROUND = 0


def cluster_tubes(features: Tensor, num_clusters: int, *, seed: int = 0) -> np.ndarray:
    """K-means (5 starts, 50 steps) on the tokens (N, D) of one clip -> cluster of every token, (N,) int."""
    kmeans = KMeans(num_clusters, n_init=5, max_iter=50, random_state=seed)
    return kmeans.fit_predict(features.float().cpu().numpy())


def to_pixels(clusters: np.ndarray, grid: Grid, shape: tuple[int, int, int]) -> np.ndarray:
    """Clusters (T' H' W',) of tubes as a map (T, H, W) of the masks' size, each pixel taking its tube's cluster."""
    volume = torch.from_numpy(clusters).view(1, 1, *grid).double()
    return F.interpolate(volume, shape, mode="nearest")[0, 0].long().numpy()


def matched_iou(prediction: np.ndarray, truth: np.ndarray, matching: Matching) -> float:
    """Mean IoU (%) over the labels in `truth`, the background among them, after naming the clusters.

    prediction, truth: integer arrays of one shape. "hungarian": one cluster a label so that the IoU is largest in sum,
    clusters left over become background. "greedy": each cluster takes the label that most of its pixels have.
    """
    labels, truth_index = np.unique(truth, return_inverse=True)
    clusters, cluster_index = np.unique(prediction, return_inverse=True)
    overlap = np.zeros((len(clusters), len(labels)))
    np.add.at(overlap, (cluster_index.ravel(), truth_index.ravel()), 1)
    union = overlap.sum(1, keepdims=True) + overlap.sum(0) - overlap
    if matching == "hungarian":
        name = np.full(len(clusters), BACKGROUND)
        rows, columns = linear_sum_assignment(overlap / union, maximize=True)
        name[rows] = labels[columns]
    else:
        name = labels[overlap.argmax(1)]
    named = name[cluster_index].reshape(truth.shape)
    ious = [((named == c) & (truth == c)).sum() / ((named == c) | (truth == c)).sum() for c in labels]
    return 100 * float(np.mean(ious))


class Segmentation(L.LightningModule):
    """`test`: mean over clips of the IoU with K = number of labels in the clip (clustering, Hungarian) and K = 10
    (over-clustering, greedy). Batches: video (B, 3, T, H, W), mask (B, T, H, W) int64 with 0 for the background."""

    def __init__(self, encoder: VideoEncoder, *, weights: str | None = None, overclusters: int = 10) -> None:
        super().__init__()
        self.encoder, self.overclusters = encoder, overclusters
        if weights is not None:
            load_encoder(encoder, weights)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for features, mask in zip(self.encoder(batch["video"]), batch["mask"]):
            truth = mask.cpu().numpy()
            scores = {}
            plans: list[tuple[str, int, Any]] = [
                ("clustering", len(np.unique(truth)), "hungarian"),
                ("overclustering", self.overclusters, "greedy"),
            ]
            for name, num_clusters, matching in plans:
                clusters = cluster_tubes(features, num_clusters)
                scores[f"test/{name}_miou"] = matched_iou(
                    to_pixels(clusters, self.encoder.grid, truth.shape), truth, matching
                )
            self.log_dict(scores, on_epoch=True, on_step=False, batch_size=1, sync_dist=True)
