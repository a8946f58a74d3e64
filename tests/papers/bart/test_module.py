"""BART's training modules: what each learns, writes and measures."""

import copy
import math

import pytest
import torch

from common.training.recipe import Optim
from papers.bart import fixtures
from papers.bart.data import Corpus
from papers.bart.generate import Decoding
from papers.bart.model import bart_tiny
from papers.bart.module import Answering, Denoising, Replies, SequenceClassification, Summarisation, Translation
from papers.bart.tasks import Dialogues, Parallel, SQuAD, Summaries
from tests import tiny

OPTIM = Optim(1e-3, schedule="linear", warmup=1, total=6)


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def bart(**options):
    torch.manual_seed(0)
    return bart_tiny(**fixtures.SIZES, **options)


def test_dropout_is_off_for_the_last_tenth_of_pretraining(tmp_path):
    paths = fixtures.corpus(tmp_path)
    data = Corpus(
        path=str(paths["data.init_args.path"]), tokenizer=str(paths["data.init_args.tokenizer"]), block_length=24,
        batch_size=4,
    )  # fmt: skip
    module = Denoising(bart(dropout=0.5), Optim(1e-3), dropout_off=0.34)
    seen = []
    module.model.encoder.register_forward_pre_hook(lambda *_: seen.append(module.model.encoder.dropout))
    tiny.quiet(3, limit_val_batches=0).fit(module, data)
    assert seen == [0.5, 0.5, 0.0]


def test_classification_is_by_the_head_and_regression_by_squared_error():
    module = SequenceClassification(bart(dropout=0.0), OPTIM, 3)
    ids = torch.tensor([[0, 7, 2], [0, 9, 2]])
    labels = torch.tensor([2, 0])
    expected = torch.nn.functional.cross_entropy(module.model(ids), labels)
    torch.testing.assert_close(module.loss((ids, labels)), expected)
    regression = SequenceClassification(bart(dropout=0.0), OPTIM, 1, ["pearson"]).eval()
    score = regression.model(ids[:1])[0, 0]
    torch.testing.assert_close(regression.loss((ids[:1], torch.tensor([2.5]))), (score - 2.5) ** 2)


def test_summaries_are_trained_on_with_smoothing_validated_without_written_and_scored(tmp_path):
    fixtures.FIXTURES["paper_xsum.yaml"](tmp_path)
    data = Summaries(path=str(tmp_path / "xsum"), name="xsum", tokenizer=str(tmp_path / "hub"), max_source=64)
    module = Summarisation(bart(), OPTIM, decoding=Decoding(beam=2, max_length=6))
    trainer = tiny.quiet(1, val_check_interval=1)
    trainer.fit(module, data)
    batch = next(iter(data.val_dataloader()))
    module.eval()
    torch.testing.assert_close(module.loss(batch), module.model.loss(*batch, label_smoothing=0.1))
    assert abs(module.loss(batch) - module.model.loss(*batch)) > 1e-4
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(module.model.loss(*batch).item(), rel=1e-5)
    (scores,) = trainer.test(module, data, verbose=False)
    assert {"test/rouge1", "test/rouge2", "test/rougeL"} <= scores.keys()
    assert all(0 <= value <= 100 for value in scores.values())


def test_question_answering_trains_and_reports_exact_match_and_f1(tmp_path):
    fixtures.FIXTURES["paper_squad.yaml"](tmp_path)
    data = SQuAD(str(tmp_path / "squad"), str(tmp_path / "hub"), batch_size=4, max_length=96)
    module = Answering(bart(), OPTIM)
    trainer = tiny.quiet(1, val_check_interval=1)
    trainer.fit(module, data)
    with torch.no_grad():
        texts = module.eval().answers(data.collate(data.valid))
    exact = [text == (q.answers or [""])[0] for text, q in zip(texts, data.valid)]
    assert trainer.callback_metrics["val/exact_match"].item() == pytest.approx(100 * sum(exact) / 4)
    assert trainer.callback_metrics["val/f1"] >= trainer.callback_metrics["val/exact_match"]


def test_replies_are_scored_by_the_f1_of_their_words_and_perplexity_over_words(tmp_path):
    fixtures.FIXTURES["paper_convai2.yaml"](tmp_path)
    data = Dialogues(str(tmp_path), str(tmp_path / "hub"), max_source=64, max_target=32)
    module = Replies(bart(), OPTIM, decoding=Decoding(max_length=6)).eval()
    (scores,) = tiny.quiet(1).test(module, data, verbose=False)
    nats = words = 0.0
    for source, target in data.test_dataloader():
        for s, t in zip(source, target):
            length = int((t != 1).sum())
            with torch.no_grad():
                nats += module.model.loss(s[None], t[None, :length]).item() * length
            words += len(data.tokenizer.decode(t).split()) + 1
    assert scores["test/perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert 0 <= scores["test/f1"] <= 100
    module.nats = 6.0
    found = module.measure(["the cat sat", "no"], ["a cat sat", "yes"])
    assert found == pytest.approx({"f1": 50.0, "perplexity": math.exp(6 / 6)})
    assert module.nats == 0.0


def test_translation_trains_its_new_parts_first_then_everything_and_measures_bleu(tmp_path):
    fixtures.FIXTURES["paper_roen.yaml"](tmp_path)
    folders = {"source_tokenizer": str(tmp_path / "hub"), "tokenizer": str(tmp_path / "hub")}
    data = Parallel(path=str(tmp_path / "wmt"), **folders, batch_size=2)
    how = Decoding(beam=2, max_length=8)
    module = Translation(bart(dropout=0.0), OPTIM, 300, 1, new_parts_steps=2, decoding=how)
    before = copy.deepcopy(module.model.state_dict())
    tiny.quiet(2).fit(module, data)
    changed = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in changed if name.startswith("bart.")} == {
        "bart.encoder.positions.weight",
        "bart.decoder.positions.weight",
        "bart.encoder.blocks.layers.0.attn.qkv.weight",
        "bart.encoder.blocks.layers.0.attn.qkv.bias",
    }
    assert "source_tokens.weight" in changed
    trainer = tiny.quiet(1)
    module.new_parts_steps = 0
    trainer.fit(module, data)
    later = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert later > changed
    assert "bart.tokens.weight" in later
    (scores,) = trainer.test(module, data, verbose=False)
    assert 0 <= scores["test/bleu"] <= 100
    assert module.measure(["a b c d e"], ["a b c d e"])["bleu"] == pytest.approx(100.0)
