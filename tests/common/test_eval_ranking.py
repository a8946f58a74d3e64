"""Retrieval and generation metrics against values worked out by hand."""

import pytest
import torch

from common.errors import EncoreError
from common.eval.ranking import ranks, retrieval
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
