"""BEATs' weights from and to the released layout, training checkpoints of every stage, and the exported encoder."""

import pytest
import torch

from common.errors import EncoreError
from papers.beats import fixtures, interop
from papers.beats.export import BEATsEncoder
from papers.beats.fixtures import model as random_model
from tests import tiny


def released_names(depth):
    """Tensor names of a released encoder file, written out from the public class (not derived from our mapping)."""
    names = {"patch_embedding.weight", "post_extract_proj.weight", "post_extract_proj.bias"}
    names |= {f"{part}layer_norm.{kind}" for part in ("", "encoder.") for kind in ("weight", "bias")}
    names |= {f"encoder.pos_conv.0.{kind}" for kind in ("bias", "weight_g", "weight_v")}
    for i in range(depth):
        layer = f"encoder.layers.{i}."
        parts = [f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj", "grep_linear")]
        parts += ["self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"]
        names |= {f"{layer}{part}.{kind}" for part in parts for kind in ("weight", "bias")}
        names |= {f"{layer}self_attn.grep_a", f"{layer}self_attn.relative_attention_bias.weight"}
    return names


EXTRA = {
    "encoder": set(),
    "classifier": {"predictor.weight", "predictor.bias"},
    "tokenizer": {f"quantize_layer.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    | {f"quantize.embedding.{name}" for name in ("weight", "cluster_size", "embed_avg", "initted")}
    | {"quantize.cluster_size"},
}


@pytest.mark.parametrize("kind", ["encoder", "classifier", "tokenizer"])
def test_released_files_are_written_and_read_back(kind, tmp_path):
    model, path = random_model(kind), tmp_path / "model.pt"
    interop.save(model, path)
    content = torch.load(path, weights_only=True)
    assert set(content["model"]) == released_names(2) | EXTRA[kind]
    assert content["model"]["encoder.layers.1.self_attn.grep_a"].shape == (1, 2, 1, 1)
    assert content["model"]["encoder.pos_conv.0.weight_g"].shape == (1, 1, 4)
    assert content["cfg"]["encoder_embed_dim"] == 16
    encoder = model if kind == "encoder" else model.encoder
    for part, ours in zip("qkv", encoder.stack.layers[1].attn.qkv.weight.chunk(3)):
        assert torch.equal(content["model"][f"encoder.layers.1.self_attn.{part}_proj.weight"], ours)
    load = interop.load_tokenizer if kind == "tokenizer" else interop.load_encoder
    again = load(path)
    assert not again.training
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    interop.save(again, tmp_path / "again.pt")
    second = torch.load(tmp_path / "again.pt", weights_only=True)
    assert all(torch.equal(value, second["model"][name]) for name, value in content["model"].items())


def test_files_of_another_kind_size_or_design_are_clear_errors(tmp_path):
    path = tmp_path / "model.pt"
    interop.save(random_model("encoder"), path)
    with pytest.raises(EncoreError, match="holds an encoder, not a tokenizer"):
        interop.load_tokenizer(path)
    content = torch.load(path, weights_only=True)
    torch.save({"cfg": content["cfg"] | {"deep_norm": False}, "model": content["model"]}, path)
    with pytest.raises(EncoreError, match="cfg says deep_norm=False"):
        interop.load_encoder(path)
    torch.save({"cfg": content["cfg"] | {"encoder_ffn_embed_dim": 32}, "model": content["model"]}, path)
    with pytest.raises(EncoreError, match="other size: .*mlp"):
        interop.load_encoder(path)
    torch.save(content["model"], path)
    with pytest.raises(EncoreError, match="not in the released layout"):
        interop.load_encoder(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(EncoreError, match="not a readable checkpoint"):
        interop.load_encoder(path)


STAGES = {
    "PretrainModule": ({"predictor": fixtures.LAYER, "num_codes": 6, "code_dim": 4}, "encoder."),
    "TokenizerModule": ({"estimator": fixtures.LAYER, "num_codes": 6, "code_dim": 4}, "tokenizer."),
    "FineTuneModule": ({"num_classes": 3, "objective": "ce"}, "model."),
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_every_stage_hands_its_weights_on(stage, tmp_path):
    arguments, prefix = STAGES[stage]
    arguments = arguments | {"encoder": fixtures.ENCODER, "optim": {"lr": 0.1}}
    if stage == "TokenizerModule":
        arguments |= {"teacher": str(fixtures.released(tmp_path / "teacher.pt", "encoder"))}
    spec = {"class_path": f"papers.beats.module.{stage}", "init_args": arguments}
    trained = tiny.checkpoint(tmp_path / "last.ckpt", spec).state_dict()
    interop.export(tmp_path / "last.ckpt", tmp_path / "out.pt")
    load = interop.load_tokenizer if stage == "TokenizerModule" else interop.load_encoder
    for name, value in load(tmp_path / "out.pt").state_dict().items():
        assert torch.equal(value, trained[prefix + name])


def test_clips_of_more_than_ten_seconds_are_encoded_in_windows_of_ten():
    encoder = BEATsEncoder(random_model("encoder"))
    x = 0.1 * torch.randn(1, 1, 1500, 32)
    with torch.no_grad():
        found = encoder.encode(x)
        first, second = encoder.model(x[:, :, :992]), encoder.model(x[:, :, 992:1488])
    torch.testing.assert_close(found.tokens, torch.cat([first, second], dim=1))
    torch.testing.assert_close(found.pooled, found.tokens.mean(dim=1))
    padded = {"spectrogram": torch.cat([x, x], dim=0), "frames": torch.tensor([1500, 400])}
    with torch.no_grad():
        pooled = encoder.encode(padded).pooled
        torch.testing.assert_close(pooled[0], found.pooled[0], atol=1e-5, rtol=1e-5)
        alone = encoder.encode({"spectrogram": x[:, :, :992], "frames": torch.tensor([400])}).pooled
    torch.testing.assert_close(pooled[1], alone[0], atol=1e-5, rtol=1e-5)
