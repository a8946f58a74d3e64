"""The claims' measures on inputs with known answers, and equal compute."""

import numpy as np
import pytest
import torch

from papers.beats import claims
from papers.beats.claims import FRAMES, MELS, PLANS, Corpus, step_costs, token_metrics


@pytest.fixture(scope="module")
def corpus():
    return Corpus("smoke")


@pytest.fixture
def run(tmp_path):
    return claims.Run("beats", "test", "arm", 0, "smoke", tmp_path)


def test_the_corpus_is_normalised_by_its_own_statistics_and_cut_side_by_side(corpus):
    values = torch.cat(corpus.clips)
    assert values.mean().abs() < 1e-4
    assert values.std().item() == pytest.approx(0.5, abs=1e-3)
    crops, owner = corpus.whole_crops()
    assert crops.shape == (40, 1, FRAMES, MELS)  # 1.5 s hold one crop
    assert torch.equal(crops[7, 0], corpus.clips[7][:FRAMES])
    assert owner.tolist() == list(range(40))
    noisy, _ = corpus.whole_crops(noise_db=20.0)
    assert 0.01 < (noisy - crops).abs().mean() < 0.5


def test_the_probe_never_sees_the_fold_it_scores(corpus, run):
    one_hot = np.eye(10)[corpus.labels]
    assert corpus.probe(run, one_hot) == 100
    leak = np.zeros((len(corpus.labels), len(corpus.labels)))
    np.fill_diagonal(leak, 1)  # tells clips apart, says nothing about clips of another fold
    assert corpus.probe(run, leak) <= 20


class Known:
    """A tokenizer whose codes are the class (of clip i, i mod 10), or chance."""

    num_codes = 10

    def __init__(self, informed):
        self.informed, self.calls = informed, 0

    def tokenize(self, x):
        self.calls += 1
        shape = (len(x), 16)
        if self.informed:
            return (torch.arange(len(x)) % 10)[:, None].expand(shape)
        return torch.randint(10, shape, generator=torch.Generator().manual_seed(self.calls))


def test_token_metrics_tell_class_codes_from_chance(corpus, run):
    best = token_metrics(run, corpus, Known(True))
    assert best["histogram_accuracy"] == 100
    assert best["nmi"] == pytest.approx(100)
    assert best["perplexity"] == pytest.approx(10)
    assert best["stability"] == 100
    chance = token_metrics(run, corpus, Known(False))
    assert chance["histogram_accuracy"] < 40
    assert chance["nmi"] < 10
    assert chance["stability"] == pytest.approx(10, abs=5)


def test_step_costs_count_what_each_stage_computes():
    first, tokenizer, second, regression = step_costs(PLANS["smoke"])
    plan = PLANS["smoke"]
    tokens = plan.batch_size * (FRAMES // 8) * (MELS // 8)
    linear = 12 * plan.dim**2 * tokens  # of one layer, forward, on all tokens
    assert 3 * linear < first < tokenizer  # the predictor alone does that
    # encoder 2 tokenizes the whole clip with the learned encoder, once; only the random projection falls away
    projection = tokens * 32 * (64 + plan.num_codes)
    assert second - first > 0.9 * linear - projection
    assert regression < second


def test_equal_compute_is_equal(tmp_path, monkeypatch, corpus):
    monkeypatch.setattr(claims, "Corpus", lambda scale: corpus)
    runs = [
        claims.Run("beats", "equal", arm, 0, "smoke", tmp_path / arm) for arm in ("iterated", "single", "regression")
    ]
    spent = [claims.equal_compute(run) for run in runs]
    costs = [each["gmac"] for each in spent]
    assert max(costs) / min(costs) < 1.15  # whole steps; 12 of them at this scale
    assert claims.equal_compute(claims.Run("beats", "equal", "untrained", 0, "smoke", tmp_path / "u"))["gmac"] == 0
    assert spent[1]["steps"] > PLANS["smoke"].encoder_steps
