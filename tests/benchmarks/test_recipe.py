"""Recipe rows: constants of the configs as they are after merging and defaults, against what the paper states."""

import json

import pytest

from benchmarks.paper import paths, recipe
from benchmarks.paper.catalog import load_one
from benchmarks.paper.schema import Constant, Paper
from common.errors import EncoreError

CLIP = paths.REPOSITORY / "papers" / "clip" / "configs" / "base.yaml"


def row(**fields):
    return Constant(**({"reported": 1, "source": "paper-text"} | fields))


def checked(paper="clip", **fields):
    return recipe.check(load_one(paper), row(**fields), {})


def test_values_come_from_the_file_from_defaults_and_from_products():
    config = "paper_vit_b32.yaml"
    assert checked(config=config, key="model.init_args.optim.betas.1", reported=0.98).verdict == "match"
    assert checked(config=config, key="model.init_args.optim.betas", reported=[0.9, 0.98]).verdict == "match"
    assert checked(config=config, key="data.init_args.context_length", reported=77).verdict == "match"  # a default
    assert checked(config=config, key="trainer.gradient_clip_val", reported=None).verdict == "match"
    assert checked(config=config, key="model.init_args.gradient_checkpointing", reported=True).verdict == "match"
    assert checked(config=config, key="model.init_args.gradient_checkpointing", reported=1).verdict == "mismatch"
    batch = ["data.init_args.batch_size", "trainer.accumulate_grad_batches"]
    assert checked(config=config, product=batch, reported=32768).verdict == "mismatch"
    assert checked(config=config, product=[*batch, "devices"], reported=32768).verdict == "match"
    assert checked(config=config, key="model.init_args.optim.lr", reported=5.1e-4).verdict == "mismatch"
    assert checked(config=config, key="model.init_args.optim.lr", reported=5.1e-4, rel_tol=0.03).verdict == "match"


def test_a_row_about_several_configs_names_the_one_that_differs():
    found = checked(configs=["paper_vit_*.yaml"], key="model.init_args.optim.lr", reported=5.0e-4)
    assert (found.verdict, found.computed["paper_vit_l14.yaml"]) == ("mismatch", 4e-4)
    assert found.computed["paper_vit_b16.yaml"] == 5e-4
    assert checked(configs=["paper_vit_*.yaml"], key="model.init_args.optim.eps", reported=1e-6).computed == 1e-6


def test_a_constant_in_code_is_what_a_callable_returns():
    prompts = {"build": "papers.clip.facts:prompts"}
    assert checked(**prompts, reported=80).error.startswith("AttributeError: module 'papers.clip.facts'")


def test_what_cannot_be_read_is_an_error_that_says_why():
    found = checked(config="paper_vit_b32.yaml", key="model.init_args.warmup", reported=1)
    assert found.verdict == "error"
    assert "there is no 'warmup'; choose from model, optim" in found.error


@pytest.fixture
def room(tmp_path, monkeypatch):
    """CLIP's config in a copy, on a base of its own."""
    folder = tmp_path / "papers" / "clip" / "configs"
    folder.mkdir(parents=True)
    monkeypatch.setenv("ENCORE_ROOT", str(tmp_path))
    (folder / "base.yaml").write_text(CLIP.read_text())
    options = "--config papers/clip/configs/base.yaml --config papers/clip/configs/paper_x.yaml"
    command = f"# python -m papers.clip.train fit {options} --data.init_args.shards 'a/{{0..9}}.tar'; then rest\n"
    model = "model: {init_args: {model: {class_path: papers.clip.model.clip_vit_b32}, optim: {lr: 1.0e-3}}}\n"
    (folder / "paper_x.yaml").write_text(f"# X\n{command}{model}")
    return folder


def test_a_config_is_merged_with_the_base_its_command_names(room):
    found = recipe.merged(room / "paper_x.yaml")
    assert found["model"]["init_args"]["optim"]["lr"] == 1e-3
    assert found["model"]["init_args"]["optim"]["eps"] == 1e-6
    assert found["data"]["init_args"]["shards"] == "a/{0..9}.tar"
    expected = ["fit", "--config", str(room / "base.yaml"), "--config", str(room / "paper_x.yaml")]
    assert recipe.started(room / "paper_x.yaml") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("# python", "# run"), "its first lines must hold its command"),
        (("lr: 1.0e-3", "rate: 1.0e-3"), "rate"),
        (("lr: 1.0e-3", "lr: fast"), "fast"),
    ],
)
def test_a_config_that_does_not_parse_is_one_line(room, change, message):
    file = room / "paper_x.yaml"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(EncoreError, match=message) as caught:
        recipe.merged(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": "a.yaml"}, "one of key, product and build"),
        ({"key": "trainer.max_steps"}, "config or configs"),
        ({"build": "papers.a.b:c", "config": "a.yaml"}, "config or configs"),
        ({"config": "a.yaml", "key": "a", "reported": "5e-4"}, "5.0e-4"),
        ({"config": "../a.yaml", "key": "a"}, "pattern"),
        ({"config": "a.yaml", "key": "a", "value": 3}, "Extra inputs"),
    ],
)
def test_a_row_says_where_its_value_stands_and_is_otherwise_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        row(**fields)


ROWS = """\
recipe:
  - {config: paper.yaml, key: trainer.max_steps, reported: 5, source: paper-text}
  - {build: "papers.toy.model:two", reported: 2, source: official-code}
claims:
"""


def test_rows_are_counted_beside_facts_and_kept_until_code_or_config_changes(tree):
    tree.edit("claims:\n", ROWS)
    done = tree.encore("facts", "toy")
    assert done.returncode == 1
    assert "1 of 1 facts match\n1 of 2 recipe rows match" in done.stdout
    assert "error: toy paper.yaml trainer.max_steps: error" in done.stderr
    listed = json.loads(tree.encore("list", "--json").stdout)[0]
    assert (listed["facts"], listed["recipe"]) == ({"match": 1, "total": 1}, {"match": 1, "total": 2})
    assert "recipe rows without a match: paper.yaml trainer.max_steps" in listed["missing"]
    tree.edit("return 2", "return 3", "papers/toy/model.py")
    assert [found.verdict for found in recipe.recorded(load_one("toy"))] == ["not computed"] * 2
    tree.edit("paper.yaml, key", "other.yaml, key")
    with pytest.raises(EncoreError, match=r"recipe\[0\]\.config: there is no file 'other\.yaml'"):
        load_one("toy")


def test_a_kept_value_counts_only_for_the_config_it_was_read_from(room, tmp_path):
    kept = row(config="paper_x.yaml", key="model.init_args.optim.eps", reported=1e-6)
    paper = Paper.model_construct(slug="clip", recipe=[kept], facts=[])
    assert [found.verdict for found in recipe.compute(paper)] == ["match"]
    assert recipe.recorded(paper)[0].verdict == "match"
    base = room / "base.yaml"
    base.write_text(base.read_text().replace("eps: 1.0e-6", "eps: 1.0e-7"))
    assert recipe.recorded(paper)[0].verdict == "not computed"
    assert recipe.compute(paper)[0].computed == 1e-7
    assert recipe.recorded(paper)[0].verdict == "mismatch"
