"""Prompt training: cross-entropy over the Base classes, SGD, a schedule that moves once an epoch (Sec. 3, 4.1)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from common.eval.zero_shot import classify
from common.formats.tokenizers import ClipTokenizer
from common.training.recipe import Optim, Recipe
from papers.clip.interop import load_pretrained
from papers.clip.zero_shot import zero_shot_classifier
from papers.pre.interop import load_prompt
from papers.pre.model import PromptedCLIP
from papers.pre.prompts import context_ids, harmonic_mean, prompt_tokens

PARTS = ("base", "new")
PREFIXES = ("", "zero_shot_")  # the learned prompt, the hand-written one


def prompt_optim(lr: float) -> Optim:
    """What prompts train with (Sec. 4.1): SGD with momentum, decay on everything; the schedule is PromptTuning's."""
    return Optim(name="sgd", lr=lr, momentum=0.9, weight_decay=5e-4, decay_all=True)


def rate(epoch: int, *, lr: float, warmup_lr: float, epochs: int) -> float:
    """Learning rate of a 0-based epoch: warmup_lr in the first, then a cosine that starts anew at lr.

    The cosine is as long as the whole run and starts an epoch late, so it ends above 0.
    """
    return warmup_lr if epoch == 0 else lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


class PromptTuning(Recipe):
    """Learns the prompt of a PromptedCLIP on Base classes; validates on Base and on New classes, each among its own.

    weights: published or own CLIP weights (a hub directory or a released file), for the frozen part. words: what the
    context starts from; None leaves it random. trained: a trained prompt in the released layout, to evaluate or to go
    on from. epochs: length of the schedule, whose first epoch has the rate warmup_lr (see `rate`). Class names,
    tokenizer and hand-written prompt come from the data module.
    """

    def __init__(
        self,
        model: PromptedCLIP,
        *,
        optim: Optim,
        weights: str | None = None,
        words: str | None = "a photo of a",
        trained: str | None = None,
        epochs: int = 50,
        warmup_lr: float = 1e-5,
    ) -> None:
        super().__init__(optim)
        self.model = model
        if weights is not None:
            load_pretrained(model.clip, weights)
        self.words, self.trained = words, trained
        self.register_buffer("started", torch.tensor(False))  # a restored prompt must not go back to its first words
        self.epochs, self.warmup_lr = epochs, warmup_lr
        self.metrics: Any = nn.ModuleDict({prefix + part: MeanMetric() for prefix in PREFIXES for part in PARTS})

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.prepare(data.tokenizer, {"base": data.base_names, "new": data.new_names})

    def prepare(self, tokenizer: ClipTokenizer, names: dict[str, list[str]]) -> None:
        """Start the context, once, and tokenise the prompts of the classes of each part."""
        if not self.get_buffer("started"):
            if self.words is not None:
                self.model.start_from(context_ids(tokenizer, self.words).to(self.device))
            if self.trained is not None:
                load_prompt(self.model.prompt, self.trained)
            self.get_buffer("started").fill_(True)
        for part, class_names in names.items():
            tokens = prompt_tokens(tokenizer, class_names, len(self.model.prompt), self.words)
            self.register_buffer(f"{part}_tokens", tokens.to(self.device), persistent=False)

    def features(self, batch: dict[str, Tensor]) -> Tensor:
        """Unit image features of a batch, (B, e): computed, or as the data module has kept them."""
        return batch["features"] if "features" in batch else self.model.encode_image(batch["image"])

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = self.model.classifier(self.get_buffer("base_tokens"))
        logits = self.model.clip.scale * self.features(batch) @ weights.T
        accuracy = 100 * (logits.argmax(dim=1) == batch["label"]).float().mean()
        return {"loss": F.cross_entropy(logits, batch["label"]), "accuracy": accuracy}

    def factor(self, step: int) -> float:
        # asked for step 0 before the loader, and with it the length of an epoch, is known
        epoch = step // int(self.trainer.num_training_batches) if step else 0
        return rate(epoch, lr=self.optim.lr, warmup_lr=self.warmup_lr, epochs=self.epochs) / self.optim.lr

    def on_validation_epoch_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.classifiers = {part: self.model.classifier(self.get_buffer(f"{part}_tokens")) for part in PARTS}
        for part, names in zip(PARTS, (data.base_names, data.new_names)):
            names = [name.replace("_", " ") for name in names]
            self.classifiers[f"zero_shot_{part}"] = zero_shot_classifier(
                self.model.clip, data.tokenizer, names, [data.hand_prompt]
            )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        features = self.features(batch)
        for name in (PARTS[dataloader_idx], f"zero_shot_{PARTS[dataloader_idx]}"):
            hits = classify(features, self.classifiers[name]).argmax(dim=1) == batch["label"]
            self.metrics[name].update(100 * hits.float())

    def on_validation_epoch_end(self) -> None:
        for prefix in PREFIXES:
            base, new = (self.metrics[prefix + part].compute().item() for part in PARTS)
            values = {"base": base, "new": new, "harmonic_mean": harmonic_mean(base, new)}
            self.log_dict({f"val/{prefix}{name}": value for name, value in values.items()})
        for metric in self.metrics.values():
            metric.reset()
