"""Rows of the paper's tables as far as two cores get in half an hour: the same sizes, fewer examples (Sec. 4).

Every set is drawn anew and seen once. The paper makes 10 to 20 passes over 1M sets with SGD; here Adam sees `steps *
batch_size`.
"""

import numpy as np
import torch

from common.errors import EncoreError
from common.training.run import Run
from papers.pointer_networks import solvers
from papers.pointer_networks.claims import Plan, hulls, numbered, outputs_of, tours, train
from papers.pointer_networks.geometry import held_karp, tour_length, uniform_points
from papers.pointer_networks.metrics import delaunay_scores
from papers.pointer_networks.problems import held_out

SMOKE = Plan(hidden_dim=32, steps=20, test=20)


def hull_5_50(run: Run) -> dict[str, float]:
    """Table 1, one Ptr-Net trained on 5 to 50 points: inside its range and up to ten times beyond."""
    plan = Plan(hidden_dim=128, steps=2500, test=1000, lr=2e-2) if run.scale != "smoke" else SMOKE
    model = train(run, plan, "hull", (5, 50))
    scores: dict[str, float] = {}
    for n in (5, 10, 50, 100, 200, 500):
        scores |= numbered(hulls(run, model, n, plan.test if n <= 50 else plan.test // 5), n)
    return scores


def hull_lstm(run: Run) -> dict[str, float]:
    """Table 1, the plain LSTM at n = 5 and n = 10 (arms lstm_5 and lstm_10)."""
    n = int(run.arm.removeprefix("lstm_"))
    plan = Plan(hidden_dim=128, steps=3000, test=2000) if run.scale != "smoke" else SMOKE
    return hulls(run, train(run, plan, "hull", (n, n), "lstm", split=f"train:{n}"), n, plan.test)


def triangulations(run: Run) -> dict[str, float]:
    """Sec. 4.3, Delaunay triangulation of n = 5 points."""
    plan = Plan(hidden_dim=128, steps=3000, test=1000) if run.scale != "smoke" else SMOKE
    model = train(run, plan, "delaunay", (5, 5))
    points, labels = held_out("delaunay", plan.test, 5)
    run.split("test:5", points)
    return delaunay_scores(labels, outputs_of(model, points, "delaunay"))


def tours_5_10(run: Run) -> dict[str, float]:
    """Table 2, tours of 5 and 10 cities by a Ptr-Net trained on optimal tours of 5 to 10 (the paper: 5 to 20)."""
    plan = Plan(hidden_dim=128, steps=4000, test=2000) if run.scale != "smoke" else SMOKE
    model = train(run, plan, "tsp", (5, 10))
    return numbered(tours(run, model, 5, plan.test), 5) | numbered(tours(run, model, 10, plan.test), 10)


def solver_lengths(run: Run) -> dict[str, float]:
    """Table 2, mean tours of the solvers themselves: arms optimal (n = 5, 10, 20), a1, a2, a3 and christofides (up to
    50).
    """
    few = run.scale == "smoke"
    if run.arm == "optimal":
        solver, counts = held_karp, {5: 20_000, 10: 10_000, 20: 250}
    elif run.arm in ("a1", "a2", "a3", "christofides"):
        solver, counts = getattr(solvers, run.arm), {5: 2000, 10: 2000, 20: 1000, 25: 1000, 30: 1000, 40: 500, 50: 500}
    else:
        raise EncoreError(f"unknown solver {run.arm!r}; one of optimal, a1, a2, a3, christofides")
    scores: dict[str, float] = {}
    for n, count in counts.items():
        points = uniform_points(2 if few else count, n, torch.Generator().manual_seed(2**40 + n))
        lengths = tour_length(points, solver(points))
        scores |= numbered({"length": float(lengths.mean()), "error": float(lengths.std() / np.sqrt(len(lengths)))}, n)
    return scores
