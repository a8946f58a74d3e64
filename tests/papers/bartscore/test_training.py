"""Tuning a scorer and judging with it: modules, data in its real form, recipes, and the claims at smoke scale."""

import importlib
import inspect
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from common.errors import EncoreError
from common.formats.tokenizers import train_byte_bpe
from common.training.optim import factor
from common.training.run import Run
from papers.bart.data import pad, wrap
from papers.bartscore import claims, facts, generated, interop
from papers.bartscore.data import ScorerData, read_pairs
from papers.bartscore.judged import README, Judged, read
from papers.bartscore.model import bartscore_tiny
from papers.bartscore.module import Tuning
from papers.bartscore.references import Meaning, delexicalised, folds_of, group, meaning_of, one_fact_apart, rewritings
from papers.bartscore.scorer import TextScorer, multi_reference
from papers.bartscore.train import main
from tests.helpers import assert_resumes_exactly, requires_mirror

CONFIGS = Path(__file__).parents[3] / "papers" / "bartscore" / "configs"
TINY = {"size": "tiny", "vocab_size": 300, "max_positions": 64, "total_steps": 6, "lr": 1e-3}
DATA = {"vocab_size": 300, "max_length": 64, "batch_size": 4}


# ------------------------------------------------------------------------------------------------------------- tuning


def test_tuning_resumes_bit_for_bit(tmp_path):
    assert_resumes_exactly(lambda: Tuning(**TINY), lambda: ScorerData(**DATA), tmp_path)


def test_the_loss_is_minus_the_mean_score_so_that_long_pairs_weigh_no_more_than_short_ones():
    data = ScorerData(**DATA)
    data.setup()
    module = Tuning(**TINY).eval()
    texts = ["Alba is cheap.", "Fino serves thai food and is near the park and has moderate prices."]
    batch = tuple(pad(wrap(data.tokenizer, some, 64)) for some in (texts, texts[::-1]))
    scores = TextScorer(module.scorer, data.tokenizer, 64)(texts, texts[::-1])
    assert module.loss(batch).item() == pytest.approx(-scores.mean(), abs=1e-5)
    over_tokens = module.scorer.bart.loss(*batch).item()
    assert abs(over_tokens + scores.mean()) > 1e-4


def test_learning_rate_starts_at_its_peak_and_falls_in_a_line_without_weight_decay():
    optimizers = Tuning(**(TINY | {"lr": 5e-5, "total_steps": 4503})).configure_optimizers()
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
    with pytest.raises(EncoreError, match="not a readable UTF-8 text"):
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


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    """A tiny hub checkpoint with its tokenizer, ParaBank2 pairs, and the released layout of the judged sets."""
    root = tmp_path_factory.mktemp("bartscore")
    pairs = generated.pairs(12)
    for name in ("parabank2.json", "eval.json"):
        rows = (json.dumps({"text": text, "summary": summary}) for text, summary in pairs)
        (root / name).write_text("\n".join(rows))
    readme = [text for row in README for text in (row.hypothesis, *row.references)]
    train_byte_bpe([text for pair in pairs for text in pair] + readme, 300).save(root / "hub")
    torch.manual_seed(0)
    interop.save(bartscore_tiny(300), root / "hub")
    some = generated.judged(4)
    for name in ("BAGEL", "SFHOT", "SFRES"):
        content = {
            row.document: {"src": row.source, "sys_summ": row.hypothesis, "ref_summs": list(row.references),
                           "scores": row.scores} for row in some
        }  # fmt: skip
        put(root, name, content)
    human = dict.fromkeys(("litepyramid_recall", "coherence", "consistency", "fluency", "relevance"), 3.0)
    for name in ("REALSumm", "SummEval", "Newsroom"):
        made = {
            f"s{i}": {
                "sys_summ": row.hypothesis,
                "scores": {k: v + i for k, v in human.items()} | {"informativeness": i},
            }
            for i, row in enumerate(some)
        }
        key = "ref_summs" if name == "SummEval" else "ref_summ"
        references = list(some[0].references) if name == "SummEval" else some[0].references[0]
        put(root, name, {d: {"src": some[1].hypothesis, key: references, "sys_summs": made} for d in "ab"})
    for name in ("QAGS_CNN", "QAGS_XSUM"):
        made = {row.document: {"src": row.references[0], "ref_summ": row.references[0], "sys_summs": {
            0: {"sys_summ": row.hypothesis, "scores": {"fact": i / 3}}}} for i, row in enumerate(some)}  # fmt: skip
        put(root, name, made)
    sides = ("correct", "incorrect")
    put(root, "Rank19", {row.document: {"src": row.references[0], "ref_summ": row.references[0], "sys_summs": {
        side: {"sys_summ": row.references[i + 1], "scores": {"fact": 1 - i}} for i, side in enumerate(sides)}}
        for row in some})  # fmt: skip
    for name in ("kk-en", "gu-en", "lt-en"):
        made = {i: {"src": "x", "ref": row.references[0], "better": {"sys": row.references[1], "scores": {}},
                    "worse": {"sys": row.hypothesis, "scores": {}}} for i, row in enumerate(some)}  # fmt: skip
        put(root, name, made)
    return root


def put(root, name, content):
    (root / "released" / name).mkdir(parents=True)
    (root / "released" / name / "data.pkl").write_bytes(pickle.dumps(content))


def run_config(name, overrides, folder):
    arguments = ["fit", "--config", str(CONFIGS / name), "--trainer.default_root_dir", str(folder)]
    main([*arguments, *(f"--{key}={value}" for key, value in overrides.items())])
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return {name: [float(row[i]) for row in rows[1:] if row[i]] for i, name in enumerate(rows[0])}


def test_smoke_config_lowers_the_loss_and_then_judges(tmp_path):
    logged = run_config("smoke.yaml", {}, tmp_path)
    losses = logged["train/loss"]
    assert len(losses) == 25
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 1.0
    assert -1 <= logged["test/generated/informativeness/spearman/f"][0] <= 1
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 120
    for row in scores:  # the best f over references cannot be better than the best P and the best R together
        assert row["f"] <= (row["precision"] + row["recall"]) / 2 + 1e-9


@pytest.mark.parametrize("name", sorted(file.name for file in CONFIGS.glob("paper*.yaml")))
def test_every_recipe_tunes_where_it_should_and_judges_all_its_sets(name, fixtures, tmp_path):
    """On a tiny checkpoint in the hub's format, ParaBank2's file format and the released layout of the sets."""
    config = yaml.safe_load((CONFIGS / name).read_text())
    hub = fixtures / "hub"
    overrides = {
        "model.init_args.size": "tiny", "model.init_args.vocab_size": 300, "model.init_args.max_positions": 64,
        "model.init_args.checkpoint": hub, "data.init_args.tokenizer": hub, "data.init_args.max_length": 64,
        "data.init_args.released": fixtures / "released", "trainer.accelerator": "cpu",
    }  # fmt: skip
    if config["trainer"]["max_steps"]:
        files = {
            f"data.init_args.{key}": fixtures / file
            for key, file in (("train", "parabank2.json"), ("valid", "eval.json"))
        }
        overrides |= files | {
            "trainer.max_steps": 1,
            "trainer.log_every_n_steps": 1,
            "data.init_args.num_workers": 0,
            "data.init_args.batch_size": 4,
        }
    if "weights" in config["model"]["init_args"]:
        state = {f"scorer.{k}": v for k, v in interop.load(hub).state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "last.ckpt")
        overrides["model.init_args.weights"] = tmp_path / "last.ckpt"
    if "prompts" in config["model"]["init_args"]:
        overrides["data.init_args.sets"] = "[bagel,kk_en]" if "para" in name else "[rank19]"
    logged = run_config(name, overrides, tmp_path)
    judged = {key.split("/")[1] for key in logged if key.startswith("test/")}
    assert judged == set(
        overrides.get("data.init_args.sets", ",".join(config["data"]["init_args"]["sets"])).strip("[]").split(",")
    )
    assert ("train/loss" in logged) == bool(config["trainer"]["max_steps"])


def test_the_readme_examples_are_scored_from_the_first_text_to_the_best_of_the_others(fixtures, tmp_path):
    """With bart-large-cnn in place of the tiny checkpoint this prints -2.5106, -2.5008 and -1.6262."""
    hub = fixtures / "hub"
    overrides = {
        "model.init_args.size": "tiny", "model.init_args.vocab_size": 300, "model.init_args.max_positions": 64,
        "model.init_args.checkpoint": hub, "data.init_args.tokenizer": hub, "data.init_args.sets": "[readme]",
        "data.init_args.max_length": 64, "trainer.accelerator": "cpu",
    }  # fmt: skip
    logged = run_config("paper_cnn.yaml", overrides, tmp_path)
    from common.formats.tokenizers import load_byte_bpe

    score = TextScorer(interop.load(hub), load_byte_bpe(hub), 64)
    sources = ["This is interesting.", "I'm super happy today.", "This is a good idea."]
    targets = [["This is fun."], ["I feel good today.", "I feel sad today."], ["Not bad.", "Sounds like a good idea."]]
    expected = multi_reference(score, sources, targets, "max")
    found = [logged[f"test/readme/{i}/score/recall"][0] for i in range(3)]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert found[0] == pytest.approx(score(sources[:1], targets[0])[0], abs=1e-5)


def test_a_missing_set_or_checkpoint_ends_the_command_with_one_line(tmp_path, capsys):
    overrides = {"data.init_args.sets": "[bagel]", "data.init_args.released": tmp_path, "trainer.max_steps": 1}
    with pytest.raises(SystemExit):
        run_config("smoke.yaml", overrides, tmp_path)
    assert "error: " in capsys.readouterr().err
    size = {"model.init_args.size": "tiny", "model.init_args.vocab_size": 300, "trainer.accelerator": "cpu"}
    with pytest.raises(SystemExit):
        run_config("paper_cnn.yaml", size | {"model.init_args.checkpoint": tmp_path}, tmp_path)
    assert "no model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_opens_with_what_it_is_and_the_command_and_names_real_arguments(file):
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert f"configs/{file.name}" in lines[1]
    config = yaml.safe_load(file.read_text())
    for part in ("model", "data"):
        module, _, name = config[part]["class_path"].rpartition(".")
        known = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert set(config[part].get("init_args", {})) <= set(known)


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
