"""The arms of the three claims. Every arm of a claim sees the same sets, in the same order, in as many steps.

Test sets are the same for every arm and seed (`held_out`) and decoded by beam search of width 4 (the paper does not
state one).
"""

from dataclasses import dataclass
from itertools import islice

import lightning as L
from torch import Tensor

from common.training.loaders import train_loader
from common.training.recipe import Optim
from common.training.run import Run, sizes, train_on
from papers.pointer_networks.data import SolvedSets, as_is
from papers.pointer_networks.geometry import tour_length
from papers.pointer_networks.inference import decode
from papers.pointer_networks.metrics import Outputs, hull_scores, tsp_scores
from papers.pointer_networks.model import Architecture, Seq2Seq
from papers.pointer_networks.module import PointerNetworks
from papers.pointer_networks.problems import Problem, held_out

BEAM = 4


@dataclass(frozen=True)
class Plan:
    """How long and how wide one model is trained, and on how many sets of a size it is tested."""

    hidden_dim: int
    steps: int
    test: int
    batch_size: int = 128
    lr: float = 1e-2


def claim_optim(lr: float, steps: int) -> Optim:
    """Adam, warm-up and cosine decay over `steps`. One group of parameters: clipping sums their norms in its order."""
    return Optim(name="adam", lr=lr, schedule="cosine", warmup=min(100, steps // 10), total=steps, decay_all=True)


def train(
    run: Run,
    plan: Plan,
    problem: Problem,
    points: tuple[int, int],
    architecture: Architecture = "pointer",
    hidden_dim: int | None = None,
    split: str = "train",
) -> Seq2Seq:
    """A model trained with Adam, warm-up and cosine decay, gradients clipped at 2.0, on sets of `points` (least, most);
    run.seed seeds weights and data alike. split: another name for the sets, where arms train on other ones.
    """
    run.settings(architecture=architecture, problem=problem, points=points)
    L.seed_everything(run.seed, verbose=False)
    module = PointerNetworks(
        architecture=architecture,
        hidden_dim=hidden_dim or plan.hidden_dim,
        num_points=None if architecture == "pointer" else points[1],
        optim=claim_optim(plan.lr, plan.steps),
    )
    sets = SolvedSets(problem, *points)
    run.split(split, first_sets(run, plan, sets))
    train_on(
        run,
        module,
        sets,
        steps=plan.steps,
        batch_size=plan.batch_size,
        collate=as_is,
        gradient_clip_val=2.0,
    )
    return module.model


def first_sets(run: Run, plan: Plan, sets: SolvedSets, batches: int = 8) -> list[Tensor]:
    """The points of the first training batches, which stand for an endless supply."""
    loader = train_loader(sets, plan.batch_size, seed=run.seed, collate_fn=as_is)
    return [one for batch in islice(loader, batches) for one in batch.points]


def outputs_of(model: Seq2Seq, points: Tensor, problem: Problem, *, constrained: bool = False) -> Outputs:
    """Decoded outputs for points (B, n, 2), 500 sets at a time."""
    return [
        output
        for part in points.split(500)
        for output in decode(model, part, problem, beam=BEAM, constrained=constrained)
    ]


def hulls(run: Run, model: Seq2Seq, n: int, count: int) -> dict[str, float]:
    """hull_scores over `count` test sets of n points."""
    points, labels = held_out("hull", count, n)
    run.split(f"test:{n}", points)
    return hull_scores(points, labels, outputs_of(model, points, "hull"))


def tours(run: Run, model: Seq2Seq, n: int, count: int) -> dict[str, float]:
    """length and excess over the optimum (%) with decoding constrained to tours, and how often free decoding gives
    none (%).
    """
    points, labels = held_out("tsp", count, n)
    run.split(f"test:{n}", points)
    best = float(tour_length(points, labels).mean())
    length = tsp_scores(points, outputs_of(model, points, "tsp", constrained=True))["length"]
    free = tsp_scores(points, outputs_of(model, points, "tsp"))
    return {"length": length, "optimal": best, "excess": 100.0 * (length / best - 1), "invalid": free["invalid"]}


def numbered(scores: dict[str, float], n: int) -> dict[str, float]:
    return {f"{name}_{n}": value for name, value in scores.items()}


HULL = {
    "smoke": Plan(hidden_dim=32, steps=30, test=50),
    "cpu": Plan(hidden_dim=96, steps=1800, test=2000, lr=2e-2),
    "gpu": Plan(hidden_dim=256, steps=20_000, test=10_000, lr=5e-3),
}


def hull_architectures(run: Run) -> dict[str, float]:
    """Claim 1: hulls of 10 points by Ptr-Net, by attention that blends, and by a plain LSTM.

    The plain LSTM has no attention weights, so its hidden size is 9/8 of the others': as many parameters as Ptr-Net.
    The blending baseline keeps the common hidden size and has about 40 % more parameters than Ptr-Net.
    """
    plan = sizes(run, **HULL)
    architectures: dict[str, Architecture] = {"pointer": "pointer", "attention": "attention", "lstm": "lstm"}
    architecture = architectures[run.arm]
    hidden_dim = plan.hidden_dim * 9 // 8 if architecture == "lstm" else plan.hidden_dim
    model = train(run, plan, "hull", (10, 10), architecture, hidden_dim)
    return hulls(run, model, 10, plan.test) | {"parameters": float(sum(p.numel() for p in model.parameters()))}


ANY_LENGTH = {
    "smoke": Plan(hidden_dim=32, steps=30, test=50),
    "cpu": Plan(hidden_dim=128, steps=900, test=1000, lr=2e-2),
    "gpu": Plan(hidden_dim=256, steps=20_000, test=10_000, lr=5e-3),
}


def any_length(run: Run) -> dict[str, float]:
    """Claim 2: one Ptr-Net trained on hulls of 5..12 points, tested inside and up to twice beyond that range."""
    plan = sizes(run, **ANY_LENGTH)
    model = train(run, plan, "hull", (5, 12))
    scores: dict[str, float] = {}
    for n in (5, 10, 12, 16, 24):
        scores |= numbered(hulls(run, model, n, plan.test), n)
    return scores


TOURS = {
    "smoke": Plan(hidden_dim=32, steps=30, test=50),
    "cpu": Plan(hidden_dim=96, steps=2500, test=500, lr=2e-2),
    "gpu": Plan(hidden_dim=256, steps=20_000, test=5000, lr=5e-3),
}


def tour_constraint(run: Run) -> dict[str, float]:
    """Claim 3: a Ptr-Net trained on optimal tours of up to 5 cities, tested on 5, 8 and 10.

    The paper trains on up to 20 and tests on 20, 30 and 40: 1, 1.5 and 2 times the longest training set.
    """
    plan = sizes(run, **TOURS)
    model = train(run, plan, "tsp", (4, 5))
    scores: dict[str, float] = {}
    for n in (5, 8, 10):
        scores |= numbered(tours(run, model, n, plan.test), n)
    return scores
