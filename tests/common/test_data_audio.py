"""Waveforms and Kaldi filterbanks."""

import numpy as np
import pytest
import soundfile
import torch

from common.errors import EncoreError
from common.formats.audio import kaldi_fbank, load_audio, resample


def plain_fbank(x, rate, bins, length, shift):
    """Kaldi's log-mel filterbank written out: x float64 (samples,) at 16-bit scale -> (frames, bins)."""
    size = 1 << (length - 1).bit_length()
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))) ** 0.85  # Povey
    mel = lambda hertz: 1127 * np.log(1 + hertz / 700)  # noqa: E731
    edges = np.linspace(mel(20), mel(rate / 2), bins + 2)
    centres = mel(np.arange(size // 2) * rate / size)
    rows = []
    for start in range(0, len(x) - length + 1, shift):
        frame = x[start : start + length] - x[start : start + length].mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, size))[: size // 2] ** 2
        row = []
        for left, centre, right in zip(edges, edges[1:], edges[2:]):
            triangle = np.minimum((centres - left) / (centre - left), (right - centres) / (right - centre))
            row.append(np.log(max(power @ np.maximum(triangle, 0), np.finfo(np.float32).eps)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("rate, bins", [(16000, 128), (8000, 40)])
def test_fbank_equals_kaldis_definition_written_out(rate, bins):
    time = np.arange(rate // 3) / rate
    noise = np.random.default_rng(0).normal(size=len(time))
    x = (0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 1900 * time) + 0.05 * noise + 0.1).astype("f4")
    ours = kaldi_fbank(torch.from_numpy(x), rate, bins)
    expected = plain_fbank(x.astype("f8") * 2**15, rate, bins, rate // 40, rate // 100)
    assert ours.shape == expected.shape
    assert np.abs(ours.numpy() - expected).max() < 1e-3


def test_ten_seconds_give_998_frames_and_one_frame_is_the_least():
    assert kaldi_fbank(torch.randn(160000)).shape == (998, 128)
    assert kaldi_fbank(torch.randn(400)).shape == (1, 128)


def test_a_clip_shorter_than_a_frame_is_named():
    with pytest.raises(EncoreError, match=r"dog\.wav: 399 samples at 16000 Hz are shorter than one frame of 25 ms"):
        kaldi_fbank(torch.randn(399), name="dog.wav")
    with pytest.raises(EncoreError, match="mono"):
        kaldi_fbank(torch.randn(2, 400))


def test_files_are_averaged_to_mono_and_resampled(tmp_path):
    time = torch.arange(8000) / 8000
    tone = 0.5 * torch.sin(2 * torch.pi * 300 * time)
    soundfile.write(tmp_path / "a.wav", torch.stack([tone, torch.zeros(8000)], 1).numpy(), 8000)
    waveform, rate = load_audio(tmp_path / "a.wav")
    assert (len(waveform), rate) == (16000, 16000)
    expected = 0.25 * torch.sin(2 * torch.pi * 300 * torch.arange(16000) / 16000)
    assert (waveform - expected)[200:-200].abs().max() < 1e-3
    untouched, rate = load_audio(tmp_path / "a.wav", sample_rate=None)
    assert rate == 8000
    assert torch.allclose(untouched, tone / 2, atol=1e-4)


def test_downsampling_removes_what_the_new_rate_cannot_hold():
    time = torch.arange(16000) / 16000
    low, high = torch.sin(2 * torch.pi * 500 * time), torch.sin(2 * torch.pi * 7000 * time)
    out = resample(low + high, 16000, 8000)
    assert (out - low[::2])[100:-100].abs().max() < 0.01


def test_missing_broken_and_empty_files_are_named(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "empty.wav", np.zeros((0,)), 16000)
    for name, what in (("missing", "not a readable"), ("broken", "not a readable"), ("empty", "holds no samples")):
        with pytest.raises(EncoreError, match=rf"{name}\.wav: {what}"):
            load_audio(tmp_path / f"{name}.wav")
