"""BART's data on tiny fixtures in their real form, and its training modules on them."""

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml

from common.errors import EncoreError
from common.formats.tokenizers import load_byte_bpe, train_byte_bpe
from common.training.run import Run
from papers.bart.data import (
    GLUE,
    Blocks,
    Corpus,
    Denoised,
    Summaries,
    blocks,
    bundled_documents,
    collate_labelled,
    collate_pairs,
    named_documents,
    noise_vocabulary,
    split_documents,
    wikitext_documents,
    wrap,
    wrap_pairs,
)
from papers.bart.generate import Decoding
from papers.bart.module import Denoising, SequenceClassification, Summarisation
from papers.bart.noise import Noise
from tests.helpers import assert_resumes_exactly, requires_mirror

CONFIGS = Path(__file__).parents[3] / "papers" / "bart" / "configs"
WORDS = [
    "the",
    "old",
    "river",
    "ran",
    "past",
    "a",
    "small",
    "house",
    "where",
    "two",
    "dogs",
    "slept",
    "under",
    "the",
    "warm",
    "morning",
    "sun",
]
TINY = {"size": "tiny", "vocab_size": 300, "max_positions": 64, "total_steps": 6, "warmup_steps": 2}


def sentence(rng, length=8) -> str:
    return " ".join(rng.choice(WORDS, size=length)).capitalize() + "."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with a raw corpus, a tokenizer, a GLUE task and a summarisation set, each in its on-disk format."""
    import datasets

    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("bart")
    for split, count in (("train", 24), ("valid", 4)):
        (root / "corpus" / split).mkdir(parents=True)
        text = "\n\n".join("\n".join(sentence(rng) for _ in range(3)) for _ in range(count))
        (root / "corpus" / split / "part0.txt").write_text(text)
    train_byte_bpe([sentence(rng) for _ in range(50)], 300).save(root / "tokenizer")

    def pairs(count):
        return {
            "premise": [sentence(rng) for _ in range(count)],
            "hypothesis": [sentence(rng, 4) for _ in range(count)],
            "label": [i % 3 for i in range(count)],
        }

    splits = {
        "train": datasets.Dataset.from_dict(pairs(12)),
        "validation_matched": datasets.Dataset.from_dict(pairs(6)),
    }
    datasets.DatasetDict(splits).save_to_disk(root / "mnli")
    (root / "xsum").mkdir()
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        rows = [{"document": f"{sentence(rng)}\n{sentence(rng)}", "summary": sentence(rng, 4)} for _ in range(count)]
        rows[0]["summary"] = rows[0]["summary"] if split == "test" else ""
        (root / "xsum" / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_byte_bpe(folder / "tokenizer")


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def quiet_trainer(steps, **kwargs) -> L.Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", max_steps=steps, num_sanity_val_steps=0, **(off | kwargs))


def corpus(folder, **kwargs) -> Corpus:
    paths = {"path": str(folder / "corpus"), "tokenizer": str(folder / "tokenizer")}
    return Corpus(**(paths | {"block_length": 24, "batch_size": 4} | kwargs))


def test_documents_end_at_blank_lines_and_wikitext_articles_at_titles():
    assert list(split_documents("a\nb\n\n  \nc\n")) == [["a", "b"], ["c"]]
    text = " \n = One = \n \n first . \n = = Part = = \n more . \n \n = Two = \n second . \n"
    assert [d[0] for d in wikitext_documents(text)] == ["= One =", "= Two ="]
    assert len(bundled_documents()) > 50


def test_blocks_hold_whole_sentences_and_lose_no_token():
    stop = np.zeros(100, dtype=bool)
    stop[13] = True
    ids = np.array([20, 21, 13, 30, 13, 40, 41, 42, 43, 44, 45, 46, 13, 50])
    made = [list(b) for b in blocks(ids, stop, 8)]
    assert made == [[0, 20, 21, 13, 30, 13, 2], [0, 40, 41, 42, 43, 44, 45, 2], [0, 46, 13, 50, 2]]
    assert next(list(b) for b in blocks(ids[1:], stop, 6)) == [0, 21, 13, 30, 13, 2]  # two fit exactly


def test_full_stops_are_found_attached_or_not_so_that_sentences_can_be_permuted(tokenizer):
    vocabulary = noise_vocabulary(tokenizer)
    assert vocabulary.mask == len(tokenizer) - 1
    assert vocabulary.full_stop[tokenizer.encode(".")].all()
    detached = train_byte_bpe(["one . two . three . four ."] * 20, 300)
    assert noise_vocabulary(detached).full_stop[detached.encode(" .")].all()
    ids = np.array([0, *tokenizer.encode("The dogs slept. The sun ran. A house."), 2])
    orders = {tuple(Noise(spans="none", seed=s)(ids, vocabulary, epoch=0, index=0)) for s in range(20)}
    assert len(orders) == 6


def test_a_text_is_wrapped_as_the_released_encoder_wraps_it(tmp_path):
    """ "Hello world!" -> [0, 31414, 232, 328, 2], with a GPT-2 vocabulary that holds just these pieces."""
    chars = {c: 4 + i for i, c in enumerate(["H", "e", "l", "o", "Ġ", "w", "r", "d"])}
    merges = ["H e", "l l", "He ll", "Hell o", "Ġ w", "Ġw o", "r l", "rl d", "Ġwo rld"]
    pieces = {m.replace(" ", ""): 100 + i for i, m in enumerate(merges)}
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 50264}
    vocabulary = specials | chars | pieces | {"Hello": 31414, "Ġworld": 232, "!": 328}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    published = load_byte_bpe(tmp_path)
    assert wrap(published, ["Hello world!"], 512)[0].tolist() == [0, 31414, 232, 328, 2]
    assert wrap(published, ["Hello world!"], 4)[0].tolist() == [0, 31414, 232, 2]
    assert wrap_pairs(published, ["Hello"], ["world!"], 512)[0].tolist() == [0, 31414, 2, 232, 328, 2]
    assert wrap_pairs(published, ["Hello world!"], ["world"], 6)[0].tolist() == [0, 31414, 232, 2, 232, 2]


def test_noise_changes_between_passes_and_is_the_same_for_the_same_generator_state(tokenizer):
    data = Blocks.of([[" ".join(WORDS * 2)]], tokenizer, 64)
    training = Denoised(data, noise_vocabulary(tokenizer), Noise())
    torch.manual_seed(3)
    first, second = training[0], training[0]
    torch.manual_seed(3)
    again = training[0]
    assert first[0].tolist() == again[0].tolist() != second[0].tolist()
    assert first[1].tolist() == second[1].tolist() == data[0].tolist()
    fixed = Denoised(data, noise_vocabulary(tokenizer), Noise(), epoch=0)
    assert fixed[0][0].tolist() == fixed[0][0].tolist()
    source, target = collate_pairs(
        [(np.array([0, 2]), np.array([0, 5, 2])), (np.array([0, 6, 7, 2]), np.array([0, 2]))]
    )
    assert source.tolist() == [[0, 2, 1, 1], [0, 6, 7, 2]]
    assert target.tolist() == [[0, 5, 2], [0, 2, 1]]


def test_a_corpus_is_encoded_once_into_its_cache_and_read_back_equal(folder, tmp_path, monkeypatch):
    plain = corpus(folder)
    plain.setup()
    cached = corpus(folder, cache=str(tmp_path / "cache"))
    cached.prepare_data()
    monkeypatch.setattr("papers.bart.data.encode_blocks", None)  # a second encoding would fail
    cached.setup()
    assert len(cached.train) == len(plain.train) > 20
    for i in range(len(plain.train)):
        np.testing.assert_array_equal(cached.train[i], plain.train[i])
    with pytest.raises(EncoreError, match=r"nowhere/train: no \.txt"):
        Corpus(path="/nowhere").setup()


def test_denoising_resumes_bit_for_bit(folder, tmp_path):
    assert_resumes_exactly(lambda: Denoising(**TINY), lambda: corpus(folder), tmp_path)


def test_dropout_is_off_for_the_last_tenth_of_pretraining(folder, tmp_path):
    module = Denoising(**(TINY | {"total_steps": 3}), dropout_off=0.34, dropout=0.5)
    seen = []
    module.model.encoder.register_forward_pre_hook(lambda *_: seen.append(module.model.encoder.dropout))
    quiet_trainer(3, limit_val_batches=0).fit(module, corpus(folder))
    assert seen == [0.5, 0.5, 0.0]


def test_glue_reads_a_saved_dataset_and_classifies_it(folder, tmp_path):
    data = GLUE(str(folder / "mnli"), "mnli", str(folder / "tokenizer"), batch_size=4)
    data.setup()
    row, label = data.train[1]
    assert (row[0], row[-1], (row == 2).sum(), label) == (0, 2, 2, 1)
    module = SequenceClassification(**TINY, num_classes=3)
    trainer = quiet_trainer(3)
    trainer.fit(module, data)
    metrics = trainer.callback_metrics
    module.eval()
    hits = [module.model(ids).argmax(-1).eq(labels) for ids, labels in data.val_dataloader()]
    assert metrics["val/accuracy"].item() == pytest.approx(torch.cat(hits).float().mean().item())
    ids, values = collate_labelled([(np.array([0, 2]), 2.5)], regression=True)
    regression = SequenceClassification(**TINY, num_classes=1, metric="pearson").eval()
    score = regression.model(ids)[0, 0]
    torch.testing.assert_close(regression.loss(regression.model(ids), values), (score - 2.5) ** 2)
    with pytest.raises(EncoreError, match="no column 'question'; it has premise"):
        GLUE(str(folder / "mnli"), "qnli", str(folder / "tokenizer")).setup()


def test_summaries_are_read_trained_on_written_and_scored(folder, tmp_path):
    data = Summaries(str(folder / "xsum"), "xsum", str(folder / "tokenizer"), batch_size=2, max_source=20)
    data.setup()
    assert len(data.train) == 7  # the empty summary is left out
    source, target = data.train[0]
    assert len(source) == 20
    assert source[-1] == target[-1] == 2
    assert "\n" not in data.train.sources[0]
    module = Summarisation(**TINY, decoding=Decoding(beam=2, max_length=6))
    trainer = quiet_trainer(1)
    trainer.fit(module, data)
    batch = next(iter(data.val_dataloader()))
    module.eval().log = lambda *_, **__: None
    torch.testing.assert_close(module.training_step(batch, 0), module.model.loss(*batch, label_smoothing=0.1))
    assert abs(module.training_step(batch, 0) - module.model.loss(*batch)) > 1e-4
    del module.log
    (scores,) = trainer.test(module, data, verbose=False)
    assert {"test/rouge1", "test/rouge2", "test/rougeL"} <= scores.keys()
    assert all(0 <= value <= 100 for value in scores.values())
    with pytest.raises(EncoreError, match="no data set"):
        Summaries(str(tmp_path), "xsum", str(folder / "tokenizer")).setup()


def run_config(name, overrides, tmp_path):
    from common.training.cli import run

    arguments = ["fit", "--config", str(CONFIGS / name), "--trainer.default_root_dir", str(tmp_path)]
    return run([*arguments, *(f"--{key}={value}" for key, value in overrides.items())]).trainer


def test_smoke_config_lowers_the_loss(tmp_path):
    run_config("smoke.yaml", {}, tmp_path)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("train/loss")
    losses = [float(row[column]) for row in rows[1:] if row[column]]
    assert len(losses) >= 20
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 1.0


@pytest.mark.parametrize("name", ["paper_base.yaml", "paper_large.yaml"])
def test_pretraining_recipe_takes_a_step_on_a_tiny_corpus(name, folder, tmp_path):
    overrides = {
        "model.init_args.size": "tiny", "model.init_args.vocab_size": 300, "trainer.max_steps": 1,
        "trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.num_nodes": 1, "trainer.precision": "bf16-mixed",
        "trainer.strategy": "auto", "trainer.accumulate_grad_batches": 1, "trainer.limit_val_batches": 1,
        "data.init_args.path": folder / "corpus", "data.init_args.tokenizer": folder / "tokenizer",
        "data.init_args.cache": tmp_path / "cache", "data.init_args.batch_size": 4, "data.init_args.num_workers": 0,
    }  # fmt: skip
    assert run_config(name, overrides, tmp_path).global_step == 1


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_opens_with_what_it_is_and_the_command_and_names_real_arguments(file):
    import importlib
    import inspect

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
def toy_claims(monkeypatch, tmp_path):
    """The claims at smoke scale on generated text instead of WikiText-2 and SST-2."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from papers.bart import claims

    rng = np.random.default_rng(1)
    documents = [[sentence(rng, 12) for _ in range(6)] for _ in range(80)]
    files = {}
    for split in ("train", "test"):
        table = {"text": [sentence(rng) for _ in range(40)], "label": [i % 2 for i in range(40)]}
        files[f"sst2-{split}.parquet"] = tmp_path / f"{split}.parquet"
        pq.write_table(pa.table(table), files[f"sst2-{split}.parquet"])
    monkeypatch.setattr(claims, "named_documents", lambda _: (documents[:40], documents[40:]))
    monkeypatch.setattr(claims.sources, "locate", lambda _: files)
    claims.wikitext.cache_clear()
    yield claims
    claims.wikitext.cache_clear()


def smoke_run(arm, folder) -> Run:
    return Run("bart", "claim", arm, 0, "smoke", folder)


def test_every_arm_of_the_noise_claim_gives_both_metrics_and_starts_from_its_pretraining(
    toy_claims, tmp_path, monkeypatch
):
    original, loaded = toy_claims._start_from, []
    monkeypatch.setattr(toy_claims, "_start_from", lambda model, start: (loaded.append(start), original(model, start)))
    results = {arm: toy_claims.noise_function_decides(smoke_run(arm, tmp_path / arm)) for arm in ("rotation", "none")}
    for metrics in results.values():
        assert metrics["continuation_perplexity"] > 1
        assert 0 <= metrics["sst2_accuracy"] <= 100
    assert results["rotation"]["continuation_perplexity"] != results["none"]["continuation_perplexity"]
    assert loaded[0] is loaded[1] is not None
    assert loaded[2:] == [None, None]
    again = toy_claims.noise_function_decides(smoke_run("rotation", tmp_path / "rotation"))  # every stage is done
    assert again == results["rotation"]


def test_spans_are_cut_in_words_and_a_perfect_filler_has_no_error(toy_claims, monkeypatch):
    text = toy_claims.wikitext(toy_claims.RECIPES["smoke"])
    cuts = toy_claims.cut_spans(text, 4, range(6))
    assert [cut.words for cut in cuts] == [0, 1, 2, 3, 4, 5] * 4
    words = text.vocabulary.word_start
    for cut in cuts:
        assert (cut.source == text.vocabulary.mask).sum() == 1
        assert words[cut.target].sum() - words[cut.source].sum() == cut.words
        at = int(np.flatnonzero(cut.source == text.vocabulary.mask)[0])
        removed = len(cut.target) - len(cut.source) + 1
        assert [*cut.source[:at], *cut.target[at : at + removed], *cut.source[at + 1 :]] == list(cut.target)
        assert words[cut.source[:at]].sum() >= 3 <= words[cut.source[at + 1 :]].sum()

    bart = toy_claims.BART(vocab_size=600, dim=8, depth=1, num_heads=2, mlp_dim=8, max_positions=64)
    answers = iter(
        [collate_pairs([(c.source, c.target) for c in cuts])[1], collate_pairs([(c.target, c.source) for c in cuts])[1]]
    )
    monkeypatch.setattr(toy_claims, "generate", lambda *_: (next(answers), None))
    assert toy_claims.fill_spans(bart, cuts, text.vocabulary) == pytest.approx(
        {"length_error": 0.0, "length_slope": 1.0, "span_exact_match": 100.0}
    )
    dropped = toy_claims.fill_spans(bart, cuts, text.vocabulary)  # writes nothing for the mask (which starts no word)
    assert dropped == pytest.approx({"length_error": 2.5, "length_slope": 0.0, "span_exact_match": 0.0})


def test_halves_join_to_the_block_they_were_cut_from(toy_claims):
    first, second = toy_claims.halves(np.array([0, 10, 11, 12, 13, 14, 2]))
    assert first.tolist() == [0, 10, 11, 2]
    assert second.tolist() == [0, 12, 13, 14, 2]


@requires_mirror("wikitext2")
def test_wikitext_articles_have_full_stops_that_stand_alone_and_still_end_sentences():
    train, held_out = named_documents("wikitext2")
    assert len(train) > 50 < len(held_out)
    tokenizer = train_byte_bpe([" ".join(train[0])], 400)
    vocabulary = noise_vocabulary(tokenizer)
    ids = np.array([0, *tokenizer.encode(" ".join(train[0])), 2])
    assert vocabulary.full_stop[ids].sum() > 20
    noised = Noise(spans="none")(ids, vocabulary, epoch=0, index=0)
    assert (noised != ids).mean() > 0.5
