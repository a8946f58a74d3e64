"""SIGMA: published weights, of its own, of the hub's VideoMAE and of DINO."""

from pathlib import Path

import pytest
import torch

from common.errors import EncoreError
from common.interop import load_config
from common.training.recipe import Optim
from papers.sigma import interop
from papers.sigma.downstream import FineTuning
from papers.sigma.interop import video_weights
from papers.sigma.segmentation import Segmentation
from papers.videomae_v2.interop import HUB
from papers.videomae_v2.model import VideoClassifier, VideoEncoder
from tests import tiny
from tests.papers.sigma.conftest import tiny_dino, tiny_dino_sigma, tiny_mlp_sigma
from tests.papers.videomae_v2.conftest import SIZES


@pytest.fixture(scope="module")
def hub_videomae():
    """transformers' pre-training class with a decoder head of width 10, random weights and the released code's eps."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    class OtherHead(VideoMAEForPreTraining):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.decoder.head = torch.nn.Linear(16, 10)

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    sizes |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
    sizes |= {"decoder_intermediate_size": 28, "patch_size": 4, "image_size": 16, "num_frames": 8}
    config = VideoMAEConfig(**sizes, layer_norm_eps=1e-6, use_mean_pooling=False, norm_pix_loss=True)
    net = tiny.randomise(OtherHead(config), std=0.3)
    net.decoder.norm.eps = 1e-6
    return net


def hub_decoded(net, batch):
    """What the hub class decodes, without its pixel loss."""
    kept = {}
    handle = net.decoder.register_forward_hook(lambda *args: kept.update(logits=args[-1].logits))
    try:
        net(batch["video"].transpose(1, 2), batch["hidden"])
    except RuntimeError:  # its loss compares 10 numbers with 96 pixels
        pass
    finally:
        handle.remove()
    return kept["logits"]


def test_the_video_model_equals_the_hub_class_both_ways(hub_videomae, batch, tmp_path):
    ours = tiny_mlp_sigma()
    hub_videomae.save_pretrained(tmp_path / "theirs")
    interop.to_hub(ours, tmp_path / "ours")
    back = type(hub_videomae).from_pretrained(tmp_path / "ours").eval()
    back.decoder.norm.eps = 1e-6
    loaded = tiny_mlp_sigma()
    interop.load_hub(loaded, tmp_path / "theirs")
    for net, other in ((loaded, hub_videomae), (ours, back)):
        with torch.no_grad():
            output = net.video(batch["video"], batch["hidden"])
            torch.testing.assert_close(output, hub_decoded(other, batch), atol=1e-5, rtol=1e-5)
        assert output.std() > 0.1
    state = ours.video.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in HUB.to_ours(HUB.to_theirs(state)).items())


def test_the_dino_tower_equals_the_hub_class_both_ways(tmp_path):
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    sizes |= {"image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-6}
    theirs = tiny.hub("ViTModel", tmp_path / "theirs", **sizes)  # with a pooler, as published, that nothing reads
    loaded, own = tiny_dino(), tiny.randomise(tiny_dino())
    interop.load_dino(loaded, tmp_path / "theirs")
    interop.save_dino(own, tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours", add_pooling_layer=False).eval()
    frames = torch.randn(2, 3, 16, 16)
    video = frames[:, :, None].repeat_interleave(2, 2)
    for net, other in ((loaded, theirs), (own, back)):
        with torch.no_grad():
            expected = other(frames).last_hidden_state[:, 1:]
            tiny.close(net(video), expected)
        assert expected.std() > 0.1
    assert not any(p.requires_grad for p in loaded.parameters())
    assert load_config(tmp_path / "ours")["num_attention_heads"] == 2


def test_official_dino_files_are_read(tmp_path):
    own = tiny.randomise(tiny_dino())
    theirs = {}
    for name, value in own.vit.state_dict().items():
        name = name.replace("positions", "pos_embed").replace("embed.proj", "patch_embed.proj")
        name = name.replace("blocks.layers.", "blocks.").replace("attn.out.", "attn.proj.")
        theirs[name] = {"cls_token": value.view(1, 1, -1), "pos_embed": value[None]}.get(name, value)
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.attn.proj.bias"} <= theirs.keys()
    torch.save(theirs, tmp_path / "dino.pth")
    loaded = tiny_dino()
    interop.load_dino(loaded, tmp_path / "dino.pth")
    assert all(torch.equal(v, own.vit.state_dict()[n]) for n, v in loaded.vit.state_dict().items())
    theirs.pop("norm.bias")
    torch.save(theirs, tmp_path / "dino.pth")
    with pytest.raises(EncoreError, match=r"dino\.pth.*missing norm\.bias"):
        interop.load_dino(loaded, tmp_path / "dino.pth")


def test_released_files_are_written_and_read(tmp_path):
    mlp, dino = tiny_mlp_sigma(), tiny_dino_sigma()
    interop.save_released(mlp, tmp_path / "mlp.pth")
    interop.save_released(dino, tmp_path / "dino.pth")
    names = torch.load(tmp_path / "mlp.pth", weights_only=True)["model"].keys()
    assert {"prototypes", "head.0.weight", "head.4.bias", "encoder.patch_embed.proj.weight", "mask_token"} <= names
    assert {"encoder.blocks.1.attn.q_bias", "decoder.blocks.0.attn.proj.weight", "decoder.head.bias"} <= names
    assert not any("phi" in n or "vit" in n for n in torch.load(tmp_path / "dino.pth", weights_only=True)["model"])
    for net, other, file in ((mlp, tiny_mlp_sigma(), "mlp"), (dino, tiny_dino_sigma(), "dino")):
        for parameter in other.parameters():
            parameter.data.mul_(2)
        interop.load_released(other, tmp_path / f"{file}.pth")
        same = {n: torch.equal(v, net.state_dict()[n]) for n, v in other.state_dict().items()}
        assert all(equal != n.startswith("phi.vit.") for n, equal in same.items()), "DINO is not in a released file"
    with pytest.raises(EncoreError, match=r"mlp\.pth.*weights do not fit SIGMA"):
        interop.load_released(dino, tmp_path / "mlp.pth")
    Path(tmp_path, "half.pth").write_bytes(Path(tmp_path, "mlp.pth").read_bytes()[:3000])
    with pytest.raises(EncoreError, match=r"half\.pth"):
        interop.load_released(mlp, tmp_path / "half.pth")


def test_downstream_takes_the_encoder_from_every_kind_of_file(tmp_path):
    def start(model, path) -> None:
        FineTuning(model, Optim(1e-3), weights=str(path))

    net = tiny_mlp_sigma()
    interop.save_released(net, tmp_path / "released.pth")
    interop.to_hub(net, tmp_path / "hub")
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    expected = net.video.encoder.state_dict()
    for path in (tmp_path / "released.pth", tmp_path / "hub", tmp_path / "last.ckpt"):
        assert not any(name.startswith(("phi", "prototypes", "head")) for name in video_weights(path))
        classifier = VideoClassifier(**SIZES, num_classes=3)
        head = classifier.head.weight.clone()
        start(classifier, path)
        assert all(torch.equal(v, expected[n]) for n, v in classifier.encoder.state_dict().items())
        assert torch.equal(classifier.head.weight, head)
        encoder = Segmentation(VideoEncoder(**SIZES, norm=True), weights=str(path)).encoder
        assert all(torch.equal(v, expected[n]) for n, v in encoder.state_dict().items())
    tuned = VideoClassifier(**SIZES, num_classes=3)
    torch.save({"state_dict": {f"model.{n}": v for n, v in tuned.state_dict().items()}}, tmp_path / "tuned.ckpt")
    start(classifier, tmp_path / "tuned.ckpt")
    assert torch.equal(classifier.head.weight, tuned.head.weight)
    with pytest.raises(EncoreError, match=r"last\.ckpt.*other size"):
        start(VideoClassifier(**(SIZES | {"dim": 48}), num_classes=3), tmp_path / "last.ckpt")
