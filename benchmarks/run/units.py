"""One unit of work is (paper, claim, arm, seed) at a scale: where it lives and whether its result still holds."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper import fingerprint, paths
from benchmarks.paper.files import is_finite, read_json
from benchmarks.paper.schema import Claim, Measurement, Paper

IDENTITY = ("code", "config", "data")


@dataclass(frozen=True)
class Unit:
    """One call of a claim's (or measurement's) entry point."""

    paper: str
    claim: str
    arm: str
    seed: int
    scale: str

    @property
    def dir(self) -> Path:
        """Its scratch: checkpoints, unit.json (what was started), error.json or result.json (how it ended)."""
        return paths.runs() / self.paper / self.scale / self.claim / f"{self.arm}-{self.seed}"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.dir.with_name(f"{self.dir.name}.log")

    @property
    def name(self) -> str:
        return f"{self.paper} {self.claim} {self.arm} seed {self.seed}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Inside, no other process runs this unit; waits for one that does. Ends with the process, however that ends.

        A record lock: unlike flock it is not inherited by what the unit forks, and network file systems carry it.
        """
        self.dir.parent.mkdir(parents=True, exist_ok=True)
        with self._lock_file.open("a+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def runner(self) -> int | None:
        """Id of the process that holds the lock (on whatever machine), 0 when it has not said; None: nobody does."""
        try:
            with self._lock_file.open("r+") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    content = file.read()
                    return int(content) if content.isdecimal() else 0
        except OSError:  # never run, or a folder that takes no locks
            pass
        return None

    @property
    def _lock_file(self) -> Path:
        return self.dir.with_name(f".{self.dir.name}.lock")

    def result(self) -> dict[str, Any] | None:
        """The whole result.json, whatever code it came from; None when there is none, or a damaged one."""
        content = read_json(self.dir / "result.json")
        return content if content and is_result(content) and is_curves(content.get("curves")) else None

    def fresh_result(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The result when it came from exactly this code, configuration and data."""
        content = self.result()
        return content if content and same_identity(content["provenance"], identity) else None


def identity(experiment: Claim | Measurement) -> dict[str, Any]:
    """{code, config, data}: hashes of everything the experiment's results depend on."""
    return {
        "code": fingerprint.claim_code(experiment),
        "config": fingerprint.claim_config(experiment),
        "data": fingerprint.data_checksums(experiment),
    }


def is_result(content: Any) -> bool:
    """Whether it has the form of a unit's result (result.json, or an item of a record's `units`)."""
    if not isinstance(content, dict):
        return False
    metrics, origin = content.get("metrics"), content.get("provenance")
    return (
        isinstance(metrics, dict)
        and all(map(is_finite, metrics.values()))
        and is_finite(content.get("seconds"))
        and isinstance(origin, dict)
        and all(isinstance(origin.get(key), str) for key in ("started", "commit"))
        and isinstance(origin.get("machine"), dict)
    )


def is_curves(content: Any) -> bool:
    """Whether it has the form {curve: [[step, value], ...]}."""
    return isinstance(content, dict) and all(
        isinstance(curve, list) and all(isinstance(p, list) and len(p) == 2 and all(map(is_finite, p)) for p in curve)
        for curve in content.values()
    )


def same_identity(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether `one`, a record or the origin of a unit, came from what `other` names, or was carried to it."""
    origins = [one, *one.get("carried", [])[-1:]]
    return any(all(origin.get(key) == other.get(key) for key in IDENTITY) for origin in origins)


def units_of(paper: Paper, experiment: Claim | Measurement, scale: str, seeds: list[int] | None = None) -> list[Unit]:
    """The units of a claim or measurement, arms of one seed together so that early results can be paired."""
    return [
        Unit(paper.slug, experiment.id, arm, seed, scale)
        for seed in (experiment.seeds if seeds is None else seeds)
        for arm in experiment.all_arms
    ]
