"""Supervised pre-training of the small encoder, the stand-in for ImageNet-21k, and reading one back."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from common.interop import check_and_load, read_checkpoint
from common.training.recipe import Optim, Recipe
from papers.nmc_continual.model import SmallResNet


class Pretraining(Recipe):
    """An encoder and a linear head trained with cross-entropy."""

    def __init__(self, backbone: nn.Module, *, num_classes: int, optim: Optim) -> None:
        super().__init__(optim)
        self.backbone = backbone
        dim: Any = backbone.feature_dim
        self.head = nn.Linear(dim, num_classes)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.head(self.backbone(batch["image"]))
        accuracy = 100 * (logits.argmax(dim=1) == batch["label"]).float().mean()
        return {"loss": F.cross_entropy(logits, batch["label"]), "accuracy": accuracy}


def from_checkpoint(path: str) -> SmallResNet:
    """The encoder of a Pretraining checkpoint, for configs: runs/nmc_continual/cpu/last.ckpt."""
    state = read_checkpoint(path).get("state_dict", {})
    backbone = SmallResNet()
    prefix = "backbone."
    check_and_load(backbone, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, path)
    return backbone
