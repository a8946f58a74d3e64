"""Tuning a scorer and judging with it: modules, data in its real form, recipes, and the claims at smoke scale."""

import csv
import json
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper import recipe
from common.errors import EncoreError
from common.formats.tokenizers import load_byte_bpe
from common.training.optim import factor
from common.training.recipe import Optim
from common.training.run import Run
from papers.bart.data import pad, wrap
from papers.bart.model import bart_tiny
from papers.bartscore import claims, facts, fixtures, generated, interop
from papers.bartscore.data import ScorerData, read_pairs
from papers.bartscore.judged import Judged, read
from papers.bartscore.module import Tuning
from papers.bartscore.references import Meaning, delexicalised, folds_of, group, meaning_of, one_fact_apart, rewritings
from papers.bartscore.scorer import TextScorer, multi_reference
from papers.bartscore.train import main
from tests import tiny
from tests.helpers import requires_mirror

CONFIGS = Path(__file__).parents[3] / "papers" / "bartscore" / "configs"
DATA = {"vocab_size": 300, "max_length": 64, "batch_size": 4}


# ------------------------------------------------------------------------------------------------------------- tuning


def test_the_loss_is_minus_the_mean_score_so_that_long_pairs_weigh_no_more_than_short_ones():
    data = ScorerData(**DATA)
    data.setup()
    module = Tuning(bart_tiny(300), Optim(1e-3)).eval()
    texts = ["Alba is cheap.", "Fino serves thai food and is near the park and has moderate prices."]
    batch = tuple(pad(wrap(data.tokenizer, some, 64)) for some in (texts, texts[::-1]))
    scores = TextScorer(module.scorer, data.tokenizer, 64)(texts, texts[::-1])
    assert module.loss(batch).item() == pytest.approx(-scores.mean(), abs=1e-5)
    over_tokens = module.scorer.bart.loss(*batch).item()
    assert abs(over_tokens + scores.mean()) > 1e-4


def test_learning_rate_starts_at_its_peak_and_falls_in_a_line_without_weight_decay():
    optim = Optim(**recipe.merged(CONFIGS / "paper_para.yaml")["model"]["init_args"]["optim"])
    optimizers = Tuning(bart_tiny(300), optim).configure_optimizers()
    optimizer, scheduler = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0}
    assert optimizer.defaults["eps"] == 1e-8
    assert scheduler.get_last_lr()[0] == pytest.approx(5e-5)
    assert scheduler.lr_lambdas[0](2000) == pytest.approx(1 - 2000 / 4503)
    assert factor(4500, "linear", warmup=0, total=4503) == pytest.approx(3 / 4503)
    assert facts.tuning_steps(30_000) == 4503


# --------------------------------------------------------------------------------------------------------------- data


def test_pairs_are_read_stripped_and_bad_lines_are_named(tmp_path):
    file = tmp_path / "parabank2.json"
    file.write_text('{"text": " 1994 German Grand Prix", "summary": "1994 Grand Prix of Germany "}\n\n')
    assert read_pairs(file) == [("1994 German Grand Prix", "1994 Grand Prix of Germany")]
    good = file.read_text()
    for line, message in (
        ('{"text": "a"}', "parabank2.json:3: not"),
        ('{"text": "a", "summary": "b', "parabank2.json:3: not"),
        ('{"text": "a", "summary": " "}', "parabank2.json:3: an empty text"),
    ):
        file.write_text(good + line)
        with pytest.raises(EncoreError, match=message):
            read_pairs(file)
    file.write_text("\n")
    with pytest.raises(EncoreError, match="holds no pairs"):
        read_pairs(file)
    with pytest.raises(EncoreError, match=r"absent\.json: cannot be read"):
        read_pairs(tmp_path / "absent.json")


def test_generated_hypotheses_lose_what_their_scores_say():
    rows = generated.judged(40)
    assert rows == generated.judged(40)
    for row in rows:
        words = set(row.hypothesis.replace(".", "").split())
        values = [fact.split("=")[1] for fact in meaning_of("generated", row.source).facts if "name=" not in fact]
        said = sum(set(value.split()) <= words for value in values)
        assert len(values) - said == 6 - row.scores["informativeness"]
        assert row.scores["quality"] == row.scores["informativeness"] + row.scores["naturalness"] - 6
    assert len({row.scores["informativeness"] for row in rows}) > 1
    assert all(a.split()[0] == b.split()[0] for a, b in generated.pairs(10))


def test_meanings_are_equal_whatever_the_order_and_quotes_of_their_slots():
    one = meaning_of("bagel", "inform(name='X',type=placetoeat,near='X',food=Indian)")
    assert one == meaning_of("bagel", "inform(food='indian',name='X',near=X)") == (
        "bagel", "inform", frozenset({"name=x", "near=x", "food=indian"})
    )  # fmt: skip
    assert meaning_of("sfhot", "reqmore()") == Meaning("sfhot", "reqmore", frozenset())
    assert meaning_of("sfhot", "inform(address='1, main st',food=fish)").facts == {"address=1, main st", "food=fish"}
    rows = [
        Judged("0", "s", "inform(name=A,food=thai)", ("a", "b", "a"), "h"),
        Judged("1", "s", "inform(food=thai,name=A)", ("c", "b"), "h"),
        Judged("2", "s", "inform(name=A)", ("d",), "h"),
        Judged("3", "s", "confirm(name=A)", ("e",), "h"),
    ]
    groups = group("x", rows)
    assert list(groups.values()) == [["a", "b", "c"], ["d"], ["e"]]
    assert [(len(more.facts), fewer.facts) for more, fewer in one_fact_apart(groups)] == [(2, frozenset({"name=a"}))]
    assert rewritings(groups, most=1) == [("a", "b"), ("b", "c"), ("c", "a")]
    assert len(rewritings(groups)) == 6
    assert sorted(folds_of(groups, 2).values()) == [0, 0, 1]


def test_names_give_way_to_their_slots_in_every_text_and_other_values_stay():
    row = Judged(
        "0", "s", "inform(name='hotel 9',near='9 st',area=dont_care,food=thai)",
        ("Hotel 9 is near 9 st.", "Thai food"), "It 's hotel 9, near 99 st", {"quality": 1.0},
    )  # fmt: skip
    made = delexicalised(row)
    assert made.references == ("NAME is near NEAR.", "Thai food")
    assert made.hypothesis == "It 's NAME, near 99 st"
    assert made.source == "inform(name='NAME',near='NEAR',area=dont_care,food=thai)"
    assert made.scores == row.scores
    bagel = Judged("0", "s", "inform(name='X',near='X')", ("X is near X",), "x")
    assert delexicalised(bagel) == bagel


# ------------------------------------------------------------------------------------------------------------ recipes


def test_the_smoke_run_judges_after_it_tuned(tmp_path):
    main(["fit", "--config", str(CONFIGS / "smoke.yaml"), "--trainer.default_root_dir", str(tmp_path)])
    assert -1 <= tiny.logged(tmp_path, "test/generated/informativeness/spearman/f")[0] <= 1
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 120
    for row in scores:  # the best f over references cannot be better than the best P and the best R together
        assert row["f"] <= (row["precision"] + row["recall"]) / 2 + 1e-9


def run_config(name, folder, **changes):
    """A published config on its fixtures, as its command runs it; {metric: values}."""
    write = next(make for pattern, make in fixtures.FIXTURES.items() if fnmatch(name, pattern))
    overrides = {"trainer.accelerator": "cpu", "data.init_args.num_workers": 0, **write(folder), **changes}
    options = [f"--{key}={v if isinstance(v, str | Path) else json.dumps(v)}" for key, v in overrides.items()]
    main([*recipe.started(CONFIGS / name), "--trainer.default_root_dir", str(folder / "run"), *options])
    rows = list(csv.DictReader((folder / "run" / "metrics.csv").open()))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


@pytest.mark.parametrize("name", sorted(file.name for file in CONFIGS.glob("paper*.yaml")))
def test_every_recipe_tunes_where_it_should_and_judges_all_its_sets(name, tmp_path):
    """On a tiny checkpoint in the hub's format, ParaBank2's file format and the released layout of the sets."""
    config = recipe.merged(CONFIGS / name)
    tunes = config["trainer"]["max_steps"] > 0
    sets = ["bagel", "kk_en"] if "para_prompt" in name else ["rank19"] if "prompt" in name else None
    some = {"data.init_args.sets": sets} if sets else {}  # prompted sets take long
    few = {"trainer.max_steps": 1, "trainer.log_every_n_steps": 1} if tunes else {}
    logged = run_config(name, tmp_path, **some, **few)
    judged = {key.split("/")[1] for key in logged if key.startswith("test/")}
    assert judged == set(sets or config["data"]["init_args"]["sets"])
    assert ("train/loss" in logged) == tunes


def test_the_readme_examples_are_scored_from_the_first_text_to_the_best_of_the_others(tmp_path):
    """With bart-large-cnn in place of the tiny checkpoint this prints -2.5106, -2.5008 and -1.6262."""
    logged = run_config("paper_cnn.yaml", tmp_path, **{"data.init_args.sets": ["readme"]})
    hub = tmp_path / "hub"
    score = TextScorer(interop.load(hub), load_byte_bpe(hub), 64)
    sources = ["This is interesting.", "I'm super happy today.", "This is a good idea."]
    targets = [["This is fun."], ["I feel good today.", "I feel sad today."], ["Not bad.", "Sounds like a good idea."]]
    expected = multi_reference(score, sources, targets, "max")
    found = [logged[f"test/readme/{i}/score/recall"][0] for i in range(3)]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert found[0] == pytest.approx(score(sources[:1], targets[0])[0], abs=1e-5)


def test_a_missing_set_or_checkpoint_ends_the_command_with_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_config("paper_cnn.yaml", tmp_path, **{"data.init_args.released": tmp_path / "nowhere"})
    assert "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_config("paper_cnn.yaml", tmp_path / "again", **{"model.init_args.checkpoint": tmp_path})
    assert "no model.safetensors" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- claims


def smoke(arm, folder) -> Run:
    return Run("bartscore", "claim", arm, 0, "smoke", folder)


def test_every_arm_is_compared_with_people_and_a_finished_unit_gives_the_same_again(tmp_path):
    found = {
        arm: claims.agreement_with_people(smoke(arm, tmp_path / arm)) for arm in ("denoised", "untrained", "rouge1")
    }
    assert len({round(metrics["spearman"], 6) for metrics in found.values()}) == len(found)
    for metrics in found.values():
        assert metrics["spearman"] == pytest.approx(
            np.mean([metrics[f"spearman_{what}"] for what in ("informativeness", "naturalness", "quality")])
        )
    assert claims.agreement_with_people(smoke("denoised", tmp_path / "denoised")) == found["denoised"]


def test_a_scorer_never_trains_on_a_text_of_a_meaning_it_judges():
    texts = claims.load_texts(claims.RECIPES["smoke"])
    for fold in (0, 1):
        trained = {text for some in texts.training(fold).values() for text in some}
        held_out = {text for m, some in texts.groups.items() if texts.folds[m] == fold for text in some}
        assert trained
        assert not trained & held_out
    assert len(set(texts.folds.values())) == 2


def test_the_language_model_arm_does_not_read_and_the_others_do(tmp_path):
    recipe = claims.RECIPES["smoke"]
    texts = claims.load_texts(recipe)
    y = ["Alba is cheap."] * 2
    x = ["Alba has cheap prices.", "Fino is near the park."]
    blind = claims.train_scorer(smoke("language_model", tmp_path / "a"), recipe, texts, 0)(x, y)
    seeing = claims.train_scorer(smoke("tuned", tmp_path / "b"), recipe, texts, 0)(x, y)
    assert blind[0] == blind[1]
    assert seeing[0] != seeing[1]
    pairs = claims.Blind([(np.array([0, 9, 2]), np.array([0, 7, 2]))], texts.tokenizer)
    assert [row.tolist() for row in pairs[0]] == [[0, 2], [0, 7, 2]]


def test_direction_counts_pairs_where_leaving_out_is_likelier_than_making_up(tmp_path, monkeypatch):
    def shorter_is_likelier(sources, targets):
        return np.array([-len(y) / len(x) for x, y in zip(sources, targets)])

    monkeypatch.setattr(claims, "train_scorer", lambda *_: shorter_is_likelier)
    found = claims.missing_from_made_up(smoke("tuned", tmp_path))
    assert found["direction"] > 80
    monkeypatch.setattr(claims, "train_scorer", lambda *_: lambda x, y: -shorter_is_likelier(x, y))
    assert claims.missing_from_made_up(smoke("tuned", tmp_path))["direction"] < 20
    monkeypatch.undo()
    assert 0 <= claims.missing_from_made_up(smoke("untrained", tmp_path))["direction"] <= 100


@requires_mirror("generation_eval")
def test_the_real_references_have_enough_meanings_and_pairs_one_fact_apart():
    groups = {}
    for name in claims.DATA_TO_TEXT:
        groups |= group(name, [delexicalised(row) for row in read(name)])
    assert len(groups) == 484
    assert len(one_fact_apart(groups)) == 499
