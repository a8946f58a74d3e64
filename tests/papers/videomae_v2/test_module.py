"""VideoMAE V2: the two objectives, their optimizers, and the stages of training."""

import json

import pytest
import torch
from einops import rearrange

from common.errors import EncoreError
from common.formats.video_clips import IMAGENET_MEAN, IMAGENET_STD
from common.training.recipe import Optim
from common.worlds.moving_digits import LabelledDigits
from papers.videomae_v2.model import VideoClassifier, VideoMAE, true_indices
from papers.videomae_v2.module import FineTuning, Pretraining, cube_targets, dual_masked_loss
from papers.videomae_v2.stages import stage_weights, start_from
from tests.helpers import assert_resumes_exactly

DIGITS = {"dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "patch_size": 8, "num_frames": 8, "image_size": 32}
DIGITS |= {"in_channels": 1}
DECODER = {"decoder_dim": 16, "decoder_heads": 2, "decoder_mlp_dim": 28, "decoder_depth": 1}


# Pre-training


def test_targets_are_normalised_per_cube_and_channel_with_the_unbiased_deviation(mae, batch):
    index = true_indices(batch["decoded"])
    target = cube_targets(batch["video"], index, mae.encoder.embed, IMAGENET_STD)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    cubes = rearrange(batch["video"] * std + mean, "b c (t u) (h p) (w q) -> b (t h w) (u p q) c", u=2, p=4, q=4)
    cubes = (cubes - cubes.mean(2, keepdim=True)) / (cubes.var(2, unbiased=True, keepdim=True).sqrt() + 1e-6)
    expected = cubes.flatten(2)[batch["decoded"]].view(3, -1, 96)
    torch.testing.assert_close(target, expected, atol=1e-5, rtol=1e-5)
    still = cube_targets(torch.full((3, 3, 8, 16, 16), 0.3), index, mae.encoder.embed, IMAGENET_STD)
    assert float(still.abs().max()) == 0, "a rounding error of the mean would be as large as the 1e-6"


def test_loss_averages_over_decoded_and_hidden_cubes_only():
    prediction = torch.tensor([[[1.0, 3.0], [5.0, 5.0], [2.0, 0.0]]])
    loss = dual_masked_loss(prediction, torch.zeros_like(prediction), torch.tensor([[True, False, True]]))
    assert float(loss) == pytest.approx((5 + 2) / 2)


def test_rows_the_encoder_saw_get_no_gradient(mae, batch):
    module = Pretraining(mae, Optim(1e-3))
    kept = []
    handle = mae.decoder.register_forward_hook(lambda *a: (a[-1].retain_grad(), kept.append(a[-1]))[0])
    module.loss(batch).backward()
    handle.remove()
    rows = kept[0].grad.abs().sum(-1)
    seen = ~batch["hidden"].gather(1, true_indices(batch["decoded"]))
    assert seen.sum() == 3 * 8
    assert (rows[seen] == 0).all()
    assert (rows[~seen] > 0).all()


# Training


def fine_tuning(options=None, **optim) -> FineTuning:
    torch.manual_seed(0)
    recipe = Optim(1e-3, weight_decay=0.05, **optim)
    return FineTuning(VideoClassifier(**DIGITS, num_classes=8, drop_path=0.2), recipe, **(options or {}))


def test_fine_tuning_with_mixing_and_drop_path_resumes_exactly(tmp_path):
    def module():
        return fine_tuning({"mixup": 0.8, "cutmix": 1.0})

    assert_resumes_exactly(module, lambda: LabelledDigits(train_clips=40, test_clips=9, batch_size=8), tmp_path)


def test_learning_rates_decay_by_layer_and_gains_and_biases_do_not_decay():
    module = fine_tuning(layer_decay=0.5, total=100)
    groups = module.configure_optimizers()["optimizer"].param_groups
    rate = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    expected = {"encoder.embed.proj.weight": 1 / 8, "encoder.blocks.layers.0.attn.q_bias": 1 / 4}
    expected |= {"encoder.blocks.layers.1.mlp.fc1.weight": 1 / 2, "fc_norm.weight": 1.0, "head.weight": 1.0}
    for name, parameter in module.model.named_parameters():
        assert decay[id(parameter)] == (0.05 if parameter.dim() > 1 else 0.0)
        if name in expected:
            assert rate[id(parameter)] == pytest.approx(1e-3 * expected[name])


def test_a_clip_is_cut_at_the_same_place_in_all_frames_when_mixed():
    module = fine_tuning({"cutmix": 1.0, "label_smoothing": 0.0})
    torch.manual_seed(3)
    video = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 1, 8, 32, 32).clone()
    mixed = module.augment({"video": video, "label": torch.arange(4)})
    assert torch.equal(mixed["video"], mixed["video"][:, :, :1].expand_as(video))
    own = (mixed["video"] == video).float().mean((1, 2, 3, 4))
    assert ((own > 0) & (own < 1)).any()
    share = mixed["label"].gather(1, torch.arange(8)[:4, None])[:, 0]
    torch.testing.assert_close(share, own)


def test_replaced_videos_are_logged():
    module, seen = fine_tuning(), {}
    module.log = lambda name, value, **_: seen.update({name: float(value)})
    batch = {"video": torch.zeros(2, 1, 8, 32, 32), "label": torch.tensor([1, 2]), "skipped": torch.tensor([2, 1])}
    module.training_step(batch, 0)
    assert seen["train/skipped"] == 3
    assert seen.keys() == {"train/skipped", "train/loss"}


# Stages


def test_stages_hand_over_the_encoder_then_all_but_an_unfitting_head(tmp_path):
    def start(model, path, **options):
        return start_from(model, stage_weights(path), path, **options)

    torch.manual_seed(1)
    mae = VideoMAE(**DIGITS, **DECODER)
    state = {f"model.{name}": value for name, value in mae.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "pretrain.ckpt")
    post = VideoClassifier(**DIGITS, num_classes=7)
    new = start(post, tmp_path / "pretrain.ckpt")
    assert new == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    own = mae.encoder.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in post.encoder.state_dict().items())

    with torch.no_grad():
        post.head.weight.normal_()
        post.fc_norm.weight.normal_()
    torch.save({"module": {"head.bias": torch.zeros(1)}}, tmp_path / "odd.pth")
    torch.save({"state_dict": {f"model.{n}": v for n, v in post.state_dict().items()}}, tmp_path / "post.ckpt")
    (tmp_path / "map.json").write_text(json.dumps([6, 0, 3]))
    target = FineTuning(
        VideoClassifier(**DIGITS, num_classes=3),
        Optim(1e-3),
        weights=str(tmp_path / "post.ckpt"),
        label_map=str(tmp_path / "map.json"),
    ).model
    assert torch.equal(target.head.weight, post.head.weight[[6, 0, 3]])
    assert torch.equal(target.fc_norm.weight, post.fc_norm.weight)
    fresh = VideoClassifier(**DIGITS, num_classes=3)
    before = fresh.head.weight.clone()
    assert start(fresh, tmp_path / "post.ckpt") == ["head.weight", "head.bias"]
    assert torch.equal(fresh.head.weight, before)

    other = VideoClassifier(**(DIGITS | {"dim": 48}), num_classes=3)
    with pytest.raises(EncoreError, match=r"post\.ckpt.*other size"):
        start(other, tmp_path / "post.ckpt")
    with pytest.raises(EncoreError, match="no classifier head to map"):
        start(fresh, tmp_path / "pretrain.ckpt", label_map=tmp_path / "map.json")
    (tmp_path / "map.json").write_text("[6, 0]")
    with pytest.raises(EncoreError, match="list of 3 label numbers"):
        start(fresh, tmp_path / "post.ckpt", label_map=tmp_path / "map.json")
    with pytest.raises(EncoreError, match=r"odd\.pth"):
        start(fresh, tmp_path / "odd.pth")
