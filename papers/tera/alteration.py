"""The stochastic alteration policy (Sec. III-B): blocks of time, a band of channels, and noise of the magnitude.

Draws come from the global generators of `random` and torch, one after the other in the order of the released code.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import EncoreError

NAMES = ("T", "F", "M", "T-F", "T-M", "F-M", "T-F-M")
ZEROED, REPLACED = 0.8, 0.9  # of the time dice: below the first, zeros; below the second, other blocks; else unchanged


@dataclass(frozen=True)
class Policy:
    """How much is altered.

    time: share of the frames, in blocks of `block` (shortest, longest) frames; frequency: widest band as a share of the
    channels; noise: probability that a batch gets Gaussian noise of standard deviation noise_std. 0 turns an axis off.
    """

    time: float = 0.15
    block: tuple[int, int] = (7, 7)
    frequency: float = 0.2
    noise: float = 0.15
    noise_std: float = 0.2


def named_policy(name: str, noise_std: float = 0.2) -> Policy:
    """Policy of an ablation name (see NAMES): the axes named are on, at the paper's strength. "T" is Mockingjay's.

    noise_std: the released code takes the 0.2 as a standard deviation; 0.447 would be a variance of 0.2.
    """
    if name not in NAMES:
        raise EncoreError(f"no alteration is called {name!r}; choose one of {', '.join(NAMES)}")
    axes = name.split("-")
    full = Policy(noise_std=noise_std)
    return Policy(
        time=full.time if "T" in axes else 0.0,
        frequency=full.frequency if "F" in axes else 0.0,
        noise=full.noise if "M" in axes else 0.0,
        noise_std=noise_std,
    )


class Altered(NamedTuple):
    """A batch to reconstruct: inputs, targets and mask (bool, True = in the loss) are (B', L, H), lengths (B',)."""

    inputs: Tensor
    targets: Tensor
    mask: Tensor
    lengths: Tensor


def num_blocks(length: int, width: int, share: float) -> int:
    """Blocks of `width` frames drawn for `length` frames; ties round to even, as Python's round does."""
    return round(length * share / width)


def alter_time(frames: Tensor, policy: Policy) -> Tensor:
    """Time alteration of one utterance (L, H), in place. Returns the chosen frames, (L,) bool, all in the loss.

    Block starts are drawn without replacement from 0 .. L - width - 1, so that the last frame is never chosen; blocks
    may overlap. ONE dice decides what becomes of all of them: zeros, other blocks of the same utterance, or nothing.
    """
    length = len(frames)
    width = random.randint(*policy.block)
    starts = max(length - width - 1, 0) + 1
    number = num_blocks(length, width, policy.time)
    chosen = torch.randperm(starts)[:number]
    covered = chosen[:, None] + torch.arange(width)
    dice = random.random()
    if dice < ZEROED:
        frames[covered] = 0
    elif dice < REPLACED:
        source = torch.arange(length)
        for start, other in zip(chosen.tolist(), torch.randperm(starts)[:number].tolist()):
            source[start : start + width] = torch.arange(other, other + width)  # where blocks overlap the later wins
        frames.copy_(frames[source])
    mask = torch.zeros(length, dtype=torch.bool)
    mask[covered] = True
    return mask


def alter_band(frames: Tensor, policy: Policy) -> slice:
    """Frequency alteration of one utterance (L, H), in place: zeros in a band of channels on all frames.

    Width w is uniform on 0 .. floor(share * H), the start on 0 .. H - w - 1, so that a band never reaches the top
    channel. Returns the band.
    """
    channels = frames.shape[1]
    width = random.randint(0, int(channels * policy.frequency))
    start = int(torch.randperm(channels - width)[0])
    frames[:, start : start + width] = 0
    return slice(start, start + width)


def alter(features: Tensor, lengths: Tensor, policy: Policy) -> Altered:
    """Alter a padded batch (B, L, H) of lengths (B,) and say which entries are to be reconstructed.

    Time before frequency before magnitude: blocks that replace others are copied before the band is zeroed, and noise
    also falls on zeroed entries. The noise has one dice for the batch and leaves the mask alone. With both axes off the
    mask is everything, padding included. Utterances with nothing masked are removed (all stay if none would be left).
    """
    inputs = features.clone()
    mask = torch.full_like(features, not policy.time and not policy.frequency, dtype=torch.bool)
    for row, length in enumerate(lengths.tolist()):
        if policy.time:
            mask[row, :length] |= alter_time(inputs[row, :length], policy)[:, None]
        if policy.frequency:
            mask[row, :length, alter_band(inputs[row], policy)] = True
    if policy.noise and random.random() < policy.noise:
        inputs += policy.noise_std * torch.randn_like(inputs)
    keep = mask.flatten(1).any(dim=1)
    if not keep.any():
        keep[:] = True
    return Altered(inputs[keep], features[keep], mask[keep], lengths[keep])
