"""Linear probe, kNN, zero-shot, multi-view averaging and feature extraction, against values worked out by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import EncoreError
from common.eval.classification import average_views
from common.eval.extract import extract_features
from common.eval.knn import knn_classify
from common.eval.linear_probe import GRID, logistic_probe, ridge_probe, search_c
from common.eval.zero_shot import classify, zero_shot_weights


def blobs(n, noise, seed, classes=3, dim=8):
    """Features around one corner of a simplex per class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.eye(dim)[labels] + noise * torch.randn(n, dim, generator=generator), labels


def test_perfect_features_give_one_hundred_percent_with_every_probe():
    train, test = blobs(60, 0.01, 0), blobs(30, 0.01, 1)
    assert logistic_probe(train, test, c=1.0).accuracy == 100
    assert ridge_probe(train, test).accuracy == 100
    for temperature in (0.07, None):
        votes = knn_classify(*train, test[0], k=5, temperature=temperature)
        assert (votes.argmax(1) == test[1]).all()


def test_shuffled_labels_give_chance():
    train, (x, y) = blobs(300, 0.5, 0), blobs(300, 0.5, 1)
    shuffled = y[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    assert logistic_probe(train, (x, y), c=1.0).accuracy > 60
    assert abs(logistic_probe(train, (x, shuffled), c=1.0).accuracy - 100 / 3) < 10


def test_the_search_finds_every_single_peak_of_the_grid_with_15_of_97_tries():
    assert len(GRID) == 97
    assert (GRID[0], GRID[48], GRID[-1]) == (1e-6, 1.0, 1e6)
    for peak in range(97):
        tried = []
        found = search_c(lambda c: tried.append(c) or -abs(np.log10(c) - np.log10(GRID[peak])))  # noqa: B023
        assert found == GRID[peak]
        assert len(tried) <= 15
    assert search_c(lambda c: 1.0) == 1e-6


def test_the_searched_penalty_is_as_good_on_validation_as_the_full_grid():
    train, validation = blobs(45, 0.9, 0), blobs(90, 0.9, 1)
    found = logistic_probe(train, blobs(9, 0.9, 2), validation=validation).c
    accuracy = {c: logistic_probe(train, validation, c=c).accuracy for c in GRID[::2]}
    assert logistic_probe(train, validation, c=found).accuracy >= max(accuracy.values())
    assert min(accuracy.values()) < max(accuracy.values())


def test_after_the_search_the_probe_is_fitted_on_train_and_validation():
    (x, y), (val_x, val_y) = blobs(60, 0.01, 0), blobs(60, 0.01, 1)
    two = y < 2  # the third class is seen in validation only, and most often
    validation = (torch.cat([val_x, val_x[val_y == 2]]), torch.cat([val_y, val_y[val_y == 2]]))
    assert 2 in logistic_probe((x[two], y[two]), blobs(30, 0.01, 2), validation=validation).predictions


def test_probes_refuse_diverged_features_and_an_unstated_penalty():
    train, test = blobs(30, 0.1, 0), blobs(30, 0.1, 1)
    with pytest.raises(EncoreError, match="train features hold NaN"):
        logistic_probe((train[0] * torch.nan, train[1]), test, c=1.0)
    with pytest.raises(EncoreError, match="either c or a validation set"):
        logistic_probe(train, test)
    with pytest.raises(EncoreError, match="test needs features"):
        ridge_probe(train, (test[0], test[1][:-1]))


def test_knn_equals_the_sum_written_out_and_leaves_nothing_out():
    train, labels = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    queries = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    votes = knn_classify(train, labels, queries, k=10, temperature=0.1, chunk=3)
    expected = torch.zeros(7, 4)
    for i, query in enumerate(queries):
        similarity = F.cosine_similarity(query[None], train)
        for j in similarity.argsort(descending=True)[:10]:
            expected[i, labels[j]] += (similarity[j] / 0.1).exp()
    assert torch.allclose(votes * torch.tensor(1 / 0.1).exp(), expected, rtol=1e-4)
    itself = knn_classify(train, torch.arange(40), train, k=1)
    assert (itself.argmax(1) == torch.arange(40)).all()


def test_plain_votes_count_neighbours_and_ties_go_to_the_nearer_class():
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.5, 0.9], [0.0, 1.0]])
    query = torch.tensor([[1.0, 0.05]])
    two_to_one = torch.tensor([1, 0, 0, 0])
    assert knn_classify(train, two_to_one, query, k=3, temperature=None).argmax() == 0
    assert knn_classify(train, two_to_one, query, k=3, temperature=0.07).argmax() == 1
    one_to_one = torch.tensor([1, 0, 2, 2])
    assert knn_classify(train, one_to_one, query, k=2, temperature=None).argmax() == 1
    with pytest.raises(EncoreError, match="k = 5 neighbours of 4"):
        knn_classify(train, two_to_one, query, k=5)


def test_zero_shot_weights_normalise_before_and_after_the_average():
    table = {"a cat": [4.0, 0.0], "one cat": [0.0, 1.0], "a dog": [3.0, 4.0], "one dog": [3.0, 4.0]}
    encode = lambda texts: torch.tensor([table[text] for text in texts])  # noqa: E731
    weights = zero_shot_weights(encode, ["cat", "dog"], ["a {}", "one {}"])
    assert torch.allclose(weights, torch.tensor([[0.5**0.5, 0.5**0.5], [0.6, 0.8]]))
    # (1, 0.85) is nearer to cat; without the second normalisation cat's weight is shorter and dog wins
    scores = classify(torch.tensor([[10.0, 8.5]]), weights)
    assert scores.argmax() == 0
    assert scores.max() <= 1
    unnormalised = torch.tensor([[0.5, 0.5], [0.6, 0.8]])
    assert (torch.tensor([[1.0, 0.85]]) @ unnormalised.T).argmax() == 1


def test_zero_shot_refuses_a_template_without_a_place_for_the_name():
    with pytest.raises(EncoreError, match="'a photo' needs one"):
        zero_shot_weights(lambda texts: torch.ones(len(texts), 2), ["cat"], ["a photo"])
    with pytest.raises(EncoreError, match="no class names"):
        zero_shot_weights(lambda texts: torch.ones(len(texts), 2), [])


def test_views_are_averaged_as_probabilities_per_video():
    # video 5: one certain view against two mildly opposed ones; the mean of logits would decide for class 0
    logits = torch.tensor([[9.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0], [1.0, 0.0]])
    scores, ids = average_views(logits, torch.tensor([5, 5, 5, 5, 2]))
    assert ids.tolist() == [2, 5]
    expected = (logits[0].softmax(0) + 3 * logits[1].softmax(0)) / 4
    assert torch.allclose(scores[1].float(), expected)
    assert scores[1].argmax() == 1
    assert logits[:4].mean(0).argmax() == 0
    assert torch.allclose(scores.sum(1), torch.ones(2, dtype=torch.float64))


def test_a_view_that_a_sampler_repeats_counts_once():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    videos, views = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 0, 0])
    scores, _ = average_views(logits, videos, views)
    once, _ = average_views(logits[[0, 1, 3]], videos[[0, 1, 3]])
    assert torch.equal(scores, once)


def test_features_come_in_order_from_a_module_in_eval_mode_that_is_left_as_it_was():
    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Flatten())
    module.train()
    module[1].eval()  # frozen statistics stay frozen
    inputs = torch.randn(10, 3)
    features, labels = extract_features(module, zip(inputs.split(4), torch.arange(10).split(4)))
    assert torch.allclose(features, inputs, atol=1e-4)
    assert labels.tolist() == list(range(10))
    assert not features.requires_grad
    assert [m.training for m in module.modules()] == [True, True, False, True]
