"""VideoMAE V2: batches of videos for pre-training and with labels. What reads and samples them: test_video_clips."""

from pathlib import Path

import pytest
import torch

from common.errors import EncoreError
from papers.videomae_v2 import data, fixtures


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    fixtures.videos(root)
    return root


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
    frames = module.train[2]["video"][0, 0, :, 16, 16] * 0.229 + 0.485
    assert torch.allclose(frames.diff() * 255, torch.full((3,), 20.0), atol=4), "stride 2 in SomethingV2"


def test_labelled_batches_repeat_the_label_with_the_clip(videos):
    module = data.LabelledVideos(
        train_list=str(videos / "labelled.csv"),
        val_list=str(videos / "labelled.csv"),
        num_classes=3,
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


def test_the_sampling_of_a_set_reaches_training_validation_and_test(videos):
    lists = {"train_list": str(videos / "labelled.csv"), "val_list": str(videos / "labelled.csv"), "root": str(videos)}
    options = {"num_classes": 3, "num_frames": 4, "image_size": 32, "clips": 2, "crops": 3}
    dense = data.LabelledVideos(**lists, **options)
    assert [part.kind for part in (dense.train, dense.valid, dense.test)] == ["spread"] * 3
    sparse = data.LabelledVideos(**lists, **options, uniform=True, crop_scale=(0.25, 1.0), erasing=0.1)
    assert [part.kind for part in (sparse.train, sparse.valid, sparse.test)] == ["segments"] * 3
    assert [len(made.train.transform.place.transforms) for made in (dense, sparse)] == [2, 1], "SSv2 has no flip"
    assert sparse.train.transform.place.transforms[0].scale == (0.25, 1.0)
    assert sparse.train.transform.erase.p == 0.1
    assert len(dense.valid[0]["video"]) == 1
    assert len(dense.test[0]["video"]) == 6
    with pytest.raises(EncoreError, match=r"labelled\.csv, line 1: label 2, but the 2 classes"):
        data.LabelledVideos(**lists, **(options | {"num_classes": 2}))


def test_processes_share_the_videos_of_an_evaluation(videos):
    lists = dict.fromkeys(("train_list", "val_list"), str(videos / "labelled.csv"))
    module = data.LabelledVideos(**lists, num_classes=3, root=str(videos), num_frames=4, image_size=32, num_workers=0)

    class Second:
        world_size, global_rank = 2, 1

    module.trainer = Second()
    assert [batch["index"].unique().tolist() for batch in module.test_dataloader()] == [[1]]
