"""BART's claims at smoke scale on generated text."""

import numpy as np
import pytest

from common.training.run import Run
from papers.bart import claims
from papers.bart.data import collate_pairs
from tests import tiny


@pytest.fixture
def toy_claims(monkeypatch, tmp_path):
    """The claims at smoke scale on generated text instead of WikiText-2 and SST-2."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = tiny.sentences(480, 12, seed=1)
    documents = [texts[i : i + 6] for i in range(0, 480, 6)]
    files = {}
    for split in ("train", "test"):
        table = {"text": tiny.sentences(40, seed=len(split)), "label": [i % 2 for i in range(40)]}
        files[f"sst2-{split}.parquet"] = tmp_path / f"{split}.parquet"
        pq.write_table(pa.table(table), files[f"sst2-{split}.parquet"])
    monkeypatch.setattr(claims, "documents", lambda _: (documents[:40], documents[40:]))
    monkeypatch.setattr(claims.sources, "locate", lambda _: files)
    claims.wikitext.cache_clear()
    yield claims
    claims.wikitext.cache_clear()


def smoke_run(arm, folder) -> Run:
    return Run("bart", "claim", arm, 0, "smoke", folder)


def test_every_arm_of_the_noise_claim_gives_both_metrics_and_starts_from_its_pretraining(
    toy_claims, tmp_path, monkeypatch
):
    original, loaded = toy_claims._start_from, []
    monkeypatch.setattr(toy_claims, "_start_from", lambda model, start: (loaded.append(start), original(model, start)))
    results = {arm: toy_claims.noise_function_decides(smoke_run(arm, tmp_path / arm)) for arm in ("rotation", "none")}
    for metrics in results.values():
        assert metrics["continuation_perplexity"] > 1
        assert 0 <= metrics["sst2_accuracy"] <= 100
    assert results["rotation"]["continuation_perplexity"] != results["none"]["continuation_perplexity"]
    assert loaded[0] is loaded[1] is not None
    assert loaded[2:] == [None, None]
    again = toy_claims.noise_function_decides(smoke_run("rotation", tmp_path / "rotation"))  # every stage is done
    assert again == results["rotation"]


def test_spans_are_cut_in_words_and_a_perfect_filler_has_no_error(toy_claims, monkeypatch):
    text = toy_claims.wikitext(toy_claims.RECIPES["smoke"])
    cuts = toy_claims.cut_spans(text, 4, range(6))
    assert [cut.words for cut in cuts] == [0, 1, 2, 3, 4, 5] * 4
    words = text.vocabulary.word_start
    for cut in cuts:
        assert (cut.source == text.vocabulary.mask).sum() == 1
        assert words[cut.target].sum() - words[cut.source].sum() == cut.words
        at = int(np.flatnonzero(cut.source == text.vocabulary.mask)[0])
        removed = len(cut.target) - len(cut.source) + 1
        assert [*cut.source[:at], *cut.target[at : at + removed], *cut.source[at + 1 :]] == list(cut.target)
        assert words[cut.source[:at]].sum() >= 3 <= words[cut.source[at + 1 :]].sum()

    bart = toy_claims.BART(vocab_size=600, dim=8, depth=1, num_heads=2, mlp_dim=8, max_positions=64)
    answers = iter(
        [collate_pairs([(c.source, c.target) for c in cuts])[1], collate_pairs([(c.target, c.source) for c in cuts])[1]]
    )
    monkeypatch.setattr(toy_claims, "generate", lambda *_: (next(answers), None))
    assert toy_claims.fill_spans(bart, cuts, text.vocabulary) == pytest.approx(
        {"length_error": 0.0, "length_slope": 1.0, "span_exact_match": 100.0}
    )
    dropped = toy_claims.fill_spans(bart, cuts, text.vocabulary)  # writes nothing for the mask (which starts no word)
    assert dropped == pytest.approx({"length_error": 2.5, "length_slope": 0.0, "span_exact_match": 0.0})


def test_halves_join_to_the_block_they_were_cut_from(toy_claims):
    first, second = toy_claims.halves(np.array([0, 10, 11, 12, 13, 14, 2]))
    assert first.tolist() == [0, 10, 11, 2]
    assert second.tolist() == [0, 12, 13, 14, 2]
