"""VideoMAE V2's two objectives: dual-masked reconstruction (Sec. 3.2), and classification (Sec. 3.4, App.)."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from common.eval.classification import Classification
from common.formats.video_clips import IMAGENET_STD
from common.interop.weights import State
from common.layers import TransformerLayer, TubeletEmbed
from common.layers.attention import take_tokens
from common.training.optim import layer_id
from common.training.recipe import Optim, Recipe
from papers.videomae_v2.model import VideoClassifier, VideoMAE, true_indices
from papers.videomae_v2.stages import stage_weights, start_from


def cube_targets(video: Tensor, decoded: Tensor, embed: TubeletEmbed, std: tuple[float, ...]) -> Tensor:
    """What the decoder must predict: each cube's pixels, normalised for that cube and that channel.

    video: (B, C, T, H, W), standardised with some mean and std per channel; decoded: (B, M) indices. Returns
    (B, M, t * p * p * C), channel fastest. The variance is the unbiased one. The standardisation is undone, for std
    matters beside 1e-6; its mean goes with the cube's.
    """
    channels = video.shape[1]
    pixels = take_tokens(embed.cubes(video), decoded).unflatten(-1, (channels, -1))
    scale = pixels.new_tensor(std)[:, None]
    variance, average = torch.var_mean(pixels, dim=-1, keepdim=True)  # exactly 0 and the pixel where all are alike
    return ((pixels - average) * (scale / (scale * variance.sqrt() + 1e-6))).transpose(-1, -2).flatten(-2)


def dual_masked_loss(prediction: Tensor, target: Tensor, in_loss: Tensor) -> Tensor:
    """Mean squared error over the decoded cubes that the encoder did not see (Eq. 4).

    prediction, target: (B, M, K); in_loss: (B, M) bool, True where the decoded cube was hidden. Returns a scalar.
    """
    error = F.mse_loss(prediction, target, reduction="none").mean(-1)
    return (error * in_loss).sum() / in_loss.sum()


class Pretraining(Recipe):
    """Stage 1: masked autoencoding. Batches: video (B, C, T, H, W), hidden and decoded (B, N) bool, [skipped].

    The rates in `optim` are the ones reached (the public scripts scale theirs by clips a step / 256). std: of the
    input's standardisation; the target is computed without it. activation_checkpointing recomputes the blocks in the
    backward pass.
    """

    def __init__(
        self,
        model: VideoMAE,
        optim: Optim,
        *,
        std: tuple[float, ...] = IMAGENET_STD,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(optim)
        self.model, self.std = model, std
        if activation_checkpointing:
            checkpoint_blocks(model)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Dual-masked reconstruction loss of a batch."""
        video, hidden, decoded = batch["video"], batch["hidden"], batch["decoded"]
        prediction = self.model(video, hidden, decoded)
        index = true_indices(decoded)
        with torch.no_grad():
            target = cube_targets(video, index, self.model.encoder.embed, self.std)
        return dual_masked_loss(prediction.float(), target.float(), hidden.gather(1, index))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        log_skipped(self, batch)
        return super().training_step(batch, batch_idx)


class FineTuning(Classification):
    """Stages 2 and 3: supervised post-pre-training on the labelled hybrid set, then the target data set.

    Batches: video (B, C, T, H, W), label (B,), [skipped]; for evaluation also index (B,), the video's number, and view
    (B,), the number of its clip and crop: softmax scores are averaged over a video's views.

    weights: the stage before: a training checkpoint, a hub directory or a released .pth. label_map: the JSON list that
    picks this data set's rows of that stage's head (the public label_710to400.json and its like).
    """

    key = "video"
    model: VideoClassifier

    def __init__(
        self,
        model: VideoClassifier,
        optim: Optim,
        *,
        weights: str | None = None,
        label_map: str | None = None,
        label_smoothing: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        if weights is not None:
            labels = None if label_map is None else Path(label_map)
            start_from(model, self.read_weights(Path(weights)), weights, label_map=labels)
        mixing: Any = {"label_smoothing": label_smoothing, "mixup": mixup, "cutmix": cutmix}
        super().__init__(model, optim, num_classes=model.head.out_features, **mixing)
        if activation_checkpointing:
            checkpoint_blocks(model)

    def read_weights(self, path: Path) -> State:
        """State dict, in our names, of what the stage before left."""
        return stage_weights(path)

    def layer_id(self, name: str) -> int:
        return layer_id(name, len(self.model.encoder.blocks), last=("fc_norm.", "head."))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        log_skipped(self, batch)
        return super().training_step(batch, batch_idx)


def checkpoint_blocks(model: VideoMAE | VideoClassifier) -> None:
    """Recompute every block in the backward pass instead of keeping its activations."""
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, TransformerLayer))


def log_skipped(module: L.LightningModule, batch: dict[str, Tensor]) -> None:
    """Number of unreadable videos that the loader replaced in this batch."""
    if "skipped" in batch:
        module.log("train/skipped", batch["skipped"].sum().float(), reduce_fx="sum")
