"""The claims at a small scale. Each function is one unit: (arm, seed) -> metrics, in percent.

Speech: Emo-DB (at smoke scale generated sounds). Seed s holds out speakers and sentences by fold s mod 5. An encoder
is pre-trained without labels on clips of which neither is held out; linear probes are then fitted on its last layer.
Phones are scored on clips of which both are held out, speakers on the training speakers' held-out sentences.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from common.eval.linear_probe import softmax_probe
from common.formats.speech import Bucketed, bucket_loader, buckets
from common.training.recipe import Optim
from common.training.run import Run, fit
from common.worlds.sounds import CLASSES, SoundClips
from papers.tera.alteration import named_policy
from papers.tera.corpora import PHONES, SPEAKERS, TEXTS, EmoDBClips, held_out
from papers.tera.data import IGNORED, altered_batch
from papers.tera.features import SAMPLE_RATE, extract
from papers.tera.model import INIT_STD, Encoder
from papers.tera.module import PretrainModule
from papers.tera.probes import stack_frames

NOISE_DB = 10.0  # signal-to-noise ratio of the noisy test clips
Represent = Callable[[Tensor], Tensor]  # features (L, 80) -> (L, D)


@dataclass(frozen=True)
class Plan:
    """Sizes of a scale; a step is a batch of `batch_size` whole utterances of nearly equal length."""

    dim: int
    depth: int
    steps: int
    batch_size: int = 8
    lr: float = 1e-3
    probe_steps: int = 1000

    @property
    def encoder(self) -> dict[str, Any]:
        # 0.02 at width 768 is what this is at a smaller width
        std = INIT_STD * math.sqrt(768 / self.dim)
        sizes = {"dim": self.dim, "depth": self.depth, "num_heads": 4, "mlp_dim": 4 * self.dim}
        return sizes | {"dropout": 0.1, "init_std": std}


PLANS = {
    "smoke": Plan(dim=32, depth=1, steps=4, probe_steps=20),
    "cpu": Plan(dim=96, depth=2, steps=600, batch_size=4),
    "gpu": Plan(dim=256, depth=3, steps=10000, batch_size=32, probe_steps=5000),
}


def pretraining(lr: float, steps: int) -> Optim:
    """The paper's optimizer and schedule at another rate and length."""
    return Optim(lr, weight_decay=0.01, schedule="linear", warmup=0.07, total=steps)


class Split(NamedTuple):
    """Indices of clips: to train on; of new speakers and new sentences; new sentences of the training speakers."""

    train: list[int]
    strangers: list[int]
    sentences: list[int]


class Corpus:
    """Clips of a scale: waveforms, features (L, 80), frame phones (L,), speakers and sentences."""

    def __init__(self, scale: str) -> None:
        if scale == "smoke":
            sounds = SoundClips(30, seconds=1.0, sample_rate=SAMPLE_RATE)
            self.waveforms = [sounds[i][0] for i in range(len(sounds))]
            self.features = [extract(waveform, "mel") for waveform in self.waveforms]
            self.phones = [torch.full((len(x),), i % len(CLASSES)) for i, x in enumerate(self.features)]
            everyone = [speaker for pair in SPEAKERS for speaker in pair]
            self.speakers = [everyone[i % 10] for i in range(30)]
            self.texts = [TEXTS[(i + i // 10) % 10] for i in range(30)]
        else:
            clips = EmoDBClips()
            self.waveforms, self.features, self.phones = clips.waveforms, clips.features, clips.phones
            self.speakers, self.texts = clips.speakers, clips.texts

    def split(self, run: Run) -> Split:
        """The fold of the run's seed, declared."""
        held = held_out(self.speakers, self.texts, run.seed)
        parts = (~held.speaker & ~held.text, held.speaker & held.text, ~held.speaker & held.text)
        split = Split(*(np.flatnonzero(part).tolist() for part in parts))
        for name, part in zip(("train", "test:strangers", "test:sentences"), split):
            run.split(name, [self.features[i] for i in part])
        return split

    def frame_speakers(self) -> list[Tensor]:
        """The clip's speaker as a label of every frame that has a phone."""
        names = sorted(set(self.speakers))
        return [
            torch.where(phones == IGNORED, IGNORED, names.index(name))
            for phones, name in zip(self.phones, self.speakers)
        ]

    def noisy(self, index: int) -> Tensor:
        """Features of clip `index` with white noise at 10 dB added to the waveform, always the same."""
        waveform = self.waveforms[index]
        noise = torch.randn(len(waveform), generator=torch.Generator().manual_seed(index))
        return extract(waveform + noise * waveform.square().mean().sqrt() * 10 ** (-NOISE_DB / 20), "mel")


def pretrain(run: Run, plan: Plan, clips: list[Tensor], alteration: str) -> Encoder:
    """An encoder pre-trained on the clips under the policy of an ablation name."""
    module = PretrainModule(pretraining(plan.lr, plan.steps), encoder=encoder_sizes(run, plan))
    batches = Bucketed(clips, buckets([len(clip) for clip in clips], plan.batch_size))
    run.split("train", clips)
    run.split("train:batches", batches)
    run.settings(alteration=alteration)
    collate = partial(altered_batch, policy=named_policy(alteration))
    make = partial(bucket_loader, batches, collate, seed=run.seed)
    fit(module, lambda trainer: make(trainer=trainer), run=run, max_steps=plan.steps, gradient_clip_val=5.0)
    return module.model.encoder


def encoder_sizes(run: Run, plan: Plan) -> dict[str, Any]:
    """Sizes of the encoder, with the generator set so that every arm of a seed starts from the same weights."""
    L.seed_everything(run.seed, verbose=False)
    return plan.encoder


def representation(run: Run, plan: Plan, corpus: Corpus, train: list[int]) -> Represent:
    """What an arm's probes see: the "logmel" frames themselves, the last layer of an "untrained" encoder, or that of
    one pre-trained under the alteration the arm is named after."""
    if run.arm == "logmel":
        return lambda x: x
    if run.arm == "untrained":
        return last_layer(Encoder(**encoder_sizes(run, plan)))
    return last_layer(pretrain(run, plan, [corpus.features[i] for i in train], run.arm))


def last_layer(encoder: Encoder) -> Represent:
    """The last hidden layer of an utterance, in eval mode."""
    encoder.eval()

    @torch.no_grad()
    def represent(features: Tensor) -> Tensor:
        return encoder(features[None])[0]

    return represent


def concatenated(x: Tensor) -> Tensor:
    """9 frames side by side: (L, D) -> (L, 9 D)"""
    return stack_frames(x[None], torch.tensor([len(x)]))[0]


def labelled(represented: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All labelled frames of some clips: (N, D) and (N,)."""
    x = torch.cat([clip[label != IGNORED] for clip, label in zip(represented, labels)])
    return x, torch.cat([label[label != IGNORED] for label in labels])


def surface_features(run: Run) -> dict[str, float]:
    """Claim 1. Arms "T-F-M", "untrained", "logmel": phones of unseen speakers in unseen sentences, from one frame of
    the representation (phone_linear) and from nine side by side (phone_concat)."""
    plan, corpus = PLANS[run.scale], Corpus(run.scale)
    split = corpus.split(run)
    represent = representation(run, plan, corpus, split.train)
    train, test = ([represent(corpus.features[i]) for i in part] for part in (split.train, split.strangers))
    train_labels, test_labels = ([corpus.phones[i] for i in part] for part in (split.train, split.strangers))
    settings: dict[str, Any] = {"steps": plan.probe_steps, "seed": run.seed}
    metrics = {}
    for name, view in (("phone_linear", lambda x: x), ("phone_concat", concatenated)):
        probe = softmax_probe(*labelled([view(x) for x in train], train_labels), len(PHONES), **settings)
        metrics[name] = probe(*labelled([view(x) for x in test], test_labels))
    return metrics


def axes(run: Run) -> dict[str, float]:
    """Claim 2. Arms "T", "F", "T-F-M": phones of unseen speakers in unseen sentences, training speakers in unseen
    sentences, both from single frames, and again with noise at 10 dB in the test clips."""
    plan, corpus = PLANS[run.scale], Corpus(run.scale)
    split = corpus.split(run)
    represent = representation(run, plan, corpus, split.train)
    train = [represent(corpus.features[i]) for i in split.train]
    speakers = corpus.frame_speakers()
    settings: dict[str, Any] = {"steps": plan.probe_steps, "seed": run.seed}
    metrics = {}
    for name, labels, part, num_classes in (
        ("phone", corpus.phones, split.strangers, len(PHONES)),
        ("speaker", speakers, split.sentences, len(set(corpus.speakers))),
    ):
        probe = softmax_probe(*labelled(train, [labels[i] for i in split.train]), num_classes, **settings)
        truth = [labels[i] for i in part]
        metrics[f"{name}_linear"] = probe(*labelled([represent(corpus.features[i]) for i in part], truth))
        metrics[f"{name}_noisy"] = probe(*labelled([represent(corpus.noisy(i)) for i in part], truth))
    return metrics
