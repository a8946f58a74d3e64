"""MosaicBERT's parts against transformers and closed forms, its three ways of computing a batch."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertAttention, BertLayer

from common.errors import EncoreError
from common.layers.bert import Bert, BertMLM
from papers.mosaicbert.attention import Layout, alibi, alibi_slopes, attention_bias
from papers.mosaicbert.model import (
    Block,
    Classifier,
    GeGLU,
    LowPrecisionLayerNorm,
    MaskedLM,
    MosaicBert,
    mosaicbert_base,
    pad_vocabulary,
    states_at,
)

SIZE = {"vocab_size": 50, "dim": 24, "depth": 3, "num_heads": 3, "mlp_dim": 40, "dropout": 0.0}
RIGHT = torch.arange(9) < torch.tensor([9, 4, 1, 6])[:, None]
VALID = {
    "full": torch.ones(4, 9, dtype=torch.bool),
    "right": RIGHT,
    "left": RIGHT.flip(1),
    "holes": torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 1], [1] * 9, [0] * 8 + [1], [1, 1, 1, 0, 0, 0, 0, 1, 0]]).bool(),
}


def shaken(model):
    """float64, with random values also where initialisation puts zeros and ones, and no dropout."""
    torch.manual_seed(1)
    model.double()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def model() -> MosaicBert:
    torch.manual_seed(0)
    return shaken(MosaicBert(**SIZE))


@pytest.fixture
def tokens():
    return torch.randint(5, 50, (4, 9), generator=torch.Generator().manual_seed(2))


# --------------------------------------------------------------------------------------------------------- positions


def test_slopes_are_the_published_ones_for_8_12_and_16_heads():
    eight = [2.0**-k for k in range(1, 9)]
    assert alibi_slopes(8) == eight
    assert alibi_slopes(12) == pytest.approx([*eight, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rel=1e-15)
    assert alibi_slopes(16) == pytest.approx([2 ** (-k / 2) for k in range(1, 17)], rel=1e-15)
    assert alibi_slopes(3) == pytest.approx([2**-4, 2**-8, 2**-2], rel=1e-15)


def test_the_bias_falls_with_distance_on_both_sides_and_hides_padded_keys_alone():
    slopes = torch.tensor([0.5, 0.25])
    bias = attention_bias(slopes, RIGHT)
    for b, h, i, j in ((0, 0, 2, 7), (0, 1, 7, 2), (1, 0, 3, 0), (1, 1, 8, 3), (3, 0, 5, 5)):
        assert bias[b, h, i, j] == -slopes[h] * abs(i - j)
    assert torch.equal(bias.isinf(), ~RIGHT[:, None, None, :].expand_as(bias))
    assert attention_bias(slopes, VALID["full"]).shape == (1, 2, 9, 9)
    assert torch.equal(alibi(slopes, 6), alibi(slopes, 6).transpose(2, 3))


def test_shifting_a_sequence_changes_nothing(model, tokens):
    """No learned position: k pads on the left move the outputs and leave them as they are."""
    expected = model(tokens)
    for k in (1, 5, 300):
        valid = F.pad(VALID["full"], (k, 0))
        torch.testing.assert_close(model(F.pad(tokens, (k, 0)), valid)[:, k:], expected, atol=1e-11, rtol=0)


def test_reading_a_sequence_backwards_reverses_the_outputs(model, tokens):
    forwards = model(tokens, RIGHT)
    backwards = model(tokens.flip(1), RIGHT.flip(1)).flip(1)
    torch.testing.assert_close(backwards, forwards, atol=1e-11, rtol=0)
    order = torch.tensor([1, 0, *range(2, 9)])
    assert not torch.allclose(model(tokens[:, order])[:, order], model(tokens))  # but order does count


# ------------------------------------------------------------------------------------------ parts against transformers


def hub_config(**kwargs) -> BertConfig:
    config = BertConfig(
        hidden_size=24, num_attention_heads=3, intermediate_size=40, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **kwargs,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return config


def copy_attention(ours, theirs) -> None:
    """q, k, v rows of our fused projection, in this order, and what follows them."""
    qkv = ours.attn.qkv
    for i, linear in enumerate((theirs.self.query, theirs.self.key, theirs.self.value)):
        linear.weight.data, linear.bias.data = (p.data.chunk(3)[i].clone() for p in (qkv.weight, qkv.bias))
    theirs.output.dense.load_state_dict(ours.attn.out.state_dict())
    theirs.output.LayerNorm.load_state_dict(ours.norm1.state_dict())


def test_the_attention_sublayer_is_that_of_bert_with_the_bias_as_its_mask():
    block, theirs = shaken(Block(24, 3, 40, 0.0)), BertAttention(hub_config()).double().eval()
    copy_attention(block, theirs)
    x = torch.randn(4, 9, 24, dtype=torch.float64)
    bias = attention_bias(torch.tensor(alibi_slopes(3), dtype=torch.float64), RIGHT)
    expected = theirs(x, attention_mask=bias)[0][RIGHT]
    layout = Layout(RIGHT)
    rows = layout.rows(x)
    torch.testing.assert_close(block.norm1(rows + block.attn(rows, layout, bias)), expected, atol=1e-12, rtol=0)


def test_with_an_open_gate_and_flat_slopes_the_block_is_a_bert_layer_without_intermediate_bias():
    block, theirs = shaken(Block(24, 3, 40, 0.0)), BertLayer(hub_config()).double().eval()
    copy_attention(block, theirs.attention)
    theirs.intermediate.dense.weight.data = block.mlp.fc1.weight.data[:40].clone()
    theirs.intermediate.dense.bias.data.zero_()
    theirs.output.dense.load_state_dict(block.mlp.fc2.state_dict())
    theirs.output.LayerNorm.load_state_dict(block.norm2.state_dict())
    block.mlp.fc1.register_forward_hook(
        lambda *args: torch.cat([args[-1][..., :40], torch.ones_like(args[-1][..., 40:])], -1)
    )
    x = torch.randn(4, 9, 24, dtype=torch.float64)
    bias = attention_bias(torch.zeros(3, dtype=torch.float64), RIGHT)
    expected = theirs(x, attention_mask=bias)
    expected = expected[0] if isinstance(expected, tuple) else expected
    layout = Layout(RIGHT)
    torch.testing.assert_close(block(layout.rows(x), layout, bias), expected[RIGHT], atol=1e-12, rtol=0)


def test_the_gated_unit_activates_its_first_half_and_has_a_bias_behind_it_only():
    unit = shaken(GeGLU(4, 6, 0.0))
    assert unit.fc1.bias is None
    assert unit.fc1.weight.shape == (12, 4)
    x = torch.randn(5, 4, dtype=torch.float64)
    u = x @ unit.fc1.weight.T
    gelu = u[:, :6] * 0.5 * (1 + torch.erf(u[:, :6] / math.sqrt(2)))
    torch.testing.assert_close(unit(x), (gelu * u[:, 6:]) @ unit.fc2.weight.T + unit.fc2.bias)


def test_dropout_falls_on_embeddings_attention_output_and_gated_product_and_nowhere_else(monkeypatch, tokens):
    seen = []
    plain = F.dropout

    def dropout(x, p=0.5, training=True, inplace=False):
        seen.append((x.shape[-1], p, training))
        return plain(x, p, training, inplace)

    monkeypatch.setattr(F, "dropout", dropout)
    MosaicBert(**(SIZE | {"dropout": 0.1})).train()(tokens)
    assert seen == [(24, 0.1, True), *[(24, 0.1, True), (40, 0.1, True)] * 3]


def test_low_precision_norm_is_computed_in_bfloat16_under_autocast_and_is_layer_norm_without():
    norm = LowPrecisionLayerNorm(8, eps=1e-12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 8)
    torch.testing.assert_close(norm(x), F.layer_norm(x, (8,), norm.weight, norm.bias, 1e-12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = norm(x)
    assert low.dtype == torch.bfloat16
    rounded = [t.bfloat16() for t in (x, norm.weight, norm.bias)]
    assert torch.equal(low, F.layer_norm(rounded[0], (8,), *rounded[1:], 1e-12))
    model = MaskedLM(MosaicBert(**SIZE))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 + 2 * SIZE["depth"]
    assert all(isinstance(m, LowPrecisionLayerNorm) for m in norms)
    assert not any(isinstance(m, LowPrecisionLayerNorm) for m in MaskedLM(bert()).modules())


# --------------------------------------------------------------------------------------- padded, unpadded, packed, read


def gradients(model, scalar) -> list[torch.Tensor]:
    model.zero_grad()
    scalar.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", VALID)
def test_leaving_out_padding_changes_neither_outputs_nor_gradients(model, tokens, kind):
    valid, probe = VALID[kind], torch.randn(4, 9, 24, dtype=torch.float64)
    bias = attention_bias(model.slopes, valid)
    everything = Layout(torch.ones_like(valid))
    padded = everything.padded(model.states(tokens, everything, bias))
    unpadded = model(tokens, valid)
    torch.testing.assert_close(unpadded[valid], padded[valid], atol=1e-11, rtol=0)
    assert not unpadded[~valid].any()
    ours, theirs = (gradients(model, (x * probe)[valid].sum()) for x in (unpadded, padded))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_what_stands_at_padding_is_never_read(model, tokens):
    expected = model(tokens, RIGHT)
    assert torch.equal(model(tokens.masked_fill(~RIGHT, 7), RIGHT), expected)
    alone = model(tokens[1:2, :4])
    torch.testing.assert_close(expected[1:2, :4], alone, atol=1e-11, rtol=0)


def test_float32_paths_agree_to_rounding(tokens):
    torch.manual_seed(0)
    model = MosaicBert(**SIZE).eval()
    everything = Layout(torch.ones_like(RIGHT))
    padded = everything.padded(model.states(tokens, everything, attention_bias(model.slopes, RIGHT)))
    torch.testing.assert_close(model(tokens, RIGHT)[RIGHT], padded[RIGHT], atol=1e-5, rtol=0)


def test_a_packed_row_with_a_block_diagonal_bias_is_the_same_batch(model, tokens):
    lengths = RIGHT.sum(1)
    packed, document = tokens[RIGHT][None], torch.arange(4).repeat_interleave(lengths)
    bias = alibi(model.slopes, len(document)).masked_fill(document[:, None] != document, -math.inf)
    states = model.states(packed, Layout(torch.ones_like(packed, dtype=torch.bool)), bias)
    torch.testing.assert_close(states, model(tokens, RIGHT)[RIGHT], atol=1e-11, rtol=0)


def test_the_last_layer_on_labelled_tokens_alone_gives_the_full_loss_and_all_its_gradients(model, tokens, monkeypatch):
    mlm = shaken(MaskedLM(model))
    labels = tokens.masked_fill(~RIGHT | (torch.arange(36).reshape(4, 9) % 3 > 0), -100)
    labels[1, 2] = 0  # an id of zero is a label too
    chosen = labels != -100
    sizes = []
    monkeypatch.setattr(
        model.blocks[-1].mlp, "forward", lambda x, run=model.blocks[-1].mlp.forward: (sizes.append(len(x)), run(x))[1]
    )
    subset = gradients(mlm, loss := mlm.loss(tokens, RIGHT, labels))
    full = F.cross_entropy(mlm(tokens, RIGHT)[chosen], labels[chosen])
    torch.testing.assert_close(loss, full, atol=1e-12, rtol=0)
    for one, other in zip(subset, gradients(mlm, full)):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
    assert sizes == [int(chosen.sum()), int(RIGHT.sum())]
    assert int(chosen.sum()) < int(RIGHT.sum()) < RIGHT.numel()


def test_the_loss_is_a_mean_over_the_labels_of_the_whole_batch(model, tokens):
    mlm = shaken(MaskedLM(model))
    labels = torch.full_like(tokens, -100)
    labels[0, :5], labels[3, 2] = tokens[0, :5], tokens[3, 2]
    logp = mlm(tokens, RIGHT).log_softmax(-1)
    each = [-logp[b, i, labels[b, i]] for b in range(4) for i in range(9) if labels[b, i] >= 0]
    assert len(each) == 6
    torch.testing.assert_close(mlm.loss(tokens, RIGHT, labels), torch.stack(each).mean())


def test_segments_are_embedded_and_default_to_the_first(model, tokens):
    second = torch.zeros_like(tokens)
    assert torch.equal(model(tokens, RIGHT, second), model(tokens, RIGHT))
    second[:, 5:] = 1
    assert not torch.allclose(model(tokens, RIGHT, second)[0], model(tokens, RIGHT)[0])
    rows = Layout(RIGHT).rows
    expected = model.embeddings.words(rows(tokens)) + model.embeddings.segments(rows(second))
    torch.testing.assert_close(
        model.embeddings(rows(tokens), rows(second)),
        F.layer_norm(expected, (24,), model.embeddings.norm.weight, model.embeddings.norm.bias, 1e-12),
    )


def test_a_sequence_without_any_token_is_refused(model, tokens):
    valid = RIGHT.clone()
    valid[2] = False
    with pytest.raises(EncoreError, match="sequence 2 of the batch has no real token"):
        model(tokens, valid)


# ------------------------------------------------------------------------------------------------- heads, sizes, init


def bert() -> Bert:
    return Bert(
        vocab_size=50, dim=24, depth=2, num_heads=3, mlp_dim=40, max_positions=16, dropout=0.0, attention_dropout=0.0
    )


def test_the_baseline_is_the_common_bert_with_its_own_head(tokens):
    torch.manual_seed(0)
    theirs = BertMLM(bert()).eval()
    ours = MaskedLM(copy.deepcopy(theirs.bert)).eval()
    ours.head.load_state_dict(theirs.head.state_dict())
    labels = tokens.masked_fill(torch.arange(36).reshape(4, 9) % 2 > 0, -100).masked_fill(~RIGHT, -100)
    torch.testing.assert_close(ours.loss(tokens, RIGHT, labels), theirs.loss(tokens, labels, RIGHT))
    torch.testing.assert_close(ours(tokens, RIGHT), theirs(tokens, RIGHT))
    torch.testing.assert_close(states_at(ours.encoder, RIGHT, tokens, RIGHT), theirs.bert(tokens, RIGHT)[RIGHT])


def test_the_classifier_reads_the_first_token_through_a_tanh_pooler(model, tokens):
    classifier = shaken(Classifier(model, 3))
    segments = (torch.arange(9) > 2).long().expand(4, 9)
    first = model(tokens, RIGHT, segments)[:, 0]
    expected = torch.tanh(first @ classifier.pooler.weight.T + classifier.pooler.bias) @ classifier.out.weight.T
    torch.testing.assert_close(classifier(tokens, RIGHT, segments), expected + classifier.out.bias, atol=1e-11, rtol=0)
    classifier.dropout = 0.5
    assert not torch.equal(classifier.train()(tokens, RIGHT), classifier(tokens, RIGHT))


def test_weights_start_as_berts_and_the_first_loss_is_the_logarithm_of_the_vocabulary():
    torch.manual_seed(0)
    mlm = MaskedLM(MosaicBert(vocab_size=4000, dim=64, depth=2, num_heads=4, mlp_dim=128))
    for name, parameter in mlm.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
    assert not mlm.encoder.embeddings.words.weight[0].any()
    tokens = torch.randint(5, 4000, (8, 16))
    assert mlm.loss(tokens, torch.ones_like(tokens).bool(), tokens).item() == pytest.approx(math.log(4000), abs=0.1)


def test_there_is_no_table_of_positions_and_the_vocabulary_is_padded():
    with torch.device("meta"):
        base = mosaicbert_base()
    assert not any("position" in name or "slopes" in name for name in base.state_dict())
    assert pad_vocabulary(30_522) == 30_528 == base.config["vocab_size"]
    assert pad_vocabulary(128) == 128
