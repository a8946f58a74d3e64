"""The claims' splits and probes on inputs with known answers, and that arms start alike."""

import pytest
import torch

from common.eval.linear_probe import softmax_probe
from papers.tera import claims
from papers.tera.claims import PLANS, Corpus, concatenated, labelled, representation
from papers.tera.data import IGNORED


@pytest.fixture(scope="module")
def corpus():
    return Corpus("smoke")


def run_of(tmp_path, arm="T-F-M", seed=0):
    return claims.Run("tera", "test", arm, seed, "smoke", tmp_path / arm)


def test_test_clips_share_neither_speaker_nor_sentence_with_training(corpus, tmp_path):
    for seed in range(5):
        split = corpus.split(run_of(tmp_path, seed=seed))
        who, what = ({of[i] for i in split.train} for of in (corpus.speakers, corpus.texts))
        assert all(corpus.speakers[i] not in who and corpus.texts[i] not in what for i in split.strangers)
        assert all(corpus.speakers[i] in who and corpus.texts[i] not in what for i in split.sentences)
        assert len(who) == 8
        assert len(what) == 7
        assert split.strangers
        assert not set(split.train) & (set(split.strangers) | set(split.sentences))


def test_noise_is_ten_decibels_down_and_always_the_same(corpus, monkeypatch):
    seen = []
    monkeypatch.setattr(claims, "extract", lambda waveform, kind: seen.append(waveform))
    corpus.noisy(3)
    corpus.noisy(3)
    noise = seen[0] - corpus.waveforms[3]
    ratio = corpus.waveforms[3].square().mean() / noise.square().mean()
    assert 10 * ratio.log10().item() == pytest.approx(10, abs=0.2)
    assert torch.equal(seen[0], seen[1])


def test_the_probe_finds_a_linear_rule_whatever_the_scale_and_nothing_in_noise():
    torch.manual_seed(0)
    y = torch.randint(3, (2000,))
    x = torch.randn(2000, 5) * 0.1
    x[torch.arange(2000), y] += 1
    x = x * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0]) + 7
    assert softmax_probe(x[:1500], y[:1500], 3, steps=200, seed=0)(x[1500:], y[1500:]) > 99
    noise = torch.randn(2000, 5)
    assert softmax_probe(noise[:1500], y[:1500], 3, steps=200, seed=0)(noise[1500:], y[1500:]) < 43


def test_unlabelled_frames_are_not_probed():
    x = [torch.ones(3, 2), torch.zeros(2, 2)]
    frames, labels = labelled(x, [torch.tensor([1, IGNORED, 2]), torch.tensor([IGNORED, 0])])
    assert frames[:, 0].tolist() == [1, 1, 0]
    assert labels.tolist() == [1, 2, 0]


def test_nine_frames_side_by_side():
    x = torch.arange(6.0)[:, None]
    assert concatenated(x)[2].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 5]


def test_all_arms_of_a_seed_start_from_the_same_weights(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "fit", lambda module, *args, **kwargs: module)
    x = corpus.features[0]
    starts = [
        representation(run_of(tmp_path, arm), PLANS["smoke"], corpus, [0, 1, 2])(x) for arm in ("untrained", "T", "F")
    ]
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])
    other = representation(run_of(tmp_path, "T", seed=1), PLANS["smoke"], corpus, [0, 1, 2])(x)
    assert not torch.equal(starts[0], other)
    assert torch.equal(representation(run_of(tmp_path, "logmel"), PLANS["smoke"], corpus, [0, 1, 2])(x), x)
