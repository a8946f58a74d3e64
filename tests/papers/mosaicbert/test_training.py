"""MosaicBERT's optimizer, data in their on-disk formats, training, fine-tuning, configs, claims at smoke scale."""

import gzip
import importlib
import inspect
import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml

from common.errors import EncoreError
from common.formats.wordpiece import WordPiece
from common.training.run import Run
from papers.mosaicbert import claims, glue, speed
from papers.mosaicbert.data import (
    C4,
    Documents,
    FixedBatches,
    Masking,
    Sentences,
    bundled_sentences,
    encode,
    read_shard,
    stack,
    wikitext_sentences,
)
from papers.mosaicbert.model import mosaicbert_tiny
from papers.mosaicbert.module import FineTuning, Pretraining, decoupled_adamw
from tests.helpers import assert_resumes_exactly, requires_mirror, train_steps

CONFIGS = Path(__file__).parents[3] / "papers" / "mosaicbert" / "configs"
TEXT = "the old river ran past a small house where two dogs slept under the warm morning sun"
WORDS = TEXT.split()
VOCAB = 160


def sentence(rng, length=8) -> str:
    return " ".join(rng.choice(WORDS, size=length)).capitalize() + "."


def write_shard(file: Path, texts) -> None:
    lines = [json.dumps({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "http://a"}) for text in texts]
    file.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """C4 in the hub's shards, a tokenizer, and three GLUE tasks in the `datasets` library's two layouts."""
    import datasets

    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("mosaicbert")
    WordPiece.train([sentence(rng) for _ in range(200)], VOCAB).save(root / "tokenizer")
    (root / "c4").mkdir()
    for i in range(2):
        texts = [sentence(rng, int(rng.integers(2, 60))) for _ in range(12)]
        write_shard(root / "c4" / f"c4-train.{i:05d}-of-01024.json.gz", texts)
    write_shard(root / "c4" / "c4-validation.00000-of-00008.json.gz", [sentence(rng) for _ in range(10)])

    def pairs(first, second, labels):
        return {first: [sentence(rng) for _ in labels], second: [sentence(rng, 5) for _ in labels], "label": labels}

    sizes = {"train": 12, "validation_matched": 6, "validation_mismatched": 5}
    splits = {
        name: datasets.Dataset.from_dict(pairs("premise", "hypothesis", [i % 3 for i in range(n)]))
        for name, n in sizes.items()
    }
    datasets.DatasetDict(splits).save_to_disk(root / "mnli")
    for task, labels in (("mrpc", [0, 1] * 4), ("stsb", [0.5 * i for i in range(8)])):
        (root / task).mkdir()
        for split in ("train", "validation"):
            data = datasets.Dataset.from_dict(pairs("sentence1", "sentence2", labels))
            data.to_parquet(root / task / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture(scope="module")
def tokenizer(folder):
    return WordPiece.load(folder / "tokenizer")


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def c4(folder, cache, **kwargs) -> C4:
    defaults = {"max_length": 24, "batch_size": 4, "num_workers": 0}
    return C4(str(folder / "c4"), str(folder / "tokenizer"), str(cache), **(defaults | kwargs))


def tiny(encoder="mosaicbert_tiny", **kwargs) -> Pretraining:
    return Pretraining(encoder, VOCAB, **({"total_steps": 4} | kwargs))


def quiet_trainer(steps, **kwargs) -> L.Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", max_steps=steps, num_sanity_val_steps=0, **(off | kwargs))


# --------------------------------------------------------------------------------------------------------- optimizer


def test_weight_decay_follows_the_schedule_but_not_the_peak_rate():
    """Closed form on one weight and one bias over three steps of a moving rate; both decay."""
    for peak in (0.01, 0.5):  # the decay of a step is the same for every peak
        layer = torch.nn.Linear(1, 1).double()
        torch.nn.init.constant_(layer.weight, 2.0)
        torch.nn.init.constant_(layer.bias, -3.0)
        optimizer = decoupled_adamw(layer, lr=peak, weight_decay=0.1)
        w, m, v = np.array([2.0, -3.0]), np.zeros(2), np.zeros(2)
        for t, (scale, g) in enumerate(((0.5, 1.0), (1.0, -0.25), (0.02, 4.0)), start=1):
            gradient = np.array([g, 2 * g])
            layer.weight.grad, layer.bias.grad = (torch.full_like(p, x) for p, x in zip(layer.parameters(), gradient))
            optimizer.param_groups[0]["lr"] = scale * peak
            optimizer.step()
            w = w * (1 - scale * 0.1)
            m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
            w = w - scale * peak * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-6)
            assert [layer.weight.item(), layer.bias.item()] == pytest.approx(w.tolist(), rel=1e-9)


def test_the_rate_rises_over_six_percent_and_falls_to_two_percent_of_its_peak():
    made = tiny(lr=1e-3, total_steps=100).configure_optimizers()
    rates = []
    for _ in range(101):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates[:6] == pytest.approx([1e-3 * k / 6 for k in range(1, 7)])
    assert rates[53] == pytest.approx(1e-3 * (1 - 0.98 / 2))
    assert rates[100] == pytest.approx(2e-5)
    assert FineTuning("sst2", 1e-3, 1e-4, 9, "mosaicbert_tiny", VOCAB).floor == 0


# -------------------------------------------------------------------------------------------------------------- text


def test_pieces_are_those_of_berts_uncased_tokenizer(folder, tokenizer):
    from transformers import BertTokenizer

    theirs = BertTokenizer(str(folder / "tokenizer" / "vocab.txt"))
    texts = ["The OLD rivér, ran-past!", "under  a\tsunhouse (dogs)", "x [MASK] 漢 the", "Zürich slept"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts)):
        plain = theirs(text.replace("[MASK]", "mask"), add_special_tokens=False)["input_ids"]
        assert tokenizer.encode_batch([text.replace("[MASK]", "mask")])[0] == plain
        assert tokenizer.mask not in ids  # a text cannot smuggle special tokens in
    assert (tokenizer.vocabulary["[PAD]"], tokenizer.special_ids) == (0, [0, 1, 2, 3, 4])


def test_training_a_vocabulary_twice_gives_the_same_one_and_rare_letters_are_unknown():
    texts = ["aab abb abc", "bca cab é"] * 5 + ["q"]
    one, two = (WordPiece.train(texts, 40, rarest=5) for _ in range(2))
    assert one.vocabulary == two.vocabulary
    assert "q" not in one.vocabulary
    assert one.encode_batch(["q"]) == [[one.unk]]
    assert one.unk not in one.encode_batch(["cab É"])[0]
    with pytest.raises(EncoreError, match="vocab_size 9 is too small"):
        WordPiece.train(texts, 9, rarest=5)


def test_bad_vocabularies_are_named(tmp_path):
    with pytest.raises(EncoreError, match=r"no readable vocab\.txt or tokenizer\.json"):
        WordPiece.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(EncoreError, match=r"\[PAD\] is missing or out of place"):
        WordPiece.load(tmp_path)


def test_documents_are_cut_and_never_joined(tokenizer):
    texts = ["the dogs", " ".join(["sun"] * 50)]
    rows = encode(texts, tokenizer, 10)
    assert rows.dtype == np.uint16
    assert rows[0].tolist()[:4] == [tokenizer.cls, *tokenizer.encode_batch(["the dogs"])[0], tokenizer.sep]
    assert not rows[0][4:].any()
    assert (rows[1][0], rows[1][-1], len(rows[1])) == (tokenizer.cls, tokenizer.sep, 10)
    assert stack([rows[0]]).shape == (1, 4)
    assert stack(list(rows)).shape == (2, 10)
    with pytest.raises(EncoreError, match=r"text:2: an empty document"):
        encode(["sun", " \t "], tokenizer, 10)


def test_thirty_percent_are_hidden_in_training_and_fifteen_in_validation_never_specials_or_padding(folder, tmp_path):
    data = c4(folder, tmp_path, batch_size=24)
    data.prepare_data()
    data.setup()
    data.trainer = None
    assert data.val_dataloader().dataset.masking.ratio == 0.15

    def share(masking):
        hidden = total = 0
        for _ in range(60):
            inputs, valid, labels = masking([data.train[i] for i in range(24)])
            tokens = stack([data.train[i] for i in range(24)])
            assert torch.equal(valid, tokens != 0)
            chosen = labels != -100
            special = torch.isin(tokens, torch.tensor(data.tokenizer.special_ids))
            assert not (chosen & special).any()
            assert torch.equal(inputs[~chosen], tokens[~chosen])
            assert torch.equal(labels[chosen], tokens[chosen])
            hidden, total = hidden + int(chosen.sum()), total + int((~special).sum())
        return hidden / total

    torch.manual_seed(0)
    assert share(data.train_dataloader().dataset.collate) == pytest.approx(0.3, abs=0.01)
    assert share(Masking(data.tokenizer, 0.15)) == pytest.approx(0.15, abs=0.01)


def test_validation_hides_the_same_words_every_time_and_is_shared_among_processes(folder, tmp_path, monkeypatch):
    data = c4(folder, tmp_path)
    data.prepare_data()
    data.setup()
    data.trainer = None
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert len(first) == 3  # of 4, 4 and 2 documents
    assert all(torch.equal(a, b) for one, two in zip(first, second) for a, b in zip(one, two))
    assert not torch.equal(first[0][2][:, :9], first[1][2][:, :9])
    data.trainer = type("Rank", (), {"global_rank": 1, "world_size": 2})()
    (mine,) = data.val_dataloader()
    assert torch.equal(mine[0], first[1][0])


def test_c4_is_encoded_once_a_shard_and_read_back_document_by_document(folder, tmp_path, monkeypatch):
    data = c4(folder, tmp_path)
    data.prepare_data()
    kept = sorted(tmp_path.glob("*.npy"))
    assert len(kept) == 3
    monkeypatch.setattr("papers.mosaicbert.data.encode_shard", None)  # a second encoding would fail
    data.prepare_data()
    data.setup()
    texts = [t for file in sorted((folder / "c4").glob("c4-train*")) for t in read_shard(file)]
    assert len(data.train) == len(texts) == 24
    whole = encode(texts, data.tokenizer, 24)
    assert all(np.array_equal(data.train[i], whole[i]) for i in range(24))
    assert c4(folder, tmp_path, max_length=16)._targets("train")[0][1] not in kept  # another length, another cache
    (tmp_path / "short.npy").write_bytes(kept[0].read_bytes()[:200])
    with pytest.raises(EncoreError, match=r"not a whole \.npy file"):
        Documents([tmp_path / "short.npy"])


def test_shards_that_cannot_be_read_are_named_with_their_line(folder, tmp_path):
    file = tmp_path / "c4-train.00000-of-01024.json.gz"
    write_shard(file, ["one fish", "", "two"])
    data = C4(str(tmp_path), str(folder / "tokenizer"), str(tmp_path / "cache"), num_workers=0)
    write_shard(tmp_path / "c4-validation.00000-of-00008.json.gz", ["a"])
    with pytest.raises(EncoreError, match=r"01024\.json\.gz:2: an empty document"):
        data.prepare_data()
    assert not list((tmp_path / "cache").glob("*train*"))
    whole = gzip.compress(b'{"text": "a b c"}\n' * 4000)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoreError, match="cut short or damaged after line"):
        list(read_shard(file))
    for content, line in ((b'{"text": "a"}\n{"text": ', 2), (b'{"url": "b"}\n', 1), (b'{"text": 3}\n', 1)):
        file.write_bytes(gzip.compress(content))
        with pytest.raises(EncoreError, match=rf"json\.gz:{line}: not a JSON object with a text"):
            list(read_shard(file))
    with pytest.raises(EncoreError, match=r"no c4-train\.\*\.json\.gz"):
        C4(str(tmp_path / "cache"), str(folder / "tokenizer"), str(tmp_path), num_workers=0).prepare_data()


def test_sentences_of_wikitext_lose_headings_and_markup_and_scikit_learns_are_enough():
    text = " = Title = \n \n The 3 @.@ 5 km road is <unk> . It ran to a well @-@ known town . No . \n = = Part = = \n"
    assert wikitext_sentences(text) == ["The 3.5 km road is unk .", "It ran to a well-known town ."]
    assert len(bundled_sentences()) > 300


@requires_mirror("wikitext2")
def test_wikitext_has_sentences_of_many_lengths():
    text = claims.wikitext(claims.PLANS["cpu"])
    lengths = np.array([(text.train[i] != 0).sum() for i in range(len(text.train))])
    assert len(lengths) > 8000
    assert len(text.held_out) == claims.PLANS["cpu"].held_out
    assert 0.4 < lengths.mean() / 48 < 0.75
    assert len(text.tokenizer) == 2048


# ---------------------------------------------------------------------------------------------------------- training


def run_config(name, overrides, tmp_path):
    from common.training.cli import run

    arguments = ["fit", "--config", str(CONFIGS / name), "--trainer.default_root_dir", str(tmp_path)]
    return run([*arguments, *(f"--{key}={value}" for key, value in overrides.items())])


def test_smoke_config_lowers_the_loss(tmp_path):
    run_config("smoke.yaml", {}, tmp_path)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("train/loss")
    losses = [float(row[column]) for row in rows[1:] if row[column]]
    assert len(losses) == 25
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 0.5


@pytest.mark.parametrize("encoder", ["mosaicbert_tiny", "bert_tiny"])
def test_masked_words_resume_bit_for_bit(encoder, folder, tmp_path):
    data = lambda: c4(folder, tmp_path / "cache")  # noqa: E731
    assert_resumes_exactly(lambda: tiny(encoder), data, tmp_path, steps=4, limit_val_batches=0)


def test_validation_reports_the_mean_over_all_labelled_tokens(folder, tmp_path):
    module, data = tiny(), c4(folder, tmp_path)
    trainer = quiet_trainer(1)
    (metrics,) = trainer.validate(module, data, verbose=False)
    parts = [module.eval().model.labelled(*batch) for batch in data.val_dataloader()]
    logits, labels = torch.cat([p for p, _ in parts]), torch.cat([y for _, y in parts])
    assert metrics["val/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert metrics["val/accuracy"] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    with pytest.raises(EncoreError, match="no encoder 'bert_small'; choose mosaicbert_tiny, "):
        Pretraining("bert_small")


PRETRAINING = sorted(file.name for file in CONFIGS.glob("paper_*.yaml") if "glue" not in file.name)
ONE_CPU = {
    "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.strategy": "auto", "trainer.precision": "bf16-mixed",
    "trainer.max_steps": 1, "data.init_args.num_workers": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_recipes_take_a_step_on_tiny_shards(name, folder, tmp_path):
    config = yaml.safe_load((CONFIGS / name).read_text())
    micro, accumulate = config["data"]["init_args"]["batch_size"], config["trainer"]["accumulate_grad_batches"]
    assert 8 * micro * accumulate == 4096
    assert config["model"]["init_args"]["total_steps"] == config["trainer"]["max_steps"] == 70_000
    assert config["trainer"]["val_check_interval"] == 2000 * accumulate
    paths = {"path": "c4", "tokenizer": "tokenizer"}
    overrides = ONE_CPU | {f"data.init_args.{key}": folder / path for key, path in paths.items()}
    overrides |= {"data.init_args.cache": tmp_path, "data.init_args.batch_size": 4, "trainer.val_check_interval": 2}
    overrides |= {"trainer.accumulate_grad_batches": 2, "model.init_args.vocab_size": VOCAB}
    small = "bert_tiny" if "bert_base" in name else "mosaicbert_tiny"
    trainer = run_config(name, overrides | {"model.init_args.encoder": small}, tmp_path).trainer
    assert trainer.global_step == 1
    assert trainer.callback_metrics["val/loss"] > 0


def test_rte_mrpc_and_stsb_start_from_the_mnli_model_and_report_their_measures(folder, tmp_path):
    small = ONE_CPU | {
        "model.init_args.encoder": "mosaicbert_tiny", "model.init_args.vocab_size": VOCAB,
        "data.init_args.tokenizer": folder / "tokenizer", "data.init_args.batch_size": 4,
        "trainer.val_check_interval": 1, "checkpoint_every": 1,
    }  # fmt: skip
    train_steps(lambda: tiny(), lambda: c4(folder, tmp_path), tmp_path / "base", 1, limit_val_batches=0)
    first = small | {"data.init_args.path": folder / "mnli", "model.init_args.checkpoint": tmp_path / "base/last.ckpt"}
    cli = run_config("paper_glue_mnli.yaml", first, tmp_path / "mnli_19")
    metrics = cli.trainer.callback_metrics
    assert metrics["val/score"] == pytest.approx((metrics["val/accuracy"] + metrics["val/accuracy_mm"]).item() / 2)
    pooler = cli.model.model.pooler.weight.detach().clone()
    mnli = {"model.init_args.checkpoint": tmp_path / "mnli_19/last.ckpt", "trainer.max_steps": 1}
    for task, measures in (("mrpc", ["accuracy", "f1"]), ("stsb", ["spearman"])):
        rate = {"model.init_args.lr": 1e-9}
        overrides = small | mnli | rate | {"data.init_args.path": folder / task}
        cli = run_config(f"paper_glue_{task}.yaml", overrides, tmp_path / f"{task}_19")
        metrics = cli.trainer.callback_metrics
        assert metrics["val/score"] == pytest.approx(np.mean([metrics[f"val/{name}"].item() for name in measures]))
        torch.testing.assert_close(cli.model.model.pooler.weight, pooler, atol=1e-4, rtol=1e-4)
    scores = glue.averages(tmp_path)
    assert scores["average"] == pytest.approx(np.mean([scores[name] for name in ("mnli", "mrpc", "stsb")]))
    assert scores["mrpc"] == pytest.approx(100 * np.mean([_final(tmp_path / "mrpc_19", n) for n in ("accuracy", "f1")]))
    with pytest.raises(EncoreError, match="no runs <task>_<seed>"):
        glue.averages(folder)


def _final(folder, name) -> float:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return float([row[rows[0].index(f"val/{name}")] for row in rows[1:] if row[rows[0].index(f"val/{name}")]][-1])


def test_glue_configs_hold_the_released_table():
    for name, task in glue.TASKS.items():
        config = yaml.safe_load((CONFIGS / f"paper_glue_{name}.yaml").read_text())
        model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
        assert (model["task"], data["task"]) == (name, name)
        assert (model["lr"], model["weight_decay"], data["batch_size"]) == (task.lr, task.weight_decay, task.batch_size)
        assert model["total_steps"] == trainer["max_steps"] == task.steps == task.epochs * trainer["val_check_interval"]
        assert config["checkpoint_every"] == trainer["val_check_interval"]  # so the last step is kept and measured
        assert ("mnli" in model["checkpoint"]) == task.from_mnli == (name in ("rte", "mrpc", "stsb"))
        assert config["seed_everything"] == data["seed"] == task.seeds[0] == 19
    table = {n: (t.lr, t.weight_decay, t.epochs, t.batch_size, len(t.seeds)) for n, t in glue.TASKS.items()}
    assert table == {
        "mnli": (5e-5, 5e-6, 3, 48, 1), "qqp": (3e-5, 3e-6, 5, 16, 1), "qnli": (1e-5, 1e-6, 10, 16, 1),
        "sst2": (3e-5, 3e-6, 3, 16, 3), "cola": (5e-5, 5e-6, 10, 32, 4), "rte": (1e-5, 1e-5, 3, 16, 5),
        "mrpc": (8e-5, 8e-6, 10, 32, 5), "stsb": (3e-5, 3e-6, 10, 32, 5),
    }  # fmt: skip


def test_pairs_are_cut_and_marked_as_transformers_does(folder, tokenizer):
    from transformers import BertTokenizer

    theirs = BertTokenizer(str(folder / "tokenizer" / "vocab.txt"))
    rng = np.random.default_rng(3)
    texts = [[sentence(rng, n) for n in sizes] for sizes in ((4, 9, 6), (9, 4, 6))]
    for columns, length in ((texts, 12), (texts, 13), (texts, 20), (texts, 200), (texts[:1], 12)):
        rows = glue.Labelled(columns, [0, 1, 2], tokenizer, length)
        for i in range(3):
            expected = theirs(*[column[i] for column in columns], truncation=True, max_length=length)
            ids, segments, label = rows[i]
            assert ids.tolist() == expected["input_ids"]
            assert segments.tolist() == expected["token_type_ids"]
            assert label == i
    tokens, valid, segments, labels = glue.collate([rows[0], rows[1]], regression=True)
    assert tokens.shape == valid.shape == segments.shape
    assert labels.dtype == torch.float32
    assert torch.equal(valid, tokens != 0)


def test_fine_tuning_losses_are_cross_entropy_and_squared_error():
    classes, values = (FineTuning(task, 1e-3, 1e-4, 9, "mosaicbert_tiny", VOCAB) for task in ("mnli", "stsb"))
    scores = torch.randn(3, 3)
    expected = -scores.log_softmax(-1)[[0, 1, 2], [2, 0, 1]].mean()
    torch.testing.assert_close(classes.loss(scores, torch.tensor([2, 0, 1])), expected)
    torch.testing.assert_close(values.loss(scores[:, :1], torch.zeros(3)), scores[:, 0].square().mean())


def test_glue_folders_that_lack_something_are_named(folder, tmp_path):
    tokenizer = str(folder / "tokenizer")
    with pytest.raises(EncoreError, match="no GLUE task 'wnli'; choose mnli, "):
        glue.GLUE(str(folder / "mnli"), "wnli", tokenizer, 4).setup()
    with pytest.raises(EncoreError, match="train has no column question, sentence; it has sentence1"):
        glue.GLUE(str(folder / "mrpc"), "qnli", tokenizer, 4).setup()
    with pytest.raises(EncoreError, match="mnli needs validation_matched, validation_mismatched"):
        glue.GLUE(str(folder / "mrpc"), "mnli", tokenizer, 4).setup()
    with pytest.raises(EncoreError, match="no data set; expected one saved by"):
        glue.GLUE(str(tmp_path), "mnli", tokenizer, 4).setup()
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(EncoreError, match="cannot read its Parquet files"):
        glue.GLUE(str(tmp_path), "cola", tokenizer, 4).setup()


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


# ------------------------------------------------------------------------------------------------------------ claims


@pytest.fixture
def toy_text(monkeypatch, tmp_path):
    """The claims' data: generated sentences instead of WikiText-2 and SST-2."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(1)
    texts = [sentence(rng, int(rng.integers(4, 40))) for _ in range(200)]
    pq.write_table(pa.table({"text": texts, "label": [0] * 200}), tmp_path / "sst2-train.parquet")
    for module in (claims, speed):
        monkeypatch.setattr(module, "named_sentences", lambda _: (texts[:150], texts[150:]))
    monkeypatch.setattr(speed.sources, "locate", lambda _: {"sst2-train.parquet": tmp_path / "sst2-train.parquet"})
    claims.wikitext.cache_clear()
    yield texts
    claims.wikitext.cache_clear()


def smoke_run(arm, folder) -> Run:
    return Run("mosaicbert", "claim", arm, 0, "smoke", folder)


def test_arms_spend_equal_compute_or_equal_steps_and_mask_as_the_paper_says(toy_text, tmp_path, monkeypatch):
    ratios = []
    original = claims.pretrain
    monkeypatch.setattr(claims, "pretrain", lambda *a: (ratios.append(a[3].ratio), original(*a))[1])
    plan = claims.PLANS["smoke"]
    results = {arm: claims.equal_compute(smoke_run(arm, tmp_path / arm)) for arm in claims.ARMS}
    assert ratios == [0.15, 0.3, 0.3]
    assert results["bert"]["steps"] == results["equal_steps"]["steps"] == plan.steps
    step = results["mosaicbert"]["tmac"] / results["mosaicbert"]["steps"]
    assert abs(results["mosaicbert"]["tmac"] - results["bert"]["tmac"]) <= 0.51 * step
    assert results["mosaicbert"]["parameters"] > results["bert"]["parameters"] > results["equal_steps"]["parameters"]
    again = claims.equal_compute(smoke_run("mosaicbert", tmp_path / "mosaicbert"))  # trained already
    assert again == results["mosaicbert"]


def test_held_out_scores_are_means_over_labelled_tokens(toy_text):
    text = claims.wikitext(claims.PLANS["smoke"])
    torch.manual_seed(0)
    module = Pretraining("mosaicbert_tiny", 1024).eval()
    batches = FixedBatches(text.held_out, 7, Masking(text.tokenizer, 0.5))
    loss, accuracy = claims.held_out(module.model, batches)
    parts = [module.model.labelled(*batches[i]) for i in range(len(batches))]
    logits, labels = torch.cat([p for p, _ in parts]), torch.cat([y for _, y in parts])
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item())


def test_extrapolation_compares_the_same_words_in_long_and_short_windows(toy_text, tmp_path, monkeypatch):
    results = {arm: claims.extrapolation(smoke_run(arm, tmp_path / arm)) for arm in ("alibi", "learned")}
    for metrics in results.values():
        assert metrics["loss_increase"] == pytest.approx(metrics["loss_whole"] - metrics["loss_cut"])
    text = claims.wikitext(claims.PLANS["smoke"])
    long = torch.from_numpy(claims.windows(text.held_out, 120)[:5])
    assert not torch.isin(long, torch.tensor([text.tokenizer.cls, text.tokenizer.sep, 0])).any()
    seen = {}

    class Watch:
        def labelled(self, tokens, valid, labels):
            seen.setdefault(tokens.shape[1], []).append((tokens, labels))
            chosen = labels >= 0
            return torch.zeros(int(chosen.sum()), 1024), labels[chosen]

    for parts in (1, 4):
        assert claims.window_loss(Watch(), text.tokenizer, long, parts) == pytest.approx(np.log(1024), rel=1e-5)
    (whole, labels), (cut, cut_labels) = seen[122][0], seen[32][0]
    assert torch.equal(whole[:, 1:-1].reshape(20, 30), cut[:, 1:-1])
    assert torch.equal(labels[:, 1:-1].reshape(20, 30), cut_labels[:, 1:-1])
    assert (labels[:, 0] == -100).all()
    assert (cut[:, 0] == text.tokenizer.cls).all()
    assert (cut[:, -1] == text.tokenizer.sep).all()


def test_speed_claims_time_both_sides_on_the_same_batches_and_agree_on_the_states(toy_text, tmp_path):
    metrics = speed.unpadding(smoke_run("unpadded", tmp_path))
    assert metrics["difference"] < 1e-4
    assert metrics["inverse_fill"] > 1.1
    assert metrics["speedup"] > 0
    metrics = speed.against_transformers(smoke_run("mosaicbert_base", tmp_path))
    assert metrics["speedup"] > 0
    calls = []

    def side(name):
        layer = torch.nn.Linear(1, 1)
        return layer, lambda batch: (calls.append((name, batch)), layer.weight.sum())[1]

    seconds = speed.paired_seconds({"a": side("a"), "b": side("b")}, [0, 1, 2])
    assert calls == [("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert all(value > 0 for value in seconds.values())
    batches = [(None, torch.ones(2, 2).bool(), None), (None, torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool(), None)]
    assert speed.fill(batches) == 5 / 8


def test_the_tiny_sizes_have_about_as_many_parameters_as_their_baseline():
    matched = Pretraining("mosaicbert_tiny_matched").model
    baseline = Pretraining("bert_tiny").model
    counts = [sum(p.numel() for p in model.encoder.blocks.parameters()) for model in (matched, baseline)]
    assert counts[0] == pytest.approx(counts[1], rel=0.01)
    assert mosaicbert_tiny().config["mlp_dim"] == 384


def test_small_texts_come_with_the_project(tmp_path):
    data = Sentences(vocab_size=512, max_length=32, batch_size=8)
    data.setup()
    assert len(data.train) > 8 * len(data.valid) > 100
    assert isinstance(data.train, Documents)
