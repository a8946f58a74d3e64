"""Pre-training: reconstruct the clean frames from altered ones (Sec. III-C)."""

from typing import Any

from torch import Tensor

from common.training.recipe import Optim, Recipe
from papers.tera.data import Batch
from papers.tera.model import TERA, Encoder, reconstruction_loss

Sizes = dict[str, Any]  # keyword arguments of Encoder; none = base on 80 channels


class PretrainModule(Recipe):
    """L1 between reconstruction and clean frames, over the altered entries of a batch (see alteration.alter).

    The alteration is drawn by the data module, as in the released code; so the ablation is named there.
    """

    def __init__(self, optim: Optim, *, encoder: Sizes | None = None) -> None:
        super().__init__(optim)
        self.save_hyperparameters(ignore=["optim"])
        self.model = TERA(Encoder(**(encoder or {})))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        prediction = self.model(batch["inputs"], batch["lengths"])
        loss = reconstruction_loss(prediction, batch["targets"], batch["mask"])
        share = batch["mask"].sum() / (batch["lengths"].sum() * batch["targets"].shape[-1])
        return {"loss": loss, "share": share}
