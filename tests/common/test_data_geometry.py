"""Hulls, triangulations and tours against scipy, brute force and closed forms."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from common.errors import EncoreError
from papers.pointer_networks import geometry as g

SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def points(batch, n, seed=0):
    return g.uniform_points(batch, n, torch.Generator().manual_seed(seed))


def corners(row):
    return [i for i in row.tolist() if i != g.PAD]


@pytest.mark.parametrize("n", [3, 4, 5, 10, 50])
def test_hull_has_the_corners_scipy_finds_counter_clockwise_from_the_lowest_index(n):
    sets = points(2000, n, seed=n)
    for one, row in zip(sets.numpy().astype(np.float64), g.convex_hull(sets)):
        hull = corners(row)
        theirs = ConvexHull(one).vertices.tolist()  # counter-clockwise in two dimensions, from anywhere
        start = theirs.index(min(theirs))
        assert hull == theirs[start:] + theirs[:start]
        assert g.polygon_area(one[hull]) > 0
        assert row[len(hull) :].tolist() == [g.PAD] * (n - len(hull))


def test_hull_label_of_a_hull_in_order_is_the_order():
    for one, row in zip(points(50, 12).numpy(), g.convex_hull(points(50, 12))):
        hull = corners(row)
        assert g.convex_hull(one[hull][None])[0].tolist() == list(range(len(hull)))


def test_a_point_on_an_edge_is_no_corner():
    middle = np.array([[0.5, 0.0], *SQUARE, [0.5, 0.5]])
    assert corners(g.convex_hull(middle[None])[0]) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.stack([SQUARE, np.linspace(0, 1, 4)[:, None] * [1.0, 2.0]]), "4 points of set 1 are collinear"),
        (np.stack([SQUARE, SQUARE, SQUARE[[0, 1, 2, 1]]]), "set 2 contains a point twice"),
        (np.stack([SQUARE, SQUARE * np.nan]), "set 1 has a coordinate that is not finite"),
        (SQUARE[None, :2], "at least 3 points"),
        (SQUARE, "shape"),
    ],
)
def test_sets_without_one_right_hull_are_refused_by_number(bad, says):
    with pytest.raises(EncoreError, match=says):
        g.convex_hull(bad)


def test_four_uniform_points_have_the_hull_sylvester_computed():
    # Sylvester's problem in the square: P(four corners) = 25/36, so the mean is 133/36; the spread is below 0.5
    count = (g.convex_hull(points(40_000, 4)) != g.PAD).sum(axis=1)
    assert abs(count.mean() - 133 / 36) < 4 * 0.5 / 200


@pytest.mark.parametrize(("n", "mean"), [(5, 4.235), (10, 5.964), (50, 10.150)])
def test_mean_corners_and_hull_area_of_uniform_points_agree_with_simulation_and_efron(n, mean):
    sets = points(8000, n).numpy().astype(np.float64)
    count = (g.convex_hull(sets) != g.PAD).sum(axis=1)
    error = count.std() / np.sqrt(len(count))
    assert abs(count.mean() - mean) < 4 * error  # means over 200,000 other sets, all hulls by scipy alike
    # Efron (1965): E[corners of n + 1 points] = (n + 1) (1 - E[area of n points])
    area = [g.polygon_area(one[corners(row)]) for one, row in zip(sets, g.convex_hull(sets))]
    more = (g.convex_hull(points(8000, n + 1, seed=1)) != g.PAD).sum(axis=1)
    slack = (n + 1) * np.std(area) / np.sqrt(8000) + more.std() / np.sqrt(8000)
    assert abs(more.mean() - (n + 1) * (1 - np.mean(area))) < 4 * slack


def test_points_are_seeded_and_lie_on_the_grid_that_makes_orientation_exact():
    drawn = points(10, 7)
    assert torch.equal(drawn, points(10, 7))
    assert not torch.equal(drawn, points(10, 7, seed=1))
    scaled = drawn.double() * 2**24
    assert torch.equal(scaled, scaled.round())


def test_a_polygon_is_the_same_wherever_it_starts_and_whichever_way_it_runs():
    assert g.canonical_cycle([3, 1, 4, 2]) == g.canonical_cycle([4, 2, 3, 1]) == g.canonical_cycle([2, 4, 1, 3])
    assert g.canonical_cycle([1, 2, 3, 4]) != g.canonical_cycle([1, 3, 2, 4])
    assert g.canonical_cycle([]) == ()


def test_simple_polygons_neither_cross_nor_repeat():
    assert g.is_simple(SQUARE)
    assert not g.is_simple(SQUARE[[0, 1, 3, 2]])  # a bow tie
    assert not g.is_simple(SQUARE[[0, 1, 2, 0]])
    assert not g.is_simple(SQUARE[:2])
    star = np.array([[np.cos(2.4 * np.pi * k / 3), np.sin(2.4 * np.pi * k / 3)] for k in range(5)])
    assert not g.is_simple(star)
    assert g.is_simple(np.array([[0, 0], [4, 0], [4, 4], [2, 1], [0, 4]]))  # not convex, but simple
    assert g.is_simple(np.stack([SQUARE, SQUARE[[0, 1, 3, 2]]])).tolist() == [True, False]


def circumcircle_is_empty(p, triangle):
    a, b, c = p[list(triangle)]
    turn = np.sign(g.cross(a, b, c))
    others = [k for k in range(len(p)) if k not in triangle]
    rows = np.stack([np.stack([v - p[k] for v in (a, b, c)]) for k in others])
    lifted = np.concatenate([rows, (rows**2).sum(-1, keepdims=True)], axis=-1)
    return bool((turn * np.linalg.det(lifted) < 0).all())


@pytest.mark.parametrize("n", [5, 8, 10])
def test_delaunay_triangles_are_exactly_those_with_an_empty_circumcircle(n):
    for one in points(20, n).numpy().astype(np.float64):
        ours = [tuple(t) for t in g.delaunay(one).tolist()]
        assert set(ours) == {t for t in combinations(range(n), 3) if circumcircle_is_empty(one, t)}
        assert len(set(ours)) == len(ours)


def test_delaunay_labels_are_sorted_triples_in_order_of_their_incentres():
    for one in points(30, 9).numpy().astype(np.float64):
        found = g.delaunay(one)
        assert (np.diff(found, axis=1) > 0).all()
        a, b, c = one[found[:, 0]], one[found[:, 1]], one[found[:, 2]]
        centre = g.incentres(one, found)
        reach = []  # the incentre is as far from each side
        for u, v in ((a, b), (b, c), (c, a)):
            reach.append(np.abs(g.cross(u, v, centre)) / np.linalg.norm(v - u, axis=1))
        np.testing.assert_allclose(reach[0], reach[1])
        np.testing.assert_allclose(reach[0], reach[2])
        assert [tuple(x) for x in centre] == sorted(tuple(x) for x in centre)


@pytest.mark.parametrize("bad", [np.linspace(0, 1, 5)[:, None] * [1.0, 1.0], np.concatenate([SQUARE, SQUARE[:1]])])
def test_sets_without_a_triangulation_are_refused(bad):
    with pytest.raises(EncoreError, match=r"collinear|coincides"):
        g.delaunay(bad)


@pytest.mark.parametrize("n", [3, 4, 6, 8])
def test_held_karp_finds_the_length_of_the_best_permutation(n):
    sets = points(6, n, seed=n)
    tours = g.held_karp(sets)
    assert (np.sort(tours, axis=1) == np.arange(n)).all()
    every = np.array([(0, *rest) for rest in permutations(range(1, n))])
    for one, length in zip(sets.numpy(), g.tour_length(sets, tours)):
        best = g.tour_length(np.repeat(one[None], len(every), axis=0), every).min()
        assert length == pytest.approx(best, abs=1e-12)


def test_tours_start_at_city_0_and_run_counter_clockwise_however_they_were_found():
    sets = points(40, 7)
    tours = g.held_karp(sets)
    assert (tours[:, 0] == 0).all()
    p = np.take_along_axis(sets.numpy().astype(np.float64), tours[..., None], axis=1)
    assert (g.polygon_area(p) > 0).all()
    turned = np.roll(tours[:, ::-1], 3, axis=1)
    assert (g.canonical_tour(sets, turned) == tours).all()


def test_chunks_of_instances_do_not_change_tours():
    sets = points(1500, 5)
    whole = g.held_karp(sets)
    assert (np.concatenate([g.held_karp(sets[:700]), g.held_karp(sets[700:])]) == whole).all()


def test_tours_beyond_twenty_cities_are_refused_and_two_cities_are_trivial():
    with pytest.raises(EncoreError, match="at most 20"):
        g.held_karp(points(1, 21))
    assert g.held_karp(points(2, 2)).tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("n", "count", "mean"), [(5, 20_000, 2.124), (10, 5000, 2.87)])
def test_optimal_tours_of_uniform_points_have_the_published_mean_length(n, count, mean):
    sets = points(count, n)
    lengths = g.tour_length(sets, g.held_karp(sets))
    assert abs(lengths.mean() - mean) < 4 * lengths.std() / np.sqrt(count) + 0.005
