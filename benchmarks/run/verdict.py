"""Verdict of a claim: the gap between method and baseline, paired by seed, with its 95 % t interval.

Before the gap is read both sides must clear the claim's plateau gate: be better than an untrained model, or chance, by
so much in the mean over seeds.
"""

import math
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from benchmarks.paper.schema import Claim
from benchmarks.run.records import Record
from benchmarks.run.units import same_identity

ClaimVerdict = Literal["reproduced", "not reproduced", "inconclusive", "undertrained", "stale", "missing"]

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
T_975 = (
    *(12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814),
    *(2.20099, 2.17881, 2.16037, 2.14479, 2.13145, 2.11991, 2.10982, 2.10092, 2.09302, 2.08596),
    *(2.07961, 2.07387, 2.06866, 2.06390, 2.05954, 2.05553, 2.05183, 2.04841, 2.04523, 2.04227),
)


@dataclass(frozen=True)
class Verdict:
    """`gap` is in the paper's favour when positive; `interval` is None for fewer than two seeds.

    `values` and `baseline_values`: {seed: value} of the two sides. `below`: what does not clear the gate, in words.
    """

    verdict: ClaimVerdict
    n: int = 0
    gap: float | None = None
    interval: tuple[float, float] | None = None
    values: dict[int, float] = field(default_factory=dict)
    baseline_values: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    commit: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    config: str = ""
    below: str = ""


def judge(claim: Claim, record: Record | None, wanted: dict[str, Any], seeds: list[int] | None = None) -> Verdict:
    """The verdict of `record` for the code, configuration and data named by `wanted`.

    missing: a planned arm or seed has no result; stale: the results come from other code, configuration or data.
    """
    if record is None:
        return Verdict("missing")
    units = {(unit["arm"], unit["seed"]): unit for unit in record["units"]}
    planned = [(arm, seed) for arm in claim.all_arms for seed in (seeds or claim.seeds)]
    method, baseline = (_side(claim, of, record) for of in (claim.method, claim.baseline))
    paired = [seed for seed in (seeds or claim.seeds) if seed in method and seed in baseline]
    if not paired:
        return Verdict("missing")
    sign = 1 if claim.higher_is_better else -1
    gaps = [sign * (method[seed] - baseline[seed]) for seed in paired]
    gap, interval = t_interval(gaps)
    below = below_gate(claim, record, paired)
    outcome: ClaimVerdict
    if not same_identity(record, wanted):
        outcome = "stale"
    elif any(key not in units for key in planned):
        outcome = "missing"
    elif below:
        outcome = "undertrained"
    else:
        outcome = decide(interval, claim.margin)
    newest = max(record["units"], key=lambda unit: unit["provenance"]["started"])["provenance"]
    return Verdict(
        verdict=outcome,
        n=len(gaps),
        gap=gap,
        interval=interval,
        values={seed: method[seed] for seed in paired},
        baseline_values={seed: baseline[seed] for seed in paired},
        seconds=sum(unit["seconds"] for unit in record["units"]),
        commit=newest["commit"],
        machine=newest["machine"],
        code=record["code"],
        config=record["config"],
        below=below,
    )


def below_gate(claim: Claim, record: Record, seeds: list[int]) -> str:
    """What fails the claim's gate over these seeds, in words; empty when each side clears every one."""
    sign = 1 if claim.higher_is_better else -1
    for gate in claim.gate:
        floor = _mean(claim, gate.floor, record, seeds)
        for of in (claim.method, claim.baseline):
            side = claim.side(of)
            if not isinstance(side, tuple) or side == claim.side(gate.floor):
                continue
            value = _mean(claim, of, record, seeds)
            if value is None or floor is None or not sign * (value - floor) >= gate.at_least:
                than = "chance" if gate.untrained is None else " ".join(claim.side(gate.floor))  # type: ignore[arg-type]
                figures = "a value is missing" if value is None or floor is None else f"{value:.4g} against {floor:.4g}"
                return f"{' '.join(side)} must be {gate.at_least:g} better than {than}: {figures}"
    return ""


def decide(interval: tuple[float, float] | None, margin: float = 0.0) -> ClaimVerdict:
    """Where the interval of the gap lies: above -margin, below it, or across it."""
    if interval is None:
        return "inconclusive"
    low, high = interval
    if low > -margin:
        return "reproduced"
    return "not reproduced" if high < -margin else "inconclusive"


def t_interval(samples: list[float]) -> tuple[float, tuple[float, float] | None]:
    """(mean, 95 % t interval of the mean); no interval for a single sample."""
    mean, n = fmean(samples), len(samples)
    if n < 2:
        return mean, None
    half = t_quantile(n - 1) * stdev(samples) / math.sqrt(n)
    return mean, (mean - half, mean + half)


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t: table up to 30 degrees of freedom, Cornish-Fisher expansion beyond."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = 1.959964
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + (z**3 + z) / (4 * freedom) + second / freedom**2 + third / freedom**3


def _side(claim: Claim, of: Any, record: Record) -> dict[int, float]:
    """{seed: value} of one side; a fixed number stands for every seed."""
    side = claim.side(of)
    if not isinstance(side, tuple):
        return dict.fromkeys({*claim.seeds, *(unit["seed"] for unit in record["units"])}, side)
    arm, metric = side
    return {u["seed"]: u["metrics"][metric] for u in record["units"] if u["arm"] == arm and metric in u["metrics"]}


def _mean(claim: Claim, of: Any, record: Record, seeds: list[int]) -> float | None:
    """The mean of one side over the seeds; None when a seed has no value."""
    values = _side(claim, of, record)
    return fmean(values[seed] for seed in seeds) if all(seed in values for seed in seeds) else None
