"""common.formats.video_clips: list files, frame numbers, crops, augmentation, views."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import EncoreError
from common.formats import video_clips
from common.formats.video_clips import (
    Augment,
    Clips,
    Entry,
    Views,
    indices,
    read_labelled,
    read_unlabelled,
    view_indices,
)
from tests import tiny

SIZES = {"frames": 4, "stride": 2}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two sound videos, a short one, a broken one, a frame folder with images 5..16, and lists of them."""
    root = tmp_path_factory.mktemp("videos")
    tiny.video(root / "long one.mp4", 30)
    tiny.video(root / "b.mp4", 24)
    tiny.video(root / "short.mp4", 3)
    (root / "broken.mp4").write_bytes(b"not a video")
    (root / "SomethingV2").mkdir()
    for number in range(1, 17):
        Image.new("RGB", (40, 32), (10 * number, 0, 0)).save(root / "SomethingV2" / f"img_{number:05}.jpg", quality=95)
    (root / "pretrain.csv").write_text("\ufefflong one.mp4 0 -1\nb.mp4 0 -1\nSomethingV2 5 12\n", encoding="utf-8")
    (root / "bad.csv").write_text("broken.mp4 0 -1\nshort.mp4 0 -1\nb.mp4 0 -1\n")
    (root / "train.csv").write_text("long one.mp4 2\nb.mp4 0\n")
    (root / "frames.csv").write_text("SomethingV2 16 1\n")
    return root


# Lists


def test_both_list_formats_are_read(videos):
    entries = read_unlabelled(videos / "pretrain.csv", videos)
    assert entries[0] == Entry(videos / "long one.mp4", 0, -1), "a byte order mark is no part of the first name"
    assert entries[2] == Entry(videos / "SomethingV2", 5, 12)
    labelled = read_labelled(videos / "train.csv", videos, classes=3)
    assert labelled == [Entry(videos / "long one.mp4", label=2), Entry(videos / "b.mp4", label=0)]
    assert read_labelled(videos / "frames.csv", videos) == [Entry(videos / "SomethingV2", 1, 16, 1)]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_unlabelled, "a.mp4 0 -1\nb.mp4 3\n", "line 2: expected 'path start total_frames'"),
        (read_labelled, "a.mp4 walking\n", "line 1: expected 'path label"),
        (read_labelled, "\n", "the list is empty"),
        (
            lambda path: read_labelled(path, classes=2),
            "a.mp4 1\nb.mp4 2\n",
            "line 2: label 2, but the 2 classes.*0 to 1",
        ),
        (lambda path: read_labelled(path, classes=2), "a 9 1\n\nb 9 -1\n", "line 3: label -1, but the 2 classes"),
    ],
)
def test_a_bad_list_is_named_by_line(read, text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(EncoreError, match=rf"list\.csv.*{message}") as error:
        read(tmp_path / "list.csv")
    assert "\n" not in str(error.value)
    with pytest.raises(EncoreError, match="cannot be read"):
        read(tmp_path / "none.csv")


# Frames


def test_frame_numbers_of_every_kind_of_sampling(monkeypatch):
    assert indices("strided", 4, 40, stride=4) == [12, 16, 20, 24]
    assert indices("spread", 4, 100, stride=4) == [42, 47, 52, 57], "both ends of 16 frames in the middle"
    assert indices("spread", 4, 10, stride=4) == [0, 9, 9, 9]
    assert indices("segments", 4, 22) == [2, 7, 12, 17]
    assert view_indices("spread", 4, 40, stride=2, clips=3) == [[0, 2, 4, 6], [16, 18, 20, 22], [32, 34, 36, 38]]
    assert view_indices("spread", 4, 5, stride=2, clips=2) == [[0, 2, 4, 4]] * 2
    assert view_indices("segments", 4, 40, clips=2) == [[0, 10, 20, 30], [5, 15, 25, 35]]
    highs = []
    monkeypatch.setattr(video_clips, "randint", lambda high: highs.append(high) or high - 1)
    assert indices("strided", 4, 40, stride=4, train=True) == [24, 28, 32, 36]
    assert indices("strided", 4, 11, stride=4, train=True) == [0, 4, 8, 8], "the last strided frame repeats"
    assert indices("spread", 4, 100, stride=4, train=True) == [83, 88, 93, 98]
    assert indices("segments", 4, 22, train=True) == [4, 9, 14, 19]
    assert highs == [25, 1, 84, 5, 5, 5, 5]


def test_clips_start_at_the_entry_s_first_frame(videos):
    video, _, folder = read_unlabelled(videos / "pretrain.csv", videos)
    clip = video_clips.read_clip(video, [0, 10, 20])
    assert clip.shape == (3, 3, 48, 64)
    assert torch.allclose(clip[:, 0, 24, 10].float(), torch.tensor([20.0, 70.0, 120.0]), atol=6)
    frames = video_clips.read_clip(folder, [0, 3, 3])
    assert torch.allclose(frames[:, 0, 5, 5].float(), torch.tensor([50.0, 80.0, 80.0]), atol=4)
    with pytest.raises(EncoreError, match="img_00025"):
        video_clips.read_clip(folder, [20])


def test_stride_goes_by_the_path_and_repeats_are_transformed_apart(videos):
    draws = iter(range(9))
    entries = read_unlabelled(videos / "pretrain.csv", videos)
    clips = Clips(
        entries,
        lambda clip: clip + next(draws),
        kind="strided",
        frames=4,
        stride=3,
        repeats=3,
        strides={"SomethingV2": 2},
    )
    item = clips[2]
    assert item["video"].shape == (3, 4, 3, 32, 40)
    assert torch.equal(item["video"][2], item["video"][0] + 2)
    red = item["video"][0, :, 0, 16, 16].float()
    assert torch.allclose(red.diff(), torch.full((3,), 20.0), atol=4), "stride 2"
    assert item.keys() == {"video", "skipped"}


def test_unusable_videos_are_counted_when_skipped_and_named_when_not(videos):
    entries = read_unlabelled(videos / "bad.csv", videos)
    torch.manual_seed(0)
    skipping = Clips(entries, lambda clip: clip, kind="strided", **SIZES)
    skipped = [int(skipping[i]["skipped"]) for i in range(3)]
    assert min(skipped[:2]) > 0
    assert skipped[2] == 0
    strict = Clips(entries, lambda clip: clip, kind="strided", on_bad="error", **SIZES)
    with pytest.raises(EncoreError, match=r"broken\.mp4"):
        strict[0]
    with pytest.raises(EncoreError, match=r"short\.mp4: has 3 frames, a clip needs 4"):
        strict[1]
    with pytest.raises(EncoreError, match="20 videos in a row"):
        Clips(entries[:2], lambda clip: clip, kind="strided", **SIZES)[0]
    with pytest.raises(EncoreError, match=r"broken\.mp4"):
        Views(entries, kind="strided", size=32, **SIZES)[0]


# Pixels


def test_multi_scale_crop_takes_one_of_the_published_sides_and_places():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(100.0), indexing="ij")
    clip = torch.stack([y, x, y], 0).expand(2, 3, 64, 100)
    seen = set()
    for _ in range(60):
        crop = video_clips.multi_scale_crop(clip, 64)
        assert crop.shape == (2, 3, 64, 64)
        assert torch.equal(crop[0], crop[1])
        height, width = (round(float(v.max() - v.min())) + 1 for v in (crop[0, 0], crop[0, 1]))
        seen.add((height, width, round(float(crop[0, 1].min()))))
    sides = [64, 56, 48, 42]
    assert all(min(abs(h - s) for s in sides) <= 1 and min(abs(w - s) for s in sides) <= 1 for h, w, _ in seen)
    assert len(seen) > 20
    assert not any(h > 60 and w < 50 for h, w, _ in seen)


POLICY = "rand-m7-n4-mstd0.5-inc1"


def test_the_policy_is_the_published_one_at_level_seven_of_ten_and_half_applied(monkeypatch):
    policy = Augment(16, policy=POLICY, flip=True, erasing=0.0).policy
    assert policy.num_layers == 4
    assert {op.prob for op in policy.ops} == {0.5}
    assert {op.magnitude_std for op in policy.ops} == {0.5}
    assert {op.kwargs["resample"] for op in policy.ops} == {Image.Resampling.BICUBIC}
    assert {op.kwargs["fillcolor"] for op in policy.ops} == {(128, 128, 128)}
    monkeypatch.setattr(random, "random", lambda: 0.0)  # always applied, never negated
    monkeypatch.setattr(random, "gauss", lambda mean, std: mean)
    given = {}
    for op in policy.ops:
        op.aug_fn = lambda picture, *level, name=op.name, **_: given.update({name: level})
        op(None)
    plain = {"AutoContrast": (), "Equalize": (), "Invert": (), "Rotate": (21.0,), "SolarizeAdd": (77,)}
    plain |= {"PosterizeIncreasing": (2,), "SolarizeIncreasing": (77,), "ShearX": (0.21,), "ShearY": (0.21,)}
    plain |= {"TranslateXRel": (0.315,), "TranslateYRel": (0.315,)}
    plain |= {f"{name}Increasing": (1.63,) for name in ("Color", "Contrast", "Brightness", "Sharpness")}
    assert given.keys() == plain.keys()
    assert all(given[name] == pytest.approx(level) for name, level in plain.items())


def test_all_frames_of_a_clip_are_augmented_alike_and_clips_apart():
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 48), dtype=np.uint8))
    clip = picture.expand(5, 3, 40, 48)
    augment = Augment(32, policy=POLICY, flip=True, erasing=0.0)
    torch.manual_seed(0)
    made = [augment(clip) for _ in range(4)]
    for video in made:
        assert video.shape == (3, 5, 32, 32)
        assert torch.equal(video, video[:, :1].expand_as(video))
    assert not any(torch.equal(made[0], other) for other in made[1:])
    torch.manual_seed(0)
    assert torch.equal(augment(clip), made[0]), "a function of torch's generator alone"


def test_a_crop_is_a_share_of_the_area_without_antialiasing_and_flips_where_told():
    y, x = torch.meshgrid(torch.arange(160), torch.arange(200), indexing="ij")
    clip = torch.stack([x, y, x]).to(torch.uint8).expand(2, 3, 160, 200)
    shares, flips = {}, {}
    for scale, flip in (((0.25, 1.0), False), ((0.08, 1.0), True)):
        augment = Augment(40, policy="rand-n0", flip=flip, erasing=0.0, scale=scale)
        torch.manual_seed(0)
        made = torch.stack([augment(clip)[:, 0] for _ in range(150)]) * 0.229 * 255
        steps = [(made[:, 1].diff(dim=1).mean((1, 2)) * 0.224 / 0.229), made[:, 0].diff(dim=2).mean((1, 2))]
        shares[scale], flips[scale] = (steps[0] * steps[1]).abs() * 40**2 / (160 * 200), (steps[1] < 0).float().mean()
    assert 0.24 < float(shares[0.25, 1.0].min()) < 0.3
    assert 0.07 < float(shares[0.08, 1.0].min()) < 0.14
    assert flips[0.25, 1.0] == 0
    assert 0.35 < float(flips[0.08, 1.0]) < 0.65
    stripes = (torch.arange(160) % 2 * 255).to(torch.uint8).expand(1, 3, 160, 160)
    whole = Augment(40, policy="rand-n0", flip=False, erasing=0.0, scale=(1.0, 1.0))
    whole.place.transforms[0].ratio = (1.0, 1.0)
    assert set(whole(stripes)[0].mul(0.229).add(0.485).round(decimals=2).unique().tolist()) <= {0.0, 0.5, 1.0}


def test_erased_boxes_keep_their_place_and_draw_new_noise_in_every_frame():
    clip = torch.zeros(6, 3, 48, 48, dtype=torch.uint8)
    augment = Augment(48, policy="rand-n0", flip=False, erasing=1.0)
    torch.manual_seed(0)
    video, boxes = augment(clip), []
    black = torch.tensor([-m / s for m, s in zip(video_clips.IMAGENET_MEAN, video_clips.IMAGENET_STD)])
    erased = ((video - black.view(3, 1, 1, 1)).abs() > 1e-4).any(0)
    assert torch.equal(erased, erased[:1].expand_as(erased))
    noise = video[:, :, erased[0]]
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert not torch.equal(noise[:, 0], noise[:, 1])
    for _ in range(40):
        boxes.append(float((augment(clip)[0, 0] - black[0]).abs().gt(1e-4).float().mean()))
    assert 0.015 < min(boxes) < max(boxes) < 0.35
    untouched = Augment(48, policy="rand-n0", flip=False, erasing=0.0)(clip)
    torch.testing.assert_close(untouched, black.view(3, 1, 1, 1).expand(3, 6, 48, 48), atol=1e-5, rtol=0)


def test_views_walk_through_time_and_along_the_longer_side(videos):
    entries = read_labelled(videos / "train.csv", videos)
    item = Views(entries, kind="spread", size=32, clips=2, crops=3, **SIZES)[0]
    assert item["video"].shape == (6, 3, 4, 32, 32)
    grey = item["video"][:, 0] * 0.229 + 0.485
    early, late = grey[0, 0, 16, 2] * 255, grey[3, 0, 16, 2] * 255
    assert float(late - early) == pytest.approx(5 * 22, abs=8), "the second clip starts 22 frames later"
    left, middle, right = (float((view > 0.05).float().mean()) for view in grey[:3])
    assert left > middle > right
    single = Views(entries, kind="spread", size=32, **SIZES)
    assert single.numbers(30) == [[11, 13, 16, 18]], "validation takes the middle as fine-tuning samples it"
    assert single[0]["video"].shape == (1, 3, 4, 32, 32)
    assert float((single[0]["video"][0, 0] * 0.229 + 0.485 > 0.05).float().mean()) == pytest.approx(middle, abs=0.05)


def test_views_are_resized_without_antialiasing(tmp_path):
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    (tmp_path / "v").mkdir()
    for number in range(1, 5):
        Image.fromarray(stripes).save(tmp_path / "v" / f"img_{number:05}.jpg", quality=100, subsampling=0)
    video = Views([Entry(tmp_path / "v", 1, 4, 0)], kind="segments", frames=4, stride=1, size=32)[0]["video"]
    levels = video[0, 1, 0] * 0.224 + 0.456
    assert levels.std() > 0.4, "averaged over three columns the stripes would be grey"


def test_repeats_become_a_batch_with_labels_and_views():
    items = [
        {"video": torch.full((r, 3), float(r)), "label": torch.tensor(r), "index": torch.tensor(9 + r)} for r in (1, 2)
    ]
    batch = video_clips.flatten_repeats(items)
    assert batch["video"].shape == (3, 3)
    assert batch["label"].tolist() == [1, 2, 2]
    assert batch["index"].tolist() == [10, 11, 11]
    assert batch["view"].tolist() == [0, 0, 1]
