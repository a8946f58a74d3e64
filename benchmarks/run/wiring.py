"""Whether the units of a claim are wired as paper.yaml says: what arms share, where they differ, what a seed moves.

A unit's `wiring` (common/training/wiring.py) has its splits, the settings it declared and what every training used. In
a committed record it is short: see `compact`.
"""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from benchmarks.paper.files import digest
from benchmarks.paper.schema import Claim, Experiment

MOST_BYTES = 400  # of a unit's wiring in a committed record
NOT_COMPARED = ("start", "end", "examples")  # digests have their own rules, examples = steps * batch_size
Units = list[dict[str, Any]]


def problems(experiment: Experiment, units: Units) -> list[str]:
    """What is wired wrongly among finished units, one line each, the first of each kind; empty when all is well."""
    by_seed: dict[int, dict[str, dict[str, Any]]] = {}
    for unit in units:
        by_seed.setdefault(unit["seed"], {})[unit["arm"]] = unit.get("wiring") or {}
    checks = [_splits_differ(by_seed), _one_seed_for_all(by_seed)]
    if isinstance(experiment, Claim):
        checks += [_starts_differ(experiment, by_seed), _arms_are_one(experiment, by_seed)]
        checks += [_settings(experiment, by_seed)]
    return [found for check in checks if (found := next(check, None))]


def settings_of(wiring: dict[str, Any]) -> dict[str, Any]:
    """{setting: value}: the declared ones, and "fit.lr" and the like of each training.

    Trainings that differ by a number in the end of their names only (fold-0, fold-1) are one, "fold.lr".
    """
    found: dict[str, Any] = dict(wiring.get("settings", {}))
    grouped: dict[str, list[Any]] = {}
    for name, facts in wiring.get("fits", {}).items():
        stem = re.sub(r"[-_:]?\d+$", "", name) or name
        for key, value in facts.items():
            if key not in NOT_COMPARED:
                grouped.setdefault(f"{stem}.{key}", []).append(bool(value) if key == "handed_over" else value)
    for key, values in grouped.items():
        found[key] = values[0] if all(value == values[0] for value in values) else values
    return found


def compact(wiring: dict[str, Any]) -> dict[str, Any]:
    """At most MOST_BYTES of it: a training is one line of text, and the longest sections become a digest."""
    short: dict[str, Any] = {}
    if splits := wiring.get("splits"):
        short["splits"] = {name: f"{split['examples']}:{split['digest']}" for name, split in splits.items()}
    if settings := wiring.get("settings"):
        short["settings"] = settings
    if fits := wiring.get("fits"):
        short["fits"] = {name: _in_words(facts) for name, facts in fits.items() if facts}
    for key in sorted(short, key=lambda key: -len(json.dumps(short[key]))):
        if len(json.dumps(short)) > MOST_BYTES:
            short[key] = digest(wiring[key])[:8]
    return short


def _in_words(facts: dict[str, Any]) -> str:
    handed = " handed over" if facts["handed_over"] else ""
    size = f"{facts['steps']}x{facts['batch_size']} lr {facts['lr']} of {facts['parameters']}"
    return f"{facts['module']} {size}{handed} {facts['start']}>{facts['end']}"


def _splits_differ(by_seed: dict[int, dict[str, dict[str, Any]]]) -> Iterator[str]:
    for seed, arms in by_seed.items():
        for (one, first), (other, second) in combinations(arms.items(), 2):
            a, b = first.get("splits", {}), second.get("splits", {})
            for name in sorted(a.keys() & b.keys()):
                if a[name]["digest"] != b[name]["digest"] or a[name]["examples"] != b[name]["examples"]:
                    yield f"arms {one} and {other} of seed {seed} have other examples in split {name!r}"


def _one_seed_for_all(by_seed: dict[int, dict[str, dict[str, Any]]]) -> Iterator[str]:
    for (seed, arms), (other, others) in combinations(by_seed.items(), 2):
        for arm in arms.keys() & others.keys():
            first, second = _fits(arms[arm]), _fits(others[arm])
            if first and second:
                starts_alike = first[0]["start"] == second[0]["start"] and not first[0]["handed_over"]
                ends_alike = [fit["end"] for fit in first] == [fit["end"] for fit in second]
                if starts_alike or ends_alike:
                    word = "starts from" if starts_alike else "ends with"
                    yield f"arm {arm} {word} the same weights for seeds {seed} and {other}: the seed does not reach it"


def _starts_differ(claim: Claim, by_seed: dict[int, dict[str, dict[str, Any]]]) -> Iterator[str]:
    for seed, arms in by_seed.items():
        starts = {arm: fits[0]["start"] for arm, wiring in arms.items() if (fits := _fits(wiring))}
        if claim.same_start and len(set(starts.values())) > 1:
            words = ", ".join(f"{arm} {start}" for arm, start in starts.items())
            yield f"arms of seed {seed} start from different weights ({words}), though paper.yaml has same_start"


def _arms_are_one(claim: Claim, by_seed: dict[int, dict[str, dict[str, Any]]]) -> Iterator[str]:
    for seed, arms in by_seed.items():
        for (one, first), (other, second) in combinations(arms.items(), 2):
            ends = [[fit["end"] for fit in _fits(wiring)] for wiring in (first, second)]
            if ends[0] and ends[0] == ends[1] and not claim.same_training:
                yield f"arms {one} and {other} of seed {seed} end with the same weights: they are one arm"


def _settings(claim: Claim, by_seed: dict[int, dict[str, dict[str, Any]]]) -> Iterator[str]:
    if not isinstance(claim.arms, dict):
        return
    named = {name for settings in claim.arms.values() for name in settings}
    for arms in by_seed.values():
        if arms.keys() < set(claim.all_arms):  # the rest is still to run
            continue
        found = {arm: settings_of(wiring) for arm, wiring in arms.items()}
        differing = {
            key: {arm: settings.get(key) for arm, settings in found.items()}
            for key in sorted({key for settings in found.values() for key in settings})
            if any(settings.get(key) != next(iter(found.values())).get(key) for settings in found.values())
        }
        for key, values in differing.items():
            if not any(_covers(name, key) for name in named):
                words = ", ".join(f"{arm} {value}" for arm, value in values.items())
                yield f"arms differ in {key} ({words}), which paper.yaml does not say"
        for name in sorted(named):
            free = all(settings.get(name) is None for settings in claim.arms.values())
            if not free and not any(_covers(name, key) for key in differing):
                yield f"arms do not differ in {name}, though paper.yaml says so"
        for arm, settings in claim.arms.items():
            for name, value in settings.items():
                if value is not None and found[arm].get(name) != value:
                    yield f"arm {arm} has {name} {found[arm].get(name)}, paper.yaml says {value}"


def _covers(name: str, key: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _fits(wiring: dict[str, Any]) -> list[dict[str, Any]]:
    return [facts for facts in wiring.get("fits", {}).values() if facts]
