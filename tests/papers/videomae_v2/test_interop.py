"""VideoMAE V2: published weights, against the hub's classes."""

import json
from pathlib import Path

import pytest
import torch

from common.errors import EncoreError
from common.training.recipe import Optim
from papers.videomae_v2 import interop
from papers.videomae_v2.module import Pretraining
from tests import tiny

HUB = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
HUB |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
HUB |= {"decoder_intermediate_size": 28, "patch_size": 4, "image_size": 16, "num_frames": 8, "layer_norm_eps": 1e-6}


def test_pretraining_equals_the_hub_class_both_ways(mae, batch, tmp_path):
    theirs = tiny.hub("VideoMAEForPreTraining", tmp_path / "theirs", **HUB, use_mean_pooling=False, norm_pix_loss=True)
    interop.to_hub(mae, tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    for net, other in ((interop.from_hub(tmp_path / "theirs").eval(), theirs), (mae, back)):
        other.decoder.norm.eps = 1e-6
        with torch.no_grad():
            expected = other(batch["video"].transpose(1, 2), batch["hidden"])
            output = net(batch["video"], batch["hidden"])
            loss = Pretraining(net, Optim(1e-3)).loss(batch | {"decoded": batch["hidden"]})
        tiny.close(output, expected.logits)
        tiny.close(loss, expected.loss)
        assert output.std() > 0.1


def test_classifier_equals_the_hub_class_both_ways(classifier, batch, tmp_path):
    theirs = tiny.hub("VideoMAEForVideoClassification", tmp_path / "theirs", **HUB, use_mean_pooling=True, num_labels=5)
    interop.to_hub(classifier, tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    for net, other in ((interop.from_hub(tmp_path / "theirs").eval(), theirs), (classifier, back)):
        other.fc_norm.eps = 1e-6
        with torch.no_grad():
            tiny.close(net(batch["video"]), other(batch["video"].transpose(1, 2)).logits)


def test_hub_names_of_older_checkpoints_are_read(mae):
    state = {
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value
        for name, value in interop.HUB.to_theirs(mae.state_dict()).items()
    }
    assert sum(name.endswith(("q_bias", "v_bias")) for name in state) == 8
    read = interop.HUB.to_ours(state)
    assert read.keys() == mae.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in mae.state_dict().items())


def test_names_of_the_released_files_are_read(mae, classifier):
    def released(state, prefix):
        renames = {"encoder.embed.": f"{prefix}patch_embed.", "encoder.norm.": f"{prefix}norm."}
        renames |= {
            "encoder.blocks.layers.": f"{prefix}blocks.",
            "blocks.layers.": "blocks.",
            "attn.out.": "attn.proj.",
        }
        out = {}
        for name, value in state.items():
            for ours, theirs in renames.items():
                name = name.replace(ours, theirs)
            out[name] = value
        return out

    for net, prefix in ((mae, "encoder."), (classifier, "")):
        theirs = released(net.state_dict(), prefix)
        assert f"{prefix}blocks.0.attn.q_bias" in theirs
        read = interop.RELEASED.to_ours(theirs | {"pos_embed": torch.zeros(1)})
        assert read.keys() == net.state_dict().keys()
        assert all(torch.equal(read[name], value) for name, value in net.state_dict().items())


def test_weights_of_another_size_or_kind_and_damaged_files_are_errors(mae, tmp_path):
    interop.to_hub(mae, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    with pytest.raises(EncoreError, match=f"{tmp_path}.*other size"):
        interop.from_hub(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["VideoMAEForVideoClassification"]}))
    with pytest.raises(EncoreError, match=f"{tmp_path}.*missing .*unknown"):
        interop.from_hub(tmp_path)
    whole = Path(tmp_path, "model.safetensors").read_bytes()
    Path(tmp_path, "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoreError, match=r"model\.safetensors"):
        interop.from_hub(tmp_path)
