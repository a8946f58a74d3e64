"""Figures of the paper that follow from the sizes alone, computed with the code that trains; named in paper.yaml."""

import math

from torch import nn

from papers.tera.alteration import REPLACED, ZEROED, Policy, num_blocks
from papers.tera.data import LONGEST, SHORTEST
from papers.tera.downstream import TRAIN_SHARE
from papers.tera.features import HOP, SAMPLE_RATE, TARGET_DB
from papers.tera.model import TERA, tera_base
from papers.tera.probes import CONCAT, HEADS, HIDDEN

POLICY = Policy()


def base_with_head() -> TERA:
    """What is pre-trained: base encoder and reconstruction head."""
    return TERA(tera_base())


def head(name: str, num_classes: int) -> nn.Module:
    """A downstream classifier on base's representation."""
    return HEADS[name](tera_base().dim, num_classes)


def width() -> int:
    """Frames of a block of time; shortest and longest are the same."""
    shortest, longest = POLICY.block
    assert shortest == longest
    return shortest


def blocks(frames: int) -> int:
    """Blocks of time drawn for an utterance."""
    return num_blocks(frames, width(), POLICY.time)


def covered_share(frames: int) -> float:
    """Expected share of frames in at least one block: a frame covered by c of the S possible starts stays outside
    with probability C(S - c, n) / C(S, n)."""
    starts, n = frames - width(), blocks(frames)
    covering = [min(starts - 1, t) - max(0, t - width() + 1) + 1 for t in range(frames)]
    outside = [math.comb(starts - max(c, 0), n) / math.comb(starts, n) for c in covering]
    return 1 - sum(outside) / frames


def widest_band(channels: int) -> int:
    """Widest band of channels that frequency alteration zeroes."""
    return int(channels * POLICY.frequency)


def no_band(channels: int) -> float:
    """Probability that frequency alteration draws a band of no width."""
    return 1 / (widest_band(channels) + 1)


def frames(seconds: float) -> int:
    """Centred frames of that much audio; 15 s is the crop of pre-training."""
    return 1 + round(seconds * SAMPLE_RATE) // HOP


def noise_probability() -> float:
    """Probability that a batch gets noise."""
    return POLICY.noise


def time_share() -> float:
    """Share of the frames that the drawn blocks of time add up to."""
    return POLICY.time


def dice() -> list[float]:
    """Below the first a time dice means zeros, below the second other blocks, above it nothing."""
    return [ZEROED, REPLACED]


def segment() -> list[int]:
    """Frames below which an utterance is dropped, and above which it is cropped."""
    return [SHORTEST, LONGEST]


def initial_std() -> float:
    """Deviation of the initial linear weights."""
    return tera_base().init_std


def level() -> float:
    """RMS to which a waveform is scaled, in dB below full scale."""
    return TARGET_DB


def concatenated_frames() -> int:
    """Frames side by side in phone concat."""
    return CONCAT


def hidden_units() -> int:
    """Width of the hidden layer in phone 1-hidden."""
    return HIDDEN


def development_share() -> float:
    """Share of the training list that is the development set."""
    return 1 - TRAIN_SHARE
