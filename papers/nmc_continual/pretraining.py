"""Supervised pre-training of the small encoder, the stand-in for ImageNet-21k, and reading one back."""

from typing import Any

import lightning as L
import torch.nn.functional as F
from torch import Tensor, nn

from common.interop import check_and_load, read_checkpoint
from common.training.optim import adamw, schedule
from papers.nmc_continual.model import SmallResNet


class Pretraining(L.LightningModule):
    """An encoder and a linear head trained with cross-entropy: AdamW, linear warm-up, cosine decay over all steps."""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_classes: int,
        lr: float = 2e-3,
        weight_decay: float = 0.05,
        warmup_steps: int = 20,
        total_steps: int = 1000,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        dim: Any = backbone.feature_dim
        self.head = nn.Linear(dim, num_classes)
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_steps, self.total_steps = warmup_steps, total_steps

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.head(self.backbone(batch["image"]))
        loss = F.cross_entropy(logits, batch["label"])
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", 100 * (logits.argmax(dim=1) == batch["label"]).float().mean())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self, lr=self.lr, weight_decay=self.weight_decay)
        return schedule(optimizer, "cosine", warmup=self.warmup_steps, total=self.total_steps)


def from_checkpoint(path: str) -> SmallResNet:
    """The encoder of a Pretraining checkpoint, for configs: runs/nmc_continual/cpu/last.ckpt."""
    state = read_checkpoint(path).get("state_dict", {})
    backbone = SmallResNet()
    prefix = "backbone."
    check_and_load(backbone, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, path)
    return backbone
