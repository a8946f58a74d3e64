"""Generated sounds: ten classes told apart by how they change over time, each clip a pure function of (seed, index).

Pitch, loudness, onset and background noise vary inside a class, so neither loudness nor a single band gives the class
away.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Generator = np.random.Generator
Signal = np.ndarray  # float64 (samples,)


def _tone(frequency: Signal, rate: int) -> Signal:
    """Sine of an instantaneous frequency in Hz, (samples,)."""
    return np.sin(2 * np.pi * np.cumsum(frequency) / rate)


def _voice(frequency: Signal, rate: int) -> Signal:
    """Four harmonics whose amplitudes fall as 1/k."""
    return sum((_tone(frequency * k, rate) / k for k in range(1, 5)), start=np.zeros(len(frequency)))


def _hum(t: Signal, rate: int, rng: Generator) -> Signal:
    return _voice(np.full(len(t), rng.uniform(150, 600)), rate)


def _rising(t: Signal, rate: int, rng: Generator) -> Signal:
    low, factor, period = rng.uniform(200, 500), rng.uniform(2, 4), rng.uniform(0.3, 0.6)
    return _voice(low * factor ** ((t / period) % 1), rate)


def _falling(t: Signal, rate: int, rng: Generator) -> Signal:
    low, factor, period = rng.uniform(200, 500), rng.uniform(2, 4), rng.uniform(0.3, 0.6)
    return _voice(low * factor ** (1 - (t / period) % 1), rate)


def _siren(t: Signal, rate: int, rng: Generator) -> Signal:
    low, factor, period = rng.uniform(300, 700), rng.uniform(1.2, 1.5), rng.uniform(0.4, 0.8)
    return _voice(np.where((t / period) % 1 < 0.5, low, low * factor), rate)


def _vibrato(t: Signal, rate: int, rng: Generator) -> Signal:
    centre, depth, speed = rng.uniform(250, 700), rng.uniform(0.05, 0.12), rng.uniform(5, 9)
    return _voice(centre * (1 + depth * np.sin(2 * np.pi * speed * t)), rate)


def _hiss(t: Signal, rate: int, rng: Generator) -> Signal:
    return rng.standard_normal(len(t))


def _rumble(t: Signal, rate: int, rng: Generator) -> Signal:
    walk = np.cumsum(rng.standard_normal(len(t)))
    window = np.ones(rate // 20) / (rate // 20)
    return walk - np.convolve(walk, window, mode="same")


def _pulses(t: Signal, rate: int, rng: Generator) -> Signal:
    speed = rng.uniform(3, 7)
    return rng.standard_normal(len(t)) * (0.5 + 0.5 * np.sin(2 * np.pi * speed * t)) ** 2


def _decaying(t: Signal, rate: int, starts: Signal, frequency: Signal, decay: float) -> Signal:
    """Sum of sines that start at `starts` (s) with `frequency` (Hz) and fall off with time constant `decay` (s)."""
    total = np.zeros(len(t))
    for start, pitch in zip(starts, frequency):
        first = int(start * rate)
        local = t[: len(t) - first]
        total[first:] += np.sin(2 * np.pi * pitch * local) * np.exp(-local / decay)
    return total


def _knocks(t: Signal, rate: int, rng: Generator) -> Signal:
    starts = np.arange(rng.uniform(0, 0.1), t[-1], rng.uniform(0.15, 0.3))
    return _decaying(t, rate, starts, np.full(len(starts), rng.uniform(150, 500)), 0.02)


def _drips(t: Signal, rate: int, rng: Generator) -> Signal:
    starts = np.sort(rng.uniform(0, t[-1] * 0.98, max(2, int(6 * t[-1]))))
    return _decaying(t, rate, starts, rng.uniform(1000, 4000, len(starts)), 0.03)


_MAKERS: dict[str, Callable[[Signal, int, Generator], Signal]] = {
    "hum": _hum,
    "rising": _rising,
    "falling": _falling,
    "siren": _siren,
    "vibrato": _vibrato,
    "hiss": _hiss,
    "rumble": _rumble,
    "pulses": _pulses,
    "knocks": _knocks,
    "drips": _drips,
}
CLASSES = tuple(_MAKERS)


def make_sound(label: int, key: int | list[int], seconds: float = 2.0, sample_rate: int = 16000) -> Tensor:
    """One clip of class CLASSES[label]: (seconds * sample_rate,) float32 in [-1, 1], with noise at 10-30 dB SNR.

    key seeds it: the same (label, key, seconds, sample_rate) is the same clip.
    """
    rng = np.random.default_rng([label, *np.atleast_1d(key)])
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    sound = _MAKERS[CLASSES[label]](t, sample_rate, rng)
    sound = np.roll(sound / sound.std(), rng.integers(len(t)))
    noise = rng.standard_normal(len(t)) * 10 ** (-rng.uniform(10, 30) / 20)
    clip = sound + noise
    return torch.from_numpy((rng.uniform(0.1, 0.9) * clip / np.abs(clip).max()).astype(np.float32))


class SoundClips:
    """Map-style dataset of (waveform (samples,), label): clip i is of class i mod 10, so ten are balanced."""

    def __init__(self, num_clips: int, *, seconds: float = 2.0, sample_rate: int = 16000, seed: int = 0) -> None:
        self.num_clips, self.seconds, self.sample_rate, self.seed = num_clips, seconds, sample_rate, seed

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.num_clips:
            raise IndexError(f"clip {index} of {self.num_clips}")
        label = index % len(CLASSES)
        return make_sound(label, [self.seed, index], self.seconds, self.sample_rate), label
