"""Learning curves of a unit, read from the metrics.csv files its training stages logged."""

import csv
import math
from pathlib import Path

Curve = list[list[float]]


def read_curves(folder: Path, points: int = 60) -> dict[str, Curve]:
    """{"stage: column": [[step, value], ...]} of every metrics.csv below `folder`, thinned to `points` and rounded."""
    return {name: _thin(sorted(values.items()), points) for name, values in sorted(read_series(folder).items())}


def read_series(folder: Path) -> dict[str, dict[int, float]]:
    """{"stage: column": {step: value}} of every metrics.csv below `folder`, as logged.

    The stage is the first folder below; a stage logged in several files (it was continued) gives one curve, in which
    the file written last wins a step they share.
    """
    series: dict[str, dict[int, float]] = {}
    for file in sorted(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime):
        inside = file.relative_to(folder).parts[:-1]
        for column, values in read_csv(file).items():
            series.setdefault(f"{inside[0]}: {column}" if inside else column, {}).update(values)
    return series


def read_csv(file: Path) -> dict[str, dict[int, float]]:
    """{column: {step: value}} of the numeric columns of a Lightning metrics.csv; broken lines are left out."""
    columns: dict[str, dict[int, float]] = {}
    with file.open(newline="", encoding="utf-8", errors="replace") as stream:
        for row in csv.DictReader(stream):
            step = _number(row.get("step"))
            for name, text in row.items():
                value = _number(text)
                if name not in (None, "step", "epoch") and step is not None and value is not None:
                    columns.setdefault(name, {})[int(step)] = value
    return columns


def _number(text: object) -> float | None:
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _thin(curve: list[tuple[int, float]], points: int) -> Curve:
    stride = max(1, math.ceil(len(curve) / points))
    kept = curve[::-stride][::-1]  # the last point always stays
    return [[step, significant(value, 4)] for step, value in kept]


def significant(value: float, digits: int = 6) -> float:
    """The value rounded to that many significant digits."""
    return float(f"{value:.{digits}g}")
