"""One unit of work is (paper, claim, arm, seed) at a scale: where it lives and whether its result still holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import fingerprint, paths
from benchmarks.files import read_json
from benchmarks.schema import Claim, Measurement, Paper


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

    def result(self) -> dict[str, Any] | None:
        """The whole result.json, whatever code it came from; None when there is none."""
        content = read_json(self.dir / "result.json")
        return content if content and {"metrics", "seconds", "provenance"} <= content.keys() else None

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


def same_identity(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("code", "config", "data"))


def units_of(paper: Paper, experiment: Claim | Measurement, scale: str, seeds: list[int] | None = None) -> list[Unit]:
    """The units of a claim or measurement, arms of one seed together so that early results can be paired."""
    return [
        Unit(paper.slug, experiment.id, arm, seed, scale)
        for seed in (experiment.seeds if seeds is None else seeds)
        for arm in experiment.all_arms
    ]
