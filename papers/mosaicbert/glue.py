"""The average over GLUE's tasks: python -m papers.mosaicbert.glue runs/mosaicbert/glue prints it for finished runs."""

import csv
import sys
from pathlib import Path
from statistics import fmean

from common.errors import EncoreError


def averages(folder: Path) -> dict[str, float]:
    """Mean final `val/score` in percent over the seeds of every task, and `average` over the tasks there are.

    folder: holds the runs <task>_<seed>/metrics.csv. A score is already the mean of a task's measures: accuracy and F1
    for QQP and MRPC, matched and mismatched accuracy for MNLI.
    """
    scores: dict[str, list[float]] = {}
    for file in sorted(folder.glob("*_*/metrics.csv")):
        with file.open(newline="") as stream:
            values = [row["val/score"] for row in csv.DictReader(stream) if row.get("val/score")]
        if not values:
            raise EncoreError(f"{file}: has no val/score yet; let the run finish")
        scores.setdefault(file.parent.name.split("_")[0], []).append(100 * float(values[-1]))
    if not scores:
        raise EncoreError(f"{folder}: no runs <task>_<seed> with a metrics.csv in it")
    means = {name: fmean(values) for name, values in scores.items()}
    return means | {"average": fmean(means.values())}


if __name__ == "__main__":
    for name, value in averages(Path(sys.argv[1])).items():
        print(f"{name:8s} {value:6.2f}")
