"""`encore reproduce`: choose the units, run them in runs/, show them beside the paper's and the committed results."""

import json
import sys

from benchmarks.paper import fingerprint
from benchmarks.paper.schema import Claim, Measurement, Paper
from benchmarks.run import agreement, plan
from benchmarks.run.engines import Interrupted, continue_command, run_units
from benchmarks.run.plan import Entry
from benchmarks.run.provenance import cores
from benchmarks.run.records import COMMITTED_SCALE, has_run, miswired
from benchmarks.run.standing import spoken
from benchmarks.run.table import console, plan_table, print_agreement
from benchmarks.run.units import Unit, identity

Chosen = dict[plan.Key, tuple[Paper, Claim | Measurement]]


def reproduce(
    papers: list[Paper],
    *,
    scale: str,
    only: str = "",
    measurements: bool = False,
    seeds: list[int] | None = None,
    workers: int = 0,
    force: bool = False,
    engine: str = "local",
    budget: float | None = None,
) -> int:
    """Run what is not fresh and print the comparison; the exit status: 0, 1 when a unit failed, 128 + signal.

    budget: only so many seconds' worth of units, see benchmarks.run.plan.
    """
    chosen = _chosen(papers, only, measurements)
    entries, todo = _entries_and_todo(chosen, scale, seeds, workers, force, budget)
    if fresh := sum(entry.state == "fresh" for entry in entries if entry not in todo):
        print(f"{fresh} units have a fresh result in runs/ and are skipped (--force runs them again)")
    if budget is not None:
        total = plan.summary(todo, workers or cores())
        print(f"{total['units']} units fit into {spoken(budget)}: about {spoken(total['wall_seconds'])}")

    try:
        jobs = [entry.job for entry in todo]
        failed = run_units(engine, jobs, workers=workers or None) if todo else {}
    except Interrupted as stop:
        print(f"\n{stop}; finished units are kept. Continue with: {continue_command()}", file=sys.stderr)
        return stop.status

    fingerprint.forget()  # the sources may have been edited since

    def is_outdated(unit: Unit) -> bool:
        return not unit.fresh_result(identity(chosen[unit.paper, unit.claim][1]))

    outdated = [entry.job.unit for entry in todo if entry.job.unit not in failed and is_outdated(entry.job.unit)]
    failed |= dict.fromkeys(outdated, "the code changed while it ran: run again")
    _show(papers, chosen, scale, seeds)
    problems = [f"{unit.name}: {why}" for unit, why in failed.items()]
    for (slug, claim), pair in chosen.items():
        problems += [
            f"{slug} {claim}: {line}; correct claims.py or paper.yaml, no such run is recorded"
            for line in miswired(*pair, scale)
        ]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def show_plan(
    papers: list[Paper],
    *,
    scale: str,
    only: str = "",
    measurements: bool = False,
    seeds: list[int] | None = None,
    workers: int = 0,
    force: bool = False,
    budget: float | None = None,
    as_json: bool = False,
) -> None:
    """Print what `reproduce` would run with the same arguments, and what that would cost. Nothing is run or written."""
    chosen = _chosen(papers, only, measurements)
    entries, todo = _entries_and_todo(chosen, scale, seeds, workers, force, budget)
    at_a_time = workers or cores()
    if as_json:
        print(json.dumps(plan.as_json(entries, todo, at_a_time), indent=1))
        return
    out = console()
    out.print(plan_table(entries, todo))
    total = plan.summary(todo, at_a_time)
    bound = "at most " if total["at_most"] else "about "
    gpus = f", {total['gpu_hours']:g} GPU-hours" if total["gpu_hours"] else ""
    print(
        f"{total['units']} units to run, {at_a_time} at a time: {bound}{spoken(total['wall_seconds'])}, "
        f"{total['core_hours']:g} core-hours{gpus}"
    )


def _chosen(papers: list[Paper], only: str, measurements: bool) -> Chosen:
    return {
        (paper.slug, experiment.id): (paper, experiment)
        for paper in papers
        for experiment in _experiments(paper, only, measurements)
    }


def _experiments(paper: Paper, only: str, measurements: bool) -> list[Claim | Measurement]:
    if only:
        return [paper.experiment(only)]
    return [*paper.claims, *(paper.measurements if measurements else [])]


def _entries_and_todo(
    chosen: Chosen, scale: str, seeds: list[int] | None, workers: int, force: bool, budget: float | None
) -> tuple[list[Entry], list[Entry]]:
    entries = [entry for pair in chosen.values() for entry in plan.entries_of(*pair, scale, seeds, force)]
    if budget is not None:
        experiments = {key: experiment for key, (_, experiment) in chosen.items()}
        return entries, plan.within(budget, entries, experiments, workers or cores())
    return entries, [entry for entry in entries if force or entry.state != "fresh"]


def _show(papers: list[Paper], chosen: Chosen, scale: str, seeds: list[int] | None) -> None:
    """Print reported, committed and this run's side by side, and how to keep this run."""
    out = console()
    for paper in papers:
        experiments = [experiment for owner, experiment in chosen.values() if owner.slug == paper.slug]
        print_agreement(paper, experiments, agreement.lines(paper, experiments, scale, seeds), scale, out)
    if scale != COMMITTED_SCALE:
        out.print(f"scale {scale} only shows that everything works; committed are results of {COMMITTED_SCALE}")
    elif kept := dict.fromkeys(paper.slug for paper, experiment in chosen.values() if has_run(paper, experiment)):
        out.print("this run lies in runs/ and changes no committed result; to take it there:")
        out.print(*(f"  encore record {slug}" for slug in kept), sep="\n")
