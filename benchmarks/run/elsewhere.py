"""What `encore carry` runs inside a tree, the present one or that of another commit, whatever layout its harness has.

    python -P elsewhere.py identities '[["clip", "a-claim"], ...]'   prints [{identity, definition} | null, ...]
    python -P elsewhere.py unit FILE PAPER CLAIM ARM SEED SCALE      runs the unit; its metrics, not rounded, to FILE

Nothing of the harness is imported but what the tree has: PYTHONPATH and ENCORE_ROOT point there.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOMS = {"catalog": "paper", "units": "run", "unit": "run"}  # where modules live since benchmarks/ has rooms


def module(name: str) -> ModuleType:
    """A module of the tree's harness."""
    harness = Path(str(importlib.import_module("benchmarks").__file__)).parent
    room = f"{ROOMS[name]}." if (harness / ROOMS[name] / f"{name}.py").is_file() else ""
    return importlib.import_module(f"benchmarks.{room}{name}")


def only_from_the_path() -> None:
    """An editable install would find the present tree's modules for those that the tree does not have."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in str(finder)]


def described(paper: str, claim: str) -> dict[str, Any] | None:
    """{identity, definition} of a claim or measurement; None where the tree has none of that name, or cannot say."""
    try:
        experiment = module("catalog").load_one(paper).experiment(claim)
        identity = module("units").identity(experiment)
    except Exception as error:  # the errors of that tree's classes are not ours
        print(f"{paper} {claim}: {error}", file=sys.stderr)
        return None
    return {"identity": identity, "definition": definition(experiment)}


def definition(experiment: Any) -> dict[str, Any]:
    """The fields that say what its units compute and how they are read."""
    return {**experiment.model_dump(mode="json"), "arms": sorted(experiment.all_arms)}


def run(file: Path, arguments: list[str]) -> int:
    """Run a unit by the tree's own runner; what its entry returned also goes to `file`, to the last bit."""
    unit = module("unit")
    check = unit.check_metrics

    def check_and_keep(metrics: Any, needed: set[str]) -> dict[str, float]:
        checked = check(metrics, needed)
        file.write_text(json.dumps({str(name): float(value) for name, value in metrics.items()}))
        return checked

    unit.check_metrics = check_and_keep  # type: ignore[attr-defined]
    sys.argv = ["unit", *arguments]
    return unit.main()


if __name__ == "__main__":
    only_from_the_path()
    if sys.argv[1] == "identities":
        print(json.dumps([described(*each) for each in json.loads(sys.argv[2])]))
    else:
        sys.exit(run(Path(sys.argv[2]), sys.argv[3:]))
