"""Ptr-Net and its baselines: mechanisms against closed forms, decoding against brute force."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import papers.pointer_networks.model as m
from common.errors import EncoreError
from papers.pointer_networks import metrics, module
from papers.pointer_networks.inference import decode
from papers.pointer_networks.problems import IGNORE, draw, max_steps, to_targets

HIDDEN, N = 16, 6
MODELS = {
    "pointer": lambda: m.PointerNetwork(HIDDEN),
    "attention": lambda: m.LSTMAttention(HIDDEN, N),
    "lstm": lambda: m.LSTMSeq2Seq(HIDDEN, N),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def large(model, std=0.6):
    """Weights of order one, so that every path through the model matters."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model.eval()


def hull_batch(count=5, n=N, seed=0):
    points, labels = draw("hull", count, n, torch.Generator().manual_seed(seed))
    return points, to_targets(labels)


def lstm_step(weights, x, h, c):
    """One step of an LSTM from its four weight tensors, written out."""
    w_ih, w_hh, b_ih, b_hh = weights
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def weights_of(lstm):
    return [p for _, p in sorted(lstm.named_parameters(), key=lambda item: ("bias" in item[0], "hh" in item[0]))]


# ---------------------------------------------------------------- model


def test_ptr_net_is_the_papers_equations_written_out():
    model = large(m.PointerNetwork(HIDDEN))
    points, targets = hull_batch(count=3)
    logits = model(points, targets)
    scores = model.scores
    for b in range(3):
        h = c = torch.zeros(HIDDEN)
        e = []
        for x in [*points[b], model.marker]:  # P_1..P_n and then `=>`
            h, c = lstm_step(weights_of(model.encoder), x, h, c)
            e.append(h)
        e = [model.end, *e[:N]]  # `<=` stands at position 0; the state at the marker is no position
        fed = model.marker  # `=>` first, then coordinates of the right previous point
        for i, target in enumerate(t for t in targets[b].tolist() if t != IGNORE):
            h, c = lstm_step(weights_of(model.decoder), fed, h, c)
            u = [scores.v.weight[0] @ torch.tanh(scores.w1.weight @ e_j + scores.w2.weight @ h) for e_j in e]
            torch.testing.assert_close(logits[b, i], torch.stack(u), atol=2e-5, rtol=1e-4)
            fed = points[b, target - 1]


def test_attention_baseline_blends_encoder_states_and_feeds_the_blend_back():
    model = large(m.LSTMAttention(HIDDEN, N))
    points, targets = hull_batch(count=2)
    logits = model(points, targets)
    memory, state = model.encode(points)
    h, c, context = state
    assert (context == 0).all()
    inputs = model.decoder_inputs(points, targets)
    for i in range(3):
        h, c = lstm_step(weights_of(model.decoder), torch.cat([inputs[:, i], context], dim=1), h, c)
        u = model.scores.v(torch.tanh(model.scores.w1(memory.states) + model.scores.w2(h)[:, None])).squeeze(-1)
        context = torch.einsum("bn,bnh->bh", u.softmax(dim=1), memory.states)
        torch.testing.assert_close(logits[:, i], model.output(torch.cat([h, context], dim=1)), atol=2e-5, rtol=1e-4)


def test_plain_lstm_classifies_the_decoder_state_alone():
    model = large(m.LSTMSeq2Seq(HIDDEN, N))
    points, targets = hull_batch(count=2)
    _, state = model.encode(points)
    h, _ = lstm_step(weights_of(model.decoder), model.marker.expand(2, 2), state.h, state.c)
    torch.testing.assert_close(model(points, targets)[:, 0], h @ model.output.weight.T, atol=2e-5, rtol=1e-4)


def test_scores_are_equivariant_to_permuted_encoder_states_but_the_model_is_not_to_permuted_points():
    model = large(m.PointerNetwork(HIDDEN))
    states, queries, order = torch.randn(2, N, HIDDEN), torch.randn(2, 3, HIDDEN), torch.randperm(N)
    keys = model.scores.w1(states)
    torch.testing.assert_close(model.scores(keys[:, order], queries), model.scores(keys, queries)[..., order])
    points, targets = hull_batch()
    first = model(points, targets)[:, :1, 1:]
    assert not torch.allclose(model(points[:, order], targets)[:, :1, 1:], first[..., order], atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_decoding_step_by_step_equals_teacher_forcing(name):
    model = large(MODELS[name]())
    points, targets = hull_batch()
    whole = model(points, targets)
    memory, state = model.encode(points)
    inputs = model.decoder_inputs(points, targets)
    for i in range(targets.shape[1]):
        logits, state = model.decode(memory, inputs[:, i : i + 1], state)
        torch.testing.assert_close(logits[:, 0], whole[:, i], atol=1e-5, rtol=1e-5)


def test_a_step_knows_the_targets_before_it_and_not_its_own():
    model = large(m.PointerNetwork(HIDDEN))
    points, targets = hull_batch(count=1)
    other = targets.clone()
    other[0, 1] = 1 + (targets[0, 1] % N)
    before, after = model(points, targets), model(points, other)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def mixed_batch():
    """Sets of 6, 3 and 5 points in one batch, what lies beyond each filled with rubbish."""
    lengths = torch.tensor([6, 3, 5])
    parts = [draw("hull", 1, int(n), torch.Generator().manual_seed(int(n))) for n in lengths]
    points = torch.full((3, 6, 2), 7.0)
    targets = torch.full((3, 7), IGNORE)
    for b, (own, labels) in enumerate(parts):
        points[b, : own.shape[1]] = own
        target = to_targets(labels)
        targets[b, : target.shape[1]] = target
    return points, targets, lengths, parts


def test_padded_points_change_nothing_and_can_not_be_pointed_at():
    model = large(m.PointerNetwork(HIDDEN))
    points, targets, lengths, parts = mixed_batch()
    together = model(points, targets, lengths)
    chances = together.softmax(dim=-1)
    for b, (own, labels) in enumerate(parts):
        n = own.shape[1]
        target = to_targets(labels)
        alone = model(own, target)
        steps = target.shape[1]
        torch.testing.assert_close(together[b, :steps, : n + 1], alone[0], atol=1e-5, rtol=1e-5)
        assert (chances[b, :, n + 1 :] == 0).all()
        torch.testing.assert_close(chances[b, :, : n + 1].sum(dim=-1), torch.ones(7))


def test_the_loss_of_a_padded_batch_is_the_mean_over_its_real_steps():
    model = large(m.PointerNetwork(HIDDEN))
    points, targets, lengths, parts = mixed_batch()
    total, steps = torch.zeros(()), 0
    for own, labels in parts:
        target = to_targets(labels)
        total += cross_entropy(model(own, target)[0], target[0], reduction="sum")
        steps += target.shape[1]
    torch.testing.assert_close(module.sequence_loss(model(points, targets, lengths), targets), total / steps)


def test_gradient_of_the_loss_at_a_score_is_probability_minus_target():
    logits = torch.randn(2, 4, N + 1, requires_grad=True)
    targets = torch.tensor([[3, 1, 0, IGNORE], [2, 6, 5, 0]])
    module.sequence_loss(logits, targets).backward()
    counted = targets != IGNORE
    expected = logits.detach().softmax(dim=-1)
    expected[counted] -= nn.functional.one_hot(targets[counted], N + 1).float()
    expected[~counted] = 0
    torch.testing.assert_close(logits.grad * counted.sum(), expected)


@pytest.mark.parametrize("name", MODELS)
def test_an_untrained_model_guesses_among_all_positions(name):
    model = MODELS[name]()
    assert all(p.abs().max() <= 0.08 for p in model.parameters())
    points, targets = hull_batch(count=64)
    assert module.sequence_loss(model(points, targets), targets).item() == pytest.approx(np.log(N + 1), abs=0.03)


@pytest.mark.parametrize("name", ["attention", "lstm"])
def test_baselines_refuse_another_number_of_points(name):
    with pytest.raises(EncoreError, match=f"for sets of {N} points, got 5"):
        MODELS[name]()(*hull_batch(n=5))
    with pytest.raises(EncoreError, match="give num_points"):
        m.build(name, HIDDEN)


@pytest.mark.parametrize(("hidden", "reported"), [(256, 663_808), (128, 168_064)])
def test_parameters_are_two_lstms_two_matrices_and_a_vector(hidden, reported):
    with torch.device("meta"):
        assert m.parameters_without_markers(hidden) == reported
        model = getattr(m, f"pointer_network_{hidden}")()
    assert sum(p.numel() for p in model.parameters()) == reported + 2 + hidden


# ---------------------------------------------------------------- problems and decoding


def test_targets_count_points_from_one_and_end_with_zero_once():
    labels = np.array([[2, 0, 1, -1], [3, 1, 0, 2], [0, 1, -1, -1]])
    assert to_targets(labels).tolist() == [[3, 1, 2, 0, IGNORE], [4, 2, 1, 3, 0], [1, 2, 0, IGNORE, IGNORE]]
    assert to_targets(labels[[2]]).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("problem", ["hull", "delaunay", "tsp"])
def test_every_right_answer_fits_into_the_steps_decoding_takes(problem):
    _, labels = draw(problem, 200, 6, torch.Generator().manual_seed(1))
    longest = to_targets(labels).shape[1]
    assert longest <= max_steps(problem, 6)
    assert longest == max_steps(problem, 6) or problem == "delaunay"  # 7 triangles need a triangular hull


def log_probability(model, points, sequence):
    """Summed log-probability of 0-based indices and the end after them (if they end)."""
    targets = torch.tensor([[i + 1 for i in sequence] + [0]])
    chosen = model(points, targets).log_softmax(dim=-1)[0, range(targets.shape[1]), targets[0]]
    return chosen.sum().item()


def test_wide_beam_finds_the_most_probable_of_all_sequences_and_greedy_the_step_by_step_best():
    torch.manual_seed(2)
    model = large(m.PointerNetwork(HIDDEN), std=0.8)
    points, _ = draw("hull", 6, 3, torch.Generator().manual_seed(3))
    shortened = 0
    for one in points[:, None]:
        ended = {s: log_probability(model, one, s) for k in range(4) for s in product(range(3), repeat=k)}
        # max_steps is 4: sequences of four points stop without an end
        for s in product(range(3), repeat=4):
            targets = torch.tensor([[i + 1 for i in s]])
            ended[s] = model(one, targets).log_softmax(-1)[0, range(4), targets[0]].sum().item()
        best = max(ended, key=lambda s: ended[s])
        shortened += best != max(ended, key=lambda s: ended[s] / min(len(s) + 1, 4))
        assert decode(model, one, "hull", beam=100) == [list(best)]
        greedy: list[int] = []
        while len(greedy) < 4:
            targets = torch.tensor([[i + 1 for i in greedy] + [0]])
            position = int(model(one, targets)[0, -1].argmax())
            if position == 0:
                break
            greedy.append(position - 1)
        assert decode(model, one, "hull") == [greedy]
    assert shortened  # dividing by the length would choose otherwise: the paper sums log-probabilities


def test_a_beam_over_all_tours_finds_the_most_probable_one():
    model = large(m.PointerNetwork(HIDDEN), std=0.4)
    every = torch.tensor(list(permutations(range(5))))
    targets = torch.cat([every + 1, torch.zeros(len(every), 1, dtype=torch.long)], dim=1)
    points, _ = draw("tsp", 8, 5, torch.Generator().manual_seed(6))
    best = []
    for one in points:
        chances = model(one.expand(len(every), 5, 2), targets).log_softmax(dim=-1)
        best.append(every[chances.gather(2, targets[..., None]).sum(dim=(1, 2)).argmax()].tolist())
    assert decode(model, points, "tsp", beam=120, constrained=True) == best


@pytest.mark.parametrize("beam", [1, 3])
def test_constrained_decoding_gives_tours_and_free_decoding_need_not(beam):
    model = large(m.PointerNetwork(HIDDEN))
    points, _ = draw("tsp", 30, 7, torch.Generator().manual_seed(4))
    tours = decode(model, points, "tsp", beam=beam, constrained=True)
    assert all(metrics.is_tour(tour, 7) for tour in tours)
    assert metrics.tsp_scores(points, decode(model, points, "tsp", beam=beam))["invalid"] > 50
    for polygon in decode(model, points, "hull", beam=beam, constrained=True):
        assert 3 <= len(set(polygon)) == len(polygon)
    with pytest.raises(EncoreError, match="not constrained"):
        decode(model, points, "delaunay", constrained=True)


def test_sets_of_different_sizes_decode_together_as_they_do_alone():
    model = large(m.PointerNetwork(HIDDEN))
    points, _, lengths, parts = mixed_batch()
    for constrained in (False, True):
        together = decode(model, points, "tsp", lengths=lengths, beam=2, constrained=constrained)
        alone = [decode(model, own, "tsp", beam=2, constrained=constrained)[0] for own, _ in parts]
        if constrained:
            assert together == alone
            assert [len(tour) for tour in together] == lengths.tolist()
        else:  # a longer batch lets an output run on for more steps, nothing else
            assert [a[: len(b)] for a, b in zip(together, alone)] == alone


# ---------------------------------------------------------------- metrics

SQUARE = np.array([[[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5]]] * 4, dtype=np.float64)
HULL = np.array([[0, 1, 2, 3, -1]] * 4)


def test_hull_accuracy_counts_polygons_and_area_counts_simple_ones():
    same = [[2, 3, 0, 1], [3, 2, 1, 0], [0, 1, 2, 3], [1, 0, 3, 2]]
    assert metrics.hull_scores(SQUARE, HULL, same) == {
        "accuracy": 100.0,
        "area_coverage": 100.0,
        "area_all": 100.0,
        "not_simple": 0.0,
    }
    mixed = [[0, 1, 2, 3], [0, 1, 2], [0, 1, 3, 2], [0, 1, 2, 0]]  # right, half of it, a bow tie, a repeated corner
    assert metrics.hull_scores(SQUARE, HULL, mixed) == {
        "accuracy": 25.0,
        "area_coverage": 75.0,
        "area_all": 37.5,
        "not_simple": 50.0,
    }
    assert metrics.hull_scores(SQUARE, HULL, [[], [0], [1, 2], [0, 2, 1, 3]])["area_coverage"] == 0.0


def test_delaunay_scores_compare_sets_of_triangles():
    labels = np.array([[0, 1, 2, 1, 2, 3]] * 4)
    outputs = [[3, 2, 1, 2, 0, 1], [0, 1, 2], [0, 1, 2, 0, 1, 3], [0, 1, 2, 1, 2, 3, 1]]
    assert metrics.delaunay_scores(labels, outputs) == {"accuracy": 25.0, "triangle_coverage": 75.0}


def test_tours_that_miss_or_repeat_a_city_are_invalid_and_have_no_length():
    outputs = [[0, 1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 4, 4]]
    scores = metrics.tsp_scores(SQUARE, outputs)
    assert scores["invalid"] == 75.0
    assert scores["length"] == pytest.approx(3 + 2 * np.sqrt(0.5))
