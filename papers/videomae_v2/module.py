"""VideoMAE V2's two objectives: dual-masked reconstruction (Sec. 3.2), and classification (Sec. 3.4, App.)."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torchvision import tv_tensors
from torchvision.transforms import v2

from common.eval.classification import multi_view_accuracy
from common.layers import TransformerLayer, TubeletEmbed
from common.layers.attention import take_tokens
from common.training.optim import adamw, schedule
from papers.videomae_v2.model import VideoClassifier, VideoMAE, layer_id, true_indices
from papers.videomae_v2.stages import start_from

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


class Pretraining(L.LightningModule):
    """Stage 1: masked autoencoding. Batches: video (B, C, T, H, W), hidden and decoded (B, N) bool, [skipped].

    lr and min_lr are the ones reached (the public scripts scale theirs by clips a step / 256); warmup is the share of
    all steps in which the rate rises linearly. std: of the input's standardisation; the target is computed
    without it. activation_checkpointing recomputes the blocks in the backward pass.
    """

    def __init__(
        self,
        model: VideoMAE,
        *,
        lr: float,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup: float = 0.1,
        std: tuple[float, ...] = IMAGENET_STD,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.lr, self.min_lr, self.weight_decay, self.betas, self.warmup = lr, min_lr, weight_decay, betas, warmup
        self.std = std
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
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        log_skipped(self, batch)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas, no_decay=("mask_token",))
        total = int(self.trainer.estimated_stepping_batches)
        return schedule(optimizer, "cosine", warmup=int(self.warmup * total), total=total, floor=self.min_lr / self.lr)


class FineTuning(L.LightningModule):
    """Stages 2 and 3: supervised post-pre-training on the labelled hybrid set, then the target data set.

    Batches: video (B, C, T, H, W), label (B,), [skipped]; for evaluation also index (B,), the video's number, and view
    (B,), the number of its clip and crop: softmax scores are averaged over a video's views.

    weights: the stage before: a training checkpoint, a hub directory or a released .pth. label_map: the JSON list that
    picks this data set's rows of that stage's head (the public label_710to400.json and its like).
    """

    def __init__(
        self,
        model: VideoClassifier,
        *,
        lr: float,
        weights: str | None = None,
        label_map: str | None = None,
        min_lr: float = 0.0,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        layer_decay: float = 0.75,
        warmup: float = 0.1,
        label_smoothing: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.lr, self.min_lr, self.weight_decay, self.betas = lr, min_lr, weight_decay, betas
        self.layer_decay, self.warmup, self.label_smoothing = layer_decay, warmup, label_smoothing
        if weights is not None:
            start_from(model, Path(weights), label_map=None if label_map is None else Path(label_map))
        classes = model.head.out_features
        mixes: list[v2.Transform] = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
        mixes += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
        self.mix = v2.RandomChoice(mixes) if mixes else None
        self.scores: list[tuple[Tensor, ...]] = []
        if activation_checkpointing:
            checkpoint_blocks(model)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        video, label = batch["video"], batch["label"]
        if self.mix is not None:
            video, label = self.mix(tv_tensors.Video(video), label)
            video = video.as_subclass(Tensor)
        loss = F.cross_entropy(self.model(video).float(), label, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        log_skipped(self, batch)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        views = batch.get("view", torch.zeros_like(batch["index"]))
        self.scores.append((self.model(batch["video"]).float(), batch["label"], batch["index"], views))

    def on_validation_epoch_end(self) -> None:
        logits, label, index, view = (torch.cat(parts) for parts in zip(*self.scores))
        self.scores.clear()
        if self.trainer.world_size > 1:
            gathered: list[Any] = [self.all_gather(x) for x in (logits, label, index, view)]
            logits, label, index, view = (x.flatten(0, 1) for x in gathered)
        for name, value in multi_view_accuracy(logits, label, index, view).items():
            self.log(f"val/{name}", value, prog_bar=name == "top1")

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def configure_optimizers(self) -> Any:
        depth = len(self.model.encoder.blocks)
        optimizer = adamw(
            self,
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=self.betas,
            layer_decay=self.layer_decay,
            layer_id=lambda name: layer_id(name.removeprefix("model."), depth),
        )
        total = int(self.trainer.estimated_stepping_batches)
        return schedule(optimizer, "cosine", warmup=int(self.warmup * total), total=total, floor=self.min_lr / self.lr)


def checkpoint_blocks(model: VideoMAE | VideoClassifier) -> None:
    """Recompute every block in the backward pass instead of keeping its activations."""
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, TransformerLayer))


def log_skipped(module: L.LightningModule, batch: dict[str, Tensor]) -> None:
    """Number of unreadable videos that the loader replaced in this batch."""
    if "skipped" in batch:
        module.log("train/skipped", batch["skipped"].sum().float(), reduce_fx="sum")
