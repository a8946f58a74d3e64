"""The paper's measures of an output (Sec. 4): accuracy and coverage in %, tour lengths."""

from collections import Counter

import numpy as np
from torch import Tensor

from papers.pointer_networks.geometry import PAD, Floats, Ints, canonical_cycle, is_simple, polygon_area, tour_length

Outputs = list[list[int]]


def rows(labels: Ints) -> Outputs:
    """Labels (B, m) padded with -1 as lists."""
    return [[index for index in row if index != PAD] for row in labels.tolist()]


def hull_scores(points: Floats | Tensor, labels: Ints, outputs: Outputs) -> dict[str, float]:
    """accuracy: the same polygon, wherever it starts and whichever way it runs. area_coverage: mean share of the
    hull's area over the outputs that are simple polygons (0 if none is). not_simple: the share that is not; above 1
    the paper prints FAIL. area_all: area_coverage with 0 for every output that is not simple.
    """
    p = np.asarray(points, dtype=np.float64)
    same, coverage = [], []
    for one, true, got in zip(p, rows(labels), outputs):
        same.append(canonical_cycle(got) == canonical_cycle(true))
        simple = bool(is_simple(one[got]))
        coverage.append(abs(polygon_area(one[got])) / polygon_area(one[true]) if simple else np.nan)
    covered = np.array(coverage)
    simple_only = covered[~np.isnan(covered)]
    return {
        "accuracy": 100.0 * float(np.mean(same)),
        "area_coverage": 100.0 * float(simple_only.mean()) if len(simple_only) else 0.0,
        "area_all": 100.0 * float(np.nan_to_num(covered).mean()),
        "not_simple": 100.0 * float(np.isnan(covered).mean()),
    }


def triangles(output: list[int]) -> set[tuple[int, ...]]:
    """The triples an output spells, each as a sorted triangle; an incomplete triple at the end does not count."""
    return {tuple(sorted(output[i : i + 3])) for i in range(0, len(output) - 2, 3)}


def delaunay_scores(labels: Ints, outputs: Outputs) -> dict[str, float]:
    """accuracy: the same set of triangles, in any order. triangle_coverage: mean share of the true triangles that
    were found.
    """
    same, found = [], []
    for true, got in zip(rows(labels), outputs):
        wanted, given = triangles(true), triangles(got)
        same.append(wanted == given and len(got) == len(true))
        found.append(len(wanted & given) / len(wanted))
    return {"accuracy": 100.0 * float(np.mean(same)), "triangle_coverage": 100.0 * float(np.mean(found))}


def is_tour(output: list[int], n: int) -> bool:
    """Every one of n cities exactly once."""
    return len(output) == n and Counter(output) == Counter(range(n))


def tsp_scores(points: Floats | Tensor, outputs: Outputs) -> dict[str, float]:
    """invalid: the share of outputs that are no tour, in %. length: mean length of those that are (0 if none is)."""
    p = np.asarray(points, dtype=np.float64)
    valid = np.array([is_tour(output, p.shape[1]) for output in outputs])
    tours = np.array([output for output, ok in zip(outputs, valid) if ok], dtype=np.int64)
    length = float(tour_length(p[valid], tours).mean()) if valid.any() else 0.0
    return {"length": length, "invalid": 100.0 * float(1 - valid.mean())}
