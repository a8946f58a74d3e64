"""SIGMA: networks, targets, facts, published weights, segmentation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from common.errors import EncoreError
from common.layers.attention import take_tokens
from papers.sigma import data, facts, interop, model, segmentation
from papers.sigma.downstream import LinearProbe, load_encoder, start_from, video_weights
from papers.sigma.model import DINO, SIGMA, projection_mlp
from papers.sigma.module import Pretraining, standardise_channels
from papers.videomae_v2.interop import state_from_hub, state_to_hub
from papers.videomae_v2.masking import DualMasking
from papers.videomae_v2.model import VideoClassifier, VideoEncoder, VideoMAE
from papers.videomae_v2.module import IMAGENET_MEAN, IMAGENET_STD

SIZES = {"dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "patch_size": 4, "num_frames": 8, "image_size": 16}
DECODER = {"decoder_dim": 16, "decoder_heads": 2, "decoder_mlp_dim": 28, "decoder_depth": 2}
GRID, CUBE = (4, 4, 4), 2 * 4 * 4 * 3


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    """Every parameter, biases and norms too, gets a random value: a dropped or swapped one shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() == 1:
                parameter.add_(0.5)
    return net.eval()


def tiny_dino(**changes) -> DINO:
    return DINO(**({"image_size": 16, "patch_size": 4, "dim": 12, "depth": 2, "num_heads": 2} | changes))


def tiny_mlp_sigma(num_prototypes: int = 5) -> SIGMA:
    return randomised(SIGMA(VideoMAE(**SIZES, **DECODER), projection_mlp(CUBE, (20, 18), 10), num_prototypes))


def tiny_dino_sigma() -> SIGMA:
    return randomised(SIGMA(VideoMAE(**SIZES, **DECODER), tiny_dino(), 5))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("dino")
    interop.save_dino(randomised(tiny_dino()), folder)
    return str(folder)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    hidden, _ = DualMasking(GRID, encoder_ratio=0.75, decoder="none")(3)
    return {"video": torch.randn(3, 3, 8, 16, 16), "hidden": hidden}


# Targets


def test_the_mlp_sees_the_normalised_pixels_of_masked_cubes_only(batch):
    net = tiny_mlp_sigma()
    x_phi, x_psi = Pretraining(net, lr=1e-3).features(batch)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    cubes = rearrange(batch["video"] * std + mean, "b c (t u) (h p) (w q) -> b (t h w) (u p q) c", u=2, p=4, q=4)
    cubes = (cubes - cubes.mean(2, keepdim=True)) / (cubes.var(2, unbiased=True, keepdim=True).sqrt() + 1e-6)
    y = cubes.flatten(2)[batch["hidden"]]
    for index in (0, 2):
        y = F.gelu(F.linear(y, net.phi[index].weight, net.phi[index].bias))
    torch.testing.assert_close(x_phi, F.linear(y, net.phi[4].weight, net.phi[4].bias), atol=1e-5, rtol=1e-4)
    assert x_phi.shape == x_psi.shape == (3 * 48, 10)


def test_psi_predicts_the_tubes_that_phi_describes(batch, monkeypatch):
    net = tiny_mlp_sigma()
    module = Pretraining(net, lr=1e-3)
    order = torch.tensor([2, 0, 1])
    shuffled = {name: value[order] for name, value in batch.items()}
    for one, other in zip(module.features(batch), module.features(shuffled)):
        torch.testing.assert_close(one.view(3, 48, -1)[order], other.view(3, 48, -1), atol=1e-5, rtol=1e-4)
    positions = net.video.positions[batch["hidden"][0].nonzero()[:, 0]]
    assert len(positions) == 48
    # each output then tells its mask token's position
    monkeypatch.setattr(net.video.decoder.blocks, "forward", lambda x, read: take_tokens(x, read))
    with torch.no_grad():
        _, x_psi = module.features(batch)
        queries = net.video.mask_token[0] + positions
        expected = net.video.decoder.head(net.video.decoder.norm(queries))
    torch.testing.assert_close(x_psi[:48], expected, atol=1e-5, rtol=1e-4)


def test_dino_targets_are_patches_of_every_second_frame_standardised_over_the_clip(batch, dino_folder):
    net = tiny_dino_sigma()
    module = Pretraining(net, lr=1e-3, dino_weights=dino_folder)
    vit = net.phi.vit
    clips = []
    for clip in batch["video"]:
        frames = [vit.norm(vit.tokens(clip[:, t][None]))[0, 1:] for t in (0, 2, 4, 6)]
        tokens = torch.cat(frames)
        clips.append((tokens - tokens.mean(0)) / (tokens.std(0, unbiased=True) + 1e-6))
    expected = torch.stack(clips)[batch["hidden"]]
    x_phi, _ = module.features(batch)
    torch.testing.assert_close(x_phi, expected, atol=1e-4, rtol=1e-3)
    assert not x_phi.requires_grad
    later = batch["video"].clone()
    later[:, :, 1::2] += 1
    torch.testing.assert_close(module.features(batch | {"video": later})[0], x_phi)


def test_channels_are_standardised_clip_by_clip():
    torch.manual_seed(0)
    features = 3 + torch.tensor([1.0, 9.0]).view(2, 1, 1) * torch.randn(2, 50, 4)
    found = standardise_channels(features)
    torch.testing.assert_close(found.mean(1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(1), torch.ones(2, 4), atol=1e-5, rtol=0)
    assert float(standardise_channels(torch.ones(1, 5, 2)).abs().max()) == 0


# Gradients


def test_a_frozen_target_trains_prototypes_by_phi_and_the_video_model_by_psi(batch, dino_folder):
    net = tiny_dino_sigma()
    module = Pretraining(net, lr=1e-3, dino_weights=dino_folder)
    module.loss(*module.features(batch))[0].backward()
    assert all(parameter.grad is None for parameter in net.phi.parameters())
    assert all(float(p.grad.abs().max()) > 0 for name, p in net.video.named_parameters() if "k_bias" not in name)
    x_phi, x_psi = (x.detach() for x in module.features(batch))
    total = net.prototypes.weight.grad.clone()
    net.zero_grad()
    module.loss(x_phi, x_psi)[0].backward()
    torch.testing.assert_close(net.prototypes.weight.grad, total)
    trainable = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trainable == {"video", "prototypes"}


def test_a_trained_target_gets_gradient_in_both_objectives(batch):
    for objective in ("sinkhorn", "l2"):
        net = tiny_mlp_sigma()
        module = Pretraining(net, lr=1e-3, objective=objective)
        x_phi, x_psi = module.features(batch)
        loss, _ = module.loss(x_phi, x_psi)
        loss.backward()
        assert all(float(p.grad.abs().max()) > 0 for p in net.phi.parameters())
        assert (net.prototypes.weight.grad is None) == (objective == "l2")
        if objective == "l2":
            assert float(loss.detach()) == pytest.approx(float((x_phi - x_psi).square().mean().detach()), rel=1e-5)
            assert not net.prototypes.weight.requires_grad, "DDP would wait for a gradient"


def test_the_loss_uses_unit_prototypes_and_leaves_them_so(batch):
    net = tiny_mlp_sigma()
    module = Pretraining(net, lr=1e-3)
    loss, logged = module.loss(*module.features(batch))
    torch.testing.assert_close(net.prototypes.weight.norm(dim=1), torch.ones(5))
    with torch.no_grad():
        net.prototypes.weight.mul_(3.0)
    torch.testing.assert_close(module.loss(*module.features(batch))[0], loss)
    assert 0 < float(logged["train/usage_entropy"]) <= 1
    soft = Pretraining(net, lr=1e-3, assignment="soft")
    assert not torch.allclose(soft.loss(*soft.features(batch))[0], loss)


# Sizes and facts


def test_only_the_decoder_head_of_the_video_model_changes():
    torch.manual_seed(0)
    plain = VideoMAE(**SIZES, **DECODER)
    torch.manual_seed(0)
    net = SIGMA(VideoMAE(**SIZES, **DECODER), projection_mlp(CUBE, (20, 18), 10), 5)
    changed = [n for n, v in net.video.state_dict().items() if not torch.equal(v, plain.state_dict()[n])]
    assert changed == ["decoder.head.weight"] or changed == ["decoder.head.weight", "decoder.head.bias"]
    bound = (6 / (16 + 10)) ** 0.5
    assert 0.9 * bound < float(net.video.decoder.head.weight.detach().abs().max()) <= bound
    assert float(net.video.decoder.head.bias.detach().abs().max()) == 0


def test_parameter_counts_of_the_published_sizes():
    def count(net: torch.nn.Module, trainable: bool = False) -> int:
        return sum(p.numel() for p in net.parameters() if p.requires_grad or not trainable)

    with torch.device("meta"):
        mlp, dino = model.sigma_vit_base_patch16_224("mlp"), model.sigma_vit_base_patch16_224("dino_base")
        small = model.sigma_vit_small_patch16_224("dino_base")
    assert (count(mlp), count(mlp.phi), count(mlp.prototypes)) == (97_765_760, 3_279_616, 768_000)
    assert (count(dino, True), count(dino.phi), count(dino.prototypes)) == (96_219_264, 85_798_656, 2_304_000)
    assert count(mlp.video) == 94_210_944 - 385 * 1536 + 385 * 256
    assert small.video.decoder.head.out_features == 768
    assert len(mlp.phi) == 7, "four Linear layers in the code, three in the paper"


def test_token_facts():
    assert [facts.tokens(which) for which in ("total", "visible", "decoded")] == [1568, 160, 1408]
    with torch.device("meta"):
        assert facts.dino_tokens("dino_vit_base_patch16") == 1568
    assert facts.assigned_tokens(640) == 901_120
    assert facts.tokens_per_prototype(512) == pytest.approx(240.299, abs=1e-3)
    assert facts.uniform_loss() == pytest.approx(16.0127, abs=1e-4)
    assert facts.kernel_range(0.03) == pytest.approx(3.0e14, rel=0.01)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SIGMA(VideoMAE(**SIZES, **DECODER), tiny_dino(image_size=32)), "64 patches.*4 x 4 tubes"),
        (lambda: SIGMA(VideoMAE(**SIZES, **DECODER), tiny_dino(stride=4)), "one frame in 4"),
        (lambda: SIGMA(VideoMAE(**SIZES, **DECODER), projection_mlp(50, (8,), 4)), "50 pixels, a cube has 96"),
        (lambda: Pretraining(tiny_mlp_sigma(), lr=1e-3, eps=0.01), "eps 0.01"),
        (lambda: Pretraining(tiny_dino_sigma(), lr=1e-3), "dino_weights belongs to a DINO target"),
        (lambda: Pretraining(tiny_mlp_sigma(), lr=1e-3, dino_weights="x"), "dino_weights belongs to a DINO target"),
        (lambda: Pretraining(tiny_dino_sigma(), lr=1e-3, dino_weights="none.pth"), r"none\.pth: no such"),
    ],
)
def test_what_does_not_fit_together_is_named(build, message):
    with pytest.raises(EncoreError, match=message):
        build()


# Published weights


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
    net = randomised(OtherHead(config))
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
    assert all(torch.equal(value, state[name]) for name, value in state_from_hub(state_to_hub(state)).items())


def test_the_dino_tower_equals_the_hub_class_both_ways(tmp_path):
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = ViTConfig(**sizes, image_size=16, patch_size=4, layer_norm_eps=1e-6)
    theirs = randomised(ViTModel(config))  # with a pooler, as published, that nothing reads
    theirs.save_pretrained(tmp_path / "theirs")
    loaded, own = tiny_dino(), randomised(tiny_dino())
    interop.load_dino(loaded, tmp_path / "theirs")
    interop.save_dino(own, tmp_path / "ours")
    back = ViTModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False).eval()
    frames = torch.randn(2, 3, 16, 16)
    video = frames[:, :, None].repeat_interleave(2, 2)
    for net, other in ((loaded, theirs), (own, back)):
        with torch.no_grad():
            expected = other(frames).last_hidden_state[:, 1:]
            torch.testing.assert_close(net(video), expected, atol=1e-5, rtol=1e-5)
        assert expected.std() > 0.1
    assert not any(p.requires_grad for p in loaded.parameters())
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["num_attention_heads"] == 2


def test_official_dino_files_are_read(tmp_path):
    own = randomised(tiny_dino())
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
        start_from(classifier, path)
        assert all(torch.equal(v, expected[n]) for n, v in classifier.encoder.state_dict().items())
        assert torch.equal(classifier.head.weight, head)
        encoder = VideoEncoder(**SIZES, norm=True)
        load_encoder(encoder, path)
        assert all(torch.equal(v, expected[n]) for n, v in encoder.state_dict().items())
    tuned = VideoClassifier(**SIZES, num_classes=3)
    torch.save({"state_dict": {f"model.{n}": v for n, v in tuned.state_dict().items()}}, tmp_path / "tuned.ckpt")
    start_from(classifier, tmp_path / "tuned.ckpt")
    assert torch.equal(classifier.head.weight, tuned.head.weight)
    with pytest.raises(EncoreError, match=r"last\.ckpt.*other size"):
        LinearProbe(
            VideoClassifier(**(SIZES | {"dim": 48}), num_classes=3), lr=1e-3, weights=str(tmp_path / "last.ckpt")
        )


# Segmentation


def test_hungarian_matching_uses_a_cluster_once_and_leaves_the_rest_to_the_background():
    truth = np.array([[0, 0, 0, 0, 1, 1, 2, 2]])
    assert segmentation.matched_iou(np.array([[2, 2, 2, 2, 0, 0, 1, 1]]), truth, "hungarian") == 100
    split = np.array([[5, 5, 5, 5, 3, 4, 7, 7]])  # label 1 has two clusters; one of them becomes background
    assert segmentation.matched_iou(split, truth, "hungarian") == pytest.approx(100 * (4 / 5 + 1 / 2 + 1) / 3)
    assert segmentation.matched_iou(split, truth, "greedy") == 100
    one = np.zeros((1, 8), int)
    assert segmentation.matched_iou(one, truth, "hungarian") == pytest.approx(100 * (4 / 8) / 3)


def test_greedy_matching_goes_by_the_majority_of_a_cluster_s_pixels_not_by_iou():
    truth = np.array([0] * 20 + [1] * 4)
    prediction = np.array([0] * 17 + [1] * 3 + [1] * 4)  # cluster 1: 4 of 7 pixels are object
    assert segmentation.matched_iou(prediction, truth, "greedy") == pytest.approx(100 * (17 / 20 + 4 / 7) / 2)
    mostly = np.array([0] * 15 + [1] * 5 + [1] * 4)  # cluster 1: 5 of 9 background, though IoU prefers the object
    assert segmentation.matched_iou(mostly, truth, "greedy") == pytest.approx(100 * (20 / 24 + 0) / 2)


def test_best_names_agree_with_trying_all_of_them():
    from itertools import permutations

    rng = np.random.default_rng(0)
    for _ in range(5):
        truth, prediction = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
        sums = []
        for names in permutations(range(3)):
            named = np.array(names)[prediction]
            sums.append(
                np.mean([((named == c) & (truth == c)).sum() / ((named == c) | (truth == c)).sum() for c in range(3)])
            )
        assert segmentation.matched_iou(prediction, truth, "hungarian") == pytest.approx(100 * max(sums))


def test_tubes_are_clustered_over_space_and_time_and_painted_on_their_pixels():
    torch.manual_seed(0)
    labels = np.array([[[0, 1], [1, 1]], [[0, 0], [2, 1]]])  # (T', H', W')
    centres = 10 * torch.randn(3, 8)
    features = centres[torch.from_numpy(labels.ravel())] + 0.1 * torch.randn(8, 8)
    clusters = segmentation.cluster_tubes(features, 3)
    painted = segmentation.to_pixels(clusters, (2, 2, 2), (4, 6, 6))
    truth = labels.repeat(2, 0).repeat(3, 1).repeat(3, 2)
    assert painted.shape == truth.shape
    assert segmentation.matched_iou(painted, truth, "hungarian") == 100


def write_objects(root: Path, name: str, frames: int) -> None:
    """DAVIS's layout: a red square, object 1, on blue; the square moves right."""
    images, masks = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for t in range(frames):
        mask = np.zeros((24, 32), np.uint8)
        mask[6:18, t : t + 12] = 1
        pixels = np.where(mask[..., None] == 1, (200, 30, 30), (20, 20, 160)).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{t:05}.jpg", quality=95)
        palette = Image.fromarray(mask, "P")
        palette.putpalette([0, 0, 0, 128, 0, 0] + [9] * 762)
        palette.save(masks / f"{t:05}.png")


def test_object_clips_read_davis_s_layout_and_score_a_clip(tmp_path):
    write_objects(tmp_path, "car", 17)
    write_objects(tmp_path, "short", 5)
    (tmp_path / "val.txt").write_text("car\n")
    options = {"images": "JPEGImages/480p", "masks": "Annotations/480p", "num_frames": 8, "image_size": 16}
    module = data.ObjectVideos(str(tmp_path), sequences="val.txt", num_workers=0, **options)
    (batch,) = module.test_dataloader()
    assert batch["video"].shape == (1, 3, 8, 16, 16)
    assert batch["mask"].shape == (1, 8, 16, 16)
    assert batch["mask"].unique().tolist() == [0, 1], "palette indices, not colours"
    left = (batch["mask"][0] == 1).any(1).int().argmax(1)
    assert torch.allclose(left.float(), torch.tensor([(1 + 2 * t) / 2 for t in range(8)]), atol=1.01)
    red = batch["video"][0, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    assert float(red[batch["mask"][0] == 1].median()) == pytest.approx(200 / 255, abs=0.05)

    net = tiny_mlp_sigma()
    interop.save_released(net, tmp_path / "sigma.pth")
    scorer = segmentation.Segmentation(VideoEncoder(**SIZES, norm=True), weights=str(tmp_path / "sigma.pth"))
    scores = {}
    scorer.log_dict = lambda found, **_: scores.update(found)
    with torch.no_grad():
        scorer.test_step(batch, 0)
    assert scores.keys() == {"test/clustering_miou", "test/overclustering_miou"}
    assert all(0 < score <= 100 for score in scores.values())

    (tmp_path / "val.txt").write_text("short\n")
    short = data.ObjectVideos(str(tmp_path), sequences="val.txt", num_workers=0, **options)
    with pytest.raises(EncoreError, match="short: has 5 frames, a clip needs 8"):
        short.dataset[0]
    (tmp_path / "JPEGImages" / "480p" / "car" / "00001.jpg").write_bytes(b"no image")
    with pytest.raises(EncoreError, match=r"00001\.jpg: cannot be decoded"):
        module.dataset[0]
    with pytest.raises(EncoreError, match=r"none\.txt: cannot be read"):
        data.ObjectVideos(str(tmp_path), sequences="none.txt", **options)
