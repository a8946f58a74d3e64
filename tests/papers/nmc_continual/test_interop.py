"""Encoders from hub directories and timm files: sized by what the file says. Names and numbers: test_vit_layout."""

import json

import pytest
import torch

from common.errors import EncoreError
from papers.nmc_continual import interop
from tests import tiny

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"image_size": 16, "patch_size": 8}


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification"])
def test_features_equal_the_class_token_of_transformers_after_the_last_norm(name, tmp_path):
    theirs, images = tiny.hub(name, tmp_path, **SIZES), tiny.images()
    ours = interop.from_hub(tmp_path)
    expected = getattr(theirs, "vit", theirs)(images).last_hidden_state[:, 0]
    tiny.close(ours(images), expected)
    assert ours.norm.eps == 1e-12
    assert expected.std(dim=0).mean() > 0.01


@torch.no_grad()
def test_a_timm_file_says_how_large_its_encoder_is(tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=128, depth=1, num_heads=2, mlp_ratio=0.375, num_classes=7
    )
    torch.save(tiny.randomise(theirs).state_dict(), tmp_path / "timm.pth")
    images = tiny.images()
    tiny.close(interop.from_timm(tmp_path / "timm.pth")(images), theirs.forward_features(images)[:, 0], atol=2e-5)


def test_directories_of_other_models_are_refused(tmp_path):
    tiny.hub("ViTModel", tmp_path, **SIZES)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "deit"}, "model_type 'deit'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"num_hidden_layers": 1}, "weights do not fit FrozenViT: unknown blocks.layers.1"),
        ({"image_size": 32}, r"positions is \(5, 32\), the model wants \(17, 32\)"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(EncoreError, match=message):
            interop.from_hub(tmp_path)
    with pytest.raises(EncoreError, match="not a timm ViT"):
        interop.from_timm(tmp_path)
