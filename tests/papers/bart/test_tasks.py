"""Question answering and translation with BART on tiny fixtures in their real form."""

import copy

import lightning as L
import numpy as np
import pytest
import torch

from common.errors import EncoreError
from common.formats.tokenizers import load_byte_bpe, train_byte_bpe
from papers.bart.generate import Decoding
from papers.bart.squad import SpanExtraction, SQuAD, answer_scores, collate, make_question
from papers.bart.translation import Parallel, Translation

CONTEXT = "The old river ran past a small house, where two dogs slept under the warm sun."
TINY = {"size": "tiny", "vocab_size": 300, "max_positions": 96, "warmup_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SQuAD 2.0 and WMT in the `datasets` library's layout, and a tokenizer."""
    import datasets

    root = tmp_path_factory.mktemp("tasks")
    train_byte_bpe([CONTEXT] * 30, 300).save(root / "tokenizer")
    asked = [
        ("What ran?", "old river"),
        ("Who slept?", "two dogs"),
        ("Who sang?", None),
        ("Where?", "under the warm sun"),
    ]
    rows = {
        "question": [question for question, _ in asked],
        "context": [CONTEXT] * 4,
        "answers": [
            {"text": [a] if a else [], "answer_start": [CONTEXT.index(a)] if a else []} for _, a in asked
        ],
    }  # fmt: skip
    whole = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"train": whole, "validation": whole}).save_to_disk(root / "squad")
    pairs = datasets.Dataset.from_dict({"translation": [{"ro": "raul curge", "en": "The old river ran."}] * 4})
    datasets.DatasetDict({"train": pairs, "validation": pairs}).save_to_disk(root / "wmt")
    return root


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_byte_bpe(folder / "tokenizer")


def quiet_trainer(steps) -> L.Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", max_steps=steps, num_sanity_val_steps=0, **off)


def answer(text):
    return {"text": [text], "answer_start": [CONTEXT.index(text)]}


@pytest.mark.parametrize("text", ["The", "old river", "small house", "sun."])
def test_answer_tokens_cover_the_answer_and_read_back_as_it(tokenizer, text):
    q = make_question(tokenizer, "Which one?", CONTEXT, answer(text), 96)
    assert text in q.text(q.start, q.end)
    assert len(q.text(q.start, q.end)) <= len(text) + 3  # at most the rest of a piece
    assert q.ids[q.first - 1] == q.ids[-1] == 2
    assert tokenizer.decode(q.ids[q.first : -1]) == " " + CONTEXT


def test_answers_behind_the_cut_are_left_out_and_unanswerable_questions_point_to_the_start(tokenizer):
    lengths = range(12, 96)
    made = [make_question(tokenizer, "Where?", CONTEXT, answer("warm sun"), length) for length in lengths]
    assert made[0] is None
    assert made[-1] is not None
    assert all(q is None or "warm sun" in q.text(q.start, q.end) for q in made)
    cut = make_question(tokenizer, "What?", CONTEXT, answer("old"), 24)
    assert len(cut.ids) == 24
    assert cut.ids[-1] == 2
    none = make_question(tokenizer, "Who sang?", CONTEXT, {"text": [], "answer_start": []}, 96)
    assert (none.start, none.end, none.text(0, 0)) == (0, 0, "")


def test_scores_follow_the_official_normalisation():
    assert answer_scores("The Old River!", ["old river"]) == (1.0, 1.0)
    assert answer_scores("old brown river", ["dogs", "the old river"]) == (0.0, pytest.approx(0.8))
    assert answer_scores("", []) == (1.0, 1.0)
    assert answer_scores("river", []) == (0.0, 0.0)


def test_the_best_span_is_read_from_the_context_only_and_nothing_where_the_start_scores_higher(folder):
    data = SQuAD(str(folder / "squad"), str(folder / "tokenizer"), batch_size=4, max_length=96)
    data.setup()
    assert (len(data.train), data.skipped, len(data.valid)) == (4, 0, 4)
    batch = collate(data.valid)
    module = SpanExtraction(**TINY, total_steps=1).eval()
    scores = torch.zeros(*batch.ids.shape, 2)
    rows = torch.arange(4)
    scores[rows, batch.start, 0] = scores[rows, batch.end, 1] = 5.0
    scores[[0, 1, 3], 0] = torch.tensor([50.0, -100.0])  # <s> may stand for "no answer", never for an answer's start
    scores[:, 1] = 99.0  # a question's token never is an answer
    module.model.forward = lambda _: scores
    assert module.answers(batch) == ["old river", "two dogs", "", "under the warm sun"]
    start, end = module.logits(batch)
    torch.testing.assert_close(
        module.loss(batch), -(start.log_softmax(1)[rows, batch.start] + end.log_softmax(1)[rows, batch.end]).mean() / 2
    )


def test_question_answering_trains_and_reports_exact_match_and_f1(folder):
    module = SpanExtraction(**TINY, total_steps=1)
    data = SQuAD(str(folder / "squad"), str(folder / "tokenizer"), batch_size=4, max_length=96)
    trainer = quiet_trainer(1)
    trainer.fit(module, data)
    with torch.no_grad():
        texts = module.eval().answers(collate(data.valid))
    scores = np.array([answer_scores(text, q.answers) for text, q in zip(texts, data.valid)])
    expected = (100 * scores.mean(0)).tolist()
    metrics = trainer.callback_metrics
    assert [metrics["val/exact_match"].item(), metrics["val/f1"].item()] == pytest.approx(expected, rel=1e-4)


def test_translation_trains_its_new_parts_first_then_everything_and_measures_bleu(folder):
    paths = [str(folder / "wmt"), str(folder / "tokenizer"), str(folder / "tokenizer")]
    data = Parallel(*paths, batch_size=2)
    data.setup()
    assert [data.tokenizer.decode(row) for row in data.train[0]] == ["raul curge", "The old river ran."]
    sizes = TINY | {"source_vocab_size": 300, "source_depth": 1, "total_steps": 4, "dropout": 0.0}
    module = Translation(**sizes, new_parts_steps=2, attention_dropout=0.0, decoding=Decoding(beam=2, max_length=8))
    before = copy.deepcopy(module.model.state_dict())
    quiet_trainer(2).fit(module, data)
    changed = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in changed if name.startswith("bart.")} == {
        "bart.encoder.positions.weight",
        "bart.decoder.positions.weight",
        "bart.encoder.blocks.layers.0.attn.qkv.weight",
        "bart.encoder.blocks.layers.0.attn.qkv.bias",
    }
    assert "source_tokens.weight" in changed
    trainer = quiet_trainer(1)
    module.new_parts_steps = 0
    trainer.fit(module, data)
    later = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert later > changed
    assert "bart.tokens.weight" in later
    (scores,) = trainer.test(module, data, verbose=False)
    assert 0 <= scores["test/bleu"] <= 100
    with pytest.raises(EncoreError, match="no language 'de'; it has en, ro"):
        Parallel(*paths, source="de").setup()
