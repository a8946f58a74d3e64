"""SIGMA: collapse and its prevention, training, list files, configs on real formats, linear probe, claims."""

import json
import math
from pathlib import Path

import av
import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import EncoreError
from common.training.cli import run as train
from common.training.run import Run
from papers.sigma import claims, data, interop
from papers.sigma.collapse import effective_rank, spread
from papers.sigma.downstream import FineTuning, LinearProbe
from papers.sigma.model import DINO, SIGMA, projection_mlp, sigma_tiny_patch8_32
from papers.sigma.module import Pretraining
from papers.videomae_v2.data import DIGITS_STD, DigitsLabelled, DigitsPretraining
from papers.videomae_v2.model import VideoClassifier, VideoMAE
from tests.helpers import assert_resumes_exactly

CONFIGS = Path(data.__file__).parent / "configs"
SIZES = {"dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "patch_size": 8, "num_frames": 4, "image_size": 32}
DECODER = {"decoder_dim": 16, "decoder_heads": 2, "decoder_mlp_dim": 28, "decoder_depth": 1}
DIGITS = {"std": DIGITS_STD}


def tiny_sigma() -> SIGMA:
    """For 4 x 32 x 32 colour clips."""
    return SIGMA(VideoMAE(**SIZES, **DECODER), projection_mlp(2 * 8 * 8 * 3, (24,), 12), 7)


def tiny_dino_sigma() -> SIGMA:
    dino = DINO(image_size=32, patch_size=8, dim=12, depth=1, num_heads=2)
    return SIGMA(VideoMAE(**SIZES, **DECODER), dino, 7)


# Collapse


def trained(objective: str, steps: int) -> dict[str, float]:
    """Loss, spread and rank of x_phi on held-out clips after some steps on moving digits."""
    torch.manual_seed(0)
    video = VideoMAE(**(SIZES | {"num_frames": 8, "in_channels": 1, "depth": 1}), **DECODER)
    model = SIGMA(video, projection_mlp(2 * 8 * 8, (32,), 16), 16)
    module = Pretraining(model, lr=3e-3, objective=objective, **DIGITS)
    clips = DigitsPretraining(train_clips=512, batch_size=16, decoder="none")
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=module.lr)
    loader = clips.train_dataloader()
    batches = [next(iter(loader)) for _ in range(8)]
    for step in range(steps):
        loss, _ = module.loss(*module.features(batches[step % 8]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x_phi, x_psi = module.features(next(iter(loader)))
        loss, _ = module.loss(x_phi, x_psi)
    return {"loss": float(loss), "spread": float(spread(x_phi)), "rank": effective_rank(x_phi)}


def test_feature_regression_collapses_and_sinkhorn_prevents_it():
    before, l2, sinkhorn = trained("l2", 0), trained("l2", 120), trained("sinkhorn", 120)
    assert l2["loss"] < 0.02 * before["loss"]
    assert l2["spread"] < 0.5 * before["spread"]
    assert l2["rank"] < 1 + 0.5 * (before["rank"] - 1)
    assert sinkhorn["spread"] > 3 * l2["spread"]
    assert sinkhorn["rank"] - 1 > 5 * (l2["rank"] - 1)
    assert 0.5 < sinkhorn["loss"] < 2 * math.log(16)


# Training


def test_pretraining_resumes_exactly(tmp_path):
    def module() -> Pretraining:  # a constant rate: the cosine depends on max_steps, which the halves have otherwise
        return Pretraining(sigma_tiny_patch8_32(16, 8), lr=2e-3, min_lr=2e-3, warmup=0.0, **DIGITS)

    assert_resumes_exactly(
        module, lambda: DigitsPretraining(train_clips=40, batch_size=8, decoder="none"), tmp_path, steps=4
    )


class FakeTrainer:
    estimated_stepping_batches = 100


def test_prototypes_are_decayed_and_frozen_parts_are_not_optimised(tmp_path):
    interop.save_dino(tiny_dino_sigma().phi, tmp_path)
    module = Pretraining(tiny_dino_sigma(), lr=1e-3, min_lr=1e-5, dino_weights=str(tmp_path))
    module.trainer = FakeTrainer()
    found = module.configure_optimizers()
    decay = {id(p): g["weight_decay"] for g in found["optimizer"].param_groups for p in g["params"]}
    assert found["optimizer"].param_groups[0]["betas"] == (0.9, 0.95)
    assert decay[id(module.model.prototypes.weight)] == 0.05
    assert decay[id(module.model.video.mask_token)] == decay[id(module.model.video.decoder.head.bias)] == 0
    assert not any(id(p) in decay for p in module.model.phi.parameters())
    rate = found["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert rate(4) == pytest.approx(1), "5 % warm-up"
    assert rate(100) == pytest.approx(0.01)


def test_linear_probe_trains_the_pooling_norm_and_the_head_alone(tmp_path):
    torch.manual_seed(0)
    sizes = SIZES | {"num_frames": 8, "in_channels": 1}
    module = LinearProbe(VideoClassifier(**sizes, num_classes=8, drop_path=0.2), lr=1e-2)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    clips = DigitsLabelled(train_clips=40, test_clips=9, batch_size=8)
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=clips)
    changed = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    (optimizer,) = trainer.optimizers
    assert {round(group["initial_lr"], 9) for group in optimizer.param_groups} == {1e-2}, "no layer decay at the top"
    whole = FineTuning(VideoClassifier(**sizes, num_classes=8), lr=1e-3)
    assert all(p.requires_grad for p in whole.parameters())


# Files


def write_video(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(frames):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[:, 2 * t : 2 * t + 20] = 20 + 5 * t
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two sound videos, a short and a broken one, lists of them, and DAVIS's layout with one sequence."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a.mp4", 20)
    write_video(root / "b.mp4", 18)
    write_video(root / "short.mp4", 3)
    (root / "broken.mp4").write_bytes(b"not a video")
    (root / "train.csv").write_text("a.mp4 2\nb 0\n")
    (root / "labelled.csv").write_text("a.mp4 2\nb.mp4 0\n")
    (root / "bad.csv").write_text("broken.mp4 0\nshort.mp4 0\n")
    for folder in ("JPEGImages/480p/car", "Annotations/480p/car", "ImageSets/2017"):
        (root / folder).mkdir(parents=True)
    for t in range(6):
        mask = np.zeros((24, 32), np.uint8)
        mask[6:18, t : t + 12] = 1
        Image.fromarray(mask * 200).convert("RGB").save(root / f"JPEGImages/480p/car/{t:05}.jpg")
        Image.fromarray(mask).save(root / f"Annotations/480p/car/{t:05}.png")
    (root / "ImageSets/2017/val.txt").write_text("car\n")
    return root


def test_pretraining_lists_are_the_authors_ones(videos, tmp_path):
    entries = data.read_video_list(videos / "train.csv", videos)
    assert [entry.path.name for entry in entries] == ["a.mp4", "b.mp4"], "a name without extension is an .mp4"
    options = {"root": str(videos), "num_frames": 4, "stride": 2, "image_size": 32, "patch_size": 8, "num_workers": 0}
    module = data.PretrainingVideos(str(videos / "train.csv"), batch_size=2, **options)
    batch = next(iter(module.train_dataloader()))
    assert batch["video"].shape == (2, 3, 4, 32, 32)
    hidden = batch["hidden"].view(2, 2, 16)
    assert (hidden.sum(-1) == 14).all()
    assert torch.equal(hidden[:, 0], hidden[:, 1]), "tubes"
    assert torch.equal(batch["hidden"], batch["decoded"])
    bad = data.PretrainingVideos(str(videos / "bad.csv"), batch_size=1, on_bad="error", **options)
    with pytest.raises(EncoreError, match=r"broken\.mp4: cannot be decoded"):
        bad.dataset[0]
    with pytest.raises(EncoreError, match="has 3 frames, a clip needs 4"):
        bad.dataset[1]
    (tmp_path / "folders.csv").write_text("frames 30 1\n")
    with pytest.raises(EncoreError, match="frames is listed as a frame folder"):
        data.read_video_list(tmp_path / "folders.csv")
    (tmp_path / "empty.csv").write_text("\n")
    with pytest.raises(EncoreError, match="the list is empty"):
        data.read_video_list(tmp_path / "empty.csv")


# Configs


def smaller(path: Path, model: dict, data_: dict) -> list[str]:
    """Arguments that add a config shrinking a paper config to one step on one CPU."""
    trainer = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "bf16-mixed"}
    trainer |= {"max_steps": 1, "accumulate_grad_batches": 1, "default_root_dir": str(path), "limit_val_batches": 1}
    clips = {"num_workers": 0, "num_frames": 4, "image_size": 32, **data_}
    file = path / "small.yaml"
    file.write_text(json.dumps({"model": {"init_args": model}, "data": {"init_args": clips}, "trainer": trainer}))
    return ["--config", str(file)]


@pytest.mark.parametrize("name", ["paper_pretrain_ssv2_b_mlp", "paper_pretrain_k400_b_dino"])
def test_paper_pretraining_configs_take_a_step_on_real_files(name, videos, tmp_path):
    video = {"class_path": "papers.videomae_v2.model.VideoMAE", "init_args": SIZES | DECODER}
    if name.endswith("dino"):
        interop.save_dino(tiny_dino_sigma().phi, tmp_path / "dino")
        tower = {"image_size": 32, "patch_size": 8, "dim": 12, "depth": 1, "num_heads": 2}
        phi = {"class_path": "papers.sigma.model.DINO", "init_args": tower}
        weights = {"dino_weights": str(tmp_path / "dino")}
    else:
        mlp = {"in_dim": 2 * 8 * 8 * 3, "hidden": [24], "out_dim": 12}
        phi, weights = {"class_path": "papers.sigma.model.projection_mlp", "init_args": mlp}, {}
    init = {"video": video, "phi": phi, "num_prototypes": 7}
    model = {"model": {"class_path": "papers.sigma.model.SIGMA", "init_args": init}, **weights}
    lists = {
        "root": str(videos),
        "train_list": str(videos / "train.csv"),
        "batch_size": 2,
        "patch_size": 8,
        "stride": 2,
    }
    cli = train(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *smaller(tmp_path, model, lists)])
    assert cli.trainer.global_step == 1
    assert cli.model.eps == (0.05 if name.endswith("dino") else 0.03)
    assert cli.model.hard
    assert cli.model.lr == pytest.approx(1.5e-4 * (640 if name.endswith("dino") else 512) / 256)
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("name", ["paper_linear_ssv2_b", "paper_finetune_k400_b"])
def test_paper_downstream_configs_take_a_step_and_validate_on_real_files(name, videos, tmp_path):
    interop.save_released(tiny_sigma(), tmp_path / "sigma.pth")
    sizes = SIZES | {"num_classes": 3, "drop_path": 0.1}
    classifier = {"class_path": "papers.videomae_v2.model.VideoClassifier", "init_args": sizes}
    lists = {"train_list": str(videos / "labelled.csv"), "val_list": str(videos / "labelled.csv"), "batch_size": 2}
    changes = smaller(
        tmp_path,
        {"model": classifier, "weights": str(tmp_path / "sigma.pth")},
        {"root": str(videos), "repeats": 1, **lists},
    )
    cli = train(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *changes])
    assert cli.trainer.global_step == 1
    assert 0 <= float(cli.trainer.callback_metrics["val/top1"]) <= 100
    assert isinstance(cli.model, LinearProbe) == (name == "paper_linear_ssv2_b")
    assert cli.model.lr == pytest.approx(1e-3 * (384 if isinstance(cli.model, LinearProbe) else 32) / 256)


def test_paper_segmentation_config_scores_davis_s_layout(videos, tmp_path):
    interop.save_released(tiny_sigma(), tmp_path / "sigma.pth")
    encoder = {"class_path": "papers.videomae_v2.model.VideoEncoder", "init_args": SIZES | {"norm": True}}
    changes = smaller(
        tmp_path, {"encoder": encoder, "weights": str(tmp_path / "sigma.pth"), "overclusters": 4}, {"root": str(videos)}
    )
    cli = train(["test", "--config", str(CONFIGS / "paper_segmentation_davis.yaml"), *changes])
    scores = cli.trainer.callback_metrics
    assert {"test/clustering_miou", "test/overclustering_miou"} <= scores.keys()
    assert all(0 < float(score) <= 100 for score in scores.values())


def test_every_paper_config_parses_and_names_itself():
    from jsonargparse import ArgumentParser

    configs = sorted(CONFIGS.glob("paper_*.yaml"))
    assert len(configs) == 14
    for config in configs:
        text = config.read_text()
        verb = "test" if "segmentation" in config.name else "fit"
        assert text.splitlines()[1].startswith(f"# python -m papers.sigma.train {verb} --config papers/sigma/configs/")
        assert config.name in text.splitlines()[1]
        assert f"runs/sigma/{config.stem}" in text
        parser = ArgumentParser()
        parser.add_argument("--model", type=L.LightningModule)
        parser.add_argument("--data", type=L.LightningDataModule)
        for key in ("seed_everything", "checkpoint_every", "trainer"):
            parser.add_argument(f"--{key}", type=object)
        parser.parse_path(str(config))


def test_smoke_config_trains_and_its_loss_falls(tmp_path):
    arguments = ["--trainer.default_root_dir", str(tmp_path), "--trainer.log_every_n_steps", "1"]
    trained_ = train(["fit", "--config", str(CONFIGS / "smoke.yaml"), *arguments])
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    losses = [float(row[rows[0].index("train/loss")]) for row in rows[1:] if row[rows[0].index("train/loss")]]
    assert trained_.trainer.global_step == len(losses)
    assert losses[-1] < 0.8 * losses[0]


# Claims


@pytest.mark.parametrize(
    ("entry", "arm", "metric"),
    [
        (claims.collapse, "l2", "effective_rank"),
        (claims.collapse, "soft", "effective_rank"),
        (claims.features, "sinkhorn", "glyph_top1"),
        (claims.features, "pixels", "glyph_top1"),
        (claims.features, "untrained", "glyph_top1"),
    ],
)
def test_claim_entries_return_their_metrics_at_smoke_scale(entry, arm, metric, tmp_path):
    run = Run("sigma", "claim", arm, 0, "smoke", tmp_path)
    found = entry(run)
    assert all(isinstance(value, float) for value in found.values())
    assert found[metric] > 0
    assert {"glyph_top1", "direction_top1"} <= found.keys()
    if arm == "l2":
        assert entry(run) == found, "a finished unit is loaded, not trained again"
    if arm == "pixels":
        assert found["steps"] > claims.PLANS["smoke"].steps, "equal multiply-adds: no phi to pay for"


def test_all_sigma_arms_of_a_seed_start_alike_and_pay_for_phi(tmp_path):
    starts = [claims.sigma(Run("sigma", "claim", arm, 3, "smoke", tmp_path)) for arm in ("sinkhorn", "l2", "soft")]
    states = [model.state_dict() for model, _ in starts]
    assert all(torch.equal(value, state[name]) for state in states for name, value in states[0].items())
    assert [(module.objective, module.hard) for _, module in starts] == [
        ("sinkhorn", True), ("l2", True), ("sinkhorn", False)
    ]  # fmt: skip
    ratio = claims.clip_cost(starts[0][0]) / claims.clip_cost(claims.pretrain_videomae_tiny_patch8_32())
    assert 1.1 < ratio < 1.6
