"""Generated sounds: exact, seeded, balanced, and told apart by more than loudness."""

import numpy as np
import pytest
import torch

from common.worlds.sounds import CLASSES, SoundClips, make_sound


def test_a_clip_is_a_function_of_its_seed_and_index_alone():
    a, b = SoundClips(30, seconds=0.5, seed=3), SoundClips(50, seconds=0.5, seed=3)
    b[0], b[1]
    assert torch.equal(a[17][0], b[17][0])
    assert not torch.equal(a[17][0], SoundClips(30, seconds=0.5, seed=4)[17][0])
    assert not torch.equal(a[7][0], a[17][0])  # same class, other clip


def test_classes_are_balanced_and_clips_are_finite_audio_of_the_asked_length():
    clips = SoundClips(20, seconds=0.5, sample_rate=8000)
    assert [clips[i][1] for i in range(20)] == [*range(10), *range(10)]
    assert len(CLASSES) == 10
    for i in range(20):
        wave = clips[i][0]
        assert wave.shape == (4000,)
        assert wave.dtype == torch.float32
        assert 0.09 < wave.abs().max() <= 0.9001  # also fails on NaN
    with pytest.raises(IndexError):
        clips[20]


def test_rising_and_falling_differ_in_direction_not_in_spectrum():
    def slope(label: int, key: int) -> float:
        spectrum = torch.stft(make_sound(label, key, 1.0), 512, 128, window=torch.hann_window(512), return_complex=True)
        peak = spectrum.abs()[:40].argmax(0).float()
        step = peak.diff()
        return float(step[step.abs() < 5].sum())  # leaves out the jump back at the end of every sweep

    rising, falling = CLASSES.index("rising"), CLASSES.index("falling")
    assert np.mean([slope(rising, key) for key in range(5)]) > 5
    assert np.mean([slope(falling, key) for key in range(5)]) < -5
