"""Downstream classifiers on the representation (Sec. IV): per frame and per utterance, frozen or fine-tuned."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.layers.attention import take_tokens
from common.training.recipe import Optim, Recipe
from papers.tera import interop
from papers.tera.data import IGNORED, Batch
from papers.tera.model import Encoder, WeightedSum
from papers.tera.module import Sizes

CONCAT = 9  # frames, about the length of a phone
HIDDEN = 768
PROJECTION = 256


class FrameLinear(nn.Module):
    """ "phone linear" and "speaker frame": one linear layer on every frame, (B, L, D) -> (B, L, C)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.out(x)


class FrameConcat(nn.Module):
    """ "phone concat": a linear layer on 9 frames side by side, oldest first; the first and last frame are repeated
    beyond the edges of each utterance. (B, L, D) -> (B, L, C)"""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(CONCAT * dim, num_classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.out(stack_frames(x, lengths))


class FrameHidden(nn.Module):
    """ "phone 1-hidden": 768 hidden units with ReLU on every frame, (B, L, D) -> (B, L, C)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, HIDDEN)
        self.out = nn.Linear(HIDDEN, num_classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.out(self.hidden(x).relu())


class UtteranceLinear(nn.Module):
    """ "speaker utterance": a linear layer on the mean of the frames, (B, L, D) -> (B, C)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.out(mean_frames(x, lengths))


class Keyword(nn.Module):
    """Keyword classification: linear to 256, mean of the frames, linear. (B, L, D) -> (B, C)"""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, PROJECTION)
        self.out = nn.Linear(PROJECTION, num_classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.out(mean_frames(self.project(x), lengths))


HEADS = {
    "linear": FrameLinear,
    "concat": FrameConcat,
    "hidden": FrameHidden,
    "utterance": UtteranceLinear,
    "keyword": Keyword,
}


def stack_frames(x: Tensor, lengths: Tensor, frames: int = CONCAT) -> Tensor:
    """(B, L, D) -> (B, L, frames * D): each frame with its neighbours, clamped to the utterance's own edges."""
    centre = torch.arange(x.shape[1], device=x.device)
    last = (lengths - 1)[:, None]
    shifts = range(-(frames // 2), frames // 2 + 1)
    return torch.cat([take_tokens(x, (centre + shift).clamp(min=0).minimum(last)) for shift in shifts], dim=-1)


def mean_frames(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, L, D) -> (B, D), over the first lengths (B,) frames."""
    valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return (x * valid[..., None]).sum(dim=1) / lengths[:, None]


def match_labels(x: Tensor, lengths: Tensor, num_labels: int) -> Tensor:
    """(B, L, D) -> (B, num_labels, D): cut to the labels, or each utterance's last frame repeated for labels after
    it."""
    index = torch.arange(num_labels, device=x.device)[None].minimum((lengths - 1)[:, None])
    return take_tokens(x, index)


class ProbeModule(Recipe):
    """A classifier on TERA, or on the features themselves.

    checkpoint: an encoder in the released layout. Without it an untrained encoder of the given sizes; with
    surface_dim there is no encoder and the features of that dimension are classified. head: see HEADS.
    representation: the last layer, or a learned weighted sum of all. finetune: the encoder learns too (and uses its
    dropout); else it is frozen and in eval mode.
    """

    def __init__(
        self,
        optim: Optim,
        *,
        num_classes: int,
        head: Literal["linear", "concat", "hidden", "utterance", "keyword"] = "linear",
        checkpoint: str | None = None,
        encoder: Sizes | None = None,
        surface_dim: int | None = None,
        representation: Literal["last", "weighted"] = "last",
        finetune: bool = False,
    ) -> None:
        super().__init__(optim)
        self.save_hyperparameters(ignore=["optim"])
        self.finetune = finetune
        self.encoder: Encoder | None = None
        if surface_dim is None:
            self.encoder = Encoder(**(encoder or {})) if checkpoint is None else interop.load_encoder(checkpoint)
            self.encoder.requires_grad_(finetune)
        dim = self.encoder.dim if self.encoder is not None else surface_dim
        assert dim is not None
        self.mix: WeightedSum | None = None
        if self.encoder is not None and representation == "weighted":
            self.mix = WeightedSum(len(self.encoder.blocks) + 1)
        self.head = HEADS[head](dim, num_classes)
        self.per_frame = head in ("linear", "concat", "hidden")

    def train(self, mode: bool = True) -> "ProbeModule":
        super().train(mode)
        if self.encoder is not None and not self.finetune:
            self.encoder.eval()
        return self

    def represent(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, D): what the head sees."""
        if self.encoder is None:
            return features
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            states = self.encoder.extract(features, lengths)
        return states[-1] if self.mix is None else self.mix(states)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and labels: (B, M, C) with (B, M), or (B, C) with (B,).

        A label (B,) under a frame-wise head stands for every valid frame.
        """
        lengths, labels = batch["lengths"], batch["labels"]
        x = self.represent(batch["features"], lengths)
        if not self.per_frame:
            return self.head(x, lengths), labels
        if labels.dim() == 1:
            valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            return self.head(x, lengths), labels[:, None].masked_fill(~valid, IGNORED)
        num_labels = labels.shape[1]
        return self.head(match_labels(x, lengths, num_labels), lengths.clamp(max=num_labels)), labels

    def measured(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Cross entropy and accuracy over what is scored, and how many frames or utterances that is."""
        logits, labels = self(batch)
        logits, labels = logits.flatten(0, -2), labels.flatten()
        scored = labels != IGNORED
        right = (logits.argmax(dim=-1) == labels)[scored].float().mean()
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED)
        return {"loss": loss, "accuracy": right}, int(scored.sum())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.measured(batch)[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, prefix: str, batch: Batch) -> None:
        values, count = self.measured(batch)
        # weighted by what is scored, so that the epoch's mean is the accuracy over all of it
        self.log_loss(prefix, values, batch_size=count)
