"""BART against the transformers classes at equal weights, and what its pieces promise."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from common.errors import EncoreError
from papers.bart import interop
from papers.bart.generate import CNN_DM, Decoding, generate
from papers.bart.model import (
    BART,
    EOS,
    PAD,
    BARTClassifier,
    BARTTokenClassifier,
    BARTTranslator,
    last_eos,
    set_dropout,
    shift_right,
)

SIZE = {"vocab_size": 60, "dim": 32, "depth": 2, "num_heads": 4, "mlp_dim": 48, "max_positions": 40}


def small(**kwargs) -> BART:
    torch.manual_seed(0)
    return BART(**(SIZE | {"dropout": 0.0, "init_std": 0.2} | kwargs)).eval()


def shaken(model):
    """Random values also where initialisation puts zeros and ones, so that no weight can be left out unseen."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def hub():
    """(name, architecture, transformers model, directory) for the three classes at a small random configuration."""
    import transformers

    def build(name, folder, **kwargs):
        torch.manual_seed(0)
        config = transformers.BartConfig(
            vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=40,
            dropout=0.0, init_std=0.2, forced_eos_token_id=None, **kwargs,
        )  # fmt: skip
        model = shaken(getattr(transformers, name)(config))
        model.save_pretrained(folder)
        return model, folder

    return build


@pytest.fixture(scope="module")
def generator(hub, tmp_path_factory):
    theirs, folder = hub("BartForConditionalGeneration", tmp_path_factory.mktemp("generation"))
    words = theirs.model.shared.weight.data
    words[EOS] = 1.1 * words[28] + 0.3 * words[EOS]  # makes </s> likely, so that texts end at all kinds of lengths
    theirs.save_pretrained(folder)
    return theirs, interop.load(folder), folder


@pytest.fixture(scope="module")
def batch():
    """Source with padding and two </s> in every row; target."""
    torch.manual_seed(1)
    source = torch.randint(4, 60, (3, 9))
    source[:, 0], source[:, 3] = 0, EOS
    source[0, 6], source[0, 7:] = EOS, PAD
    source[1:, -1] = EOS
    target = torch.randint(4, 60, (3, 7))
    target[:, 0], target[:, -1] = 0, EOS
    return source, target


@torch.no_grad()
def test_logits_equal_the_transformers_class_with_padded_sources(generator, batch):
    theirs, ours, _ = generator
    source, target = batch
    inputs = shift_right(target)
    expected = theirs(input_ids=source, attention_mask=source.ne(PAD).long(), decoder_input_ids=inputs)
    hidden = ours(source, inputs)
    torch.testing.assert_close(ours.logits(hidden), expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.encode(source)[1:], expected.encoder_last_hidden_state[1:], rtol=1e-5, atol=1e-5)
    shifted = theirs.model(input_ids=source, attention_mask=source.ne(PAD).long()).last_hidden_state
    read = shift_right(source).ne(PAD)
    torch.testing.assert_close(ours(source)[read], shifted[read], rtol=1e-5, atol=1e-5)
    assert not ours(source)[~read].any(), "padding is not computed"


@torch.no_grad()
def test_classification_equals_transformers_and_reads_the_last_separator_of_the_decoder(hub, batch, tmp_path):
    theirs, folder = hub("BartForSequenceClassification", tmp_path, num_labels=5)
    ours = interop.load(folder)
    assert isinstance(ours, BARTClassifier)
    source, _ = batch
    expected = theirs(input_ids=source, attention_mask=source.ne(PAD).long()).logits
    torch.testing.assert_close(ours(source), expected, rtol=1e-5, atol=1e-5)
    assert last_eos(source).tolist() == [6, 8, 8]
    with pytest.raises(EncoreError, match="no </s>"):
        last_eos(torch.tensor([[0, 5, 2], [0, 5, 6]]))


@torch.no_grad()
def test_token_classification_equals_the_question_answering_class(hub, batch, tmp_path):
    theirs, folder = hub("BartForQuestionAnswering", tmp_path)
    ours = interop.load(folder)
    assert isinstance(ours, BARTTokenClassifier)
    source, _ = batch
    expected = theirs(input_ids=source, attention_mask=source.ne(PAD).long())
    start, end = ours(source).unbind(-1)
    real = source.ne(PAD)
    torch.testing.assert_close(start[real], expected.start_logits[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end[real], expected.end_logits[real], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_saved_weights_open_in_transformers_and_give_the_same_numbers(batch, tmp_path):
    import transformers

    source, target = batch
    kwargs = {"input_ids": source, "attention_mask": source.ne(PAD).long()}
    ours = shaken(small())
    models = {
        "BartForConditionalGeneration": (ours, lambda: ours.logits(ours(source, shift_right(target)))),
        "BartForSequenceClassification": (head := shaken(BARTClassifier(ours, 4)), lambda: head(source)),
        "BartForQuestionAnswering": (spans := shaken(BARTTokenClassifier(ours, 2)), lambda: spans(source)[..., 0]),
    }
    for name, (model, run) in models.items():
        interop.save(model, tmp_path / name)
        theirs, info = getattr(transformers, name).from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values()), info
        extra = {"decoder_input_ids": shift_right(target)} if name == "BartForConditionalGeneration" else {}
        result = theirs.eval()(**kwargs, **extra)
        result = result.start_logits if name == "BartForQuestionAnswering" else result.logits
        read = source.ne(PAD) if name == "BartForQuestionAnswering" else ...
        torch.testing.assert_close(run()[read], result[read], rtol=1e-5, atol=1e-5)
        again = interop.load(tmp_path / name)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


@torch.no_grad()
def test_cached_decoding_equals_uncached_token_by_token_and_in_chunks(generator, batch):
    _, ours, _ = generator
    source, target = batch
    inputs, memory, valid = shift_right(target), ours.encode(source), source.ne(PAD)
    whole = ours.decode(inputs, memory, valid)
    for cuts in ([1] * 7, [3, 1, 3]):
        cache = ours.decoder.blocks.make_cache()
        parts = [ours.decode(part, memory, valid, cache) for part in inputs.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def sources(batch):
    """Six rows, one of them padded."""
    source, _ = batch
    turned = source.roll(1, 0).flip(1)
    return torch.cat([source, turned.masked_fill(turned == PAD, 7)])


@pytest.mark.parametrize(
    "how",
    [
        Decoding(max_length=12, force_bos=False),
        Decoding(beam=4, max_length=14, length_penalty=2.0, min_length=8, no_repeat_ngram=3, force_bos=False),
        Decoding(beam=3, max_length=14, min_length=4, length_penalty=0.0, no_repeat_ngram=2, force_bos=False),
        Decoding(beam=3, max_length=12, length_penalty=-1.0, min_length=3, force_bos=False, early_stopping=True),
    ],
    ids=lambda how: f"beam{how.beam}-penalty{how.length_penalty}",
)
def test_beam_search_writes_what_transformers_generate_writes(generator, sources, how):
    theirs, ours, _ = generator
    tokens, scores = generate(ours, sources, how)
    expected = theirs.generate(
        input_ids=sources,
        attention_mask=sources.ne(PAD).long(),
        num_beams=how.beam,
        max_new_tokens=how.max_length,
        min_new_tokens=max(how.min_length - 1, 0),  # there it does not count </s>
        length_penalty=how.length_penalty,
        no_repeat_ngram_size=how.no_repeat_ngram,
        early_stopping=how.early_stopping,
        return_dict_in_generate=True,
        output_scores=True,
    )
    written = expected.sequences[:, 1:]
    width = max(written.shape[1], tokens.shape[1])
    assert F.pad(tokens, (0, width - tokens.shape[1]), value=PAD).tolist() == (
        F.pad(written, (0, width - written.shape[1]), value=PAD).tolist()
    )
    if how.beam > 1:
        assert len(set(tokens.ne(PAD).sum(1).tolist())) > 1, "texts of one length test nothing about lengths"
        torch.testing.assert_close(scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_forced_tokens_count_with_their_own_probability_in_the_score(generator, sources):
    """As in the released code; transformers scores a forced token with log-probability zero."""
    _, ours, _ = generator
    how = Decoding(beam=4, max_length=9, length_penalty=2.0, min_length=6, no_repeat_ngram=3, force_eos=True)
    tokens, scores = generate(ours, sources, how)
    assert tokens[:, 0].eq(0).all()
    logp = ours.logits(ours(sources, shift_right(tokens))).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    real = tokens.ne(PAD)
    lengths = real.sum(1)
    assert ((lengths >= 6) & (lengths <= 9)).all()
    assert all(row[n - 1] == EOS for row, n in zip(tokens, lengths))
    torch.testing.assert_close(scores, (logp * real).sum(1) / lengths**2.0, rtol=1e-4, atol=1e-4)


def test_released_summary_settings_count_the_end_token():
    """The released code asks for 55 to 140 tokens before </s>."""
    assert (CNN_DM.min_length, CNN_DM.max_length, CNN_DM.beam, CNN_DM.length_penalty) == (56, 141, 4, 2.0)


@torch.no_grad()
def test_loss_is_the_mean_over_all_real_target_tokens_and_padding_changes_nothing(batch):
    model = small()
    source, target = batch
    target = target.clone()
    target[0, 4], target[0, 5:] = EOS, PAD
    logp = model.logits(model(source, shift_right(target))).log_softmax(-1)
    rows = [-logp[b, t, target[b, t]] for b in range(3) for t in range(7) if target[b, t] != PAD]
    assert len(rows) == 5 + 7 + 7
    torch.testing.assert_close(model.loss(source, target), torch.stack(rows).mean())
    uniform = torch.stack([-logp[b, t].mean() for b in range(3) for t in range(7) if target[b, t] != PAD]).mean()
    smoothed = 0.9 * torch.stack(rows).mean() + 0.1 * uniform
    torch.testing.assert_close(model.loss(source, target, label_smoothing=0.1), smoothed)
    wider = model.loss(F.pad(source, (0, 5), value=PAD), F.pad(target, (0, 4), value=PAD))
    torch.testing.assert_close(model.loss(source, target), wider)


def test_decoder_input_begins_with_the_end_token_and_never_sees_its_own_target(batch):
    source, target = batch
    assert shift_right(target)[0].tolist() == [EOS, *target[0, :-1].tolist()]
    model = small()
    with torch.no_grad():
        before = model(source, shift_right(target))
        changed = target.clone()
        changed[:, 4] = (changed[:, 4] + 1) % 50 + 4
        after = model(source, shift_right(changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@torch.no_grad()
def test_all_masked_input_makes_it_a_language_model_on_constant_memory(batch):
    """With every source token masked nothing of the text reaches the decoder: the loss is that of a decoder alone."""
    model = small()
    _, target = batch
    masks = torch.full((3, 9), 59)
    memory = model.encode(masks[:1])
    hidden = model.decode(shift_right(target), memory.expand(3, -1, -1), torch.ones(3, 9, dtype=torch.bool))
    alone = F.cross_entropy(model.logits(hidden).flatten(0, 1), target.flatten())
    torch.testing.assert_close(model.loss(masks, target), alone)
    by_row = [model.loss(masks[:1], row[None]) for row in target]
    torch.testing.assert_close(model.loss(masks, target), torch.stack(by_row).mean())


def test_loss_at_initialisation_is_the_logarithm_of_the_vocabulary():
    torch.manual_seed(0)
    model = BART(vocab_size=5000, dim=64, depth=2, num_heads=4, mlp_dim=128, max_positions=64)
    ids = torch.randint(4, 5000, (8, 32))
    assert model.loss(ids, ids).item() == pytest.approx(math.log(5000), abs=0.1)


def test_first_token_uses_the_third_row_of_the_position_tables(batch):
    model = small()
    source, target = batch
    with torch.no_grad():
        before = model.loss(source, target)
        for stack in (model.encoder, model.decoder):
            assert stack.positions.num_embeddings == SIZE["max_positions"] + 2
            stack.positions.weight[:2] = float("nan")
        torch.testing.assert_close(model.loss(source, target), before)
        model.decoder.positions.weight[2] += torch.randn(SIZE["dim"])
        assert not torch.allclose(model.loss(source, target), before)
    with pytest.raises(EncoreError, match="41 tokens, but the model has 40 positions"):
        model.encode(torch.full((1, 41), 5))


def test_every_parameter_but_two_position_rows_learns_and_the_padding_row_stays_zero(batch):
    model = small().train()
    model.loss(*batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not model.tokens.weight[PAD].any()
    assert model.tokens.weight.std().item() == pytest.approx(0.2, rel=0.05)


def test_translator_learns_only_its_new_parts_first_and_everything_then(batch):
    translator = BARTTranslator(small(), source_vocab_size=33, depth=1)
    source, target = batch[0] % 30 + 3, batch[1]
    source[0, 7:] = PAD
    translator.train_new_parts()
    learning = {n for n, p in translator.named_parameters() if p.requires_grad}
    bart = {n for n in learning if n.startswith("bart.")}
    assert bart == {
        "bart.encoder.positions.weight",
        "bart.decoder.positions.weight",
        "bart.encoder.blocks.layers.0.attn.qkv.weight",
        "bart.encoder.blocks.layers.0.attn.qkv.bias",
    }
    translator.loss(source, target).backward()
    assert all(p.grad is not None and p.grad.any() for n, p in translator.named_parameters() if n in learning)
    translator.train_everything()
    assert all(p.requires_grad for p in translator.parameters())
    with torch.no_grad():
        wider = translator.loss(F.pad(source, (0, 3), value=PAD), target)
        torch.testing.assert_close(translator.loss(source, target), wider)
    tokens, _ = generate(translator.eval(), source, Decoding(beam=2, max_length=6))
    assert tokens[:, 0].tolist() == [0, 0, 0]


def test_dropout_of_every_kind_can_be_switched_off():
    model = BARTClassifier(BART(**SIZE, dropout=0.5, attention_dropout=0.5, activation_dropout=0.5), 2, dropout=0.5)
    ids = torch.tensor([[0, 9, 10, 11, EOS]])
    model.train()
    assert not torch.equal(model(ids), model(ids))
    set_dropout(model, 0.0)
    assert torch.equal(model(ids), model(ids))


def test_pretrained_weights_go_under_a_new_head_and_out_of_an_old_one(generator, tmp_path):
    _, ours, folder = generator
    classifier = BARTClassifier(small(), 3)
    head = classifier.head.out.weight.clone()
    interop.load_into(classifier, folder)
    assert torch.equal(classifier.head.out.weight, head)
    assert torch.equal(classifier.bart.tokens.weight, ours.tokens.weight)
    interop.save(classifier, tmp_path)
    body = small(init_std=0.1)
    interop.load_into(body, tmp_path)
    assert torch.equal(body.decoder.norm.weight, ours.decoder.norm.weight)


def test_checkpoints_that_do_not_fit_are_refused_with_the_reason(generator, tmp_path):
    _, _, folder = generator
    with pytest.raises(EncoreError, match=r"\(60, 32\), the model wants \(61, 32\)"):
        interop.load_into(small(vocab_size=61), folder)
    with pytest.raises(EncoreError, match="missing .*layers.2"):
        interop.load_into(small(depth=3), folder)
    good, config = load_file(folder / "model.safetensors"), (folder / "config.json").read_text()
    bias = "final_logits_bias"
    cases = {
        "final_logits_bias is not zero": (good | {bias: torch.ones(1, 60)}, config),
        "BART shares one matrix": (good | {"lm_head.weight": torch.ones(60, 32)}, config),
        "no embedding matrix": ({bias: good[bias]}, config),
        "scale_embedding is True": (good, config.replace('"scale_embedding": false', '"scale_embedding": true')),
        "encoder_layers and decoder_layers differ": (
            good,
            config.replace('"decoder_layers": 2', '"decoder_layers": 1'),
        ),
    }
    for message, (state, settings) in cases.items():
        save_file(state, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(settings)
        with pytest.raises(EncoreError, match=message):
            interop.load(tmp_path)
