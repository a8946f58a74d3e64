"""Results of a whole claim: the units of one code, configuration and data, merged into one JSON.

At scale `cpu` the record is benchmarks/results/<paper>/<claim>.json and belongs into a commit, at other scales it stays
in runs/. The learning curves of its units lie beside it in <claim>.curves.json, so that a verdict is quick to read.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.paper import paths
from benchmarks.paper.files import read_json, write_atomic
from benchmarks.paper.schema import Claim, Measurement, Paper
from benchmarks.run import wiring
from benchmarks.run.curves import Curve
from benchmarks.run.units import identity, is_curves, is_result, same_identity, units_of

COMMITTED_SCALE = "cpu"
Record = dict[str, Any]


def record_file(paper: str, claim: str, scale: str) -> Path:
    if scale == COMMITTED_SCALE:
        return paths.results(paper) / f"{claim}.json"
    return paths.runs() / paper / f"{claim}.{scale}.json"


def curves_file(paper: str, claim: str, scale: str) -> Path:
    return record_file(paper, claim, scale).with_suffix(".curves.json")


def read_curves(paper: str, claim: str, scale: str) -> dict[str, dict[str, Curve]]:
    """{"arm-seed": {curve: [[step, value], ...]}} of a kept record; what is damaged is left out."""
    kept = read_json(curves_file(paper, claim, scale)) or {}
    return {name: unit for name, unit in kept.items() if is_curves(unit)}


def read_record(paper: str, claim: str, scale: str) -> Record | None:
    """The kept record, whatever code it came from; None when there is none, or a damaged one."""
    return valid_record(read_json(record_file(paper, claim, scale)))


def valid_record(content: Any) -> Record | None:
    """The content when it has the form of a record."""
    whole = isinstance(content, dict) and {"code", "config", "data"} <= content.keys() and _holds_units(content)
    return content if whole else None


def _holds_units(record: Record) -> bool:
    units = record.get("units")
    return (
        isinstance(units, list)
        and bool(units)
        and all(
            is_result(unit) and isinstance(unit.get("arm"), str) and isinstance(unit.get("seed"), int) for unit in units
        )
    )


def gather(paper: Paper, experiment: Claim | Measurement, scale: str) -> Record | None:
    """Finished units of the present code: those in runs/, else those of a kept record; None when there are none."""
    wanted = identity(experiment)
    kept = read_record(paper.slug, experiment.id, scale)
    known = {(u["arm"], u["seed"]): u for u in kept["units"]} if kept and same_identity(kept, wanted) else {}
    for unit in units_of(paper, experiment, scale):
        result = unit.fresh_result(wanted)
        if result is not None:
            origin = {key: value for key, value in result["provenance"].items() if key not in wanted}
            kept_part = {key: value for key, value in result.items() if key not in ("curves", "wiring")}
            if isinstance(result.get("wiring"), dict):
                kept_part["wiring"] = wiring.compact(result["wiring"])
            known[unit.arm, unit.seed] = {**kept_part, "arm": unit.arm, "seed": unit.seed, "provenance": origin}
    planned = [(unit.arm, unit.seed) for unit in units_of(paper, experiment, scale)]
    units = [known[key] for key in planned if key in known]
    head = {"paper": paper.slug, "claim": experiment.id, "scale": scale}
    return {**head, **wanted, "units": units} if units else None


def keep_if_complete(paper: Paper, experiment: Claim | Measurement, scale: str) -> Path | None:
    """Write the record when every planned unit is there; the file, or None when some are missing."""
    record = gather(paper, experiment, scale)
    if record is None or len(record["units"]) < len(units_of(paper, experiment, scale)):
        return None
    file = record_file(paper.slug, experiment.id, scale)
    if read_json(file) != record:
        write_atomic(curves_file(paper.slug, experiment.id, scale), dump_lines(_curves(paper, experiment, scale)))
        write_atomic(file, dump(record))
    return file


def _curves(paper: Paper, experiment: Claim | Measurement, scale: str) -> dict[str, dict[str, Curve]]:
    curves = read_curves(paper.slug, experiment.id, scale)
    wanted = identity(experiment)
    for unit in units_of(paper, experiment, scale):
        result = unit.fresh_result(wanted)
        if result is not None:
            curves[unit.dir.name] = result["curves"]
    planned = [unit.dir.name for unit in units_of(paper, experiment, scale)]
    return {name: curves[name] for name in planned if name in curves}


def dump_lines(content: dict[str, Any]) -> str:
    """JSON with one line an item."""
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()) + "\n}\n"


def dump(record: Record) -> str:
    """JSON with one line a unit: short to read, short to diff."""
    head = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items() if key != "units"]
    units = ",\n".join(f"  {json.dumps(unit)}" for unit in record["units"])
    return "{\n" + ",\n".join([*head, f' "units": [\n{units}\n ]']) + "\n}\n"
