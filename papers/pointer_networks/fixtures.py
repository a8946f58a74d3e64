"""Tiny files in the release's text format, for tests and for a first try."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from papers.pointer_networks.data import write_problems
from papers.pointer_networks.problems import Problem, draw


def solved_sets(root: Path, problem: Problem, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Four solved sets of every size to train and to validate on."""
    for part in ("train", "test"):
        write_problems(str(root / f"{part}.txt"), problem, [draw(problem, 4, n) for n in sizes])
    return {
        "model.init_args.hidden_dim": 16,
        "data.init_args.train_file": root / "train.txt",
        "data.init_args.val_file": root / "test.txt",
        "data.init_args.batch_size": 4,
    }


FIXTURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "paper_hull.yaml": partial(solved_sets, problem="hull", sizes=(5, 8)),
    "paper_hull_50.yaml": partial(solved_sets, problem="hull", sizes=(7,)),
    "paper_delaunay.yaml": partial(solved_sets, problem="delaunay", sizes=(7,)),
    "paper_tsp.yaml": partial(solved_sets, problem="tsp", sizes=(5, 8)),
    "paper_tsp_50.yaml": partial(solved_sets, problem="tsp", sizes=(7,)),
}


def tiny() -> tuple[dict[str, Any], torch.Tensor]:
    """A module as a config describes it, and a batch for the encoder that is exported from it."""
    sizes = {"architecture": "pointer", "hidden_dim": 8, "num_points": None, "optim": {"lr": 1.0}}
    return {"class_path": "papers.pointer_networks.module.PointerNetworks", "init_args": sizes}, torch.rand(3, 5, 2)
