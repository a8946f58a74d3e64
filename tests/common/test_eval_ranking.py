"""Retrieval and generation metrics against values worked out by hand."""

import math
import random

import pytest
import torch
from sklearn.metrics import ndcg_score

from common.errors import EncoreError
from common.eval.ranking import ranking_metrics, ranks, retrieval, search
from common.eval.rouge import rouge


def test_recall_and_median_rank_of_a_three_by_three_matrix():
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.2],  # its text first
            [0.8, 0.3, 0.5],  # its text last
            [0.6, 0.2, 0.4],  # its text second
        ]
    )
    assert ranks(similarity).tolist() == [1, 3, 2]
    assert ranks(similarity.T).tolist() == [1, 1, 2]
    metrics = retrieval(similarity, ks=(1, 2, 3))
    assert metrics == pytest.approx(
        {
            "image_to_text_recall@1": 100 / 3,
            "image_to_text_recall@2": 200 / 3,
            "image_to_text_recall@3": 100,
            "image_to_text_median_rank": 2,
            "text_to_image_recall@1": 200 / 3,
            "text_to_image_recall@2": 100,
            "text_to_image_recall@3": 100,
            "text_to_image_median_rank": 1,
        }
    )


def test_several_captions_of_an_image_count_by_the_best_of_them():
    similarity = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.5, 0.4, 0.3, 0.6]])
    positives = torch.tensor([[True, True, False, False], [False, False, True, True]])
    assert ranks(similarity, positives).tolist() == [1, 1]
    assert ranks(similarity.T, positives.T).tolist() == [2, 1, 2, 1]
    assert retrieval(similarity, positives, ks=(1,))["text_to_image_recall@1"] == 50


def test_a_collapsed_or_diverged_model_scores_nothing():
    assert ranks(torch.ones(4, 4)).tolist() == [4, 4, 4, 4]
    assert ranks(torch.full((4, 4), torch.nan)).tolist() == [4, 4, 4, 4]
    assert retrieval(torch.ones(4, 4), ks=(1, 3))["image_to_text_recall@3"] == 0


def test_pairs_that_are_not_stated_are_asked_for():
    with pytest.raises(EncoreError, match="positives="):
        ranks(torch.ones(2, 3))
    with pytest.raises(EncoreError, match="row 1 has no positive"):
        ranks(torch.ones(2, 2), torch.tensor([[True, False], [False, False]]))


def test_rouge_of_two_short_sentences():
    scores = rouge(["the cat sat", "a dog"], ["the cat", "a dog"])
    assert scores["rouge1"] == pytest.approx((80 + 100) / 2)
    assert scores["rouge2"] == pytest.approx((200 / 3 + 100) / 2)
    assert rouge(["sat cat the"], ["the cat sat"])["rougeL"] == pytest.approx(100 / 3)
    with pytest.raises(EncoreError, match="1 predictions for 2"):
        rouge(["a"], ["a", "b"])


def test_ranking_measures_equal_sklearns_and_what_one_counts_by_hand():
    rng = random.Random(0)
    documents = [str(i) for i in range(40)]
    judged = {q: {d: rng.randrange(3) for d in rng.sample(documents, 12)} for q in "abc"}
    ranking = {q: [(d, 1.0 / (i + 1)) for i, d in enumerate(rng.sample(documents, 40))] for q in "abc"}
    found = ranking_metrics(ranking, judged, recall_at=(5, 20))
    gains = [[judged[q].get(d, 0) for d in documents] for q in "abc"]
    scores = [[dict(ranking[q])[d] for d in documents] for q in "abc"]
    assert found["ndcg@10"] == pytest.approx(ndcg_score(gains, scores, k=10), abs=1e-6)
    good = [[judged[q].get(d, 0) > 0 for d, _ in ranking[q]] for q in "abc"]
    first = [row.index(True) + 1 for row in good]
    assert found["mrr@10"] == pytest.approx(sum(1 / f if f <= 10 else 0 for f in first) / 3)
    for k in (5, 20):
        assert found[f"recall@{k}"] == pytest.approx(sum(sum(row[:k]) / sum(row) for row in good) / 3)


def test_a_relevant_document_that_was_not_found_counts_as_missed_however_short_the_ranking():
    judged = {"a": {"x": 1, "y": 1}, "b": {"z": 1}, "c": {"x": 0}}
    found = ranking_metrics({"a": [("x", 2.0)], "b": [("x", 1.0)]}, judged, recall_at=(50,))
    ideal = 1 + 1 / math.log2(3)
    assert found == pytest.approx({"mrr@10": 0.5, "mrr@100": 0.5, "ndcg@10": 1 / ideal / 2, "recall@50": 0.25})
    late = {"b": [(str(i), -float(i)) for i in range(10)] + [("z", -11.0)]}
    assert ranking_metrics(late, {"b": {"z": 1}})["mrr@10"] == 0
    assert ranking_metrics(late, {"b": {"z": 1}})["mrr@100"] == pytest.approx(1 / 11)
    with pytest.raises(EncoreError, match="no query has a relevant document"):
        ranking_metrics({}, {"c": {"x": 0}})


def test_a_query_that_is_a_document_does_not_find_itself():
    """As in ArguAna and Quora. Where both are numbered for themselves, equal ids mean nothing."""
    found, judged = {"1": [("1", 9.0), ("a", 1.0)]}, {"1": {"a": 1}}
    assert ranking_metrics(found, judged)["mrr@10"] == 1
    assert ranking_metrics(found, judged, shared_ids=False)["mrr@10"] == 0.5
    assert ranking_metrics({"1": [("1", 9.0)]}, {"1": {"1": 1}}, shared_ids=False)["mrr@10"] == 1


@pytest.mark.parametrize("chunk", [2, 100])
def test_search_in_parts_finds_what_scoring_everything_finds(chunk):
    torch.manual_seed(0)
    scores = torch.randn(3, 7)
    best, rows = search(lambda part: scores[:, part], 7, depth=4, chunk=chunk)
    whole = scores.topk(4, dim=1)
    assert torch.equal(best, whole.values)
    assert torch.equal(rows, whole.indices)
    with pytest.raises(EncoreError, match="index is empty"):
        search(lambda part: scores[:, part], 0, depth=4)
