"""Pre-training: reconstruct the clean frames from altered ones (Sec. III-C)."""

from typing import Any

import lightning as L
from torch import Tensor

from common.training.optim import adamw, schedule
from papers.tera.data import Batch
from papers.tera.model import TERA, Encoder, reconstruction_loss

Sizes = dict[str, Any]  # keyword arguments of Encoder; none = base on 80 channels


class PretrainModule(L.LightningModule):
    """L1 between reconstruction and clean frames, over the altered entries of a batch (see alteration.alter).

    The alteration is drawn by the data module, as in the released code; so the ablation is named there. AdamW with a
    linear warm-up over warmup_share of total_steps, then linear decay to 0; biases and LayerNorms are not decayed.
    """

    def __init__(
        self,
        *,
        encoder: Sizes | None = None,
        lr: float = 2e-4,
        warmup_share: float = 0.07,
        total_steps: int = 1_000_000,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = TERA(Encoder(**(encoder or {})))
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_steps, self.total_steps = round(warmup_share * total_steps), total_steps

    def step(self, batch: Batch, prefix: str) -> Tensor:
        prediction = self.model(batch["inputs"], batch["lengths"])
        loss = reconstruction_loss(prediction, batch["targets"], batch["mask"])
        share = batch["mask"].sum() / (batch["lengths"].sum() * batch["targets"].shape[-1])
        self.log_dict({f"{prefix}/loss": loss, f"{prefix}/share": share}, batch_size=len(batch["lengths"]))
        return loss

    def training_step(self, batch: Batch) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Batch) -> None:
        self.step(batch, "val")

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self, lr=self.lr, weight_decay=self.weight_decay)
        return schedule(optimizer, "linear", warmup=self.warmup_steps, total=self.total_steps)
