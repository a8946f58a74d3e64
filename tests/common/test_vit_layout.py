"""common.interop.vit: ViT under the hub's and timm's names, against their own classes."""

import pytest
import torch

from common.interop import load_weights
from common.interop.vit import HUB, TIMM, config_of, sizes
from common.layers import ViT
from tests import tiny

SIZES = {"image_size": 16, "patch_size": 4, "dim": 12, "depth": 11, "num_heads": 2, "mlp_dim": 20}
HUB_SIZES = {"hidden_size": 12, "num_hidden_layers": 11, "num_attention_heads": 2, "intermediate_size": 20}
HUB_SIZES |= {"image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-6}


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification"])
def test_the_hub_s_classes_give_the_same_tokens_both_ways(name, tmp_path):
    theirs = tiny.hub(name, tmp_path / "theirs", **HUB_SIZES)
    images = tiny.images()
    ours = ViT(**SIZES).eval()
    HUB.load(ours, tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True).hidden_states[-1]
        tiny.close(ours.tokens(images), expected)
    HUB.save(ours, tmp_path / "ours", config_of(ours))
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        tiny.close(back(images, output_hidden_states=True).hidden_states[-1], expected)
    written = load_weights(tmp_path / "ours")
    assert not any(key.startswith(("vit.", "pooler.", "classifier.")) for key in written)
    assert sizes(config_of(ours)) == SIZES | {"in_channels": 3, "eps": 1e-6, "qkv_bias": True}


def test_timm_s_class_gives_the_same_tokens_both_ways(tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    options = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 11, "num_heads": 2, "mlp_ratio": 20 / 12}
    theirs = tiny.randomise(VisionTransformer(**options, num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    images = tiny.images()
    ours = ViT(**SIZES).eval()
    TIMM.load(ours, tmp_path / "timm.pth")
    with torch.no_grad():
        tiny.close(ours.norm(ours.tokens(images)), theirs.forward_features(images))
    state = TIMM.to_theirs(ours.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in state.items())
    assert theirs.state_dict().keys() - state.keys() == {"head.weight", "head.bias"}
