"""Loading and resampling of waveforms, and Kaldi's log-mel filterbank."""

from pathlib import Path

import soundfile
import torch
import torchaudio.functional
from torch import Tensor
from torchaudio.compliance import kaldi

from common.errors import EncoreError


def load_audio(path: Path | str, sample_rate: int | None = 16000) -> tuple[Tensor, int]:
    """Mono waveform (samples,) float32 in [-1, 1] and its rate in Hz, resampled unless sample_rate is None. Channels
    are averaged.

    Raises EncoreError, naming the file, when it is missing, broken or empty.
    """
    try:
        data, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise EncoreError(f"{path}: not a readable audio file ({error}); remove or replace it") from None
    if len(data) == 0:
        raise EncoreError(f"{path}: holds no samples; remove or replace it")
    waveform = torch.from_numpy(data).mean(1)
    return (waveform, rate) if sample_rate is None else (resample(waveform, rate, sample_rate), sample_rate)


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Band-limited (windowed sinc) resampling of the last axis; rates in Hz."""
    return torchaudio.functional.resample(waveform, from_rate, to_rate) if from_rate != to_rate else waveform


def kaldi_fbank(
    waveform: Tensor,
    sample_rate: int = 16000,
    num_mel_bins: int = 128,
    frame_length_ms: float = 25.0,
    frame_shift_ms: float = 10.0,
    dither: float = 0.0,
    name: str = "clip",
) -> Tensor:
    """Kaldi log-mel filterbank, (frames, num_mel_bins); only whole frames count, so 10 s give 998.

    waveform: (samples,) in [-1, 1]; it is scaled by 2^15 first, as Kaldi reads 16-bit integers. Povey window,
    pre-emphasis 0.97, DC offset removed per frame, no energy. Raises EncoreError when it is shorter than one frame; the
    message calls the clip by name.
    """
    if waveform.dim() != 1:
        raise EncoreError(f"{name}: expected a mono waveform of shape (samples,), got {tuple(waveform.shape)}")
    shortest = int(sample_rate * frame_length_ms * 0.001)
    if len(waveform) < shortest:
        raise EncoreError(
            f"{name}: {len(waveform)} samples at {sample_rate} Hz are shorter than one frame of {frame_length_ms:g} ms "
            f"({shortest} samples); remove the clip or pad it"
        )
    return kaldi.fbank(
        waveform[None] * 2**15,
        sample_frequency=sample_rate,
        num_mel_bins=num_mel_bins,
        frame_length=frame_length_ms,
        frame_shift=frame_shift_ms,
        dither=dither,
    )
