"""DupMAE's claims on a toy collection in Cranfield's files: what is trained on what, what is measured, resuming."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from common.formats import collection
from common.formats.text_corpus import TextBlocks
from common.formats.wordpiece import PAD
from common.training import run as running
from common.training.run import Run
from papers.dupmae import claims
from papers.dupmae.claims import PLANS
from papers.dupmae.data import MaskedText
from papers.dupmae.model import DupMAE, tiny_bert
from papers.dupmae.retriever import Representation

PLAN = PLANS["smoke"]
NOUNS = (
    *("wing", "lift", "drag", "flow", "body", "shock", "heat", "plate", "layer", "jet"),
    *("cone", "duct", "gust", "rotor", "slot", "skin", "edge", "tail", "ramp", "vane"),
)
ASKED = "quizzical"  # a word of every query and of no text


def documents() -> list[str]:
    """Twenty abstracts of three sentences; number i is the only one that has its own noun three times."""
    return [f"the {n} and a {NOUNS[i - 1]} . a {n} in air . the {n} again ." for i, n in enumerate(NOUNS)]


QUERIES = {
    "1": ("what of the wing", {"1": 1}),  # found first
    "2": ("a drag", {"4": 1}),  # document 4 has it once, document 3 three times: found second
    "3": ("any whirls", {"16": 1}),  # no text has it: the 16th of the texts in their order
    "4": ("the gust", {"7": 0}),  # nothing is relevant
    "5": ("a slot", {"99": 1}),  # what is relevant is not there
}


@pytest.fixture
def toy(tmp_path_factory, monkeypatch):
    """The named source cranfield, replaced."""
    folder = tmp_path_factory.mktemp("cranfield")
    texts = documents()
    graded = [(q, d, grade) for q, (_, judged) in QUERIES.items() for d, grade in judged.items()]
    tables = {
        "corpus": {"id": [str(i + 1) for i in range(len(texts))], "title": [""] * len(texts), "text": texts},
        "queries": {"id": list(QUERIES), "num": list(QUERIES), "text": [f"{t} {ASKED} ." for t, _ in QUERIES.values()]},
        "qrels": dict(zip(("query_id", "doc_id", "relevance"), map(list, zip(*graded)))),
    }
    files = {}
    for name, table in tables.items():
        files[f"{name}.parquet"] = folder / f"{name}.parquet"
        pq.write_table(pa.table(table), files[f"{name}.parquet"])
    monkeypatch.setattr(collection.sources, "locate", lambda name: files)
    claims.load.cache_clear()
    yield claims.load(PLAN.documents, PLAN.vocab_size)
    claims.load.cache_clear()


def unit(entry: str, arm: str, folder: Path, seed: int = 0) -> dict[str, float]:
    """The metrics of one unit at smoke scale."""
    return getattr(claims, entry)(Run("dupmae", entry, arm, seed, "smoke", folder))


def plain(example):
    return example.tolist() if isinstance(example, torch.Tensor) else example


@pytest.fixture
def fits(monkeypatch):
    """Every training that is started: its stage, steps, options, initial weights and all its examples."""
    started = []

    def watched(module, data, real=running.fit, **how):
        loader = data(None)
        texts = loader.dataset.dataset  # under the loader's own wrapper
        started.append(
            {
                "stage": how["name"],
                "steps": how["max_steps"],
                "clip": how["gradient_clip_val"],
                "method": getattr(module, "method", None),
                "optimizer": asdict(module.optim),
                "weights": {k: v.clone() for k, v in module.model.mlm.state_dict().items()},
                "examples": [
                    x.tolist() if isinstance(x, torch.Tensor) else x for x in map(texts.__getitem__, range(len(texts)))
                ],
                "order": [list(batch) for batch in loader.batch_sampler][: how["max_steps"]],
            }
        )
        return real(module, data, **how)

    monkeypatch.setattr(running, "fit", watched)
    return started


PARTS = {f"{measure}{part}" for measure in ("ndcg", "mrr", "recall") for part in ("", "_cls", "_words")} | {"tuning_lr"}


def test_arms_share_texts_weights_order_and_tuning_and_never_read_a_query(toy, fits, tmp_path):
    for arm in ("mlm", "retromae", "dupmae"):
        found = unit("duplex_pretraining", arm, tmp_path / arm)
        assert found.keys() == PARTS
        assert all(np.isfinite(value) and 0 <= value <= 100 for value in found.values())
    every = 1 + len(PLAN.tuning_lrs)
    pretraining, tuning = fits[::every], [f for i, f in enumerate(fits) if i % every]
    assert [f["method"] for f in pretraining] == ["mlm", "retromae", "dupmae"]
    assert {f["stage"] for f in pretraining} == {"pretraining"}
    assert [f["optimizer"].pop("lr") for f in tuning] == list(PLAN.tuning_lrs) * 3
    assert len({f["stage"] for f in tuning}) == len(PLAN.tuning_lrs)
    for each in pretraining:
        own = (each["steps"], each["optimizer"].pop("lr"))
        assert own == (PLAN.steps[each["method"]], PLAN.lr[each["method"]])
    first = pretraining[0]
    for other in pretraining[1:]:
        assert all(torch.equal(v, first["weights"][k]) for k, v in other["weights"].items())
        assert (other["examples"], other["order"], other["optimizer"]) == (
            first["examples"],
            first["order"],
            first["optimizer"],
        )
    for number, after in enumerate(tuning):
        before = pretraining[number // len(PLAN.tuning_lrs)]
        assert any(not torch.equal(v, before["weights"][k]) for k, v in after["weights"].items())
        same = {name: after[name] for name in ("steps", "clip", "optimizer", "order")}
        assert same == {name: tuning[0][name] for name in same}
    blocks = [toy.tokenizer.decode(ids) for ids in first["examples"]]
    pairs = [f"{query.text} {passages[0].text}" for query, passages, _ in tuning[0]["examples"]]
    assert all(any(noun in text for text in blocks) for noun in NOUNS)
    assert not any(ASKED in text.replace(" ", "") for text in blocks + pairs)
    assert all(query.text in documents()[i] for i, (query, _, _) in enumerate(tuning[0]["examples"]))
    assert ASKED not in toy.tokenizer.vocabulary


def test_an_arm_keeps_its_best_rate_and_every_rate_starts_from_the_pretrained_encoder(toy, fits, tmp_path, monkeypatch):
    values = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(claims, "retrieval", lambda *_: {"ndcg": next(values)})
    assert unit("duplex_pretraining", "dupmae", tmp_path) == {"ndcg": 30.0, "tuning_lr": PLAN.tuning_lrs[1]}
    done = torch.load(tmp_path / "pretraining" / "done.ckpt", weights_only=True)["state_dict"]
    for tuned in fits[1:]:
        assert all(torch.equal(v, done[f"model.mlm.{k}"]) for k, v in tuned["weights"].items())


def test_bm25_of_the_claim_is_what_one_counts_by_hand(toy, tmp_path):
    """Ranks 1, 2 and 16 of the three queries with a relevant text; the other two are not asked."""
    assert list(toy.collection.judged) == ["1", "2", "3"]
    found = unit("duplex_pretraining", "bm25", tmp_path)
    assert found == pytest.approx(
        {"ndcg": 100 * (1 + 1 / np.log2(3)) / 3, "mrr": 100 * (1 + 1 / 2) / 3, "recall": 100.0}, rel=1e-5
    )


class Oracle(nn.Module):
    """Counts the pieces of a text: in the lexical part, or in the dense one."""

    def __init__(self, part: str, vocab_size: int, common: list[int]) -> None:
        super().__init__()
        self.part, self.vocab_size, self.common = part, vocab_size, common

    def forward(self, tokens):
        counts = F.one_hot(tokens, self.vocab_size).sum(1).float()
        counts[:, [PAD, *self.common]] = 0
        nothing = torch.zeros_like(counts)
        return Representation(nothing, counts) if self.part == "words" else Representation(counts, nothing)


@pytest.mark.parametrize("part", ["words", "cls"])
def test_retrieval_measures_the_joint_score_and_each_part(toy, part):
    tokenizer = toy.tokenizer
    shared = set(tokenizer.encode_batch([f"what any of the a and in air again . whirls {ASKED}"])[0])
    oracle = Oracle(part, PLAN.vocab_size, [tokenizer.cls, tokenizer.sep, *shared])
    found_by_words = {query: toy.collection.judged[query] for query in ("1", "2")}
    text = replace(toy, collection=toy.collection._replace(judged=found_by_words))
    found = claims.retrieval(oracle, PLAN, text)
    other = {"words": "cls", "cls": "words"}[part]
    assert found["mrr"] == found[f"mrr_{part}"] == pytest.approx(75, abs=1e-4)
    assert found["ndcg"] == found[f"ndcg_{part}"] == pytest.approx(100 * (1 + 1 / np.log2(3)) / 2, abs=1e-4)
    assert found[f"ndcg_{other}"] < found["ndcg"]


def test_unseen_abstracts_are_every_tenth_and_pretraining_does_not_see_them(toy, fits, tmp_path):
    metrics = unit("words_kept", "dupmae", tmp_path)
    assert metrics.keys() == {"word_recall"}
    assert 0 <= metrics["word_recall"] <= 100
    unseen = documents()[::10]
    assert toy.texts(held_out=True) == unseen
    blocks = " ".join(toy.tokenizer.decode(ids) for ids in fits[0]["examples"])
    assert f"a {NOUNS[1]} in air" in blocks
    assert not any(f"a {NOUNS[i]} in air" in blocks for i in (0, 10))


def test_the_decoder_is_asked_with_the_embedding_of_the_text_and_with_that_of_another(toy, tmp_path, monkeypatch):
    asked = []

    def watched(model, cls, batch, real=claims.rebuilt):
        asked.append((model, cls, batch))
        return real(model, cls, batch)

    monkeypatch.setattr(claims, "rebuilt", watched)
    metrics = unit("decoder_reads_cls", "dupmae", tmp_path)
    (_, other, _), (model, own, batch) = asked
    hidden = model.mlm.bert(batch.inputs, batch.tokens.ne(PAD))
    torch.testing.assert_close(own, hidden[:, 0])
    assert torch.equal(other[1], own[0])
    assert torch.equal(other[0], own[-1])
    assert batch.tokens.shape[1] <= PLAN.length
    loss = model.reconstruction_loss(own, batch.tokens, batch.text, batch.allowed).item()
    assert metrics["reconstruction"] == pytest.approx(loss)
    assert metrics["reconstruction_other"] != metrics["reconstruction"]
    assert metrics.keys() == {"reconstruction", "accuracy", "reconstruction_other", "accuracy_other"}


def test_accuracy_counts_every_token_of_the_text_and_nothing_else(toy):
    torch.manual_seed(0)
    batch = MaskedText(toy.tokenizer)(list(TextBlocks(toy.tokenizer.encode_batch(documents()[:3]), toy.tokenizer, 64)))
    model = DupMAE(tiny_bert(PLAN.vocab_size)).eval()
    cls = torch.randn(3, 96)
    with torch.no_grad():
        named = model.mlm.logits(model.decode(cls, batch.tokens, batch.allowed)).argmax(-1)
    right = [int(named[b, n] == batch.tokens[b, n]) for b, n in batch.text.nonzero().tolist()]
    model.mlm.head.bias.data[int(batch.tokens[0, 1])] += 100  # now it always names the first token of the first text
    often = (batch.tokens[batch.text] == batch.tokens[0, 1]).float().mean().item()
    assert claims.rebuilt(model, cls, batch)["accuracy"] == pytest.approx(100 * often)
    model.mlm.head.bias.data[int(batch.tokens[0, 1])] -= 100
    assert claims.rebuilt(model, cls, batch)["accuracy"] == pytest.approx(100 * np.mean(right))


def test_a_unit_stopped_between_two_rates_ends_as_if_it_had_not_been_stopped(toy, tmp_path, monkeypatch):
    expected = unit("duplex_pretraining", "dupmae", tmp_path / "whole")
    fit = running.fit

    def stops(module, data, **how):
        if how["name"] == "tuning-1":
            raise KeyboardInterrupt
        return fit(module, data, **how)

    monkeypatch.setattr(running, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        unit("duplex_pretraining", "dupmae", tmp_path / "stopped")
    kept = (tmp_path / "stopped" / "pretraining" / "done.ckpt").stat().st_mtime_ns
    monkeypatch.setattr(running, "fit", fit)
    assert unit("duplex_pretraining", "dupmae", tmp_path / "stopped") == expected
    assert (tmp_path / "stopped" / "pretraining" / "done.ckpt").stat().st_mtime_ns == kept


def test_the_cpu_config_trains_what_the_claims_train():
    config = yaml.safe_load(Path("papers/dupmae/configs/cpu.yaml").read_text())
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    recipe = asdict(PLANS["cpu"])
    steps = recipe["steps"][model["method"]]
    assert (model["optim"]["total"], trainer["max_steps"], trainer["gradient_clip_val"]) == (steps, steps, 1.0)
    assert model["optim"]["lr"] == recipe["lr"][model["method"]]
    for name in ("vocab_size", "bag_weight"):
        assert model[name] == recipe[name]
    for name in ("vocab_size", "length", "batch_size"):
        assert data[name] == recipe[name]
    assert data["source"] == "cranfield"
