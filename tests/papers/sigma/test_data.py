"""SIGMA: the authors' list of videos, clips with object masks, and how a segmentation is scored."""

from itertools import permutations

import numpy as np
import pytest
import torch

from common.errors import EncoreError
from common.formats.video_clips import IMAGENET_MEAN, IMAGENET_STD
from papers.sigma import data, fixtures, interop, segmentation
from papers.videomae_v2.fixtures import videos
from papers.videomae_v2.model import VideoEncoder
from tests.papers.sigma.conftest import tiny_mlp_sigma
from tests.papers.videomae_v2.conftest import SIZES


def test_pretraining_lists_are_the_authors_ones(tmp_path):
    videos(tmp_path)
    (tmp_path / "train.csv").write_text("long one.mp4 2\nb 0\n")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    (tmp_path / "bad.csv").write_text("broken.mp4 0\n")
    entries = data.read_video_list(tmp_path / "train.csv", tmp_path)
    assert [entry.path.name for entry in entries] == ["long one.mp4", "b.mp4"], "a name without extension is an .mp4"
    sizes = {"num_frames": 4, "stride": 2, "image_size": 32, "patch_size": 8, "num_workers": 0, "root": str(tmp_path)}
    module = data.PretrainingVideos(str(tmp_path / "train.csv"), batch_size=2, **sizes)
    batch = next(iter(module.train_dataloader()))
    assert batch["video"].shape == (2, 3, 4, 32, 32)
    hidden = batch["hidden"].view(2, 2, 16)
    assert (hidden.sum(-1) == 14).all()
    assert torch.equal(hidden[:, 0], hidden[:, 1]), "tubes"
    assert torch.equal(batch["hidden"], batch["decoded"])
    bad = data.PretrainingVideos(str(tmp_path / "bad.csv"), batch_size=1, on_bad="error", **sizes)
    with pytest.raises(EncoreError, match=r"broken\.mp4: cannot be decoded"):
        bad.train[0]
    (tmp_path / "folders.csv").write_text("frames 30 1\n")
    with pytest.raises(EncoreError, match="frames is listed as a frame folder"):
        data.read_video_list(tmp_path / "folders.csv")


def test_object_clips_read_davis_s_layout_and_score_a_clip(tmp_path):
    fixtures.davis(tmp_path, "short", 5)
    fixtures.davis(tmp_path, "car", 17)
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
        short.test[0]
    (tmp_path / "JPEGImages" / "480p" / "car" / "00001.jpg").write_bytes(b"no image")
    with pytest.raises(EncoreError, match=r"00001\.jpg: cannot be decoded"):
        module.test[0]
    with pytest.raises(EncoreError, match=r"none\.txt: cannot be read"):
        data.ObjectVideos(str(tmp_path), sequences="none.txt", **options)


# Scores


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
