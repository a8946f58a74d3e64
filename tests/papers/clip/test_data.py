"""CLIP's data modules on shards, folders and sets that the tests write themselves."""

import gzip

import pytest
import torch
from PIL import Image

from common.errors import EncoreError
from common.formats.tokenizers import ClipTokenizer
from papers.clip.data import (
    Pairs,
    ShapesData,
    WebData,
    WordVocabulary,
    class_folders,
    image_transform,
    normalise,
)
from papers.clip.shards import SKIP_REASONS, CaptionShards, expand_shards
from tests import tiny

TOKENIZER = ClipTokenizer.from_merges([], context_length=16)
TRANSFORM = image_transform(16, train=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three shards of eight good samples, captioned with the numbers 0 to 23, and one unusable sample of each kind."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        samples = []
        for i in range(8 * number, 8 * number + 8):
            samples += [(f"{i:05d}", "png", tiny.png(10 * i)), (f"{i:05d}", "txt", f" {i}\n".encode())]
        if number == 1:
            samples += [("empty", "png", tiny.png(1)), ("empty", "txt", b"  \n")]
            samples += [("alone", "png", tiny.png(1))]
            samples += [("broken", "jpg", tiny.png(1)[:40]), ("broken", "txt", b"99")]
        tiny.shard(folder / f"{number}.tar", samples)
    return folder


def stream(folder, count: int, **kwargs):
    options = {"batch_size": 4, "seed": 5, "shuffle_buffer": 6} | kwargs
    dataset = CaptionShards(expand_shards(f"{folder}/{{0..2}}.tar"), TRANSFORM, TOKENIZER, **options)
    batches = iter(dataset)
    return [next(batches) for _ in range(count)], dataset


def captions(batches) -> list[int]:
    return [int(TOKENIZER.decode(row.tolist()).replace(" ", "")) for batch in batches for row in batch["tokens"]]


def test_a_pass_gives_every_usable_sample_once_and_counts_the_others(shards):
    batches, dataset = stream(shards, 6)
    assert sorted(captions(batches)) == list(range(24))
    assert captions(batches) != list(range(24))
    assert batches[0]["image"].shape == (4, 3, 16, 16)
    batches, dataset = stream(shards, 12)
    assert sorted(captions(batches)) == sorted([*range(24), *range(24)])
    assert captions(batches[:6]) != captions(batches[6:])  # the second pass has another order
    batches, dataset = stream(shards, 25, batch_size=1)  # all of the first pass, and one of the second
    report = dataset.report()
    assert all(1 <= report[reason] <= 2 for reason in SKIP_REASONS if reason != "damaged shard"), report
    assert report["damaged shard"] == 0


def test_image_and_caption_of_a_pair_belong_together(shards):
    batches, _ = stream(shards, 6)
    red = torch.cat([batch["image"][:, 0].mean(dim=(1, 2)) for batch in batches])
    expected = (torch.tensor(captions(batches)) * 10 / 255 - 0.48145466) / 0.26862954
    torch.testing.assert_close(red, expected, atol=1e-4, rtol=0)


def test_a_stopped_stream_goes_on_with_the_next_sample(shards):
    whole, _ = stream(shards, 9)
    worker, drawn = whole[4]["position"].tolist()
    rest, _ = stream(shards, 4, positions={worker: drawn}, first_batch=5)
    for a, b in zip(whole[5:], rest):
        assert torch.equal(a["tokens"], b["tokens"])
        assert torch.equal(a["image"], b["image"])  # the random crops too
        assert torch.equal(a["position"], b["position"])


def test_processes_share_the_shards_without_overlap(shards):
    parts = [captions(stream(shards, 2, rank=rank, world=3, batch_size=4)[0]) for rank in range(3)]
    assert sorted(caption for part in parts for caption in part) == list(range(24))


def test_missing_truncated_and_hopeless_shards_end_with_one_clear_error(shards, tmp_path):
    with pytest.raises(EncoreError, match=r"3\.tar: no such shard \(1 of 4"):
        expand_shards(f"{shards}/{{0..3}}.tar")
    with pytest.raises(EncoreError, match="3 shards cannot feed 4 workers"):
        stream(shards, 1, world=4)
    tiny.shard(tmp_path / "0.tar", [("a", "png", tiny.png(1)), ("a", "txt", b"")])
    hopeless = CaptionShards([str(tmp_path / "0.tar")], TRANSFORM, TOKENIZER, batch_size=1, seed=0, shuffle_buffer=1)
    with pytest.raises(EncoreError, match=r"0\.tar: the last 1000 samples were all unusable"):
        next(iter(hopeless))
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(EncoreError, match=r"empty\.tar: no samples"):
        next(iter(CaptionShards([str(tmp_path / "empty.tar")], TRANSFORM, TOKENIZER, batch_size=1, seed=0)))


@pytest.mark.parametrize("cut", [4096 + 600, 5120, 5120 + 90])  # inside an image, between members, inside a header
def test_a_shard_that_breaks_off_is_counted_and_the_rest_is_used(shards, tmp_path, cut):
    for i in range(3):
        data = (shards / f"{i}.tar").read_bytes()
        (tmp_path / f"{i}.tar").write_bytes(data[:cut] if i == 0 else data)
    batches, dataset = stream(tmp_path, 18, batch_size=1)
    assert set(captions(batches)) == {0, 1, *range(8, 24)}
    assert dataset.report()["damaged shard"] == 1


def test_workers_share_one_stream_and_their_counts_arrive(shards, tmp_path):
    TOKENIZER.save(tmp_path)
    options = {"tokenizer": str(tmp_path), "context_length": 16, "image_size": 16, "batch_size": 4}
    data = WebData(shards=f"{shards}/{{0..2}}.tar", num_workers=2, shuffle_buffer=3, **options)
    batches = [data.on_after_batch_transfer(batch, 0) for batch, _ in zip(data.train_dataloader(), range(8))]
    assert len({tuple(b["position"].tolist()) for b in batches}) == 8
    assert set(captions(batches)) == set(range(24))
    assert sum(data.train_shards.report().values()) >= 3
    again = WebData(shards=f"{shards}/{{0..2}}.tar", num_workers=2, shuffle_buffer=3, **options)
    for batch, _ in zip(again.train_dataloader(), range(5)):
        again.on_after_batch_transfer(batch, 0)
    resumed = WebData(shards=f"{shards}/{{0..2}}.tar", num_workers=2, shuffle_buffer=3, **options)
    resumed.load_state_dict(again.state_dict())
    for batch, expected in zip(resumed.train_dataloader(), batches[5:]):
        assert torch.equal(batch["tokens"], expected["tokens"])
        assert torch.equal(batch["image"], expected["image"])
    with pytest.raises(EncoreError, match="shards is not set"):
        WebData(**options).train_dataloader()


def test_training_crops_at_random_and_evaluation_in_the_centre():
    image = Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (0, 0, 20, 20))
    central = image_transform(20, train=False)(image)
    left_edge = central[0, 0, :10] > 0
    assert left_edge.all()
    assert not (central[0, 0, 11:] > 0).any()
    torch.manual_seed(0)
    edges = {int((image_transform(20, train=True)(image)[0, 0] > 0).sum()) for _ in range(12)}
    assert len(edges) > 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.image_folder(tmp_path_factory.mktemp("imagenet"))


def test_labels_follow_the_sorted_folders_and_counts_must_agree(folders, tmp_path):
    images = class_folders(str(folders), ["a", "b", "c"], 16)
    assert [images[i]["label"] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    expected = (60 / 255 - 0.48145466) / 0.26862954
    assert images[2]["image"][0].mean().item() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(EncoreError, match="has 3 class folders, the list of class names 2"):
        class_folders(str(folders), ["a", "b"], 16)
    with pytest.raises(EncoreError, match="no such folder"):
        class_folders(str(tmp_path / "none"), ["a"], 16)


def test_an_image_that_cannot_be_decoded_is_an_error_with_its_path(tmp_path):
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01" / "bad.png").write_bytes(tiny.png(3)[:50])
    with pytest.raises(EncoreError, match=r"bad\.png: cannot be decoded"):
        class_folders(str(tmp_path), ["a"], 16)[0]


def test_bags_hold_each_word_of_a_caption_once_and_no_unknown_ones():
    vocabulary = WordVocabulary(["a Red circle , red", "a box"])
    assert vocabulary.words == ["a", "red", "box", "circle"]
    assert vocabulary.bag(["red red moon , box", "."]).int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]


def test_pairs_keep_image_and_caption_together_and_crop_inside_the_image():
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 8, 8).clone()
    images[:, 0, 0, 0] = 200
    pairs = Pairs(images, torch.tensor([4, 0]), torch.tensor([[7], [8]]), torch.eye(2, dtype=torch.bool), crop=3)
    torch.manual_seed(0)
    batches = [pairs.__getitems__([1, 0]) for _ in range(40)]
    assert batches[0]["image"].shape == (2, 3, 5, 5)
    assert batches[0]["tokens"].tolist() == [[8], [7]]
    assert batches[0]["words"].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    torch.testing.assert_close(batches[0]["image"][1, 1], normalise(images)[4, 1, :5, :5])
    corner = torch.stack([b["image"][0, 0].max() > 0.5 for b in batches]).float().mean()
    assert 0 < corner < 0.3  # one of sixteen places shows the marked corner


def test_shapes_for_testing_are_the_same_for_every_seed_and_never_seen_in_training():
    one, two = ShapesData(size=60, test_size=38, seed=0), ShapesData(size=60, test_size=38, seed=1)
    one.setup("fit")
    two.setup("fit")
    assert torch.equal(one.test_images, two.test_images)
    assert one.class_names == two.class_names
    assert len(one.class_names) == 38
    assert sorted(one.test_labels.tolist()) == list(range(38))
    assert not torch.equal(one.train.images, two.train.images)
    assert one.train.tokens.max() == one.tokenizer.eot


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "L", "RGB"])
def test_as_released_resizes_what_is_stored_and_converts_last(mode, tmp_path):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    from common.formats.images import load_image, opened
    from papers.clip.images import MEAN, STD

    noise = torch.randint(256, (40, 50, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.numpy())
    (picture.quantize(16) if mode == "P" else picture.convert(mode)).save(tmp_path / "a.png", exif=_turned())
    resize = Resize(16, interpolation=InterpolationMode.BICUBIC)
    official = Compose([resize, CenterCrop(16), lambda image: image.convert("RGB"), ToTensor(), Normalize(MEAN, STD)])
    expected = official(Image.open(tmp_path / "a.png"))
    ours = image_transform(16, train=False, as_released=True)(opened(tmp_path / "a.png"))
    assert torch.allclose(ours, expected, atol=1e-6)
    house = image_transform(16, train=False)(load_image(tmp_path / "a.png"))
    assert not torch.allclose(house, expected, atol=1e-2)


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_stems_with_dots_are_pairs_and_other_members_of_a_stem_are_passed_over(tmp_path):
    members = [
        ("photo.1", "png", tiny.png(10)),
        ("photo.1", "txt", b"1"),
        ("photo.2", "txt", b"2"),
        ("photo.2", "png", tiny.png(20)),
        ("plain", "png", tiny.png(30)),
        ("plain", "seg.png", tiny.png(99)),
        ("plain", "seg.txt", b"99"),
        ("plain", "txt", b"3"),
    ]
    tiny.shard(tmp_path / "0.tar", members)
    batches, dataset = stream_of(tmp_path / "0.tar", 1, batch_size=3)
    assert sorted(captions(batches)) == [1, 2, 3]
    red = batches[0]["image"][:, 0].mean(dim=(1, 2)) * 0.26862954 + 0.48145466
    assert (red * 255).round().tolist() == [10 * caption for caption in captions(batches)]
    assert not any(dataset.report().values())


def stream_of(shard, count: int, **options):
    dataset = CaptionShards(expand_shards(str(shard)), TRANSFORM, TOKENIZER, seed=0, **options)
    batches = iter(dataset)
    return [next(batches) for _ in range(count)], dataset


def test_compressed_shards_and_pointers_say_what_to_do(shards, tmp_path):
    (tmp_path / "0.tar").write_bytes(gzip.compress((shards / "0.tar").read_bytes()))
    with pytest.raises(EncoreError, match=r"0\.tar: is compressed.*gunzip"):
        expand_shards(str(tmp_path / "0.tar"))
    (tmp_path / "0.tar").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 6\n")
    with pytest.raises(EncoreError, match=r"0\.tar: is a git-lfs pointer"):
        expand_shards(str(tmp_path / "0.tar"))
