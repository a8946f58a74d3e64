"""Exactly solved planar problems: convex hull, Delaunay triangulation and the travelling salesman (TSP).

Points are drawn in float32 on torch's grid of multiples of 2^-24, and orientation tests run in float64, so for drawn
points every difference, product and determinant of the hull is represented without rounding: the hull is exact, not
exact up to a tolerance.

Indices are 0-based. A batch of labels of different lengths is an int64 array padded with -1 (`PAD`).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import EncoreError

PAD = -1
MAX_HELD_KARP = 20

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


def uniform_points(batch: int, n: int, generator: torch.Generator | None = None) -> Tensor:
    """`batch` sets of n points i.i.d. uniform in the unit square: (batch, n, 2) float32, on a grid of 2^-24."""
    return torch.rand(batch, n, 2, generator=generator)


def as_batch(points: Floats | Tensor, least: int) -> Floats:
    """points (B, n, 2) as float64; refuses another shape, fewer than `least` points, NaN and infinity."""
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 3 or array.shape[2] != 2:
        raise EncoreError(f"points must have shape (batch, n, 2), got {array.shape}")
    if array.shape[1] < least:
        raise EncoreError(f"needs at least {least} points a set, got {array.shape[1]}")
    finite = np.isfinite(array).all(axis=(1, 2))
    if not finite.all():
        raise EncoreError(f"point set {int(np.argmin(finite))} has a coordinate that is not finite")
    return array


def cross(o: Floats, a: Floats, b: Floats) -> Floats:
    """z component of (a - o) x (b - o), over the last axis; > 0 when o, a, b turn counter-clockwise."""
    return (a[..., 0] - o[..., 0]) * (b[..., 1] - o[..., 1]) - (a[..., 1] - o[..., 1]) * (b[..., 0] - o[..., 0])


# ---------------------------------------------------------------- convex hull


def _chain(s: Floats) -> tuple[Ints, Ints]:
    """One half of the monotone chain over sorted points s (B, n, 2), all sets in lockstep: stacks (B, n) and their
    sizes (B,).
    """
    batch, n, _ = s.shape
    stack = np.zeros((batch, n), dtype=np.int64)
    size = np.zeros(batch, dtype=np.int64)
    everyone = np.arange(batch)
    for k in range(n):
        rows = everyone
        while True:  # pop while the last two points and the new one do not turn left
            rows = rows[size[rows] >= 2]
            before, top = s[rows, stack[rows, size[rows] - 2]], s[rows, stack[rows, size[rows] - 1]]
            rows = rows[cross(before, top, s[rows, k]) <= 0]
            if len(rows) == 0:
                break
            size[rows] -= 1
        stack[everyone, size] = k
        size += 1
    return stack, size


def convex_hull(points: Floats | Tensor) -> Ints:
    """Canonical hull labels of a batch of point sets (monotone chain).

    points: (B, n, 2), n >= 3. Returns (B, n) indices of the hull's corners, counter-clockwise, from the corner with
    the lowest index, padded with -1. A point on an edge between two corners is not a corner. EncoreError names the
    first set whose points are collinear or contain a duplicate: its label would not be unique.
    """
    p = as_batch(points, 3)
    n = p.shape[1]
    order = np.lexsort((p[..., 1], p[..., 0]), axis=-1)
    s = np.take_along_axis(p, order[..., None], axis=1)
    duplicate = (s[:, 1:] == s[:, :-1]).all(axis=2).any(axis=1)
    if duplicate.any():
        raise EncoreError(
            f"point set {int(np.argmax(duplicate))} contains a point twice: its hull is ambiguous; remove the copy"
        )
    lower, lower_size = _chain(s)
    upper, upper_size = _chain(s[:, ::-1])
    count = lower_size + upper_size - 2  # each chain ends where the other begins
    if (count < 3).any():
        raise EncoreError(
            f"the {n} points of set {int(np.argmax(count < 3))} are collinear: they have no convex hull with area"
        )
    t = np.arange(n)[None]
    from_lower, from_upper = t < (lower_size - 1)[:, None], t < count[:, None]
    u = np.clip(t - (lower_size - 1)[:, None], 0, n - 1)
    position = np.where(from_lower, lower, n - 1 - np.take_along_axis(upper, u, axis=1))
    corners = np.where(from_upper, np.take_along_axis(order, position, axis=1), n)
    turn = (np.argmin(corners, axis=1)[:, None] + t) % count[:, None]
    return np.where(t < count[:, None], np.take_along_axis(corners, turn, axis=1), PAD)


def canonical_cycle(cycle: list[int]) -> tuple[int, ...]:
    """A polygon's vertex cycle, independent of where it starts and which way it runs: from its lowest index towards
    the lower neighbour.
    """
    if not cycle:
        return ()
    start = cycle.index(min(cycle))
    turned = cycle[start:] + cycle[:start]
    return min(tuple(turned), (turned[0], *turned[:0:-1]))


def polygon_area(vertices: Floats) -> Floats:
    """Signed area over (..., k, 2) vertices in order (shoelace); positive when counter-clockwise."""
    x, y = vertices[..., 0], vertices[..., 1]
    return 0.5 * (x * np.roll(y, -1, axis=-1) - y * np.roll(x, -1, axis=-1)).sum(axis=-1)


def is_simple(vertices: Floats) -> NDArray[np.bool_]:
    """Which closed polygons (..., k, 2) neither visit a point twice nor cross themselves; fewer than three vertices
    are no polygon.
    """
    v = np.asarray(vertices, dtype=np.float64)
    k = v.shape[-2]
    if k < 3:
        return np.zeros(v.shape[:-2], dtype=bool)
    w = np.roll(v, -1, axis=-2)
    a, b, c, d = v[..., :, None, :], w[..., :, None, :], v[..., None, :, :], w[..., None, :, :]
    opposite = (np.sign(cross(a, b, c)) * np.sign(cross(a, b, d)) < 0) & (
        np.sign(cross(c, d, a)) * np.sign(cross(c, d, b)) < 0
    )
    same = (a == c).all(axis=-1) & ~np.eye(k, dtype=bool)
    return ~(opposite | same).any(axis=(-2, -1))


# ---------------------------------------------------------------- Delaunay


def incentres(points: Floats, triangles: Ints) -> Floats:
    """Centres (T, 2) of the circles inscribed in triangles (T, 3) over points (n, 2)."""
    a, b, c = (points[triangles[:, i]] for i in range(3))
    sides = np.stack(
        [np.linalg.norm(b - c, axis=1), np.linalg.norm(c - a, axis=1), np.linalg.norm(a - b, axis=1)], axis=1
    )
    corners = np.stack([a, b, c], axis=1)
    return (sides[..., None] * corners).sum(axis=1) / sides.sum(axis=1, keepdims=True)


def delaunay(points: Floats | Tensor) -> Ints:
    """Canonical Delaunay triangulation of one set of points (n, 2), n >= 3.

    Returns (T, 3): each triple ascending, the triangles in lexicographic order of their incentres' coordinates (Sec.
    3.2 of Pointer Networks). EncoreError when the points are collinear or (nearly) coincide, so that some point
    belongs to no triangle.
    """
    from scipy.spatial import Delaunay, QhullError

    p = as_batch(np.asarray(points)[None], 3)[0]
    try:
        result = Delaunay(p)
    except QhullError:
        raise EncoreError(
            f"the {len(p)} points are collinear or coincide: they have no Delaunay triangulation"
        ) from None
    if len(result.coplanar):
        raise EncoreError(
            f"point {int(result.coplanar[0, 0])} coincides with another: it belongs to no Delaunay triangle; remove it"
        )
    triangles = np.sort(result.simplices.astype(np.int64), axis=1)
    centre = incentres(p, triangles)
    return triangles[np.lexsort((centre[:, 1], centre[:, 0]))]


# ---------------------------------------------------------------- travelling salesman


def distances(points: Floats | Tensor) -> Floats:
    """Euclidean distances (B, n, n) in float64 of point sets (B, n, 2)."""
    p = np.asarray(points, dtype=np.float64)
    return np.sqrt(((p[:, :, None] - p[:, None]) ** 2).sum(axis=-1))


def tour_length(points: Floats | Tensor, tours: Ints) -> Floats:
    """Lengths (B,) of closed tours (B, n) over points (B, n, 2)."""
    p = np.take_along_axis(np.asarray(points, dtype=np.float64), np.asarray(tours)[..., None], axis=1)
    return np.sqrt(((p - np.roll(p, -1, axis=1)) ** 2).sum(axis=-1)).sum(axis=1)


def canonical_tour(points: Floats | Tensor, tours: Ints) -> Ints:
    """The same closed tours (B, n) over points (B, n, 2), from city 0 and counter-clockwise (positive signed area).

    A shortest tour does not cross itself, so which way it runs is well defined, and geometric: no index decides it.
    """
    n = tours.shape[1]
    p = np.take_along_axis(np.asarray(points, dtype=np.float64), tours[..., None], axis=1)
    direction = np.where(polygon_area(p) < 0, -1, 1)[:, None]
    start = np.argmin(tours, axis=1)[:, None]
    return np.take_along_axis(tours, (start + direction * np.arange(n)) % n, axis=1)


def held_karp(points: Floats | Tensor) -> Ints:
    """Shortest closed tours by dynamic programming over subsets (Held & Karp 1962), in canonical form.

    points: (B, n, 2), 2 <= n <= 20. Returns (B, n). All instances and all subsets of one size advance together; a
    chunk of instances keeps its table below about 64 MB (n = 20: one instance at a time in 80 MB). Cost O(2^n n^2) an
    instance.
    """
    p = as_batch(points, 2)
    batch, n, _ = p.shape
    if n > MAX_HELD_KARP:
        raise EncoreError(
            f"exact tours are computed for at most {MAX_HELD_KARP} cities, got {n}; use an approximation instead"
        )
    if n == 2:
        return np.tile(np.arange(2), (batch, 1))
    m = n - 1  # cities 1..n-1 are the bits of a subset
    chunk = max(1, min(1024, int(64e6 / (8 * m * 2**m))))
    tours = np.concatenate([_held_karp(distances(p[i : i + chunk])) for i in range(0, batch, chunk)])
    return canonical_tour(p, tours)


def _held_karp(d: Floats) -> Ints:
    batch, n, _ = d.shape
    m = n - 1
    home, between = d[:, 0, 1:].T.copy(), d[:, 1:, 1:].transpose(1, 2, 0).copy()  # (m, B), (m, m, B)
    masks = np.arange(2**m)
    size = np.bitwise_count(masks)
    cost = np.full((2**m, m, batch), np.inf)  # cost[S, k]: shortest path from city 0 through all of S, ending in k of S
    cost[1 << np.arange(m), np.arange(m)] = home
    for s in range(2, m + 1):
        of_size = masks[size == s]
        for j in range(m):
            subset = of_size[(of_size >> j) & 1 == 1]
            best = np.full((len(subset), batch), np.inf)
            before = subset ^ (1 << j)
            for k in range(m):
                if k != j:
                    np.minimum(best, cost[before, k] + between[k, j], out=best)
            cost[subset, j] = best
    tour = np.zeros((batch, n), dtype=np.int64)
    rows, rest = np.arange(batch), np.full(batch, 2**m - 1)
    last = np.argmin(cost[-1] + home, axis=0)
    for i in range(m, 0, -1):
        tour[:, i] = last + 1
        rest = rest ^ (1 << last)
        if i > 1:
            last = np.argmin(cost[rest, :, rows].T + between[:, last, rows], axis=0)
    return tour
