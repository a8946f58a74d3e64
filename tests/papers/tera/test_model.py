"""TERA's encoder against transformers' BERT layers, published sizes, padding, chunks, the loss, and s3prl's files."""

import argparse
import math
import sys
import types

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from common.errors import EncoreError
from common.fast.flops import parameter_count
from papers.tera import facts, interop
from papers.tera.model import (
    TERA,
    Encoder,
    WeightedSum,
    reconstruction_loss,
    tera_base,
    tera_large,
    tera_medium,
    tera_slim,
)

SIZES = {"dim": 16, "depth": 2, "num_heads": 4, "mlp_dim": 24}


def tiny(input_dim=80, **changes):
    torch.manual_seed(0)
    model = TERA(Encoder(input_dim, **(SIZES | changes)))
    with torch.no_grad():  # away from the initial values, so that every parameter shows
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def test_published_parameter_counts():
    with torch.device("meta"):
        base = tera_base()
        assert parameter_count(base.blocks.layers[1]) == 7_087_872
        assert parameter_count(base.project) + parameter_count(base.norm) == 63_744
        assert parameter_count(base) == 21_327_360
        assert parameter_count(tera_base(40)) == 21_296_640
        assert parameter_count(tera_medium()) == 42_590_976
        assert parameter_count(tera_large()) == 85_118_208
        assert parameter_count(tera_slim()) == 14_238_336
        assert parameter_count(TERA(base).head) == 653_648
        assert parameter_count(facts.head("hidden", 41)) == 768 * 768 + 768 + 768 * 41 + 41
        assert parameter_count(facts.head("concat", 41)) == 9 * 768 * 41 + 41


def test_initial_weights_are_those_of_bert():
    torch.manual_seed(0)
    model = TERA(Encoder(80, dim=64, depth=2, num_heads=4, mlp_dim=256))
    for name, parameter in model.named_parameters():
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
    released = interop.encoder_to_released(encoder.state_dict(), 2)
    theirs.load_state_dict(
        {name.removeprefix("encoder."): value for name, value in released.items() if name.startswith("encoder.")}
    )
    return theirs


def test_encoder_equals_transformers_bert_layers_with_the_additive_mask_of_the_release():
    encoder = tiny().encoder
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
    encoder = tiny().encoder
    released = interop.encoder_to_released(encoder.state_dict(), 2)
    assert {name for name in released if not name.startswith("encoder.")} == {
        f"input_representations.{part}.{kind}"
        for part in ("spec_transform", "LayerNorm")
        for kind in ("weight", "bias")
    }
    theirs = bert(encoder)
    back = interop.encoder_from_released({f"encoder.{k}": v for k, v in theirs.state_dict().items()}, 2)
    for name, value in encoder.state_dict().items():
        if name.startswith("blocks."):
            assert torch.equal(back[name], value), name


def test_padding_changes_nothing_and_chunks_start_afresh():
    model = tiny(6)
    x = torch.randn(2, 20, 6)
    x[1, 13:] = 0
    lengths = torch.tensor([20, 13])
    with torch.no_grad():
        together = model(x, lengths)
        torch.testing.assert_close(together[1, :13], model(x[1:, :13])[0], atol=1e-5, rtol=0)
        other = x.clone()
        other[1, 13:] = 5.0
        torch.testing.assert_close(model(other, lengths)[1, :13], together[1, :13], atol=1e-6, rtol=0)
        cut = model.encoder.extract(x, lengths, longest=8)  # 7 + 7 + 6 frames
        assert len(cut) == 3
        torch.testing.assert_close(cut[-1][0, 7:14], model.encoder(x[:1, 7:14])[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(cut[-1][1, 7:13], model.encoder(x[1:, 7:13])[0], atol=1e-5, rtol=0)
        assert torch.isfinite(torch.stack(cut)).all()
        whole = model.encoder.extract(x, lengths)
    assert torch.equal(whole[-1], model.encoder.hidden_states(x, lengths)[-1])


def test_positions_reach_beyond_the_longest_crop():
    encoder = tiny(4).encoder
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


def released_names(depth):
    """Tensor names of a released TransformerModel, written out from the public class (not from our mapping)."""
    modules = {"input_representations.spec_transform", "input_representations.LayerNorm"}
    for i in range(depth):
        parts = [f"attention.self.{part}" for part in ("query", "key", "value")]
        parts += ["attention.output.dense", "attention.output.LayerNorm", "intermediate.dense"]
        parts += ["output.dense", "output.LayerNorm"]
        modules |= {f"encoder.layer.{i}.{part}" for part in parts}
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


@pytest.mark.parametrize("input_dim, kind", [(80, "mel"), (240, "fbank"), (39, "mfcc"), (40, "stored")])
def test_released_files_are_written_and_read_back(input_dim, kind, tmp_path):
    model, path = tiny(input_dim), tmp_path / "states.ckpt"
    interop.save(model, path)
    content = torch.load(path, weights_only=True)
    assert set(content["Transformer"]) == released_names(2)
    assert set(content["SpecHead"]) == {
        f"{part}.{kind}" for part in ("dense", "LayerNorm", "output") for kind in ("weight", "bias")
    }
    assert content["Upstream_Config"]["transformer"]["intermediate_size"] == 24
    assert content["Upstream_Config"]["transformer"]["layer_norm_eps"] == 1e-12
    assert interop.front_end(path) == kind
    again = interop.load(path)
    assert not again.training
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    encoder = interop.load_encoder(path)
    x = torch.randn(1, 9, input_dim)
    with torch.no_grad():
        assert torch.equal(encoder(x), model.encoder(x))


def released_objects():
    """Stand-ins for the objects in released files: the runner's arguments and the optimizer's schedule."""
    module = types.ModuleType("optimizers")
    module.WarmupLinearSchedule = type("WarmupLinearSchedule", (), {"__module__": "optimizers"})
    return module


def test_a_file_with_the_runners_objects_is_read_without_running_them(tmp_path, monkeypatch):
    model, path = tiny(), tmp_path / "states.ckpt"
    interop.save(model, path)
    content = torch.load(path, weights_only=True)
    module = released_objects()
    monkeypatch.setitem(sys.modules, "optimizers", module)
    schedule = module.WarmupLinearSchedule()
    schedule.warmup, schedule.t_total = 0.07, 200000.0
    content |= {
        "Args": argparse.Namespace(upstream="tera", seed=1337),
        "Optimizer": {"state": {}, "param_groups": [{"lr": 2e-4, "schedule": schedule}]},
        "Config": content.pop("Upstream_Config"),  # where files before 2021 keep it
    }
    old = {name: name.replace("LayerNorm.weight", "LayerNorm.gamma") for name in content["Transformer"]}
    old = {name: kept.replace("LayerNorm.bias", "LayerNorm.beta") for name, kept in old.items()}
    content["Transformer"] = {old[name]: value for name, value in content["Transformer"].items()}
    torch.save(content, path)
    monkeypatch.delitem(sys.modules, "optimizers")
    encoder = interop.load_encoder(path)
    for (name, a), b in zip(model.encoder.state_dict().items(), encoder.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


class Harmful:
    """Unpickling would call a function."""

    def __reduce__(self):
        return (print, ("this must not run",))


def test_files_of_another_kind_size_or_design_are_clear_errors(tmp_path, capsys):
    path = tmp_path / "states.ckpt"
    interop.save(tiny(), path)
    content = torch.load(path, weights_only=True)

    def resaved(**changes):
        torch.save(content | changes, path)
        return path

    def config(**changes):
        return {"transformer": content["Upstream_Config"]["transformer"] | changes}

    with pytest.raises(EncoreError, match="its config says pre_layer_norm=True"):
        interop.load_encoder(resaved(Upstream_Config=config(pre_layer_norm=True)))
    with pytest.raises(EncoreError, match="its config says share_layer=True"):
        interop.load_encoder(resaved(Upstream_Config=config(share_layer=True)))
    with pytest.raises(EncoreError, match=r"other size: .*mlp\.fc1"):
        interop.load_encoder(resaved(Upstream_Config=config(intermediate_size=32)))
    with pytest.raises(EncoreError, match="neither 'Upstream_Config' nor 'Config'"):
        interop.load_encoder(resaved(Upstream_Config={}))
    with pytest.raises(EncoreError, match="its front end is none of mel, fbank, mfcc"):
        interop.front_end(resaved(Upstream_Config=config() | {"audio": {"n_mels": 160}}))
    with pytest.raises(EncoreError, match="not a readable checkpoint"):
        interop.load_encoder(resaved(Args=Harmful()))
    assert "this must not run" not in capsys.readouterr().out
    torch.save(content["Transformer"], path)
    with pytest.raises(EncoreError, match="not in the released layout"):
        interop.load_encoder(path)
    interop.save(tiny(), path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(EncoreError, match="not a readable checkpoint"):
        interop.load(path)
    with pytest.raises(EncoreError, match="no such checkpoint"):
        interop.load(tmp_path / "nothing.ckpt")


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
