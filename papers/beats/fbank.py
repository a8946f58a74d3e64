"""How BEATs' sounds are prepared."""

from torch import Tensor

from common.formats.audio import kaldi_fbank
from papers.beats.model import FBANK_MEAN, FBANK_STD

SAMPLE_RATE = 16000


def spectrogram(
    waveform: Tensor, num_mel_bins: int = 128, *, mean: float = FBANK_MEAN, std: float = FBANK_STD, name: str = "clip"
) -> Tensor:
    """(samples,) at 16 kHz -> (frames, mels): Kaldi fbank, (x - mean) / (2 std), so about N(0, 0.5^2).

    EncoreError, naming the clip, when it is shorter than one 25 ms frame.
    """
    return (kaldi_fbank(waveform, SAMPLE_RATE, num_mel_bins, name=name) - mean) / (2 * std)
