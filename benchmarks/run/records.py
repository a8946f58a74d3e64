"""Results of a whole claim: the units of one code, configuration and data, merged into one JSON.

A run's units stay in runs/, at every scale. `encore record` merges those of a complete run at scale `cpu` into
benchmarks/results/<paper>/<claim>.json, which belongs into a commit and is what list, show, report and READMEs show.
The learning curves lie beside it in <claim>.curves.json, so that a verdict is quick to read. `carried` in a record
names the later code that `encore carry` found to give the same numbers; its last entry counts.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.paper import paths
from benchmarks.paper.files import read_json, write_atomic
from benchmarks.paper.schema import Claim, Measurement, Paper
from benchmarks.run import wiring
from benchmarks.run.curves import Curve
from benchmarks.run.units import IDENTITY, Unit, identity, is_curves, is_result, same_identity, units_of
from common.errors import EncoreError

COMMITTED_SCALE = "cpu"
Record = dict[str, Any]


def record_file(paper: str, claim: str) -> Path:
    return paths.results(paper) / f"{claim}.json"


def curves_file(paper: str, claim: str) -> Path:
    return record_file(paper, claim).with_suffix(".curves.json")


def read_curves(paper: str, claim: str) -> dict[str, dict[str, Curve]]:
    """{"arm-seed": {curve: [[step, value], ...]}} of a committed record; what is damaged is left out."""
    kept = read_json(curves_file(paper, claim)) or {}
    return {name: unit for name, unit in kept.items() if is_curves(unit)}


def read_record(paper: str, claim: str) -> Record | None:
    """The committed record, whatever code it came from; None when there is none, or a damaged one."""
    return valid_record(read_json(record_file(paper, claim)))


def valid_record(content: Any) -> Record | None:
    """The content when it has the form of a record."""
    whole = isinstance(content, dict) and set(IDENTITY) <= content.keys() and _holds_units(content)
    return content if whole and _is_carried(content.get("carried", [])) else None


def _holds_units(record: Record) -> bool:
    units = record.get("units")
    return (
        isinstance(units, list)
        and bool(units)
        and all(
            is_result(unit) and isinstance(unit.get("arm"), str) and isinstance(unit.get("seed"), int) for unit in units
        )
    )


def _is_carried(carried: Any) -> bool:
    names = (*IDENTITY, "from", "commit", "smoke", "date")
    return isinstance(carried, list) and all(isinstance(one, dict) and one.keys() >= set(names) for one in carried)


def gather(paper: Paper, experiment: Claim | Measurement, scale: str) -> Record | None:
    """The units in runs/ that are of the present code, configuration and data; None when there are none."""
    wanted = identity(experiment)
    units = []
    for unit, result in _fresh(paper, experiment, scale):
        origin = {key: value for key, value in result["provenance"].items() if key not in wanted}
        kept_part = {key: value for key, value in result.items() if key not in ("curves", "wiring")}
        if isinstance(result.get("wiring"), dict):
            kept_part["wiring"] = wiring.compact(result["wiring"])
        units.append({**kept_part, "arm": unit.arm, "seed": unit.seed, "provenance": origin})
    head = {"paper": paper.slug, "claim": experiment.id, "scale": scale}
    return {**head, **wanted, "units": units} if units else None


def record_run(paper: Paper, experiment: Claim | Measurement) -> Path:
    """Write the record of a complete run in runs/; EncoreError when units are missing or miswired.

    Units that the committed record alone has, of this code or of one it was carried from, stay in it.
    """
    if wrong := miswired(paper, experiment, COMMITTED_SCALE):
        raise EncoreError(f"{paper.slug} {experiment.id}: {wrong[0]}; correct claims.py or paper.yaml")
    run = gather(paper, experiment, COMMITTED_SCALE)
    kept = read_record(paper.slug, experiment.id)
    if kept is not None and not same_identity(kept, identity(experiment)):
        kept = None
    ran, before = ({(u["arm"], u["seed"]): u for u in record["units"]} if record else {} for record in (run, kept))
    planned = [(unit.arm, unit.seed) for unit in units_of(paper, experiment, COMMITTED_SCALE)]
    found = {key: ran.get(key) or before.get(key) for key in planned}
    if run is None or not all(found.values()):
        there = f"{len(ran)} of its {len(planned)} units"
        command = f"encore reproduce {paper.slug} --claim {experiment.id}"
        raise EncoreError(f"{paper.slug} {experiment.id}: runs/ has {there} of the present code; run {command}")
    head = run if kept is None or ran.keys() >= set(planned) else kept
    record = {**{key: value for key, value in head.items() if key != "units"}, "units": list(found.values())}
    file = record_file(paper.slug, experiment.id)
    if read_json(file) != record:
        curves = read_curves(paper.slug, experiment.id) if kept else {}
        curves |= {unit.dir.name: r["curves"] for unit, r in _fresh(paper, experiment, COMMITTED_SCALE)}
        names = [unit.dir.name for unit in units_of(paper, experiment, COMMITTED_SCALE)]
        text = dump_lines({name: curves[name] for name in names if name in curves})
        write_atomic(curves_file(paper.slug, experiment.id), text)
        write_atomic(file, dump(record))
    return file


def miswired(paper: Paper, experiment: Claim | Measurement, scale: str) -> list[str]:
    """What is wired wrongly among the units in runs/, see benchmarks.run.wiring; such a run is not recorded."""
    return wiring.problems(experiment, [result for _, result in _fresh(paper, experiment, scale)])


def has_run(paper: Paper, experiment: Claim | Measurement) -> bool:
    """Whether runs/ has a unit of the present code at the scale that is committed."""
    return any(True for _ in _fresh(paper, experiment, COMMITTED_SCALE))


def _fresh(paper: Paper, experiment: Claim | Measurement, scale: str) -> list[tuple[Unit, dict[str, Any]]]:
    wanted = identity(experiment)
    found = [(unit, unit.fresh_result(wanted)) for unit in units_of(paper, experiment, scale)]
    return [(unit, result) for unit, result in found if result is not None]


def dump_lines(content: dict[str, Any]) -> str:
    """JSON with one line an item."""
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()) + "\n}\n"


def dump(record: Record) -> str:
    """JSON with one line a unit: short to read, short to diff."""
    head = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items() if key != "units"]
    units = ",\n".join(f"  {json.dumps(unit)}" for unit in record["units"])
    return "{\n" + ",\n".join([*head, f' "units": [\n{units}\n ]']) + "\n}\n"
