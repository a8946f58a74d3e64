"""Gallery: hulls and tours a small Ptr-Net draws, over the exact ones. The sets are the first of the test sets."""

from pathlib import Path

from torch import Tensor

from common.gallery import Drawing, Gallery
from common.training.run import Run
from papers.pointer_networks.claims import BEAM, Plan, train
from papers.pointer_networks.geometry import PAD, Ints
from papers.pointer_networks.inference import decode
from papers.pointer_networks.model import Seq2Seq
from papers.pointer_networks.problems import Problem, held_out

HULLS = Plan(hidden_dim=96, steps=700, test=0, lr=2e-2)
TOURS = Plan(hidden_dim=96, steps=1000, test=0, lr=2e-2)


def gallery(folder: Path, seed: int = 0) -> Gallery:
    """Four hulls (n = 8, 12 and 20, the last beyond training) and four tours (5 cities, and 8, beyond training)."""
    hull = train(_run(folder, "hulls", seed), HULLS, "hull", (5, 12))
    items = _drawings(hull, "hull", 8, 2) + _drawings(hull, "hull", 12, 1) + _drawings(hull, "hull", 20, 1)
    tour = train(_run(folder, "tours", seed), TOURS, "tsp", (4, 5))
    items += _drawings(tour, "tsp", 5, 2) + _drawings(tour, "tsp", 8, 2)
    trained = (
        f"Two Ptr-Nets of width {HULLS.hidden_dim}: one trained for {HULLS.steps} steps of {HULLS.batch_size} sets on "
        f"hulls of 5 to 12 points, one for {TOURS.steps} steps on optimal tours of 4 and 5 cities; beam search "
        f"of width "
        f"{BEAM}, tours constrained to visit each city once."
    )
    return Gallery(trained=trained, items=items)


def _run(folder: Path, name: str, seed: int) -> Run:
    return Run("pointer_networks", "gallery", name, seed, "cpu", folder / name)


def _drawings(model: Seq2Seq, problem: Problem, n: int, count: int) -> list[Drawing]:
    points, labels = held_out(problem, count, n)
    outputs = decode(model, points, problem, beam=BEAM, constrained=problem == "tsp")
    return [_drawing(*each, problem) for each in zip(points, labels, outputs)]


def _drawing(points: Tensor, label: Ints, output: list[int], problem: Problem) -> Drawing:
    exact = [int(index) for index in label if index != PAD]
    longest = 12 if problem == "hull" else 5
    what = "Convex hull" if problem == "hull" else "Tour"
    beyond = f", more than the {longest} it was trained on" if len(points) > longest else ""
    same = "the same as" if _edges(output) == _edges(exact) else "not"
    return Drawing(
        title=f"{what} of {len(points)} points",
        caption=f"{len(points)} points{beyond}. The network's answer {_numbered(output)} is {same} the exact one "
        f"{_numbered(exact)}.",
        points=[(round(float(x), 4), round(float(y), 4)) for x, y in points],
        paths={"exact": exact, "Ptr-Net": output},
    )


def _edges(cycle: list[int]) -> set[frozenset[int]]:
    """The sides of a closed polygon, whatever its first corner and direction."""
    return {frozenset(side) for side in zip(cycle, [*cycle[1:], *cycle[:1]])}


def _numbered(indices: list[int]) -> str:
    return " ".join(str(index + 1) for index in indices)
