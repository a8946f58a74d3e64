"""`encore reproduce`: choose the units, run them, keep complete results, show them beside the paper's."""

import json
import sys

from benchmarks.paper import fingerprint, paths
from benchmarks.paper.schema import Claim, Measurement, Paper
from benchmarks.run import plan, wiring
from benchmarks.run.engines import Interrupted, continue_command, run_units
from benchmarks.run.plan import Entry
from benchmarks.run.provenance import cores
from benchmarks.run.records import COMMITTED_SCALE, keep_if_complete, record_file
from benchmarks.run.standing import Standing, spoken
from benchmarks.run.table import console, plan_table, print_standing
from benchmarks.run.units import Unit, identity, units_of
from common.errors import EncoreError

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

    budget: only so many seconds' worth of stale and missing units, see benchmarks.run.plan.
    """
    chosen = _chosen(papers, only, measurements)
    keeper = Keeper(chosen, scale)
    for key in chosen:
        keeper.keep(key)
    entries, todo = _entries_and_todo(chosen, scale, seeds, workers, force, budget)
    if fresh := sum(entry.state == "fresh" for entry in entries if entry not in todo):
        print(f"{fresh} units have a fresh result and are skipped (--force runs them again)")
    if budget is not None:
        total = plan.summary(todo, workers or cores())
        print(f"{total['units']} units fit into {spoken(budget)}: about {spoken(total['wall_seconds'])}")

    def finished(unit: Unit) -> None:
        fingerprint.forget()  # the sources may have been edited since
        keeper.keep((unit.paper, unit.claim))

    try:
        jobs = [entry.job for entry in todo]
        failed = run_units(engine, jobs, workers=workers or None, finished=finished) if todo else {}
    except Interrupted as stop:
        print(f"\n{stop}; finished units are kept. Continue with: {continue_command()}", file=sys.stderr)
        return stop.status

    def is_outdated(unit: Unit) -> bool:
        return not unit.fresh_result(identity(chosen[unit.paper, unit.claim][1]))

    outdated = [entry.job.unit for entry in todo if entry.job.unit not in failed and is_outdated(entry.job.unit)]
    failed |= dict.fromkeys(outdated, "the code changed while it ran: run again")
    shown = _show(papers, scale, seeds)
    problems = [f"{unit.name}: {why}" for unit, why in failed.items()] + keeper.problems() + shown
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
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


class Keeper:
    """Writes the record of an experiment whose units are all there; what cannot be written is told in the end."""

    def __init__(self, chosen: Chosen, scale: str) -> None:
        self.chosen, self.scale = chosen, scale
        self.unkept: dict[plan.Key, OSError] = {}
        self.miswired: dict[plan.Key, list[str]] = {}

    def keep(self, key: plan.Key) -> None:
        self.unkept.pop(key, None)
        paper, experiment = self.chosen[key]
        wanted = identity(experiment)
        finished = [unit.fresh_result(wanted) for unit in units_of(paper, experiment, self.scale)]
        self.miswired[key] = wiring.problems(experiment, [result for result in finished if result])
        if self.miswired[key]:
            return
        try:
            keep_if_complete(*self.chosen[key], self.scale)
        except OSError as error:  # the units lie in runs/: a full or read-only results folder costs nothing
            self.unkept[key] = error

    def problems(self) -> list[str]:
        miswired = [
            f"{paper} {claim}: {problem}; correct claims.py or paper.yaml, its result is not kept"
            for (paper, claim), found in self.miswired.items()
            for problem in found
        ]
        return miswired + [
            f"{paper} {claim}: cannot write {paths.shown(record_file(paper, claim, self.scale))}: {error.strerror}; "
            "its units are kept, make room or allow writing there and run this again"
            for (paper, claim), error in self.unkept.items()
        ]


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


def _show(papers: list[Paper], scale: str, seeds: list[int] | None) -> list[str]:
    """Print the comparison and write the report; what went wrong with that."""
    from benchmarks.site.report import write_report

    out = console()
    for paper in papers:
        print_standing(Standing(paper, scale, seeds, live=True), out)
    if scale != COMMITTED_SCALE:
        out.print(
            f"scale {scale}: these runs only show that everything works; results of scale {COMMITTED_SCALE} are kept"
        )
    try:
        print(f"report: {paths.shown(write_report())}")
    except EncoreError as error:  # another paper's file is broken: this paper's results stand
        print(f"error: no report: {error}", file=sys.stderr)
    except OSError as error:
        return [f"no report: {error.strerror}: {error.filename}"]
    return []
