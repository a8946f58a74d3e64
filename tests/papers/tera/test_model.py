"""TERA's encoder against transformers' BERT layers, padding, chunks, the loss, and facts."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from papers.tera import facts, interop
from papers.tera.model import (
    TERA,
    Encoder,
    WeightedSum,
    reconstruction_loss,
)
from tests import tiny

SIZES = {"dim": 16, "depth": 2, "num_heads": 4, "mlp_dim": 24}


def model(input_dim=80, **changes):
    torch.manual_seed(0)
    return tiny.randomise(TERA(Encoder(input_dim, **(SIZES | changes))), 0.3)  # so that every parameter shows


def test_initial_weights_are_those_of_bert():
    torch.manual_seed(0)
    made = TERA(Encoder(80, dim=64, depth=2, num_heads=4, mlp_dim=256))
    for name, parameter in made.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)


def bert(encoder):
    """transformers' encoder of the same sizes; ours is post-norm with exact GELU and epsilon 1e-12, as BERT."""
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        attn_implementation="eager",
    )
    theirs = BertEncoder(config).eval()
    released = interop.LAYOUT.to_theirs(encoder.state_dict())
    theirs.load_state_dict(
        {name.removeprefix("encoder."): value for name, value in released.items() if name.startswith("encoder.")}
    )
    return theirs


def test_encoder_equals_transformers_bert_layers_with_the_additive_mask_of_the_release():
    encoder = model().encoder
    theirs = bert(encoder)
    x, lengths = torch.randn(3, 30, 80), torch.tensor([30, 21, 5])
    valid = torch.arange(30) < lengths[:, None]
    position = torch.arange(30)[:, None].double()
    angle = position / 10000 ** (2 * (torch.arange(16) // 2) / 16).double()
    table = torch.where(torch.arange(16) % 2 == 0, angle.sin(), angle.cos()).float()
    assert torch.equal(table[0], torch.tensor([0.0, 1.0]).repeat(8))
    with torch.no_grad():
        embedded = F.linear(x, encoder.project.weight, encoder.project.bias) + table
        embedded = F.layer_norm(embedded, (16,), encoder.norm.weight, encoder.norm.bias, 1e-12)
        additive = (1.0 - valid.float())[:, None, None, :] * -10000.0
        states = [embedded]
        for layer in theirs.layer:
            states.append(layer(states[-1], attention_mask=additive))
        ours = encoder.hidden_states(x, lengths)
    assert len(ours) == 3
    for a, b in zip(ours, states):
        torch.testing.assert_close(a[valid], b[valid], atol=1e-5, rtol=0)


def test_weights_go_to_bert_names_and_back():
    encoder = model().encoder
    released = interop.LAYOUT.to_theirs(encoder.state_dict())
    assert {name for name in released if not name.startswith("encoder.")} == {
        f"input_representations.{part}.{kind}"
        for part in ("spec_transform", "LayerNorm")
        for kind in ("weight", "bias")
    }
    theirs = bert(encoder)
    back = interop.LAYOUT.to_ours({f"encoder.{k}": v for k, v in theirs.state_dict().items()})
    for name, value in encoder.state_dict().items():
        if name.startswith("blocks."):
            assert torch.equal(back[name], value), name


def test_padding_changes_nothing_and_chunks_start_afresh():
    made = model(6)
    x = torch.randn(2, 20, 6)
    x[1, 13:] = 0
    lengths = torch.tensor([20, 13])
    with torch.no_grad():
        together = made(x, lengths)
        torch.testing.assert_close(together[1, :13], made(x[1:, :13])[0], atol=1e-5, rtol=0)
        other = x.clone()
        other[1, 13:] = 5.0
        torch.testing.assert_close(made(other, lengths)[1, :13], together[1, :13], atol=1e-6, rtol=0)
        cut = made.encoder.extract(x, lengths, longest=8)  # 7 + 7 + 6 frames
        assert len(cut) == 3
        torch.testing.assert_close(cut[-1][0, 7:14], made.encoder(x[:1, 7:14])[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(cut[-1][1, 7:13], made.encoder(x[1:, 7:13])[0], atol=1e-5, rtol=0)
        assert torch.isfinite(torch.stack(cut)).all()
        whole = made.encoder.extract(x, lengths)
    assert torch.equal(whole[-1], made.encoder.hidden_states(x, lengths)[-1])


def test_positions_reach_beyond_the_longest_crop():
    encoder = model(4).encoder
    x = torch.randn(1, 1600, 4)
    with torch.no_grad():
        long = encoder.embed(x)[:, :1501]
        torch.testing.assert_close(encoder.embed(x[:, :1501]), long)
    assert "positions" not in encoder.state_dict()


def test_the_weighted_sum_starts_as_the_mean_and_is_convex():
    states = [torch.randn(2, 5, 4) for _ in range(3)]
    mix = WeightedSum(3)
    torch.testing.assert_close(mix(states), torch.stack(states).mean(dim=0))
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.0, math.log(3.0), -100.0]))
    torch.testing.assert_close(mix(states), 0.25 * states[0] + 0.75 * states[1])


def test_the_loss_is_one_pooled_mean_over_masked_entries():
    torch.manual_seed(0)
    prediction = torch.randn(2, 6, 4, requires_grad=True)
    target, mask = torch.randn(2, 6, 4), torch.rand(2, 6, 4) < 0.3
    mask[1] = False
    mask[1, 0, 0] = True  # one entry here, many in the other utterance: a mean of means would differ
    loss = reconstruction_loss(prediction, target, mask)
    expected = (prediction - target).abs()[mask]
    assert loss.item() == pytest.approx(expected.sum().item() / int(mask.sum()), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert torch.equal(gradient, mask * (prediction - target).sign().detach() / mask.sum())
    assert reconstruction_loss(target, target, mask) == 0
    changed = torch.where(mask, target, target + 7)
    assert reconstruction_loss(prediction, changed, mask) == loss
    nothing = reconstruction_loss(prediction, target, torch.zeros_like(mask))
    assert nothing == 0
    assert not torch.autograd.grad(nothing, prediction)[0].any()
    gaussian = torch.randn(4, 500, 80)
    assert reconstruction_loss(torch.zeros_like(gaussian), gaussian, gaussian < 99).item() == pytest.approx(
        (2 / math.pi) ** 0.5, abs=0.005
    )


def test_facts_follow_from_the_code_that_trains():
    assert facts.blocks(700) == 15
    assert facts.widest_band(80) == 16
    assert facts.widest_band(40) == 8
    assert facts.no_band(80) == 1 / 17
    for length in (30, 50, 700):
        starts, n = length - 7, round(length * 0.15 / 7)
        covering = [sum(start <= t < start + 7 for start in range(starts)) for t in range(length)]
        clean = [math.comb(starts - c, n) / math.comb(starts, n) for c in covering]
        assert facts.covered_share(length) == pytest.approx(1 - sum(clean) / length)
    assert facts.frames(15) == 1501
