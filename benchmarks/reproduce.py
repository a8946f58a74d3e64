"""`encore reproduce`: choose the units, run them, keep complete results, show them beside the paper's."""

import sys

from benchmarks import fingerprint, paths
from benchmarks.records import COMMITTED_SCALE, keep_if_complete
from benchmarks.run import Interrupted, continue_command, run_units
from benchmarks.schema import Claim, Measurement, Paper
from benchmarks.standing import Standing
from benchmarks.table import console, print_standing
from benchmarks.units import Unit, identity, units_of
from common.errors import EncoreError


def reproduce(
    papers: list[Paper],
    *,
    scale: str,
    only: str = "",
    measurements: bool = False,
    seeds: list[int] | None = None,
    workers: int = 0,
    force: bool = False,
) -> int:
    """Run what is not fresh and print the comparison; the exit status: 0, 1 when a unit failed, 128 + signal."""
    chosen = {
        (paper.slug, experiment.id): (paper, experiment)
        for paper in papers
        for experiment in _experiments(paper, only, measurements)
    }
    todo: dict[Unit, float] = {}
    fresh = 0
    for paper, experiment in chosen.values():
        wanted = identity(experiment)
        for unit in units_of(paper, experiment, scale, seeds):
            if not force and unit.fresh_result(wanted):
                fresh += 1
            else:
                todo[unit] = experiment.minutes * 60
        keep_if_complete(paper, experiment, scale)
    if fresh:
        print(f"{fresh} units have a fresh result and are skipped (--force runs them again)")

    def experiment_of(unit: Unit) -> Claim | Measurement:
        return chosen[unit.paper, unit.claim][1]

    def keep(unit: Unit) -> None:
        fingerprint.forget()  # the sources may have been edited since
        keep_if_complete(*chosen[unit.paper, unit.claim], scale)

    try:
        failed = run_units(todo, workers=workers or None, force=force, finished=keep) if todo else {}
    except Interrupted as stop:
        print(f"\n{stop}; finished units are kept. Continue with: {continue_command()}", file=sys.stderr)
        return stop.status
    outdated = [unit for unit in todo if unit not in failed and not unit.fresh_result(identity(experiment_of(unit)))]
    failed |= dict.fromkeys(outdated, "the code changed while it ran: run again")
    _show(papers, scale, seeds)
    for unit, why in failed.items():
        print(f"error: {unit.name}: {why}", file=sys.stderr)
    return 1 if failed else 0


def _experiments(paper: Paper, only: str, measurements: bool) -> list[Claim | Measurement]:
    if only:
        return [paper.experiment(only)]
    return [*paper.claims, *(paper.measurements if measurements else [])]


def _show(papers: list[Paper], scale: str, seeds: list[int] | None) -> None:
    from benchmarks.report import write_report

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
