"""Loading and resampling of waveforms, and Kaldi's log-mel filterbank."""

import math
from pathlib import Path

import soundfile
import torch
import torchaudio.functional
from scipy.signal import resample_poly
from torch import Tensor
from torchaudio.compliance import kaldi

from common.errors import EncoreError

RATES = (1_000, 1_000_000)  # Hz that a file may have
LARGEST_FILTER = 2**20  # numbers in torchaudio's kernel


def load_audio(
    path: Path | str, sample_rate: int | None = 16000, *, longest: float | None = None
) -> tuple[Tensor, int]:
    """Mono waveform (samples,) float32 in [-1, 1] and its rate in Hz, resampled unless sample_rate is None. Channels
    are averaged. longest: seconds that a file may last.

    Raises EncoreError, naming the file, when it is missing, broken, empty, too long, or its rate is none of audio
    (1 kHz to 1 MHz).
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate, seconds = file.samplerate, file.frames / file.samplerate
            if not RATES[0] <= rate <= RATES[1]:
                raise EncoreError(f"{path}: a sampling rate of {rate} Hz is none of audio; write the file anew")
            if longest is not None and seconds > longest:
                raise EncoreError(f"{path}: lasts {seconds:.0f} s, more than {longest:g} s; cut it into pieces")
            data = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise EncoreError(f"{path}: not a readable audio file ({error}); remove or replace it") from None
    if len(data) == 0:
        raise EncoreError(f"{path}: holds no samples; remove or replace it")
    waveform = torch.from_numpy(data).mean(1)
    return (waveform, rate) if sample_rate is None else (resample(waveform, rate, sample_rate), sample_rate)


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Band-limited (windowed sinc) resampling of the last axis; rates in Hz.

    torchaudio keeps a filter for each phase, (to / gcd) x (from / gcd) numbers: with odd rates (44,101 Hz) scipy's
    polyphase filter, which keeps one, does it.
    """
    if from_rate == to_rate:
        return waveform
    common = math.gcd(from_rate, to_rate)
    if (from_rate // common) * (to_rate // common) <= LARGEST_FILTER:
        return torchaudio.functional.resample(waveform, from_rate, to_rate)
    resampled = resample_poly(waveform.numpy(), to_rate // common, from_rate // common, axis=-1)
    return torch.from_numpy(resampled).to(waveform)


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
