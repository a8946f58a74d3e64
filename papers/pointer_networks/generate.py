"""Write solved random sets in the release's text format, as many as the paper trains on.

    python -m papers.pointer_networks.generate hull 5 50 --count 1000000 --out data/pointer_networks/hull_5-50_train.txt

Sizes are drawn uniformly from the two bounds. `--solver a1|a2|a3` labels tours by one of the paper's approximations,
for more than 20 cities.
"""

import argparse
import sys
from collections.abc import Iterator

import torch

from common.errors import EncoreError
from papers.pointer_networks import solvers
from papers.pointer_networks.data import LEAST, write_problems
from papers.pointer_networks.geometry import Ints, uniform_points
from papers.pointer_networks.problems import Problem, check_problem, solve


def solved(
    problem: Problem, low: int, high: int, count: int, seed: int, solver: str = "exact", chunk: int = 1000
) -> Iterator[tuple[torch.Tensor, Ints]]:
    """`count` sets with sizes uniform in low..high, in chunks of one size each, in random order of sizes."""
    generator = torch.Generator().manual_seed(seed)
    while count > 0:
        sizes = torch.randint(low, high + 1, (min(chunk, count),), generator=generator)
        for n, many in zip(*(part.tolist() for part in sizes.unique(return_counts=True))):
            points = uniform_points(many, n, generator)
            yield points, solve(problem, points) if solver == "exact" else getattr(solvers, solver)(points)
        count -= len(sizes)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", help="hull, delaunay or tsp")
    parser.add_argument("low", type=int, help="fewest points of a set")
    parser.add_argument("high", type=int, help="most points of a set")
    parser.add_argument("--count", type=int, required=True, help="number of sets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--solver", default="exact", choices=["exact", "a1", "a2", "a3"], help="tsp only")
    parser.add_argument("--out", required=True, help="text file to write")
    given = parser.parse_args(args)
    try:
        check_problem(given.problem)
        if not LEAST[given.problem] <= given.low <= given.high or given.count < 1:
            raise EncoreError(f"{given.problem} needs {LEAST[given.problem]} <= low <= high and a count of at least 1")
        if given.solver != "exact" and given.problem != "tsp":
            raise EncoreError(f"--solver {given.solver} is for tsp; {given.problem} is always solved exactly")
        written = solved(given.problem, given.low, given.high, given.count, given.seed, given.solver)
        print(f"{write_problems(given.out, given.problem, written)} sets in {given.out}")
    except EncoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
