import json
import shlex
import subprocess
import sys

import pytest

from benchmarks.paper import paths
from benchmarks.paper.catalog import load_one
from benchmarks.paper.facts import check, recorded
from benchmarks.paper.schema import Fact
from benchmarks.run.units import identity

LIST_KEYS = ["slug", "title", "year", "modality", "fidelity", "facts", "recipe", "claims", "missing"]


def put_record(tree, method=(9, 9.1, 9.2), **changes):
    """A committed result as if it had been run."""
    from benchmarks.paper.files import write_atomic
    from benchmarks.run.records import dump, dump_lines

    wanted = identity(load_one("toy").claims[0])
    origin = {"commit": "abc", "versions": {}, "machine": {"cpu": "x", "cores": 2, "threads": 1}, "started": "2026"}
    units = [
        {"arm": arm, "seed": seed, "metrics": {"score": value}, "seconds": 1.0, "provenance": origin}
        for arm, values in (("method", method), ("baseline", (5, 5, 5)))
        for seed, value in enumerate(values)
    ]
    curves = {f"{u['arm']}-{u['seed']}": {"fit: train/loss": [[0, 2.0], [9, 1.0]]} for u in units}
    write_atomic(tree.root / "benchmarks/results/toy/better.curves.json", dump_lines(curves))
    record = {"paper": "toy", "claim": "better", "scale": "cpu", **wanted, **changes, "units": units}
    write_atomic(tree.root / "benchmarks/results/toy/better.json", dump(record))


def test_list_json_has_exactly_the_promised_form(tree):
    put_record(tree)
    done = tree.encore("list", "--json")
    (paper,) = json.loads(done.stdout)
    assert list(paper) == LIST_KEYS
    assert paper["facts"] == {"match": 0, "total": 1}
    (claim,) = paper["claims"]
    assert list(claim) == ["id", "verdict", "gap", "interval", "n", "carried"]
    assert (claim["id"], claim["verdict"], claim["n"]) == ("better", "reproduced", 3)
    assert claim["gap"] == pytest.approx(4.1)
    assert claim["interval"][0] < 4.1 < claim["interval"][1]
    assert "a larger run" in paper["missing"]
    assert {"module.py", "tests/papers/toy/", "regress trajectory", "facts without a match: two"} <= set(
        paper["missing"]
    )


def test_a_claim_that_never_ran_or_ran_with_other_code_says_so(tree):
    (paper,) = json.loads(tree.encore("list", "--json").stdout)
    nothing = {"gap": None, "interval": None, "n": 0, "carried": None}
    assert paper["claims"] == [{"id": "better", "verdict": "missing", **nothing}]
    assert "result of claim better" in paper["missing"]
    put_record(tree, code="other")
    (paper,) = json.loads(tree.encore("list", "--json").stdout)
    assert paper["claims"][0]["verdict"] == "stale"
    assert "fresh result of claim better" in paper["missing"]


def test_facts_json_has_exactly_the_promised_form(tree):
    done = tree.encore("facts", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        {"paper": "toy", "id": "two", "quantity": "value", "reported": 2, "computed": 2, "verdict": "match"}
    ]
    assert json.loads(tree.encore("list", "--json").stdout)[0]["facts"] == {"match": 1, "total": 1}
    rows = {row["id"]: row for row in json.loads(tree.encore("show", "toy", "--json").stdout)["rows"]}
    assert (rows["row-fact"]["verdict"], rows["row-fact"]["ours"]) == ("verified", 2)
    assert [rows[f"row-{name}"]["verdict"] for name in ("claim", "measured", "recipe")] == [
        "missing",
        "not run",
        "recipe",
    ]
    tree.edit("return 2", "return 3", "papers/toy/model.py")
    assert recorded(load_one("toy"))[0].verdict == "not computed", "a record of other code must not count"


def fact(**fields):
    return Fact(id="f", build="math:fsum", quantity="value", reported=100, source="derived", **fields)


@pytest.mark.parametrize(
    ("value", "tolerance", "verdict"),
    [(100, 0, "match"), (101, 0, "mismatch"), (101, 0.01, "match"), (98, 0.01, "mismatch")],
)
def test_a_fact_matches_within_its_relative_tolerance(monkeypatch, value, tolerance, verdict):
    monkeypatch.setattr("benchmarks.paper.facts._computed", lambda fact: value)
    result = check(fact(rel_tol=tolerance))
    assert (result.verdict, result.computed) == (verdict, value)
    assert result.difference == pytest.approx((value - 100) / 100)


def test_a_build_that_raises_is_an_error_verdict(monkeypatch):
    def broken(fact):
        raise KeyError("depth")

    monkeypatch.setattr("benchmarks.paper.facts._computed", broken)
    result = check(fact())
    assert (result.verdict, result.computed) == ("error", None)
    assert "KeyError" in result.error


def frozen_net():
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2))
    net[1].weight.requires_grad_(False)
    net[2].weight = net[1].weight
    assert net[0].weight.is_meta
    return net


def test_parameters_are_counted_on_meta_with_parts_shared_and_frozen_ones():
    common = {"id": "f", "build": f"{__name__}:frozen_net", "reported": 1, "source": "derived"}
    assert check(Fact(**common, quantity="parameters")).computed == 8 + 4 + 2
    assert check(Fact(**common, quantity="trainable_parameters")).computed == 8 + 2
    assert check(Fact(**common, quantity="parameters", part="0")).computed == 8
    assert check(Fact(**common, quantity="parameters", part="0.bias")).computed == 2


@pytest.mark.parametrize("command", ["['list', '--json']", "['list']", "['show', 'toy']", "['--help']"])
def test_reading_commands_import_nothing_heavy(tree, command):
    put_record(tree)
    code = f"""
import sys
sys.argv = ['encore', *{command}]
from benchmarks.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {{'torch', 'lightning', 'numpy', 'scipy', 'matplotlib', 'transformers'}} & sys.modules.keys()
print('HEAVY', sorted(heavy), file=sys.stderr)
"""
    run = {"cwd": tree.root, "env": paths.child_environment(), "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run([sys.executable, "-c", code], **run)
    assert "HEAVY []" in done.stderr, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "toi"), "unknown paper: 'toi'. Did you mean toy? Choices: toy"),
        (("reproduce", "toy", "--scale", "cpuu"), "unknown scale: 'cpuu'. Did you mean cpu or gpu?"),
        (
            ("reproduce", "toy", "--claim", "beter"),
            "unknown claim of toy: 'beter'. Did you mean better?",
        ),
        (("reproduce", "toy", "--seeds", "one"), "--seeds 'one': give whole numbers"),
        (("train", "toy", "--scale", "gpu"), "toy has no config for scale gpu (papers/toy/configs/gpu.yaml)"),
        (("train", "toy", "--config", "papr"), "unknown config of toy: 'papr'. Did you mean paper.yaml?"),
        (("data", "fetch", "cifar"), "unknown data source: 'cifar'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tree, arguments, says, capsys, monkeypatch):
    from benchmarks.cli import main

    if arguments[0] == "data":
        pytest.importorskip("common.sources")
    monkeypatch.setattr(sys, "argv", ["encore", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_train_runs_the_paper_script_with_its_config_and_the_given_arguments(tree):
    tree.write("papers/toy/train.py", "import sys\n\nprint('TRAIN', *sys.argv[1:])\n")
    tree.write("papers/toy/configs/paper_b.yaml", "# another\n")
    done = tree.encore("train", "toy", "--scale", "paper", "--config", "paper.yaml", "--trainer.max_steps", "3")
    assert done.returncode == 0, done.stderr
    assert f"TRAIN fit --config {tree.root}/papers/toy/configs/paper.yaml --trainer.max_steps 3" in done.stdout
    several = tree.encore("train", "toy", "--scale", "paper")
    assert several.returncode == 2
    assert "choose with --config paper.yaml|paper_b.yaml" in several.stderr
    recipes = tree.encore("reproduce", "toy", "--scale", "paper")
    assert "python -m papers.toy.train fit --config papers/toy/configs/paper_b.yaml" in recipes.stdout


def test_everything_reads_a_tree_without_papers(tree):
    for file in (tree.root / "papers/toy").rglob("paper.yaml"):
        file.unlink()
    for command in (["list"], ["facts"], ["report"], ["readme", "--check"], ["reproduce", "all"]):
        assert tree.encore(*command).returncode == 0, command
    assert json.loads(tree.encore("list", "--json").stdout) == []


def test_facts_of_an_unfinished_paper_are_errors_not_a_crash(tree):
    tree.write("papers/toy/model.py", "raise RuntimeError('half written')\n")
    done = tree.encore("facts", "toy")
    assert done.returncode == 1
    assert "0 of 1 facts match" in done.stdout
    assert "RuntimeError: half written" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["reproduce"],
        ["reproduce", "PAPER=clip", "SCALE=smoke", "ARGS=--seeds 0,1 --measurements"],
        ["reproduce", "PAPER=all", "ENGINE=ray", "ARGS=--plan --budget 30m"],
        ["facts"],
        ["facts", "PAPER=clip"],
        ["report"],
        ["readme"],
    ],
)
def test_the_makefile_calls_commands_that_exist(arguments):
    """Parses the command line a target would run; nothing is run."""
    import typer

    from benchmarks.cli import app

    recipe = subprocess.run(
        ["make", "--always-make", "--dry-run", "--no-print-directory", *arguments],
        cwd=paths.REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (line,) = [line for line in recipe.splitlines() if line.startswith(".venv/bin/encore")]
    name, *options = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    group.commands[name].make_context(name, options)  # a usage error would raise
