"""The front ends of TERA: log-mel of the repository's own pipeline, and Kaldi's filterbank and MFCC with deltas.

All give one frame every 10 ms from 25 ms of 16 kHz audio, normalised to mean 0 and deviation 1 per channel and
utterance (CMVN). Nothing here knows padding: features are computed per utterance and padded afterwards.
"""

from functools import cache
from typing import Literal, get_args

import torch
import torchaudio.functional
from torch import Tensor
from torchaudio.compliance import kaldi

from common.errors import EncoreError

SAMPLE_RATE = 16000
HOP, WINDOW = 160, 400  # samples
TARGET_DB = -25.0
EPS = 1e-10
DELTA_WINDOW = 5
Kind = Literal["mel", "fbank", "mfcc"]
DIMENSIONS = {"mel": 80, "fbank": 240, "mfcc": 39}  # 80 log-mel; 80 and 13 with first and second deltas
FMLLR_DIM = 40  # speaker-adapted features of a Kaldi recipe, read from files


def set_level(waveform: Tensor, target_db: float = TARGET_DB) -> Tensor:
    """(samples,) scaled to an RMS of target_db dB below full scale; silence stays silence."""
    rms = waveform.square().mean().sqrt()
    return waveform * (10 ** (target_db / 20) / (rms + EPS))


@cache
def mel_filters(num_mels: int) -> Tensor:
    """HTK mel triangles without area normalisation over 0-8 kHz, (201, num_mels)."""
    with torch.device("cpu"):
        return torchaudio.functional.melscale_fbanks(WINDOW // 2 + 1, 0.0, SAMPLE_RATE / 2, num_mels, SAMPLE_RATE)


def log_mel(waveform: Tensor, num_mels: int = 80, name: str = "clip") -> Tensor:
    """(samples,) -> (1 + samples // 160, num_mels): ln(mel power + 1e-10) of a centred Hann STFT with reflection.

    EncoreError, naming the clip, when there are too few samples to reflect.
    """
    _check(waveform, WINDOW // 2 + 1, name)
    spectrum = torch.stft(
        waveform,
        n_fft=WINDOW,
        hop_length=HOP,
        window=torch.hann_window(WINDOW, device=waveform.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    return (power.T @ mel_filters(num_mels).to(power) + EPS).log()


def with_deltas(features: Tensor) -> Tensor:
    """(L, H) -> (L, 3 H): first and second regression deltas over 5 frames, edges repeated."""
    parts = [features]
    for _ in range(2):
        parts.append(torchaudio.functional.compute_deltas(parts[-1].T[None], DELTA_WINDOW)[0].T)
    return torch.cat(parts, dim=1)


def kaldi_features(waveform: Tensor, kind: Literal["fbank", "mfcc"], name: str = "clip") -> Tensor:
    """(samples,) in [-1, 1] -> (1 + (samples - 400) // 160, 240 or 39): Kaldi's features of the unscaled waveform."""
    _check(waveform, WINDOW, name)
    if kind == "fbank":
        static = kaldi.fbank(waveform[None], sample_frequency=SAMPLE_RATE, num_mel_bins=80)
    else:
        static = kaldi.mfcc(waveform[None], sample_frequency=SAMPLE_RATE, num_ceps=13)
    return with_deltas(static)


def cmvn(features: Tensor) -> Tensor:
    """(L, H), every channel shifted to mean 0 and divided by its unbiased deviation + 1e-10 over the L frames.

    A channel that never changes becomes 0: its mean is off by a rounding error, which the division would blow up.
    """
    normalised = (features - features.mean(dim=0)) / (features.std(dim=0) + EPS)
    return normalised.masked_fill(features.amax(dim=0) == features.amin(dim=0), 0)


def extract(waveform: Tensor, kind: Kind, name: str = "clip") -> Tensor:
    """Normalised features of one utterance at 16 kHz: (samples,) -> (L, DIMENSIONS[kind]).

    "mel" is computed at -25 dBFS; the Kaldi kinds take the waveform as it is. EncoreError, naming the clip, when it is
    not mono or shorter than two frames.
    """
    if kind not in get_args(Kind):
        raise EncoreError(f"no front end is called {kind!r}; choose one of {', '.join(get_args(Kind))}")
    features = log_mel(set_level(waveform), name=name) if kind == "mel" else kaldi_features(waveform, kind, name)
    if len(features) < 2:
        raise EncoreError(f"{name}: one frame has no deviation to normalise by; remove the clip or pad it")
    return cmvn(features)


def _check(waveform: Tensor, shortest: int, name: str) -> None:
    if waveform.dim() != 1:
        raise EncoreError(f"{name}: expected a mono waveform of shape (samples,), got {tuple(waveform.shape)}")
    if len(waveform) < shortest:
        raise EncoreError(
            f"{name}: {len(waveform)} samples at 16 kHz, at least {shortest} are needed for one frame; "
            "remove the clip or pad it"
        )
