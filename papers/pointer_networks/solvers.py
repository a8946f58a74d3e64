"""The approximate TSP solvers of Table 2: what the public programs do whose output the paper calls A1, A2 and A3.

The paper names them by cost only, O(n^2), O(n^2) and O(n^3), and by the repositories in its appendix. What these
programs compute:

- A1 (dmishin/tsp-solver): a path from the greedily shortest edges, then three sweeps of 2-opt on that open path;
- A2 (samlbest/traveling-salesman): a nearest-neighbour path from every city, each improved by 2-opt as an open path;
  the shortest tour;
- A3 (beckysag/traveling-salesman): Christofides' tree plus matching, but with a greedy matching; a tour from every
  city of the Euler circuit, each improved by 2-opt as a closed tour; the shortest tour. `christofides` is the
  textbook algorithm, with its 1.5 bound.

Distances are float64 here and rounded integers there, and 2-opt sweeps on where A2's program restarts after each
move.
"""

from collections.abc import Callable

import networkx
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import minimum_spanning_tree

from papers.pointer_networks.geometry import Floats, Ints, as_batch, canonical_tour, distances

Points = Floats | torch.Tensor
Matching = Callable[[NDArray[np.floating], list[int]], list[tuple[int, int]]]


def two_opt(tours: Ints, d: Floats, *, closed: bool, sweeps: int | None = None) -> Ints:
    """First-improvement 2-opt, all tours in lockstep.

    tours: (B, n); d: (B, n, n). A sweep tries every pair of edges once in order and reverses what lies between them
    where that is shorter; `closed` also moves the edge from the last city to the first. Runs to a local optimum, or
    for `sweeps` sweeps.
    """
    tours = tours.copy()
    n = tours.shape[1]
    rows = np.arange(len(tours))  # tours that may still improve
    while len(rows) and (sweeps is None or sweeps > 0):
        improved = np.zeros(len(rows), dtype=bool)
        for i in range(n - 2):
            for j in range(i + 2, n if closed and i > 0 else n - 1):
                t = tours[rows]
                a, b, c, e = t[:, i], t[:, i + 1], t[:, j], t[:, (j + 1) % n]
                hit = d[rows, a, b] + d[rows, c, e] - d[rows, a, c] - d[rows, b, e] > 1e-12
                if hit.any():
                    tours[rows[hit], i + 1 : j + 1] = t[hit, i + 1 : j + 1][:, ::-1]
                    improved |= hit
        rows = rows[improved]
        sweeps = None if sweeps is None else sweeps - 1
    return tours


def greedy_path(d: Floats) -> Ints:
    """Paths (B, n) through all cities: the shortest edges that leave every city at most two neighbours and close no
    cycle.
    """
    batch, n, _ = d.shape
    first, second = np.triu_indices(n, 1)
    order = np.argsort(d[:, first, second], axis=1, kind="stable")
    everyone = np.arange(batch)
    neighbours = np.full((batch, n, 2), -1, dtype=np.int64)
    degree = np.zeros((batch, n), dtype=np.int64)
    segment = np.tile(np.arange(n), (batch, 1))
    for e in order.T:
        i, j = first[e], second[e]
        rows = everyone[
            (degree[everyone, i] < 2) & (degree[everyone, j] < 2) & (segment[everyone, i] != segment[everyone, j])
        ]
        i, j = i[rows], j[rows]
        for u, v in ((i, j), (j, i)):
            neighbours[rows, u, degree[rows, u]] = v
            degree[rows, u] += 1
        merged, into = segment[rows, j][:, None], segment[rows, i][:, None]
        segment[rows] = np.where(segment[rows] == merged, into, segment[rows])
    path = np.zeros((batch, n), dtype=np.int64)
    path[:, 0] = np.argmax(degree == 1, axis=1)
    previous = np.full(batch, -2)
    for k in range(1, n):
        pair = neighbours[everyone, path[:, k - 1]]
        path[:, k] = np.where(pair[:, 0] == previous, pair[:, 1], pair[:, 0])
        previous = path[:, k - 1]
    return path


def nearest_neighbour(d: Floats, start: Ints) -> Ints:
    """Tours (B, n) that always go to the nearest unvisited city; start: (B,)."""
    batch, n, _ = d.shape
    rows = np.arange(batch)
    tour = np.empty((batch, n), dtype=np.int64)
    visited = np.zeros((batch, n), dtype=bool)
    tour[:, 0] = start
    for k in range(1, n):
        visited[rows, tour[:, k - 1]] = True
        tour[:, k] = np.argmin(np.where(visited, np.inf, d[rows, tour[:, k - 1]]), axis=1)
    return tour


def _lengths(tours: Ints, d: Floats) -> Floats:
    return d[np.arange(len(tours))[:, None], tours, np.roll(tours, -1, axis=1)].sum(axis=1)


def _best_start(tours: Ints, d: Floats, points: Points) -> Ints:
    """The shortest of each instance's tours; tours and d: (batch * starts, ...)."""
    lengths = _lengths(tours, d).reshape(len(points), -1)
    grouped = tours.reshape(*lengths.shape, -1)
    return canonical_tour(points, grouped[np.arange(len(points)), lengths.argmin(axis=1)])


def a1(points: Points) -> Ints:
    """Greedy edges, then three sweeps of 2-opt on the open path. points (B, n, 2) -> canonical tours (B, n)."""
    d = distances(as_batch(points, 3))
    return canonical_tour(points, two_opt(greedy_path(d), d, closed=False, sweeps=3))


def a2(points: Points) -> Ints:
    """Nearest neighbour from every city, each with 2-opt on the open path; the shortest. points (B, n, 2) -> (B, n)."""
    d = distances(as_batch(points, 3))
    batch, n, _ = d.shape
    repeated = np.repeat(d, n, axis=0)
    tours = two_opt(nearest_neighbour(repeated, np.tile(np.arange(n), batch)), repeated, closed=False)
    return _best_start(tours, repeated, points)


def a3(points: Points) -> Ints:
    """Greedily matched Christofides tours from every city, each with 2-opt; the best. points (B, n, 2) -> (B, n)."""
    d = distances(as_batch(points, 3))
    n = d.shape[1]
    tours = np.array(
        [shortcut(graph, city) for one in d for graph in [_eulerian(one, _greedy_matching)] for city in range(n)]
    )
    repeated = np.repeat(d, n, axis=0)
    return _best_start(two_opt(tours, repeated, closed=True), repeated, points)


def christofides(points: Points) -> Ints:
    """Christofides (1976): spanning tree, least-weight perfect matching of its odd cities, Euler circuit, shortcuts.

    points (B, n, 2) -> canonical tours (B, n), each at most 1.5 times the optimum.
    """
    d = distances(as_batch(points, 3))
    return canonical_tour(points, np.array([shortcut(_eulerian(one, _least_matching), 0) for one in d]))


def spanning_tree(d: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Edges of the minimum spanning tree over distances (n, n)."""
    tree = minimum_spanning_tree(d).tocoo()
    return list(zip(tree.row.tolist(), tree.col.tolist()))


def _eulerian(d: NDArray[np.floating], matching: Matching) -> list[list[int]]:
    """Adjacency lists of the spanning tree plus a perfect matching of its odd cities: every degree is even."""
    adjacent: list[list[int]] = [[] for _ in range(len(d))]
    tree = spanning_tree(d)
    for i, j in tree:
        adjacent[i].append(j)
        adjacent[j].append(i)
    for i, j in matching(d, [city for city, near in enumerate(adjacent) if len(near) % 2]):
        adjacent[i].append(j)
        adjacent[j].append(i)
    return adjacent


def _greedy_matching(d: NDArray[np.floating], odd: list[int]) -> list[tuple[int, int]]:
    pairs = []
    while odd:
        first, *rest = odd
        nearest = min(rest, key=lambda city: d[first, city])
        pairs.append((first, nearest))
        odd = [city for city in rest if city != nearest]
    return pairs


def _least_matching(d: NDArray[np.floating], odd: list[int]) -> list[tuple[int, int]]:
    graph = networkx.Graph()
    graph.add_weighted_edges_from((i, j, d[i, j]) for k, i in enumerate(odd) for j in odd[k + 1 :])
    return list(networkx.min_weight_matching(graph))


def shortcut(adjacent: list[list[int]], start: int) -> list[int]:
    """Hierholzer's Euler circuit from `start`, each city kept at its first visit."""
    unused = [list(near) for near in adjacent]
    stack, tour, seen = [start], [], set()
    while stack:
        city = stack[-1]
        if unused[city]:
            following = unused[city].pop()
            unused[following].remove(city)
            stack.append(following)
        else:
            stack.pop()
            if city not in seen:
                seen.add(city)
                tour.append(city)
    return tour
