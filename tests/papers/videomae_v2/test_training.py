"""VideoMAE V2: list files and sampling, training, stages, multi-view testing, configs, claims."""

import json
from pathlib import Path

import av
import lightning as L
import numpy as np
import pytest
import torch
from papers.videomae_v2.video_lists import Entry
from PIL import Image

from common.errors import EncoreError
from common.eval.classification import multi_view_accuracy
from common.training.cli import run as train
from common.training.run import Run
from papers.videomae_v2 import claims, data, stages, video_lists
from papers.videomae_v2.model import VideoClassifier, VideoMAE, layer_id
from papers.videomae_v2.module import FineTuning, Pretraining
from tests.helpers import assert_resumes_exactly

CONFIGS = Path(data.__file__).parent / "configs"
SIZES = {"dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "patch_size": 8, "num_frames": 4, "image_size": 32}
DECODER = {"decoder_dim": 16, "decoder_heads": 2, "decoder_mlp_dim": 28, "decoder_depth": 1}
DIGITS = SIZES | {"num_frames": 8, "in_channels": 1}


def write_video(path: Path, frames: int, height: int = 48, width: int = 64) -> None:
    """Frame t is grey with value 20 + 5 t in its left half, black in the right one."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            picture = np.zeros((height, width, 3), np.uint8)
            picture[:, : width // 2] = 20 + 5 * t
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two sound videos, a short one, a broken one, a frame folder with images 5..16, and lists of them."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "long one.mp4", 30)
    write_video(root / "b.mp4", 24)
    write_video(root / "short.mp4", 3)
    (root / "broken.mp4").write_bytes(b"not a video")
    (root / "SomethingV2").mkdir()
    for number in range(1, 17):
        Image.new("RGB", (40, 32), (10 * number, 0, 0)).save(root / "SomethingV2" / f"img_{number:05}.jpg", quality=95)
    (root / "pretrain.csv").write_text("long one.mp4 0 -1\nb.mp4 0 -1\nSomethingV2 5 12\n")
    (root / "bad.csv").write_text("broken.mp4 0 -1\nshort.mp4 0 -1\nb.mp4 0 -1\n")
    (root / "train.csv").write_text("long one.mp4 2\nb.mp4 0\n")
    (root / "frames.csv").write_text("SomethingV2 16 1\n")
    return root


# List files and sampling


def test_both_list_formats_are_read(videos):
    entries = video_lists.read_pretraining_list(videos / "pretrain.csv", videos)
    assert entries[0] == Entry(videos / "long one.mp4", 0, -1)
    assert entries[2] == Entry(videos / "SomethingV2", 5, 12)
    labelled = video_lists.read_label_list(videos / "train.csv", videos)
    assert labelled == [Entry(videos / "long one.mp4", 0, -1, 2), Entry(videos / "b.mp4", 0, -1, 0)]
    assert video_lists.read_label_list(videos / "frames.csv", videos) == [Entry(videos / "SomethingV2", 1, 16, 1)]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (video_lists.read_pretraining_list, "a.mp4 0 -1\nb.mp4 3\n", "line 2: expected 'path start total_frames'"),
        (video_lists.read_label_list, "a.mp4 walking\n", "line 1: expected 'path label"),
        (video_lists.read_label_list, "\n", "the list is empty"),
    ],
)
def test_a_bad_list_is_named_by_line(read, text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(EncoreError, match=message):
        read(tmp_path / "list.csv")
    with pytest.raises(EncoreError, match="cannot be read"):
        read(tmp_path / "none.csv")


def test_clips_start_at_the_entry_s_first_frame(videos):
    video, _, folder = video_lists.read_pretraining_list(videos / "pretrain.csv", videos)
    clip = video_lists.read_clip(video, [0, 10, 20])
    assert clip.shape == (3, 3, 48, 64)
    assert torch.allclose(clip[:, 0, 24, 10].float(), torch.tensor([20.0, 70.0, 120.0]), atol=6)
    frames = video_lists.read_clip(folder, [0, 3, 3])
    assert torch.allclose(frames[:, 0, 5, 5].float(), torch.tensor([50.0, 80.0, 80.0]), atol=4)
    with pytest.raises(EncoreError, match="img_00025"):
        video_lists.read_clip(folder, [20])


def test_frame_numbers_of_every_kind_of_sampling():
    assert video_lists.strided(40, 4, 4, start=5) == [5, 9, 13, 17]
    assert video_lists.strided(10, 4, 4, start=0) == [0, 4, 8, 9]
    assert video_lists.spread(100, 4, 4, start=10) == [10, 15, 20, 25]
    assert video_lists.spread(10, 4, 4, start=0) == [0, 9, 9, 9]
    assert video_lists.segments(22, 4, [0, 1, 2, 4]) == [0, 6, 12, 19]
    dense = video_lists.test_clips(40, 4, 2, 3, uniform=False)
    assert dense == [[0, 2, 4, 6], [16, 18, 20, 22], [32, 34, 36, 38]]
    assert video_lists.test_clips(40, 4, 2, 1, uniform=False) == [[16, 18, 20, 22]]
    assert video_lists.test_clips(5, 4, 2, 2, uniform=False) == [[0, 2, 4, 4]] * 2
    assert video_lists.test_clips(40, 4, 2, 2, uniform=True) == [[0, 10, 20, 30], [5, 15, 25, 35]]
    assert video_lists.test_clips(40, 4, 2, 1, uniform=True) == [[5, 15, 25, 35]]


def test_multi_scale_crop_takes_one_of_the_published_sides_and_places():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(100.0), indexing="ij")
    clip = torch.stack([y, x, y], 0).expand(2, 3, 64, 100)
    seen = set()
    for _ in range(60):
        crop = data.multi_scale_crop(clip, 64)
        assert crop.shape == (2, 3, 64, 64)
        assert torch.equal(crop[0], crop[1])
        height, width = (round(float(v.max() - v.min())) + 1 for v in (crop[0, 0], crop[0, 1]))
        seen.add((height, width, round(float(crop[0, 1].min()))))
    sides = [64, 56, 48, 42]
    assert all(min(abs(h - s) for s in sides) <= 1 and min(abs(w - s) for s in sides) <= 1 for h, w, _ in seen)
    assert len(seen) > 20
    assert not any(h > 60 and w < 50 for h, w, _ in seen)


def test_pretraining_batches_hold_repeated_crops_each_with_masks_of_its_own(videos):
    module = data.UnlabelledVideos(
        str(videos / "pretrain.csv"),
        root=str(videos),
        batch_size=3,
        repeats=4,
        num_frames=4,
        image_size=32,
        patch_size=8,
        strides={"SomethingV2": 2},
        num_workers=0,
        encoder_ratio=0.75,
    )
    batch = next(iter(module.train_dataloader()))
    assert batch["video"].shape == (12, 3, 4, 32, 32)
    assert batch["hidden"].shape == batch["decoded"].shape == (12, 32)
    assert len({tuple(row) for row in batch["hidden"][:4].tolist()}) > 1
    assert int(batch["skipped"].sum()) == 0
    first = batch["video"].unflatten(0, (3, 4)).flatten(2).std(1)
    assert (first.max(1).values > 0).sum() == 2, "the crops of a clip differ (but for the folder of one colour)"
    frames = module.dataset[2]["video"][0, 0, :, 16, 16] * 0.229 + 0.485
    assert torch.allclose(frames.diff() * 255, torch.full((3,), 20.0), atol=4), "stride 2 in SomethingV2"


def test_unusable_videos_are_counted_when_skipped_and_named_when_not(videos):
    entries = video_lists.read_pretraining_list(videos / "bad.csv", videos)
    options = {"num_frames": 4, "stride": 2, "image_size": 32, "repeats": 1, "strides": {}, "templates": {}}
    torch.manual_seed(0)
    skipped = [int(data.PretrainingClips(entries, on_bad="skip", **options)[i]["skipped"]) for i in range(3)]
    assert skipped[0] > 0
    assert skipped[1] > 0
    assert skipped[2] == 0
    strict = data.PretrainingClips(entries, on_bad="error", **options)
    with pytest.raises(EncoreError, match=r"broken\.mp4"):
        strict[0]
    with pytest.raises(EncoreError, match=r"short\.mp4: has 3 frames, a clip needs 4"):
        strict[1]
    with pytest.raises(EncoreError, match="20 videos in a row"):
        data.PretrainingClips(entries[:2], on_bad="skip", **options)[0]
    views = data.Views(entries, num_frames=4, stride=2, image_size=32, clips=1, crops=1, uniform=False)
    with pytest.raises(EncoreError, match=r"broken\.mp4"):
        views[0]


def test_views_walk_through_time_and_along_the_longer_side(videos):
    entries = video_lists.read_label_list(videos / "train.csv", videos)
    item = data.Views(entries, num_frames=4, stride=2, image_size=32, clips=2, crops=3, uniform=False)[0]
    assert item["video"].shape == (6, 3, 4, 32, 32)
    grey = item["video"][:, 0] * 0.229 + 0.485
    early, late = grey[0, 0, 16, 2] * 255, grey[3, 0, 16, 2] * 255
    assert float(late - early) == pytest.approx(5 * 22, abs=8), "the second clip starts 22 frames later"
    left, middle, right = (float((view > 0.05).float().mean()) for view in grey[:3])
    assert left > middle > right
    single = data.Views(entries, num_frames=4, stride=2, image_size=32, clips=1, crops=1, uniform=False)[0]
    assert torch.equal(single["video"][0, :, 0, :, 10], item["video"][1, :, 0, :, 10]) is False
    assert float((single["video"][0, 0] * 0.229 + 0.485 > 0.05).float().mean()) == pytest.approx(middle, abs=0.05)


def test_labelled_batches_repeat_the_label_with_the_clip(videos):
    module = data.LabelledVideos(
        train_list=str(videos / "train.csv"),
        val_list=str(videos / "train.csv"),
        root=str(videos),
        batch_size=2,
        repeats=2,
        num_frames=4,
        image_size=32,
        clips=2,
        num_workers=0,
    )
    batch = next(iter(module.train_dataloader()))
    assert batch["video"].shape == (4, 3, 4, 32, 32)
    assert batch["label"].tolist() in ([2, 2, 0, 0], [0, 0, 2, 2])
    assert not torch.equal(batch["video"][0], batch["video"][1])
    (first, _second) = list(module.test_dataloader())
    assert first["video"].shape[0] == 6
    assert first["index"].tolist() == [0] * 6
    assert first["view"].tolist() == [0, 1, 2, 3, 4, 5]
    assert first["label"].tolist() == [2] * 6


# Training


def pretraining(**options) -> Pretraining:
    torch.manual_seed(0)
    return Pretraining(VideoMAE(**DIGITS, **DECODER), lr=2e-3, std=(0.3,), **options)


def fine_tuning(**options) -> FineTuning:
    torch.manual_seed(0)
    return FineTuning(VideoClassifier(**DIGITS, num_classes=8, drop_path=0.2), lr=1e-3, **options)


def test_pretraining_resumes_exactly(tmp_path):
    def module():  # a constant rate: the cosine depends on max_steps, which the first half of this test has otherwise
        return pretraining(min_lr=2e-3, warmup=0.0)

    assert_resumes_exactly(module, lambda: data.DigitsPretraining(train_clips=40, batch_size=8), tmp_path)


def test_fine_tuning_with_mixing_and_drop_path_resumes_exactly(tmp_path):
    def module():
        return fine_tuning(mixup=0.8, cutmix=1.0, min_lr=1e-3, warmup=0.0)

    assert_resumes_exactly(module, lambda: data.DigitsLabelled(train_clips=40, test_clips=9, batch_size=8), tmp_path)


class FakeTrainer:
    estimated_stepping_batches = 100


def test_learning_rates_decay_by_layer_and_gains_and_biases_do_not_decay():
    module = fine_tuning(layer_decay=0.5)
    module.trainer = (trainer := FakeTrainer())
    assert trainer.estimated_stepping_batches == 100
    groups = module.configure_optimizers()["optimizer"].param_groups
    rate = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    expected = {"encoder.embed.proj.weight": 1 / 8, "encoder.blocks.layers.0.attn.q_bias": 1 / 4}
    expected |= {"encoder.blocks.layers.1.mlp.fc1.weight": 1 / 2, "fc_norm.weight": 1.0, "head.weight": 1.0}
    for name, parameter in module.model.named_parameters():
        assert decay[id(parameter)] == (0.05 if parameter.dim() > 1 else 0.0)
        if name in expected:
            assert rate[id(parameter)] == pytest.approx(1e-3 * expected[name])
    assert layer_id("encoder.blocks.layers.11.norm1.weight", 12) == 12
    pre = pretraining()
    pre.trainer = trainer
    groups = pre.configure_optimizers()["optimizer"].param_groups
    plain = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert id(pre.model.mask_token) in plain
    assert groups[0]["betas"] == (0.9, 0.95)


def test_mixed_labels_follow_the_mixed_pixels():
    module = fine_tuning(cutmix=1.0, label_smoothing=0.0)
    seen = {}
    module.model.forward = lambda video: seen.update(video=video) or torch.zeros(len(video), 8, requires_grad=True)
    torch.manual_seed(3)
    video = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 1, 8, 32, 32).clone()
    module.log = lambda *_, **__: None
    module.training_step({"video": video, "label": torch.arange(4)}, 0)
    mixed = seen["video"]
    assert torch.equal(mixed, mixed[:, :, :1].expand_as(mixed)), "cut at the same place in all frames"
    own = (mixed == video).float().mean((1, 2, 3, 4))
    assert ((own > 0) & (own < 1)).any()


def test_stages_hand_over_the_encoder_then_all_but_an_unfitting_head(tmp_path):
    torch.manual_seed(1)
    mae = VideoMAE(**DIGITS, **DECODER)
    state = {f"model.{name}": value for name, value in mae.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "pretrain.ckpt")
    post = VideoClassifier(**DIGITS, num_classes=7)
    new = stages.start_from(post, tmp_path / "pretrain.ckpt")
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
        lr=1e-3,
        weights=str(tmp_path / "post.ckpt"),
        label_map=str(tmp_path / "map.json"),
    ).model
    assert torch.equal(target.head.weight, post.head.weight[[6, 0, 3]])
    assert torch.equal(target.fc_norm.weight, post.fc_norm.weight)
    fresh = VideoClassifier(**DIGITS, num_classes=3)
    before = fresh.head.weight.clone()
    assert stages.start_from(fresh, tmp_path / "post.ckpt") == ["head.weight", "head.bias"]
    assert torch.equal(fresh.head.weight, before)

    other = VideoClassifier(**(DIGITS | {"dim": 48}), num_classes=3)
    with pytest.raises(EncoreError, match=r"post\.ckpt.*other size"):
        stages.start_from(other, tmp_path / "post.ckpt")
    with pytest.raises(EncoreError, match="no classifier head to map"):
        stages.start_from(fresh, tmp_path / "pretrain.ckpt", label_map=tmp_path / "map.json")
    (tmp_path / "map.json").write_text("[6, 0]")
    with pytest.raises(EncoreError, match="list of 3 label numbers"):
        stages.start_from(fresh, tmp_path / "post.ckpt", label_map=tmp_path / "map.json")
    with pytest.raises(EncoreError, match=r"odd\.pth"):
        stages.start_from(fresh, tmp_path / "odd.pth")


def test_scores_of_a_video_s_views_are_averaged_as_probabilities():
    logits = torch.tensor([[9.0, 0, 0], [0, 1.0, 0], [0, 1.2, 0], [0, 0, 3.0], [0, 0, 3.0]])
    label, index = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([4, 4, 4, 7, 7])
    assert multi_view_accuracy(logits, label, index, torch.tensor([0, 1, 2, 0, 1]))["top1"] == 50.0
    flipped = torch.tensor([[0, 20.0, 0], [1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [0, 3.0, 0]])
    found = multi_view_accuracy(flipped, torch.tensor([0] * 4 + [1]), torch.tensor([0] * 4 + [1]), torch.arange(5))
    assert found == {"top1": 100.0, "top5": 100.0}, "the mean of probabilities, not of logits"


# Configs and claims


def test_smoke_config_trains_and_its_loss_falls(tmp_path):
    arguments = ["--trainer.default_root_dir", str(tmp_path), "--trainer.log_every_n_steps", "1"]
    trained = train(["fit", "--config", str(CONFIGS / "smoke.yaml"), *arguments])
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("train/loss")
    losses = [float(row[column]) for row in rows[1:] if row[column]]
    assert losses[-1] < 0.8 * losses[0]
    assert trained.trainer.global_step == len(losses)


def tiny(path: Path, videos: Path, model: str, sizes: dict, changes: dict) -> str:
    """A config that shrinks a paper config's model and points it to `videos`."""
    sized = {"class_path": f"papers.videomae_v2.model.{model}", "init_args": sizes}
    small = {"root": str(videos), "num_workers": 0, "num_frames": 4, "image_size": 32, "repeats": 2}
    trainer = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "bf16-mixed"}
    trainer |= {"max_steps": 1, "default_root_dir": str(path.parent), "limit_val_batches": 2}
    config = {"model": {"init_args": {"model": sized, **changes.pop("model", {})}}}
    config |= {"data": {"init_args": {**small, **changes}}, "trainer": trainer}
    path.write_text(json.dumps(config))
    return str(path)


def test_paper_pretraining_config_takes_a_step_on_real_files(videos, tmp_path):
    changes = {"train_list": str(videos / "pretrain.csv"), "batch_size": 3, "patch_size": 8}
    small = tiny(tmp_path / "tiny.yaml", videos, "VideoMAE", SIZES | DECODER, changes)
    cli = train(["fit", "--config", str(CONFIGS / "paper_pretrain_g.yaml"), "--config", small])
    assert cli.trainer.global_step == 1
    assert cli.model.lr == 4.8e-3
    assert cli.datamodule.dataset.strides == {"SomethingV2": 2}
    assert cli.trainer.gradient_clip_val == 0.02


def test_paper_fine_tuning_config_takes_a_step_and_validates_on_real_files(videos, tmp_path):
    torch.manual_seed(0)
    state = {f"model.{n}": v for n, v in VideoClassifier(**SIZES, num_classes=4).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "post.ckpt")
    (tmp_path / "map.json").write_text("[3, 1, 0]")
    start = {"weights": str(tmp_path / "post.ckpt"), "label_map": str(tmp_path / "map.json")}
    lists = {"train_list": str(videos / "train.csv"), "val_list": str(videos / "train.csv"), "batch_size": 2}
    sizes = SIZES | {"num_classes": 3, "drop_path": 0.25}
    small = tiny(tmp_path / "tiny.yaml", videos, "VideoClassifier", sizes, {"model": start, **lists})
    cli = train(["fit", "--config", str(CONFIGS / "paper_finetune_g_k710_k400.yaml"), "--config", small])
    assert cli.trainer.global_step == 1
    assert 0 <= float(cli.trainer.callback_metrics["val/top1"]) <= 100
    assert cli.model.layer_decay == 0.9


def test_every_paper_config_builds_its_model_and_names_itself():
    from jsonargparse import ArgumentParser

    for config in sorted(CONFIGS.glob("paper_*.yaml")):
        text = config.read_text()
        assert text.splitlines()[1].startswith("# python -m papers.videomae_v2.train fit --config papers/videomae_v2/")
        assert config.name in text.splitlines()[1]
        assert f"runs/videomae_v2/{config.stem}" in text
        parser = ArgumentParser()
        parser.add_argument("--model", type=L.LightningModule)
        parser.add_argument("--data", type=L.LightningDataModule)
        for key in ("seed_everything", "checkpoint_every", "trainer"):
            parser.add_argument(f"--{key}", type=object)
        parser.parse_path(str(config))


@pytest.mark.parametrize(
    ("entry", "arm", "metric"),
    [
        (claims.quality, "dual", "direction_top1"),
        (claims.quality, "scratch", "direction_top1"),
        (claims.cost, "dual", "speedup"),
    ],
)
def test_claim_entries_return_their_metrics_at_smoke_scale(entry, arm, metric, tmp_path):
    run = Run("videomae_v2", "claim", arm, 0, "smoke", tmp_path)
    found = entry(run)
    assert all(isinstance(value, float) for value in found.values())
    if metric == "direction_top1":
        assert 0 <= found[metric] <= 100
        assert entry(run)[metric] == found[metric], "a finished unit is loaded, not trained again"
    else:
        assert found["memory_ratio"] > 1.2
        assert found["gflops_ratio"] > 1.2
