"""The claims at a small scale. Each function is one unit: (arm, seed) -> metrics, in percent unless said otherwise.

Audio: ESC-10 (at smoke scale generated sounds). Encoders and tokenizers train on random crops of all clips without
labels; labels are used by the probes alone, fitted on four folds and scored on the fifth, for each fold in turn.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from common.eval.linear_probe import ridge_over_folds
from common.fast.flops import multiply_adds
from common.training.run import Run
from common.worlds.sounds import SoundClips
from papers.beats.data import Crops, load_esc10, spectrogram
from papers.beats.iterations import (
    Settings,
    iterate,
    pretrain_module,
    seed_stage,
    tokenizer_module,
    train_encoder,
    train_tokenizer,
)
from papers.beats.model import Encoder
from papers.beats.module import PatchRegressionModule, perplexity
from papers.beats.tokenizers import DistilledTokenizer, RandomProjectionTokenizer

MELS, FRAMES, PATCH = 64, 128, 8


@dataclass(frozen=True)
class Plan:
    """Sizes of a scale. Steps are optimizer steps of `batch_size` crops of 1.28 s.

    At `cpu` tokenizer and encoder take the same number, as in the paper's recipe (400k each).
    """

    dim: int
    depth: int
    num_codes: int
    encoder_steps: int
    tokenizer_steps: int
    batch_size: int

    @property
    def settings(self) -> Settings:
        stack: dict[str, Any] = {
            "num_heads": 4,
            "mlp_dim": 4 * self.dim,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "conv_kernel": 32,
            "conv_groups": 16,
        }
        one_layer = {"depth": 1, **stack}
        encoder = {"patch_size": PATCH, "patch_dim": 64, "dim": self.dim, "depth": self.depth, **stack}
        return Settings(
            encoder=encoder,
            predictor=one_layer,
            estimator=one_layer,
            num_codes=self.num_codes,
            code_dim=32,
            batch_size=self.batch_size,
            lr=2e-3,
            tokenizer_lr=1e-3,
        )


PLANS = {
    "smoke": Plan(dim=32, depth=1, num_codes=16, encoder_steps=4, tokenizer_steps=4, batch_size=8),
    "cpu": Plan(dim=64, depth=3, num_codes=128, encoder_steps=130, tokenizer_steps=130, batch_size=32),
    "gpu": Plan(dim=192, depth=6, num_codes=256, encoder_steps=4000, tokenizer_steps=2000, batch_size=256),
}


class Corpus:
    """Clips of a scale with labels and folds, as waveforms and spectrograms normalised by the corpus's statistics."""

    def __init__(self, scale: str) -> None:
        if scale == "smoke":
            clips = SoundClips(40, seconds=1.5)
            self.waves = [clips[i][0] for i in range(len(clips))]
            self.labels = np.array([clips[i][1] for i in range(len(clips))])
            self.folds = np.arange(len(clips)) // 10
        else:
            self.waves, self.labels, self.folds = load_esc10()
        raw = [spectrogram(wave, MELS, mean=0.0, std=0.5) for wave in self.waves]  # the plain fbank
        values = torch.cat(raw)
        self.mean, self.std = values.mean().item(), values.std().item()
        self.clips = [(x - self.mean) / (2 * self.std) for x in raw]

    def crops(self, run: Run) -> Crops:
        """Random crops of all clips, in the same order for every arm of a seed."""
        crops = Crops(self.clips, torch.from_numpy(self.labels), FRAMES)
        return run.split(
            "train", crops, overlap="pre-training sees all clips without labels, the probes hold one fold out"
        )

    def whole_crops(self, noise_db: float | None = None) -> tuple[Tensor, np.ndarray]:
        """All clips cut into whole crops side by side, (crops, 1, FRAMES, MELS), and the clip of each crop.

        noise_db: white noise is first added to the waveforms at that signal-to-noise ratio.
        """
        clips = self.clips
        if noise_db is not None:
            generator = torch.Generator().manual_seed(0)
            clips = []
            for wave in self.waves:
                noise = torch.randn(len(wave), generator=generator)
                noisy = wave + noise * wave.square().mean().sqrt() * 10 ** (-noise_db / 20)
                clips.append(spectrogram(noisy, MELS, mean=self.mean, std=self.std))
        cut = [clip[: len(clip) // FRAMES * FRAMES].unflatten(0, (-1, FRAMES)) for clip in clips]
        owner = np.repeat(np.arange(len(cut)), [len(c) for c in cut])
        return torch.cat(cut)[:, None], owner

    def probe(self, run: Run, features: np.ndarray) -> float:
        """Accuracy (%) of a ridge classifier on clip features (clips, D), each fold held out once."""
        for fold in np.unique(self.folds).tolist():
            for role, chosen in (("train", self.folds != fold), ("test", self.folds == fold)):
                run.split(f"{role}:fold{fold}", [self.clips[i] for i in np.flatnonzero(chosen)])
        return ridge_over_folds(features, self.labels, self.folds)


@torch.no_grad()
def in_batches(function: Any, x: Tensor, size: int = 64) -> Tensor:
    """torch.cat of function(part) over parts of the first dimension."""
    return torch.cat([function(part) for part in x.split(size)])


def token_metrics(
    run: Run, corpus: Corpus, tokenizer: RandomProjectionTokenizer | DistilledTokenizer
) -> dict[str, float]:
    """How much a tokenizer's codes say about the class.

    histogram_accuracy: ridge on the clip's code histogram (square root of frequencies). nmi: between code and class
    over all tokens. perplexity: effective number of codes. stability: share of tokens that white noise at 20 dB leaves
    as they were.
    """
    crops, owner = corpus.whole_crops()
    tokens = in_batches(tokenizer.tokenize, crops)  # (crops, N)
    noisy = in_batches(tokenizer.tokenize, corpus.whole_crops(noise_db=20.0)[0])
    histograms = np.zeros((len(corpus.labels), tokenizer.num_codes))
    np.add.at(histograms, (np.repeat(owner, tokens.shape[1]), tokens.flatten().numpy()), 1)
    histograms /= histograms.sum(1, keepdims=True)
    classes = np.repeat(corpus.labels[owner], tokens.shape[1])
    return {
        "histogram_accuracy": corpus.probe(run, np.sqrt(histograms)),
        "nmi": 100 * float(normalized_mutual_info_score(classes, tokens.flatten().numpy())),
        "perplexity": perplexity(tokens, tokenizer.num_codes).item(),
        "stability": 100 * (tokens == noisy).float().mean().item(),
    }


def distilled_tokens(run: Run) -> dict[str, float]:
    """Claim 1. Arms "random": iteration 1's tokenizer; "distilled": one distilled from iteration 1's encoder; and as a
    control "untrained_teacher": the same distillation from an encoder that was never trained.
    """
    plan, corpus = PLANS[run.scale], Corpus(run.scale)
    settings = plan.settings
    if run.arm == "random":
        tokenizer = RandomProjectionTokenizer(
            patch_size=PATCH, dim=settings.code_dim, num_codes=settings.num_codes, seed=run.seed
        )
        return token_metrics(run, corpus, tokenizer)
    crops = corpus.crops(run)
    if run.arm == "distilled":
        teacher = train_encoder(run, crops, settings, plan.encoder_steps, name="encoder1")
    else:
        teacher = untrained_encoder(run, settings)
    distilled = train_tokenizer(run, crops, settings, plan.tokenizer_steps, name="tokenizer2", teacher=teacher)
    return token_metrics(run, corpus, distilled)


def untrained_encoder(run: Run, settings: Settings) -> Encoder:
    """An encoder as every stage starts, in eval mode."""
    seed_stage(run, "untrained")
    return Encoder(**settings.encoder).eval()


def step_costs(plan: Plan) -> tuple[int, int, int, int]:
    """Multiply-adds of one training step of encoder 1, tokenizer, encoder 2 and regression.

    The forward pass is counted; a backward pass is two forwards, so what is trained counts three times and what only
    makes targets (tokenizer, teacher) once.
    """
    settings, x = plan.settings, torch.zeros(plan.batch_size, 1, FRAMES, MELS)
    with torch.random.fork_rng(devices=[]):
        second = tokenizer_module(settings, 1, Encoder(**settings.encoder))
        second.tokenizer.quantizer.set_codebook(torch.randn(settings.num_codes, settings.code_dim))
        third = pretrain_module(settings, 1, second.tokenizer)
        regression = pretrain_module(settings, 1, kind=PatchRegressionModule)

        def cost(module: Any, make_targets: Any) -> int:
            targets = multiply_adds(make_targets, x, None)
            return 3 * (multiply_adds(module.loss, {"spectrogram": x}) - targets) + targets

        first = pretrain_module(settings, 1)
        return (
            cost(first, first.targets),
            cost(second, second.teach),
            cost(third, third.targets),
            cost(regression, regression.targets),
        )


def equal_compute(run: Run) -> dict[str, float]:
    """Claim 2. Arms that spend the same multiply-adds: "iterated" (encoder 1, tokenizer 2, encoder 2), "single"
    (encoder 1, trained longer), "regression" (the same encoder, trained on patches); and "untrained".

    probe: ridge accuracy on mean-pooled features; gmac: multiply-adds of training in 10^9.
    """
    plan, corpus = PLANS[run.scale], Corpus(run.scale)
    settings, crops = plan.settings, corpus.crops(run)
    first, token, second, regression = step_costs(plan)
    budget = plan.encoder_steps * (first + second) + plan.tokenizer_steps * token
    steps, cost = 0, 0
    if run.arm == "untrained":
        encoder = untrained_encoder(run, settings)
    elif run.arm == "iterated":
        encoders, _ = iterate(
            run,
            crops,
            settings,
            encoder_steps=plan.encoder_steps,
            tokenizer_steps=plan.tokenizer_steps,
            iterations=2,
        )
        encoder = encoders[-1]
        steps, cost = plan.encoder_steps, budget
    else:
        kind = {} if run.arm == "single" else {"kind": PatchRegressionModule}
        price = first if run.arm == "single" else regression
        steps = round(budget / price)
        encoder = train_encoder(run, crops, settings, steps, name="encoder", **kind)
        cost = steps * price
    whole, owner = corpus.whole_crops()
    features = in_batches(lambda x: encoder(x).mean(dim=1), whole).numpy()
    pooled = np.stack([features[owner == i].mean(0) for i in range(len(corpus.labels))])
    return {"probe": corpus.probe(run, pooled), "steps": float(steps), "gmac": cost / 1e9}
