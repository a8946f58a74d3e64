"""MosaicBERT's claims at smoke scale on generated sentences, and what they measure."""

import numpy as np
import pytest
import torch

from common.formats import corpora
from common.formats.text_corpus import FixedBatches
from common.training.recipe import Optim
from common.training.run import Run
from papers.mosaicbert import claims, speed
from papers.mosaicbert.data import Masking
from papers.mosaicbert.module import Pretraining
from tests import tiny


@pytest.fixture
def toy_text(monkeypatch, tmp_path):
    """The claims' data: generated sentences instead of WikiText-2 and SST-2."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(1)
    texts = [tiny.sentence(rng, int(rng.integers(4, 40))) for _ in range(200)]
    pq.write_table(pa.table({"text": texts, "label": [0] * 200}), tmp_path / "sst2-train.parquet")
    monkeypatch.setattr(corpora, "sentences", lambda _: (texts[:150], texts[150:]))
    monkeypatch.setattr(speed.sources, "locate", lambda _: {"sst2-train.parquet": tmp_path / "sst2-train.parquet"})
    claims.wikitext.cache_clear()
    yield texts
    claims.wikitext.cache_clear()


def smoke_run(arm, folder) -> Run:
    return Run("mosaicbert", "claim", arm, 0, "smoke", folder)


def test_arms_spend_equal_compute_or_equal_steps_and_mask_as_the_paper_says(toy_text, tmp_path, monkeypatch):
    ratios = []
    original = claims.pretrain
    monkeypatch.setattr(claims, "pretrain", lambda *a: (ratios.append(a[3].ratio), original(*a))[1])
    plan = claims.PLANS["smoke"]
    results = {arm: claims.equal_compute(smoke_run(arm, tmp_path / arm)) for arm in claims.ARMS}
    assert ratios == [0.15, 0.3, 0.3]
    assert results["bert"]["steps"] == results["equal_steps"]["steps"] == plan.steps
    step = results["mosaicbert"]["tmac"] / results["mosaicbert"]["steps"]
    assert abs(results["mosaicbert"]["tmac"] - results["bert"]["tmac"]) <= 0.51 * step
    assert results["mosaicbert"]["parameters"] > results["bert"]["parameters"] > results["equal_steps"]["parameters"]
    again = claims.equal_compute(smoke_run("mosaicbert", tmp_path / "mosaicbert"))  # trained already
    assert again == results["mosaicbert"]


def test_held_out_scores_are_means_over_labelled_tokens(toy_text):
    text = claims.wikitext(claims.PLANS["smoke"])
    torch.manual_seed(0)
    module = Pretraining(Optim(1e-3), "mosaicbert_tiny", 1024).eval()
    batches = FixedBatches(text.held_out, 7, Masking(text.tokenizer, 0.5))
    loss, accuracy = claims.held_out(module.model, batches)
    parts = [module.model.labelled(*batches[i]) for i in range(len(batches))]
    logits, labels = torch.cat([p for p, _ in parts]), torch.cat([y for _, y in parts])
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item())


def test_extrapolation_compares_the_same_words_in_long_and_short_windows(toy_text, tmp_path, monkeypatch):
    results = {arm: claims.extrapolation(smoke_run(arm, tmp_path / arm)) for arm in ("alibi", "learned")}
    for metrics in results.values():
        assert metrics["loss_increase"] == pytest.approx(metrics["loss_whole"] - metrics["loss_cut"])
    text = claims.wikitext(claims.PLANS["smoke"])
    long = torch.from_numpy(claims.windows(text.held_out, 120)[:5])
    assert not torch.isin(long, torch.tensor([text.tokenizer.cls, text.tokenizer.sep, 0])).any()
    seen = {}

    class Watch:
        def labelled(self, tokens, valid, labels):
            seen.setdefault(tokens.shape[1], []).append((tokens, labels))
            chosen = labels >= 0
            return torch.zeros(int(chosen.sum()), 1024), labels[chosen]

    for parts in (1, 4):
        assert claims.window_loss(Watch(), text.tokenizer, long, parts) == pytest.approx(np.log(1024), rel=1e-5)
    (whole, labels), (cut, cut_labels) = seen[122][0], seen[32][0]
    assert torch.equal(whole[:, 1:-1].reshape(20, 30), cut[:, 1:-1])
    assert torch.equal(labels[:, 1:-1].reshape(20, 30), cut_labels[:, 1:-1])
    assert (labels[:, 0] == -100).all()
    assert (cut[:, 0] == text.tokenizer.cls).all()
    assert (cut[:, -1] == text.tokenizer.sep).all()


def test_speed_claims_time_both_sides_on_the_same_batches_and_agree_on_the_states(toy_text, tmp_path):
    metrics = speed.unpadding(smoke_run("unpadded", tmp_path))
    assert metrics["difference"] < 1e-4
    assert metrics["inverse_fill"] > 1.1
    assert metrics["speedup"] > 0
    metrics = speed.against_transformers(smoke_run("mosaicbert_base", tmp_path))
    assert metrics["speedup"] > 0
    calls = []

    def side(name):
        layer = torch.nn.Linear(1, 1)
        return layer, lambda batch: (calls.append((name, batch)), layer.weight.sum())[1]

    seconds = speed.paired_seconds({"a": side("a"), "b": side("b")}, [0, 1, 2])
    assert calls == [("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert all(value > 0 for value in seconds.values())
    batches = [(None, torch.ones(2, 2).bool(), None), (None, torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool(), None)]
    assert speed.fill(batches) == 5 / 8
