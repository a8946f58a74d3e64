"""BARTScore against the official loop on transformers at equal weights, and what its perspectives promise."""

import hashlib
import math

import numpy as np
import pytest
import torch

from common.errors import EncoreError
from common.formats.tokenizers import train_byte_bpe
from papers.bart.data import pad, wrap
from papers.bart.model import BART, EOS, PAD, BARTClassifier, shift_right
from papers.bartscore import facts, interop, prompts
from papers.bartscore.judged import SETS, Judged
from papers.bartscore.model import BARTScorer, bartscore_tiny
from papers.bartscore.scorer import (
    TextScorer,
    aggregated,
    averaged,
    faithfulness,
    judge,
    multi_reference,
    perspectives,
    prompted,
)

TEXTS = [
    "This is fun.",
    "The old river ran past a small house, where two dogs slept under the warm sun.",
    "Dogs sleep.",
    "",
    "Two dogs slept near the house by the river.",
    "I feel good today.",
]
PAIRS = [(0, 2), (1, 4), (4, 1), (2, 3), (3, 0), (5, 1), (0, 2)]
SOURCES, TARGETS = ([TEXTS[pair[side]] for pair in PAIRS] for side in (0, 1))


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_bpe(TEXTS * 3, 300)


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tokenizer):
    """A small random BART as transformers saves it, and the directory."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=300, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, init_std=0.2,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model, folder


@torch.no_grad()
def official(model, tokenizer, sources, targets, batch_size=4, max_length=64):
    """The official scoring loop: negative log-likelihoods of the labels, summed and divided by the attention mask."""
    scores = []
    for i in range(0, len(sources), batch_size):
        x, y = (pad(wrap(tokenizer, texts[i : i + batch_size], max_length)) for texts in (sources, targets))
        logits = model(input_ids=x, attention_mask=x.ne(PAD).long(), labels=y).logits
        loss = torch.nn.NLLLoss(reduction="none", ignore_index=PAD)(logits.flatten(0, 1).log_softmax(1), y.flatten())
        scores += (-loss.view(y.shape).sum(1) / y.ne(PAD).sum(1)).tolist()
    return scores


@pytest.fixture(scope="module")
def scorer(hub, tokenizer):
    return TextScorer(interop.load(hub[1]), tokenizer, max_length=64)


def test_scores_equal_the_official_loop_in_padded_batches_and_one_by_one(hub, tokenizer, scorer):
    ours = scorer(SOURCES, TARGETS)
    np.testing.assert_allclose(ours, official(hub[0], tokenizer, SOURCES, TARGETS), atol=1e-5)
    np.testing.assert_allclose(ours, official(hub[0], tokenizer, SOURCES, TARGETS, batch_size=1), atol=1e-5)
    assert (ours < 0).all()
    short = TextScorer(scorer.model, tokenizer, max_length=9)
    np.testing.assert_allclose(
        short(SOURCES, TARGETS), official(hub[0], tokenizer, SOURCES, TARGETS, max_length=9), atol=1e-5
    )
    assert not np.allclose(short(SOURCES, TARGETS), ours)


def test_several_references_equal_the_official_mean_and_maximum(hub, tokenizer, scorer):
    sources, targets = TEXTS[:3], [TEXTS[1:4], TEXTS[2:5], TEXTS[3:6]]
    matrix = [official(hub[0], tokenizer, sources, [several[i] for several in targets]) for i in range(3)]
    np.testing.assert_allclose(multi_reference(scorer, sources, targets, "mean"), np.mean(matrix, 0), atol=1e-5)
    np.testing.assert_allclose(multi_reference(scorer, sources, targets, "max"), np.max(matrix, 0), atol=1e-5)
    uneven = multi_reference(scorer, sources, [TEXTS[:1], TEXTS[:3], TEXTS[2:4]], "max")
    assert uneven[0] == pytest.approx(scorer(sources[:1], TEXTS[:1])[0], abs=1e-5)


@torch.no_grad()
def test_score_is_minus_the_cross_entropy_of_one_unpadded_example(hub, tokenizer, scorer):
    x, y = (pad(wrap(tokenizer, [text], 64)) for text in (TEXTS[1], TEXTS[4]))
    assert scorer([TEXTS[1]], [TEXTS[4]])[0] == pytest.approx(-hub[0](input_ids=x, labels=y).loss.item(), abs=1e-5)


@torch.no_grad()
def test_the_start_token_and_the_end_token_are_scored_and_counted(scorer, tokenizer):
    x, y = (pad(wrap(tokenizer, [text], 64)) for text in (TEXTS[1], TEXTS[0]))
    bart = scorer.model.bart
    decoder_input = shift_right(y)
    assert decoder_input[0, :2].tolist() == [EOS, 0]
    logp = bart.logits(bart(x, decoder_input)).log_softmax(-1)[0, torch.arange(y.shape[1]), y[0]]
    torch.testing.assert_close(scorer.model.log_probabilities(x, y)[0], logp)
    assert scorer([TEXTS[1]], [TEXTS[0]])[0] == pytest.approx((logp.sum() / y.shape[1]).item(), abs=1e-5)
    assert abs(logp[0]) > 1e-3


def test_a_uniform_model_gives_minus_the_logarithm_of_the_vocabulary_to_every_text(tokenizer):
    model = bartscore_tiny(300)
    torch.nn.init.zeros_(model.bart.tokens.weight)
    scores = TextScorer(model, tokenizer, 64)(SOURCES, TARGETS)
    np.testing.assert_allclose(scores, -math.log(300), rtol=1e-6)
    assert facts.uniform_score(600) == pytest.approx(-math.log(600), rel=1e-6)


@torch.no_grad()
def test_padding_batch_order_and_batch_size_do_not_change_a_score(scorer, tokenizer):
    ours = scorer(SOURCES, TARGETS)
    np.testing.assert_allclose(scorer(SOURCES[::-1], TARGETS[::-1]), ours[::-1], atol=1e-6)
    one_by_one = TextScorer(scorer.model, tokenizer, 64, batch_size=1)
    np.testing.assert_allclose(one_by_one(SOURCES, TARGETS), ours, atol=1e-5)
    x, y = (pad(wrap(tokenizer, texts, 64)) for texts in (SOURCES, TARGETS))
    wide = scorer.model(*(torch.nn.functional.pad(ids, (0, 6), value=PAD) for ids in (x, y)))
    np.testing.assert_allclose(wide.numpy(), ours, atol=1e-5)


def test_scoring_is_done_in_evaluation_mode_and_gives_the_mode_back(tokenizer):
    torch.manual_seed(0)
    model = bartscore_tiny(300, dropout=0.5).train()
    score = TextScorer(model, tokenizer, 64)
    first = score(SOURCES, TARGETS)
    assert model.training
    np.testing.assert_array_equal(first, score(SOURCES, TARGETS))
    np.testing.assert_array_equal(first, TextScorer(model.eval(), tokenizer, 64)(SOURCES, TARGETS))


# ------------------------------------------------------------------------------------------------------- perspectives


def length_ratio(sources, targets):
    """A score that knows its direction: minus words of the target over words of the source."""
    return np.array([-len(y.split()) / len(x.split()) for x, y in zip(sources, targets)])


EXAMPLE = Judged("0", "s", "a b c d e f g h", ("a b", "a b c d e"), "a b c d")


def test_precision_reads_the_reference_and_recall_the_hypothesis():
    found = perspectives(length_ratio, [EXAMPLE], "mean")
    assert found["precision"][0] == pytest.approx((-4 / 2 - 4 / 5) / 2)
    assert found["recall"][0] == pytest.approx((-2 / 4 - 5 / 4) / 2)
    assert faithfulness(length_ratio, [EXAMPLE])[0] == pytest.approx(-4 / 8)


def test_f_is_the_plain_mean_and_harm_has_no_factor_two():
    found = perspectives(length_ratio, [EXAMPLE, EXAMPLE], "mean")
    p, r = found["precision"], found["recall"]
    np.testing.assert_allclose(found["f"], (p + r) / 2)
    np.testing.assert_allclose(found["harm"], p * r / (p + r))
    assert found["harm"][0] < 0


def test_the_maximum_is_taken_of_each_quantity_by_itself_and_the_mean_before_f():
    found = perspectives(length_ratio, [EXAMPLE], "max")
    p, r = np.array([-4 / 2, -4 / 5]), np.array([-2 / 4, -5 / 4])
    expected = {"precision": p.max(), "recall": r.max(), "f": ((p + r) / 2).max(), "harm": (p * r / (p + r)).max()}
    assert {name: values[0] for name, values in found.items()} == pytest.approx(expected)
    assert found["f"][0] < (found["precision"][0] + found["recall"][0]) / 2  # the best P and R are of two references
    mean = perspectives(length_ratio, [EXAMPLE], "mean")
    assert mean["harm"][0] == pytest.approx(p.mean() * r.mean() / (p.mean() + r.mean()))
    assert mean["harm"][0] != pytest.approx((p * r / (p + r)).mean())


def test_aggregation_keeps_the_owners_apart():
    values, owner = np.array([-1.0, -3.0, -5.0, -2.0]), np.array([0, 0, 1, 2])
    assert aggregated(values, owner, "mean").tolist() == [-2, -5, -2]
    assert aggregated(values, owner, "max").tolist() == [-1, -5, -2]


# ------------------------------------------------------------------------------------------------------------ prompts


def test_the_prompt_sets_are_the_released_ones():
    assert len(set(prompts.SOURCE_PROMPTS)) == 70
    assert len(set(prompts.REFERENCE_PROMPTS)) == 34
    assert set(prompts.TRANSLATION_PROMPTS) < set(prompts.REFERENCE_PROMPTS)
    for phrases, digest in (
        (prompts.SOURCE_PROMPTS, "584fa0d3f0659044"),
        (prompts.REFERENCE_PROMPTS, "ede02fb58bc2ce7e"),
    ):
        assert hashlib.sha256("\n".join(phrases).encode()).hexdigest()[:16] == digest


def test_a_prompt_goes_behind_the_source_or_before_the_target():
    seen = []

    def score(sources, targets):
        seen.append((sources, targets))
        return np.zeros(len(sources))

    prompted(score, "In short", "encoder")(["x."], ["y."])
    prompted(score, "In short", "decoder")(["x."], ["y."])
    assert seen == [(["x. In short,"], ["y."]), (["x."], ["In short, y."])]


def test_tokens_of_a_decoder_prompt_are_scored_and_counted(scorer):
    plain, prompt = scorer([TEXTS[1]], ["In short, Dogs sleep."])[0], prompted(scorer, "In short", "decoder")
    assert prompt([TEXTS[1]], ["Dogs sleep."])[0] == plain


def test_prompted_quantities_are_plain_averages_over_the_set_of_their_direction():
    calls = []

    def score(sources, targets):
        calls.append((sources[0], targets[0]))
        return length_ratio(sources, targets)

    example = Judged("0", "s", "the source", ("r",), "h")
    found = judge(score, [example], SETS["realsumm"], "encoder")
    ours = [length_ratio([f"the source {p},"], ["h"]) for p in prompts.SOURCE_PROMPTS]
    assert found["faithfulness"] == pytest.approx(np.mean(ours))
    precision = [length_ratio([f"r {p},"], ["h"]) for p in prompts.REFERENCE_PROMPTS]
    recall = [length_ratio([f"h {p},"], ["r"]) for p in prompts.REFERENCE_PROMPTS]
    assert found["precision"] == pytest.approx(np.mean(precision))
    assert found["harm"] == pytest.approx(np.mean([p * r / (p + r) for p, r in zip(precision, recall)]))
    assert len(calls) == 70 + 2 * 34
    assert all(not target.endswith(",") for _, target in calls)
    calls.clear()
    assert "faithfulness" not in judge(score, [example], SETS["kk_en"], "decoder")
    assert calls == [("r", "Such as, h"), ("h", "Such as, r")]
    assert averaged([{"f": np.array([1.0])}, {"f": np.array([4.0])}])["f"] == 2.5


# ---------------------------------------------------------------------------------------------- sizes, weights, errors


@pytest.mark.parametrize("layout", ["released", "training script", "checkpoint"])
def test_tuned_weights_load_over_a_checkpoint_in_every_form_they_come_in(hub, tokenizer, tmp_path, layout):
    """bart.pth has transformers' names, the training script puts `model.` before each, ours are of a module."""
    theirs, folder = hub
    tuned = {name: value + 0.05 * torch.randn_like(value) for name, value in theirs.state_dict().items()}
    tuned |= dict.fromkeys(("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
                           tuned["model.shared.weight"])  # fmt: skip
    tuned["final_logits_bias"] = torch.zeros(1, 300)
    if layout == "checkpoint":
        torch.save(tuned, tmp_path / "bart.pth")
        made = interop.load(folder, tmp_path / "bart.pth")
        state = {f"scorer.{name}": value for name, value in made.state_dict().items()}
        torch.save({"state_dict": state, "global_step": 3}, tmp_path / "bart.pth")
    else:
        before = "model." if layout == "training script" else ""
        torch.save({before + name: value for name, value in tuned.items()}, tmp_path / "bart.pth")
    ours = interop.load(folder, tmp_path / "bart.pth")
    assert not ours.training
    theirs = type(theirs)(theirs.config).eval()
    theirs.load_state_dict(tuned)
    score = TextScorer(ours, tokenizer, 64)(SOURCES, TARGETS)
    np.testing.assert_allclose(score, official(theirs, tokenizer, SOURCES, TARGETS), atol=1e-5)


def test_a_scorer_written_here_opens_in_transformers_and_scores_the_same(hub, tokenizer, tmp_path):
    import transformers

    torch.manual_seed(1)
    ours = bartscore_tiny(300)
    torch.save({"state_dict": {f"scorer.{k}": v for k, v in ours.state_dict().items()}}, tmp_path / "last.ckpt")
    interop.save(bartscore_tiny(300), tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    interop.export(tmp_path / "last.ckpt", tmp_path / "base", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    theirs = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    score = TextScorer(ours, tokenizer, 64)(SOURCES, TARGETS)
    np.testing.assert_allclose(score, official(theirs, tokenizer, SOURCES, TARGETS), atol=1e-5)


def test_bad_input_is_refused_with_the_reason(hub, scorer, tmp_path):
    cases = {
        "2 sources for 1 targets": (["a", "b"], ["c"]),
        "0 sources for 0 targets": ([], []),
        "two lists of texts": ("abc", "abc"),
        "target 1 is None, not a text": (["a", "b"], ["c", None]),
    }
    for message, (sources, targets) in cases.items():
        with pytest.raises(EncoreError, match=message):
            scorer(sources, targets)
    with pytest.raises(EncoreError, match="text 1 has no list of references"):
        multi_reference(scorer, ["a", "b"], [["c"], []], "max")
    with pytest.raises(EncoreError, match="no token at all"):
        scorer.model(torch.tensor([[0, 5, 2]]), torch.tensor([[PAD, PAD]]))
    small = BART(vocab_size=300, dim=32, depth=1, num_heads=2, mlp_dim=32, max_positions=64)
    from papers.bart import interop as bart

    bart.save(BARTClassifier(small, 3), tmp_path / "head")
    with pytest.raises(EncoreError, match="a head that classifies"):
        interop.load(tmp_path / "head")
    torch.save(BARTScorer(small).bart.state_dict(), tmp_path / "other.pth")
    with pytest.raises(EncoreError, match=r"other\.pth.*not a BART checkpoint"):
        interop.load(hub[1], tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:2000])
    with pytest.raises(EncoreError, match=r"cut\.pth: not a readable checkpoint"):
        interop.load(hub[1], tmp_path / "cut.pth")
    interop.save(bartscore_tiny(300), tmp_path / "tiny")
    with pytest.raises(EncoreError, match=r"\(300, 96\), the model wants \(301, 96\)"):
        interop.load_into(bartscore_tiny(301), tmp_path / "tiny")
