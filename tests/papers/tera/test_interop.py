"""TERA's weights from and to s3prl's files, and training checkpoints."""

import argparse
import sys
import types

import pytest
import torch

from common.errors import EncoreError
from papers.tera import fixtures, interop
from papers.tera.export import TERAEncoder
from papers.tera.model import TERA, Encoder
from tests import tiny

SIZES = {"dim": 16, "depth": 2, "num_heads": 4, "mlp_dim": 24}


def model(input_dim=80, **changes):
    torch.manual_seed(0)
    return tiny.randomise(TERA(Encoder(input_dim, **(SIZES | changes))), 0.3)  # so that every parameter shows


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
    made, path = model(input_dim), tmp_path / "states.ckpt"
    interop.save(made, path)
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
    for (name, a), b in zip(made.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    encoder = interop.load_encoder(path)
    x = torch.randn(1, 9, input_dim)
    with torch.no_grad():
        assert torch.equal(encoder(x), made.encoder(x))


def released_objects():
    """Stand-ins for the objects in released files: the runner's arguments and the optimizer's schedule."""
    module = types.ModuleType("optimizers")
    module.WarmupLinearSchedule = type("WarmupLinearSchedule", (), {"__module__": "optimizers"})
    return module


def test_a_file_with_the_runners_objects_is_read_without_running_them(tmp_path, monkeypatch):
    made, path = model(), tmp_path / "states.ckpt"
    interop.save(made, path)
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
    for (name, a), b in zip(made.encoder.state_dict().items(), encoder.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_files_of_another_kind_size_or_design_are_clear_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "states.ckpt"
    interop.save(model(), path)
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
        interop.load_encoder(resaved(Args=tiny.Harmful()))
    assert not (tmp_path / "harmed").exists()
    torch.save(content["Transformer"], path)
    with pytest.raises(EncoreError, match="not in the released layout"):
        interop.load_encoder(path)
    interop.save(model(), path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(EncoreError, match="not a readable checkpoint"):
        interop.load(path)
    with pytest.raises(EncoreError, match="no such checkpoint"):
        interop.load(tmp_path / "nothing.ckpt")


def test_a_training_checkpoint_is_written_in_the_released_layout(tmp_path):
    trained = tiny.checkpoint(tmp_path / "last.ckpt", fixtures.tiny()[0]).state_dict()
    interop.export(tmp_path / "last.ckpt", tmp_path / "out.ckpt")
    for key, value in interop.load(tmp_path / "out.ckpt").state_dict().items():
        assert torch.equal(value, trained[f"model.{key}"])


def test_a_training_checkpoint_of_something_else_is_not_exported(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "a.ckpt")
    with pytest.raises(EncoreError, match="not a training checkpoint"):
        interop.export(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    fixtures.released(tmp_path / "states.ckpt")
    with pytest.raises(EncoreError, match="not a training checkpoint"):
        interop.export(tmp_path / "states.ckpt", tmp_path / "b.ckpt")


@pytest.mark.parametrize("input_dim, frames", [(80, 101), (240, 98), (39, 98)])
def test_the_exported_encoder_reads_files_by_the_front_end_of_its_input(input_dim, frames, tmp_path):
    encoder = TERAEncoder(model(input_dim).encoder)
    for name, samples in (("a", 16000), ("b", 12000)):
        tiny.wav(tmp_path / f"{name}.wav", samples)
    items = [encoder.read(tmp_path / f"{name}.wav") for name in ("a", "b")]
    assert items[0].shape == (frames, input_dim)
    with torch.no_grad():
        together, alone = encoder.encode(encoder.collate(items)), encoder.encode(items[1][None])
    torch.testing.assert_close(together.pooled[1], alone.pooled[0], atol=1e-5, rtol=1e-4)
    with pytest.raises(EncoreError, match="features of 40 columns that no front end here makes"):
        TERAEncoder(model(40).encoder).read(tmp_path / "a.wav")
