"""Extractive question answering: official scores, and spans that are read from the context alone."""

import numpy as np
import pytest
import torch
from torchmetrics.text import SQuAD as SQuADScore

from common.eval.questions import Question, SpanExtraction, SQuAD, best_span, update_score
from common.training.recipe import Optim

CONTEXT = "two dogs slept"


def scored(prediction, answers) -> tuple[float, float]:
    score = SQuADScore()
    update_score(score, [prediction], [answers])
    found = score.compute()
    return found["exact_match"].item() / 100, found["f1"].item() / 100


def test_scores_follow_the_official_normalisation():
    assert scored("The Old River!", ["old river"]) == (1.0, 1.0)
    assert scored("old brown river", ["dogs", "the old river"]) == (0.0, pytest.approx(0.8))
    assert scored("", []) == (1.0, 1.0)
    assert scored("river", []) == (0.0, 0.0)


def test_best_span_is_the_best_pair_in_order_within_the_length():
    torch.manual_seed(0)
    start, end = torch.randn(4, 9), torch.randn(4, 9)
    valid = torch.ones(4, 9, dtype=torch.bool)
    valid[:, -2:] = False
    first, last = best_span(start, end, valid, max_length=3)
    for b in range(4):
        pairs = [(i, j) for i in range(7) for j in range(i, min(i + 3, 7))]
        assert (first[b].item(), last[b].item()) == max(pairs, key=lambda p: (start[b, p[0]] + end[b, p[1]]).item())


def test_the_best_span_is_read_from_the_context_only_and_nothing_where_the_start_scores_higher():
    row = Question(np.array([0, 9, 2, 5, 6, 7, 2]), 3, [(0, 3), (4, 8), (9, 14)], CONTEXT, [])
    asked = [
        row.found({"text": ["two dogs"], "answer_start": [0]}),
        row,
        row.found({"text": ["slept"], "answer_start": [9]}),
    ]
    assert [(q.start, q.end) for q in asked] == [(3, 4), (0, 0), (5, 5)]
    data = SQuAD("nowhere", batch_size=3)
    batch = data.collate(asked)
    assert batch.allowed.tolist() == [[True, False, False, True, True, True, False]] * 3
    module = SpanExtraction(Optim(1e-3))
    scores = torch.zeros(*batch.ids.shape, 2)
    rows = torch.arange(3)
    scores[rows, batch.start, 0] = scores[rows, batch.end, 1] = 5.0
    scores[[0, 2], 0] = torch.tensor([50.0, -100.0])  # it may stand for "no answer", never for an answer's start
    scores[:, 1] = 99.0  # a question's token never is an answer
    module.model = lambda _: scores
    assert module.answers(batch) == ["two dogs", "", "slept"]
    start, end = module.logits(batch)
    torch.testing.assert_close(
        module.loss(batch), -(start.log_softmax(1)[rows, batch.start] + end.log_softmax(1)[rows, batch.end]).mean() / 2
    )
