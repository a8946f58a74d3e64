"""CLIP's training: symmetric InfoNCE over the whole batch, decoupled weight decay, cosine schedule (Sec. 2.3, 2.5;
Fig. 3).
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torchmetrics import MeanMetric

from common.eval.zero_shot import classify
from common.layers import TransformerLayer
from common.losses import info_nce
from common.training.recipe import Optim, Recipe
from papers.clip.interop import load_pretrained
from papers.clip.model import CLIP
from papers.clip.zero_shot import zero_shot_classifier


def clip_optim(lr: float, warmup: int) -> Optim:
    """What ViTs train with (Sec. 2.5): decoupled weight decay on everything but gains and biases, a cosine to 0."""
    return Optim(lr=lr, weight_decay=0.2, betas=(0.9, 0.98), eps=1e-6, schedule="cosine", warmup=warmup)


class CLIPModule(Recipe):
    """Trains and validates a CLIP.

    weights: a hub directory, or a file in the released layout, to start from; resize_positions interpolates its
    position grid (how ViT-L/14@336px continues from ViT-L/14). gradient_checkpointing recomputes transformer layers
    in the backward pass. Validation batches {image, label} are classified zero-shot with the data module's
    class_names and templates.
    """

    def __init__(
        self,
        model: CLIP,
        *,
        optim: Optim,
        weights: str | None = None,
        resize_positions: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(optim)
        self.model = model
        if weights is not None:
            load_pretrained(model, weights, resize_positions=resize_positions)
        if gradient_checkpointing:
            apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, TransformerLayer))
        self.top1, self.top5 = MeanMetric(), MeanMetric()

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        u = self.model.encode_image(batch["image"])
        v = self.model.encode_text(batch["tokens"])
        scale = self.model.scale
        return {"loss": info_nce(u, v, scale, gather=True), "logit_scale": scale}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.model.clip_scale()

    def on_validation_epoch_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.classifier = zero_shot_classifier(self.model, data.tokenizer, data.class_names, data.templates)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        similarity = classify(self.model.image(batch["image"]), self.classifier)
        hits = similarity.topk(min(5, similarity.shape[1])).indices == batch["label"][:, None]
        self.top1.update(100 * hits[:, 0].float())
        self.top5.update(100 * hits.any(dim=1).float())

    def on_validation_epoch_end(self) -> None:
        self.log("val/zero_shot_top1", self.top1, prog_bar=True)
        self.log("val/zero_shot_top5", self.top5)


@torch.no_grad()
def embed(encode: Any, inputs: Tensor, batch_size: int = 256) -> Tensor:
    """encode over inputs in batches, concatenated."""
    return torch.cat([encode(part) for part in inputs.split(batch_size)])
