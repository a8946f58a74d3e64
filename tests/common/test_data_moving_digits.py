"""common.worlds.moving_digits: exact, seeded, labelled as drawn."""

import hashlib

import pytest
import torch

from common.errors import EncoreError
from common.worlds.moving_digits import DIRECTIONS, FRAMES, MovingDigits


@pytest.fixture(scope="module")
def clips() -> MovingDigits:
    return MovingDigits("train", 64)


def test_bytes_are_the_same_on_every_machine(clips):
    content = clips.video.numpy().tobytes() + clips.direction.numpy().astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "643baa106b7d246c"


def test_a_clip_depends_on_split_seed_and_number_only(clips):
    fewer = MovingDigits("train", 10)
    assert torch.equal(fewer.video, clips.video[:10])
    assert torch.equal(fewer.glyph, clips.glyph[:10])
    assert not torch.equal(MovingDigits("train", 10, seed=1).video, fewer.video)
    assert not torch.equal(MovingDigits("test", 10).video, fewer.video)


def test_each_frame_is_the_one_before_moved_along_the_label(clips):
    for video, direction in zip(clips.video[:, 0], clips.direction):
        dy, dx = DIRECTIONS[int(direction)]
        speeds = [
            speed
            for speed in (1, 2)
            if all(
                torch.equal(video[t + 1], video[t].roll((speed * dy, speed * dx), dims=(0, 1)))
                for t in range(FRAMES - 1)
            )
        ]
        assert len(speeds) == 1


def test_the_label_names_the_digit_drawn(clips):
    from sklearn.datasets import load_digits

    digits = load_digits()
    sums = {}
    for image, target in zip(digits.images[:1300], digits.target[:1300]):
        sums.setdefault(int(image.sum() * 15 * 4), set()).add(int(target))
    for video, glyph in zip(clips.video, clips.glyph):
        assert int(glyph) in sums[int(video[0, 0].sum())]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_shows_its_own_drawings_alone(split):
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images).to(torch.uint8) * 15
    drawings = digits.repeat_interleave(2, 1).repeat_interleave(2, 2)
    own, others = (drawings[:1300], drawings[1300:]) if split == "train" else (drawings[1300:], drawings[:1300])
    own_bytes, other_bytes = ({one.numpy().tobytes() for one in part} for part in (own, others))
    assert not own_bytes & other_bytes
    for video in MovingDigits(split, 200).video[:, 0]:
        crops = {video[0, i : i + 16, j : j + 16].numpy().tobytes() for i in range(7, 10) for j in range(7, 10)}
        assert crops & own_bytes
        assert not crops & other_bytes


def test_every_direction_glyph_and_speed_occurs_about_equally_often():
    clips = MovingDigits("test", 800)
    assert torch.bincount(clips.direction, minlength=8).min() > 60
    assert torch.bincount(clips.glyph, minlength=10).min() > 40


def test_items_are_floats_in_the_unit_interval(clips):
    item = clips[3]
    assert item["video"].shape == (1, 8, 32, 32)
    assert item["video"].dtype == torch.float32
    assert 0.5 < float(item["video"].max()) <= 1.0
    assert float(item["video"].min()) == 0.0


@pytest.mark.parametrize(("split", "length", "message"), [("dev", 3, "train and test"), ("train", 0, "at least 1")])
def test_bad_arguments_are_named(split, length, message):
    with pytest.raises(EncoreError, match=message):
        MovingDigits(split, length)
