"""The iteration driver (Fig. 2): encoder 1 <- random tokens; tokenizer 2 <- encoder 1; encoder 2 <- tokenizer 2; ..."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning as L

from common.training.recipe import Optim
from common.training.run import Run, train_on
from papers.beats.data import pad_batch
from papers.beats.model import AudioClassifier, Encoder
from papers.beats.module import PretrainModule, TokenizerModule
from papers.beats.tokenizers import DistilledTokenizer


@dataclass(frozen=True)
class Settings:
    """Sizes and recipe of both stages. encoder, predictor, estimator: keyword arguments of those models."""

    encoder: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)
    estimator: dict[str, Any] = field(default_factory=dict)
    num_codes: int = 1024
    code_dim: int = 256
    batch_size: int = 35
    lr: float = 5e-4
    tokenizer_lr: float = 5e-5

    def optim(self, lr: float, steps: int) -> Optim:
        """The recipe of both stages, 8 % of the steps for the warm-up."""
        warmup = int(0.08 * steps)
        return Optim(lr, weight_decay=0.01, betas=(0.9, 0.98), schedule="linear", warmup=warmup, total=steps)


def pretrain_module(
    settings: Settings, steps: int, tokenizer: Any = "random", kind: type[PretrainModule] = PretrainModule
) -> PretrainModule:
    """One encoder's pre-training; kind may be the regression control."""
    return kind(
        settings.optim(settings.lr, steps),
        tokenizer=tokenizer,
        encoder=settings.encoder,
        predictor=settings.predictor,
        num_codes=settings.num_codes,
        code_dim=settings.code_dim,
    )


def tokenizer_module(settings: Settings, steps: int, teacher: Encoder | AudioClassifier) -> TokenizerModule:
    """One tokenizer's training."""
    return TokenizerModule(
        settings.optim(settings.tokenizer_lr, steps),
        teacher=teacher,
        encoder=settings.encoder,
        estimator=settings.estimator,
        num_codes=settings.num_codes,
        code_dim=settings.code_dim,
    )


def seed_stage(run: Run, name: str) -> None:
    """Seed what stage `name` of a run starts from: weights of its own, whatever was built before."""
    L.seed_everything(zlib.crc32(f"{run.seed} {name}".encode()), verbose=False)


def train_encoder(
    run: Run,
    crops: Any,
    settings: Settings,
    steps: int,
    *,
    name: str,
    tokenizer: Any = "random",
    kind: type[PretrainModule] = PretrainModule,
) -> Encoder:
    """A fresh encoder trained on the tokenizer's labels of (spectrogram, label) items. Stage `name` of the run."""
    seed_stage(run, name)
    module = pretrain_module(settings, steps, tokenizer, kind)
    return _trained(run, module, crops, settings, steps, name).encoder


def train_tokenizer(
    run: Run, crops: Any, settings: Settings, steps: int, *, name: str, teacher: Encoder | AudioClassifier
) -> DistilledTokenizer:
    """A fresh tokenizer distilled from the teacher. Stage `name` of the run."""
    seed_stage(run, name)
    module = tokenizer_module(settings, steps, teacher)
    return _trained(run, module, crops, settings, steps, name).tokenizer


def _trained(run: Run, module: Any, crops: Any, settings: Settings, steps: int, name: str) -> Any:
    return train_on(run, module, crops, steps=steps, batch_size=settings.batch_size, collate=pad_batch, name=name)


def iterate(
    run: Run,
    crops: Any,
    settings: Settings,
    *,
    encoder_steps: int,
    tokenizer_steps: int,
    iterations: int = 3,
    fine_tune: Callable[[Encoder], AudioClassifier] | None = None,
) -> tuple[list[Encoder], list[DistilledTokenizer]]:
    """All encoders and tokenizers, [enc1, enc2, ...] and [tok2, ...]; every one starts from fresh weights.

    fine_tune, when given, turns the last teacher into a classifier first, whose logits the last tokenizer learns (3+).
    """
    encoders = [train_encoder(run, crops, settings, encoder_steps, name="encoder1")]
    tokenizers: list[DistilledTokenizer] = []
    for i in range(2, iterations + 1):
        teacher: Encoder | AudioClassifier = encoders[-1]
        if fine_tune is not None and i == iterations:
            teacher = fine_tune(encoders[-1])
        tokenizer = train_tokenizer(run, crops, settings, tokenizer_steps, name=f"tokenizer{i}", teacher=teacher)
        encoder = train_encoder(run, crops, settings, encoder_steps, name=f"encoder{i}", tokenizer=tokenizer)
        tokenizers.append(tokenizer)
        encoders.append(encoder)
    return encoders, tokenizers
