"""Approximate solvers, generated batches and the release's text files."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from common.errors import EncoreError
from papers.pointer_networks import generate, solvers
from papers.pointer_networks import geometry as g
from papers.pointer_networks.data import ProblemFile, SolvedSets, write_problems
from papers.pointer_networks.problems import IGNORE, draw, held_out, to_targets


def points(batch, n, seed=0):
    return g.uniform_points(batch, n, torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- solvers


@pytest.mark.parametrize("solver", [solvers.a1, solvers.a2, solvers.a3, solvers.christofides])
def test_approximations_are_canonical_tours_no_shorter_than_the_optimum(solver):
    sets = points(30, 8)
    tours = solver(sets)
    assert (np.sort(tours, axis=1) == np.arange(8)).all()
    assert (g.canonical_tour(sets, tours) == tours).all()
    ratio = g.tour_length(sets, tours) / g.tour_length(sets, g.held_karp(sets))
    assert (ratio > 1 - 1e-12).all()
    assert (ratio < 1.5).all()


@pytest.mark.parametrize(
    ("solver", "reported"), [(solvers.a1, 4.24), (solvers.a2, 3.86), (solvers.a3, 3.85)], ids=["a1", "a2", "a3"]
)
def test_the_solvers_reach_at_twenty_cities_the_lengths_of_table_2(solver, reported):
    # 4.24 for A1 is recalled, like the others at this size; A1..A3 stand in their order at every size of the table
    sets = points(150, 20)
    lengths = g.tour_length(sets, solver(sets))
    assert abs(lengths.mean() - reported) < 4 * lengths.std() / np.sqrt(150)


def test_two_opt_uncrosses_a_tour_and_keeps_its_ends_when_the_path_is_open():
    corners = np.array([[[0, 0], [1, 1], [1, 0], [0, 1]]], dtype=np.float64)
    crossed = np.array([[0, 1, 2, 3]])
    d = g.distances(corners)
    closed = solvers.two_opt(crossed, d, closed=True)
    assert g.tour_length(corners, closed)[0] == pytest.approx(4.0)
    assert (crossed == [[0, 1, 2, 3]]).all()  # the input is left alone
    opened = solvers.two_opt(crossed, d, closed=False)
    assert opened[0, 0] == 0
    assert opened[0, -1] == 3
    assert opened.tolist() == [[0, 2, 1, 3]]


@pytest.mark.parametrize("closed", [True, False])
def test_two_opt_ends_where_no_reversal_helps(closed):
    sets = points(5, 9)
    d = g.distances(sets)
    tours = solvers.two_opt(np.tile(np.arange(9), (5, 1)), d, closed=closed)
    for one, tour in zip(d, tours):

        def cost(t, one=one):
            return one[t, np.roll(t, -1)].sum() - (0 if closed else one[t[-1], t[0]])

        for i, j in combinations(range(9), 2):
            if closed or (i > 0 and j < 8):
                turned = np.concatenate([tour[:i], tour[i : j + 1][::-1], tour[j + 1 :]])
                assert cost(turned) > cost(tour) - 1e-9


def test_two_opt_stops_after_the_sweeps_it_is_given():
    sets = points(20, 30)
    d = g.distances(sets)
    start = np.tile(np.arange(30), (20, 1))
    length = [g.tour_length(sets, solvers.two_opt(start, d, closed=True, sweeps=k)).mean() for k in (0, 1, 2, None)]
    assert length[0] == pytest.approx(g.tour_length(sets, start).mean())
    assert length[0] > length[1] > length[2] > length[3]


def test_greedy_path_takes_the_shortest_edges_that_keep_a_path():
    sets = points(10, 7)
    d = g.distances(sets)
    for one, path in zip(d, solvers.greedy_path(d)):
        degree, group, wanted = [0] * 7, list(range(7)), set()
        for i, j in sorted(combinations(range(7), 2), key=lambda pair: one[pair]):
            if degree[i] < 2 and degree[j] < 2 and group[i] != group[j]:
                degree[i] += 1
                degree[j] += 1
                old = group[j]
                group = [group[i] if label == old else label for label in group]
                wanted.add((i, j))
        assert {(min(a, b), max(a, b)) for a, b in zip(path[:-1].tolist(), path[1:].tolist())} == wanted


def test_nearest_neighbour_goes_to_the_nearest_city_left():
    line = np.array([[[0.0, 0], [1, 0], [1.4, 0], [-0.7, 0]]])
    assert solvers.nearest_neighbour(g.distances(line), np.array([0])).tolist() == [[0, 3, 1, 2]]
    assert solvers.nearest_neighbour(g.distances(line), np.array([2])).tolist() == [[2, 1, 0, 3]]


def test_christofides_matches_odd_cities_at_least_cost_and_keeps_its_bound():
    d = g.distances(points(10, 8))
    for one in d:
        odd = [0, 2, 3, 4, 6, 7]
        pairs = solvers._least_matching(one, odd)
        assert sorted(city for pair in pairs for city in pair) == odd
        best = min(sum(one[p[i], p[i + 1]] for i in range(0, 6, 2)) for p in permutations(odd))
        assert sum(one[pair] for pair in pairs) == pytest.approx(best)
    sets = points(60, 11, seed=5)
    assert (g.tour_length(sets, solvers.christofides(sets)) <= 1.5 * g.tour_length(sets, g.held_karp(sets))).all()


# ---------------------------------------------------------------- generated


def test_a_generated_batch_has_one_size_and_sizes_vary_over_the_range():
    torch.manual_seed(0)
    sets = SolvedSets("hull", 5, 8)
    batches = [sets.__getitems__([0] * 4) for _ in range(40)]
    assert {batch.points.shape[1] for batch in batches} == {5, 6, 7, 8}
    assert all(batch.points.shape[0] == 4 and batch.lengths is None for batch in batches)
    assert torch.equal(batches[0].targets, to_targets(g.convex_hull(batches[0].points)))


def test_held_out_sets_are_always_the_same_and_differ_from_training_sets():
    first, labels = held_out("tsp", 20, 6)
    second, again = held_out("tsp", 20, 6)
    assert torch.equal(first, second)
    assert (labels == again).all()
    assert not torch.equal(first, points(20, 6, seed=0))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("hull", 2, 5), "needs 3 <="),
        (("tsp", 6, 5), "<= max_points"),
        (("knapsack", 5, 5), "unknown problem 'knapsack'"),
    ],
)
def test_impossible_sizes_and_problems_are_refused(arguments, says):
    with pytest.raises(EncoreError, match=says):
        SolvedSets(*arguments)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("problem", ["hull", "delaunay", "tsp"])
def test_written_sets_are_read_back_exactly(problem, tmp_path):
    path = tmp_path / "sets.txt"
    batches = [draw(problem, 3, n, torch.Generator().manual_seed(n)) for n in (5, 7)]
    assert write_problems(path, problem, batches) == 6
    sets = ProblemFile(path, problem)
    for k, (drawn, labels) in enumerate(batches):
        batch = sets.__getitems__([3 * k, 3 * k + 1, 3 * k + 2])
        assert torch.equal(batch.points, drawn)
        assert torch.equal(batch.targets, to_targets(labels))
        assert batch.lengths is None
    mixed = sets.__getitems__([4, 0])
    assert mixed.lengths.tolist() == [7, 5]
    assert torch.equal(mixed.points[1, :5], batches[0][0][0])
    assert (mixed.points[1, 5:] == 0).all()
    own = to_targets(batches[0][1][:1])[0]
    assert mixed.targets[1, : len(own)].tolist() == own.tolist()
    assert (mixed.targets[1, len(own) :] == IGNORE).all()


def test_a_line_is_what_the_release_writes(tmp_path):
    path = tmp_path / "tsp.txt"
    path.write_text("0.25 0.5 0.75 0.5 0.5 1.0 output 1 2 3 1 \n")
    batch = ProblemFile(path, "tsp").__getitems__([0])
    assert batch.points.tolist() == [[[0.25, 0.5], [0.75, 0.5], [0.5, 1.0]]]
    assert batch.targets.tolist() == [[1, 2, 3, 0]]
    write_problems(path, "hull", [(batch.points, np.array([[0, 1, 2]]))])
    assert path.read_text() == "0.25 0.5 0.75 0.5 0.5 1.0 output 1 2 3 1\n"


GOOD = "0.1 0.2 0.9 0.1 0.5 0.8 0.4 0.4 output 1 2 3 1"


@pytest.mark.parametrize(
    ("problem", "line", "says"),
    [
        ("hull", "0.1 0.2 0.9 0.1 0.5 0.8 0.4", "has no 'output'"),
        ("hull", GOOD.replace("0.9", "0.x"), "could not convert"),
        ("hull", GOOD.replace("0.1 0.2", "0.2", 1), "7 coordinates"),
        ("hull", GOOD.replace("0.9", "nan"), "not finite"),
        ("hull", GOOD.replace("3 1", "5 1"), r"1\.\.4"),
        ("hull", GOOD.replace("3 1", "0 1"), r"1\.\.4"),
        ("hull", GOOD[:-2], "not closed"),
        ("hull", GOOD.replace("2 3", "2 3 2"), "visits a point twice"),
        ("tsp", GOOD, "does not visit each of the 4 points once"),
        ("delaunay", GOOD, "triples"),
        ("delaunay", GOOD.replace("3 1", "2"), "triples"),
        ("hull", GOOD[: GOOD.index("output") + 7], "indices must lie"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(problem, line, says, tmp_path):
    path = tmp_path / "sets.txt"
    first = {"hull": GOOD, "tsp": GOOD.replace("3 1", "3 4 1"), "delaunay": GOOD.replace("3 1", "3")}[problem]
    path.write_text(f"{first}\n{line}\n")
    with pytest.raises(EncoreError, match=rf"sets\.txt:2: .*{says}"):
        ProblemFile(path, problem)


def test_missing_empty_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(EncoreError, match="no such file"):
        ProblemFile(tmp_path / "absent.txt", "hull")
    path = tmp_path / "sets.txt"
    path.write_text("")
    with pytest.raises(EncoreError, match="is empty"):
        ProblemFile(path, "hull")
    path.write_text(f"{GOOD}\n{GOOD}")
    with pytest.raises(EncoreError, match=r"sets\.txt:2: .*truncated"):
        ProblemFile(path, "hull")


def test_generate_writes_seeded_files_of_the_sizes_asked_for(tmp_path, capsys):
    out = tmp_path / "sub" / "hull.txt"
    generate.main(["hull", "5", "9", "--count", "40", "--seed", "3", "--out", str(out)])
    assert "40 sets" in capsys.readouterr().out
    first = out.read_text()
    sets = ProblemFile(out, "hull")
    assert {len(one) for one in sets.points} == {5, 6, 7, 8, 9}
    generate.main(["hull", "5", "9", "--count", "40", "--seed", "3", "--out", str(out)])
    assert out.read_text() == first
    generate.main(["tsp", "6", "6", "--count", "3", "--solver", "a1", "--out", str(out)])
    tours = ProblemFile(out, "tsp")
    assert (np.array(tours.labels) == solvers.a1(np.stack(tours.points))).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ["hull", "2", "5", "--count", "1"],
        ["hull", "5", "5", "--count", "1", "--solver", "a1"],
        ["tsp", "21", "21", "--count", "1"],
    ],
)
def test_generate_refuses_bad_input_in_one_line_and_leaves_no_file(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_status:
        generate.main([*arguments, "--out", str(tmp_path / "x.txt")])
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "x.txt").exists()
