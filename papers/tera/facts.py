"""Figures of the paper that follow from the sizes alone, computed with the code that trains; named in paper.yaml."""

import math

from torch import nn

from papers.tera.alteration import Policy, num_blocks
from papers.tera.features import HOP, SAMPLE_RATE
from papers.tera.model import TERA, tera_base
from papers.tera.probes import HEADS

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
