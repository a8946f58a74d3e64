"""What is true of every paper of the catalogue: its configs, its recipe, smoke training, claims, export, README.

A paper's own tests hold what is its own. Where a test needs tiny files or sizes it takes them from the paper's
fixtures.py:

    FIXTURES: dict[str, Callable[[Path], dict[str, Any]]]
        {pattern of config names: writes tiny files in the real on-disk format below the path and returns what of the
        config must change to read them, dotted keys: paths, tiny sizes}; the first pattern that fits counts
    tiny() -> (spec, batch)
        a module at tiny size as a config describes it, {class_path, init_args}, and a batch for its exported encoder
    META: {pattern: {dotted key: value}}, optional
        what stands in for arguments that read files, where a config's model is built on the meta device
    PUBLIC_CLASS = False, optional
        where config.json names a class of the public library that the weights are not of
    SMOKE_STEPS, optional
        within how many steps of the smoke run the loss falls, where that is not all of them
    TESTED_APART: {claim: why}, optional
        claims whose smoke scale is too long for here, and which the paper's own tests run in a smaller form
"""

import importlib
import inspect
import math
import re
from fnmatch import fnmatch
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.paper import catalog, paths, recipe
from benchmarks.run import wiring
from benchmarks.tools.export import STARTS, encoder_of, export, exporting
from common.interop.checkpoint import load_checkpoint
from common.interop.encoder import Encoder
from common.interop.weights import load_config
from common.sources import available
from common.training.run import Run
from tests import tiny

PAPERS = catalog.load_all()
CONFIGS = [(slug, file) for slug in PAPERS for file in sorted((paths.room(slug) / "configs").glob("*.yaml"))]
PUBLISHED = [(slug, file) for slug, file in CONFIGS if file.name.startswith("paper")]
NAMES = [f"{slug}-{file.stem}" for slug, file in CONFIGS]
PUBLISHED_NAMES = [f"{slug}-{file.stem}" for slug, file in PUBLISHED]
every_paper = pytest.mark.parametrize("slug", list(PAPERS))
every_config = pytest.mark.parametrize(("slug", "file"), CONFIGS, ids=NAMES)
every_recipe = pytest.mark.parametrize(("slug", "file"), PUBLISHED, ids=PUBLISHED_NAMES)


def fixtures(slug: str, name: str) -> Any:
    """papers/<slug>/fixtures.py's `name`; the test is skipped where the paper has none."""
    found = find_spec(f"papers.{slug}.fixtures") and importlib.import_module(f"papers.{slug}.fixtures")
    if not found:
        pytest.skip(f"papers/{slug}: no fixtures.py yet")
    return getattr(found, name, None) or pytest.skip(f"papers/{slug}/fixtures.py: no {name} yet")


def optional(slug: str, name: str, default: Any) -> Any:
    return getattr(importlib.import_module(f"papers.{slug}.fixtures"), name, default) if _has(slug) else default


def _has(slug: str) -> bool:
    return find_spec(f"papers.{slug}.fixtures") is not None


def fitting(table: dict[str, Any], file: Path) -> Any:
    """The value of the first pattern that fits the name of a config."""
    return next((value for pattern, value in table.items() if fnmatch(file.name, pattern)), None)


def changed(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *steps, last = key.split(".")
    for step in steps:
        config = config[step]
    config[last] = value


# ------------------------------------------------------------------------------------------------------------ configs


@every_config
def test_a_config_opens_with_what_it_reproduces_and_a_command_that_parses(slug, file):
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# \w", first), "the first line says what this is"
    assert not first.startswith("# python")
    if fnmatch(file.name, "base*.yaml"):
        return  # only ever one of the two configs of a command
    verb, *options = recipe.started(file)
    assert verb in ("fit", "validate", "test")
    assert str(file) in options
    assert set(options[::2]) == {"--config"}
    parsed = recipe.merged(file)  # refuses unknown keys, wrong types and missing arguments
    for part in ("model", "data"):
        assert parsed[part]["class_path"].startswith(("papers.", "common."))
    assert parsed["trainer"]["default_root_dir"], "a run writes to a folder of its own"


@every_recipe
def test_a_published_config_builds_its_model_on_the_meta_device(slug, file):
    fixtures(slug, "FIXTURES")
    spec = {"model": recipe.merged(file)["model"]}
    for name in STARTS:
        if name in spec["model"]["init_args"]:
            spec["model"]["init_args"][name] = None
    for key, value in (fitting(optional(slug, "META", {}), file) or {}).items():
        changed(spec, key, value)
    with torch.device("meta"):
        module = tiny.built(spec["model"])
    sizes = [parameter.numel() for parameter in module.parameters() if parameter.is_meta]
    assert len(sizes) == len(list(module.parameters()))
    assert sum(sizes) > 0


ONE_CPU = {
    "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto",
    "trainer.precision": "bf16-mixed", "trainer.max_steps": 1, "trainer.log_every_n_steps": 1,
    "trainer.accumulate_grad_batches": 1, "trainer.limit_val_batches": 1, "trainer.limit_test_batches": 1,
    "checkpoint_every": 1,
}  # fmt: skip


@every_recipe
def test_a_published_config_takes_a_step_at_tiny_size_on_files_in_the_real_format(slug, file, tmp_path):
    write = fitting(fixtures(slug, "FIXTURES"), file)
    assert write is not None, f"papers/{slug}/fixtures.py: FIXTURES has no pattern for {file.name}"
    config = recipe.merged(file)
    overrides = dict(ONE_CPU)
    if "num_workers" in config["data"]["init_args"]:
        overrides["data.init_args.num_workers"] = 0
    cli = tiny.train(file, overrides | write(tmp_path), tmp_path / "run")
    if cli.subcommand != "fit":
        assert cli.trainer.callback_metrics
        return
    assert cli.trainer.global_step == cli.trainer.max_steps
    assert all(map(math.isfinite, tiny.logged(tmp_path / "run")))
    assert tiny.logged(tmp_path / "run")
    assert (tmp_path / "run" / "last.ckpt").exists()


# ------------------------------------------------------------------------------------------------------------- recipe


@every_paper
def test_every_published_constant_is_what_the_configs_say(slug):
    wrong = [found for found in recipe.compute(PAPERS[slug], keep=False) if found.verdict != "match"]
    assert not wrong, "\n".join(f"{row.where}: reported {row.reported}, {row.error or row.computed}" for row in wrong)


# -------------------------------------------------------------------------------------------------------------- smoke


def smoke(slug: str) -> Path:
    return paths.room(slug) / "configs" / "smoke.yaml"


def stopped_and_resumed(config: Path, options: dict[str, Any], folder: Path, at: int) -> Any:
    """The CLI of a run that was killed one step after its checkpoint `at` and started again."""
    kill = {"class_path": "tests.tiny.Kill", "init_args": {"step": at + 1}}
    with pytest.raises(tiny.Killed):
        tiny.train(config, options | {"trainer.callbacks+": kill}, folder)
    torch.manual_seed(12345)  # a process that starts again has another random state
    return tiny.train(config, options | {"ckpt_path": "last"}, folder)


def assert_same(whole: Any, again: Any, folder: Path, other: Path) -> None:
    assert tiny.logged(folder) == tiny.logged(other), "losses differ after resuming"
    tiny.same_state(again.model, whole.model)


@every_paper
def test_the_smoke_run_lowers_the_loss_and_goes_on_exactly_after_a_kill(slug, tmp_path):
    """As shipped, all steps; a validation is due at the step the checkpoint is written at."""
    settings = recipe.merged(smoke(slug))["trainer"]
    options = {"trainer.log_every_n_steps": 1}
    at = 10 if settings["max_steps"] < 0 else settings["max_steps"] // 2
    options |= {"checkpoint_every": at, "trainer.val_check_interval": at, "trainer.check_val_every_n_epoch": None}
    whole = tiny.train(smoke(slug), options, tmp_path / "whole")
    losses = tiny.logged(tmp_path / "whole")
    assert len(losses) == whole.trainer.global_step
    counted = losses[: optional(slug, "SMOKE_STEPS", len(losses))]
    quarter = max(3, len(counted) // 4)
    first, last = sum(counted[:quarter]) / quarter, sum(counted[-quarter:]) / quarter
    assert last < 0.96 * first, f"the loss goes from {first:.4g} to {last:.4g}"
    again = stopped_and_resumed(smoke(slug), options, tmp_path / "killed", at)
    assert_same(whole, again, tmp_path / "whole", tmp_path / "killed")


@every_paper
def test_a_killed_run_goes_on_exactly_with_workers_and_accumulated_gradients(slug, tmp_path):
    config = recipe.merged(smoke(slug))
    options = {
        "trainer.log_every_n_steps": 1, "trainer.max_steps": 6, "trainer.accumulate_grad_batches": 2,
        "checkpoint_every": 3, "trainer.val_check_interval": 6, "trainer.check_val_every_n_epoch": None,
        "trainer.limit_val_batches": 1,
    }  # fmt: skip
    if "num_workers" in config["data"]["init_args"]:
        options["data.init_args.num_workers"] = 2
    whole = tiny.train(smoke(slug), options, tmp_path / "whole")
    again = stopped_and_resumed(smoke(slug), options, tmp_path / "killed", 3)
    assert whole.trainer.global_step == 6
    assert_same(whole, again, tmp_path / "whole", tmp_path / "killed")


# ------------------------------------------------------------------------------------------------------------- claims

EXPERIMENTS = [(slug, each) for slug, paper in PAPERS.items() for each in paper.experiments]


@pytest.mark.parametrize(("slug", "experiment"), EXPERIMENTS, ids=[f"{slug}-{each.id}" for slug, each in EXPERIMENTS])
def test_every_arm_of_a_claim_gives_its_metrics_at_smoke_scale_and_is_wired_as_paper_yaml_says(
    slug, experiment, tmp_path
):
    if experiment.id in optional(slug, "TESTED_APART", {}):
        pytest.skip(f"tests/papers/{slug}: {optional(slug, 'TESTED_APART', {})[experiment.id]}")
    absent = [name for name in experiment.sources if name != "generated" and not available(name)]
    if absent:
        pytest.skip(f"needs the data source {absent[0]!r}")
    module, _, name = experiment.entry.partition(":")
    entry = getattr(importlib.import_module(module), name)
    units = []
    for seed, arm in product(experiment.seeds[:2], experiment.all_arms):
        unit = Run(slug, experiment.id, arm, seed, "smoke", tmp_path / f"{arm}-{seed}")
        metrics = entry(unit)
        assert experiment.metrics_of(arm) <= metrics.keys(), arm
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in metrics.values()), arm
        units.append({"arm": arm, "seed": seed, "wiring": unit.record.as_json()})
    assert wiring.problems(experiment, units) == []


CLAIMS = [(slug, claim) for slug, paper in PAPERS.items() for claim in paper.claims]


@pytest.mark.parametrize(("slug", "claim"), CLAIMS, ids=[f"{slug}-{claim.id}" for slug, claim in CLAIMS])
def test_a_claim_says_in_which_settings_its_arms_differ(slug, claim):
    if len(claim.all_arms) > 1 and not isinstance(claim.arms, dict):
        pytest.xfail(f"papers/{slug} {claim.id}: arms is a list, so that nothing holds its settings together")


# ------------------------------------------------------------------------------------------------------------- export


@pytest.fixture
def exported(request, tmp_path):
    """(the encoder in a training checkpoint, what `encore export` made of it, the directory, a batch)"""
    slug = request.param
    torch.manual_seed(5)
    spec, batch = fixtures(slug, "tiny")()
    tiny.checkpoint(tmp_path / "last.ckpt", spec)
    directory = export(slug, tmp_path / "last.ckpt", tmp_path / "out")
    return (
        encoder_of(slug, load_checkpoint(tmp_path / "last.ckpt")),
        Encoder.from_directory(directory),
        directory,
        batch,
    )


every_export = pytest.mark.parametrize("exported", exporting(), indirect=True)


@every_export
def test_an_exported_encoder_encodes_as_the_one_that_was_trained(exported):
    trained, read, directory, batch = exported
    assert not read.training
    tiny.same_state(trained, read)
    ours, theirs = trained.encode(batch), read.encode(batch)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert (ours.tokens.dim(), ours.pooled.dim(), len(ours.tokens)) == (3, 2, len(ours.pooled))
    assert ours.pooled.std(dim=0).sum() > 0, "every input gives the same vector"
    ours.pooled.square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trained.parameters())
    assert "(B, " in inspect.getdoc(type(read))
    assert (directory / "README.md").read_text().startswith("---\n")


@every_export
def test_weights_survive_the_way_through_the_public_class_and_back(exported, tmp_path, request):
    import transformers

    _, read, directory, batch = exported
    slug = load_config(directory)["encore"]["paper"]
    names = load_config(directory).get("architectures") or [""]
    public = getattr(transformers, names[0], None) if optional(slug, "PUBLIC_CLASS", True) else None
    if public is None:
        pytest.skip(f"the public library has no class {names[0] or 'for this model'!r}")
    theirs, report = public.from_pretrained(directory, output_loading_info=True)
    assert not report["unexpected_keys"]
    theirs.save_pretrained(tmp_path / "theirs")
    again = Encoder.from_directory(tmp_path / "theirs", paper=slug)
    tiny.same_state(again, read)
    assert torch.equal(again.encode(batch).pooled, read.encode(batch).pooled)


# --------------------------------------------------------------------------------------------------------------- room

SECTIONS = (
    r"(The )?[Ii]dea", r"From the paper to the code", r"Run( it)?", r"(Logged metrics|What is logged)",
    r"Implementation notes", r"Results",
)  # fmt: skip


def section(text: str, title: str) -> str:
    """The body of a section of a README."""
    match = re.search(rf"^## {title}\n(?P<body>.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"there is no section {title}"
    return match["body"]


@every_paper
def test_a_readme_maps_the_paper_to_code_that_is_there_and_runs_every_scale(slug):
    room = paths.room(slug)
    text = (room / "README.md").read_text(encoding="utf-8")
    bodies = [section(text, title) for title in SECTIONS]
    assert all(body.strip() for body in bodies)
    rows = [line for line in bodies[1].splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 5
    for row in rows:
        places = re.findall(r"`([\w/*]+\.(?:py|yaml)|(?:papers|common)/[\w/]+)", row)
        assert places, f"names no file: {row}"
        for name in places:
            assert [*room.glob(name), *paths.root().glob(name)], f"there is no {name}: {row}"
    run = bodies[2]
    assert f"papers/{slug}/configs/smoke.yaml" in run
    assert f"encore reproduce {slug}" in run
    assert re.search(rf"papers/{slug}/configs/paper\w*\.yaml", run)
    for name in set(re.findall(rf"papers/{slug}/configs/(\w+\.yaml)", text)):
        assert (room / "configs" / name).is_file(), f"there is no configs/{name}"
    assert "<!-- encore:begin results -->" in bodies[5]


@every_paper
def test_parameter_counts_stand_in_facts_alone(slug):
    counted = [fact for fact in PAPERS[slug].facts if fact.quantity.endswith("parameters") and fact.reported > 1e5]
    figures = {str(int(fact.reported)): fact.id for fact in counted}
    for file in [*paths.room(slug).glob("*.py"), *(paths.root() / "tests" / "papers" / slug).glob("*.py")]:
        for written in re.findall(r"\d[\d_,]{5,}\d", file.read_text(encoding="utf-8")):
            found = figures.get(written.replace("_", "").replace(",", ""))
            assert found is None, f"{file.name}: {written} is the fact {found}; name it"
