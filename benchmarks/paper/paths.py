"""Where things are. `ENCORE_ROOT` moves the whole tree (tests), `ENCORE_RUNS` only the scratch of the runs."""

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def root() -> Path:
    """The tree that holds papers/, common/ and benchmarks/results/."""
    return Path(os.environ.get("ENCORE_ROOT") or REPOSITORY).resolve()


def runs() -> Path:
    """Scratch of the units: checkpoints, logs, results of one (arm, seed). Ignored by git."""
    return Path(os.environ.get("ENCORE_RUNS") or root() / "runs").resolve()


def room(slug: str) -> Path:
    return root() / "papers" / slug


def results(slug: str) -> Path:
    """Committed results of one paper, one JSON a claim."""
    return root() / "benchmarks" / "results" / slug


def trajectory(slug: str) -> Path:
    """Committed smoke loss trajectory of one paper."""
    return root() / "benchmarks" / "regress" / f"{slug}.json"


def shown(path: Path) -> str:
    """The path as a reader should see it: relative to the tree when it lies inside."""
    return str(path.relative_to(root())) if path.is_relative_to(root()) else str(path)


def child_environment(**extra: str) -> dict[str, str]:
    """Environment of a child process that finds the same papers/, common/ and benchmarks/ as this one."""
    for name in ("ENCORE_DATA", "ENCORE_MIRROR", "ENCORE_RUNS"):
        if os.environ.get(name):  # the child runs in another folder
            extra[name] = str(Path(os.environ[name]).expanduser().resolve())
    path = [str(root()), str(REPOSITORY), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)), **extra}


def make_importable() -> None:
    """Let this process import papers.* and common.* of the tree, from wherever it was started."""
    if str(root()) not in sys.path[:1]:
        sys.path.insert(0, str(root()))
