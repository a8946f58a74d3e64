import json

import pytest

from benchmarks.paper import catalog, paths
from benchmarks.run.curves import read_csv, read_curves
from benchmarks.run.regress import FLOOR, check, compare, largest_spread, main, update

TRAIN = """\
import csv
import os
import sys
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--trainer.default_root_dir") + 1])
jitter = 1e-4 * int(os.environ["OMP_NUM_THREADS"])
with (folder / "metrics.csv").open("w") as file:
    writer = csv.writer(file)
    writer.writerow(["epoch", "step", "train/loss"])
    writer.writerows([0, step, START / (step + 1) * (1 + jitter)] for step in range(4))
"""


@pytest.fixture
def toy(tree):
    tree.write("papers/toy/train.py", f"START = 3.0\n{TRAIN}")
    tree.write("papers/toy/configs/smoke.yaml", "# smoke\n")
    assert update(catalog.load_one("toy")) == []
    return tree


def test_update_measures_the_tolerance_from_the_spread_between_threads(toy):
    kept = json.loads(paths.trajectory("toy").read_text())
    assert kept["losses"] == {"0": 3.0003, "1": 1.50015, "2": 1.0001, "3": 0.750075}
    assert kept["spread"] == pytest.approx(1e-4, rel=0.02)
    assert kept["tolerance"] == pytest.approx(4e-4, rel=0.02)
    toy.edit("1e-4 *", "1e-6 *", "papers/toy/train.py")
    update(catalog.load_one("toy"))
    assert json.loads(paths.trajectory("toy").read_text())["tolerance"] == FLOOR
    runs = [{0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.002}]
    assert largest_spread(runs) == pytest.approx(0.002 / 2.002)


def test_the_same_trajectory_passes_and_another_is_shown_step_by_step(toy):
    paper = catalog.load_one("toy")
    assert check(paper) == []
    toy.edit("START = 3.0", "START = 3.003", "papers/toy/train.py")
    problems = check(paper)
    assert problems[0] == "toy: step 0: loss 3.0033, kept 3.0003, relative difference 9.99e-04 > 4.00e-04"
    assert len(problems) == 4
    toy.edit("range(4)", "range(3)", "papers/toy/train.py")
    assert check(paper) == ["toy: steps [0, 1, 2] were logged, [0, 1, 2, 3] are kept"]


def test_a_changed_config_or_a_failing_run_is_said_plainly(toy, capsys):
    toy.edit("START = 3.0", "raise SystemExit('out of memory')", "papers/toy/train.py")
    assert main(["--paper", "toy"]) == 1
    assert "error: toy: the smoke run failed: out of memory" in capsys.readouterr().err
    toy.write("papers/toy/configs/smoke.yaml", "# other\n")
    assert "configs/smoke.yaml changed" in check(catalog.load_one("toy"))[0]
    assert main(["--paper", "unknown"]) == 2


def test_compare_shows_five_steps_and_counts_the_rest():
    lines = compare(dict.fromkeys(range(9), 1.0), dict.fromkeys(range(9), 2.0), 1e-4)
    assert len(lines) == 6
    assert lines[-1] == "and 4 more steps"


def test_curves_are_thinned_keep_their_end_and_join_continued_logs(tmp_path):
    first, second = (tmp_path / "fit" / f"version_{i}" / "metrics.csv" for i in range(2))
    for file, steps, offset in ((first, range(100), 0), (second, range(50, 200), 0.5)):
        file.parent.mkdir(parents=True)
        rows = "".join(f"{step},{step + offset},\n" for step in steps)
        file.write_text(f"step,train/loss,val/acc\n{rows}broken")
    curve = read_curves(tmp_path, points=20)["fit: train/loss"]
    assert len(curve) == 20
    assert curve[-1] == [199, 199.5]
    assert all(value == step + (0.5 if step >= 50 else 0) for step, value in curve)
    assert read_csv(first)["train/loss"][7] == 7.0
    assert "fit: val/acc" not in read_curves(tmp_path)
