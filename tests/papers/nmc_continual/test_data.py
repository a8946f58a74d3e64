"""On-disk formats, preprocessing and weight files, on fixtures the tests write themselves."""

import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from common.errors import EncoreError
from papers.nmc_continual import fixtures, formats, interop
from papers.nmc_continual.data import (
    CharacterStream,
    CORe50,
    DigitStream,
    FiveDatasets,
    SplitCIFAR100,
    SplitImageNetR,
    preprocessing,
    split_tasks,
)
from papers.nmc_continual.model import FrozenViT
from papers.nmc_continual.streams import CIFAR100_ORDER
from tests import tiny
from tests.helpers import requires_mirror

SIZE = {"image_size": 16, "num_workers": 0}


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    fixtures.cifar100(root, binary=True, train=2)
    return root


# CIFAR-100


def test_both_archives_of_cifar100_give_the_same_fine_labels_and_upright_images(cifar, tmp_path):
    fixtures.cifar100(tmp_path, train=2)
    for split, count in (("train", 200), ("test", 100)):
        (images, labels), (others, other_labels) = (
            formats.read_cifar(root, "cifar100", split) for root in (cifar, tmp_path)
        )
        assert images.shape == (count, 32, 32, 3)
        np.testing.assert_array_equal(images, others)
        assert labels.tolist() == other_labels.tolist() == np.tile(np.arange(100), count // 100).tolist()
    assert images[7, 3, 5].tolist() == [7, 24, 40]  # red: label; row 3, column 5


class Harmful:
    """Would create a file if its pickle were loaded as Python's own loader does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_calls_something_is_refused_before_it_runs(tmp_path):
    trace = tmp_path / "trace"
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for content in ({b"data": Harmful(trace)}, Harmful(trace), [np.zeros(3), eval], np.array([Harmful(trace)], object)):
        (folder / "train").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(EncoreError, match=r"train: refused or unreadable \(it asks for"):
            formats.read_cifar(tmp_path, "cifar100", "train")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Harmful(trace)))
    assert trace.exists()  # the pickle was a loaded one
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "plain").write_bytes(pickle.dumps({b"a": array, "b": ["x", 1.5, None]}, protocol=2))
    np.testing.assert_array_equal(formats.load_arrays(tmp_path / "plain")[b"a"], array)


def test_damaged_and_missing_cifar_files_are_named(cifar, tmp_path):
    with pytest.raises(EncoreError, match=r"train\.bin nor .*cifar-100-python/train is there"):
        formats.read_cifar(tmp_path, "cifar100", "train")
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    whole = (cifar / "cifar-100-binary" / "test.bin").read_bytes()
    (folder / "test.bin").write_bytes(whole[:-5])
    with pytest.raises(EncoreError, match=r"test\.bin: 307395 bytes are no whole number of 3074-byte records"):
        formats.read_cifar(tmp_path, "cifar100", "test")
    python = tmp_path / "cifar-100-python"
    python.mkdir()
    (python / "train").write_bytes(pickle.dumps({b"data": np.zeros((3, 3072), np.uint8)}, protocol=2))
    with pytest.raises(EncoreError, match="not a CIFAR batch"):
        formats.read_cifar(tmp_path, "cifar100", "train")
    (python / "train").write_bytes(pickle.dumps({b"data": np.zeros(9)}, protocol=2)[:40])
    with pytest.raises(EncoreError, match="refused or unreadable"):
        formats.read_cifar(tmp_path, "cifar100", "train")


def test_split_cifar100_follows_the_published_order_and_tests_all_classes_seen(cifar):
    data = SplitCIFAR100(root=str(cifar), batch_size=8, **SIZE)
    data.setup()
    assert [classes.tolist() for classes in data.stream.classes] == [
        list(CIFAR100_ORDER[i : i + 10]) for i in range(0, 100, 10)
    ]
    assert [len(test) for test in data.stream.tests] == list(range(10, 101, 10))
    seen = [batch["label"].tolist() for batch in data.train_dataloader()]
    assert sorted(label for labels in seen[:3] for label in labels) == sorted(2 * CIFAR100_ORDER[:10])
    labels = torch.cat([batch["label"] for batch in data.test_loader(data.stream.tests[1])])
    assert set(labels.tolist()) == set(CIFAR100_ORDER[:20])
    image, label = data.train_set[87]
    assert image.shape == (3, 16, 16)
    assert (image[0].mean().item() * 255, label) == (pytest.approx(87, abs=1e-3), 87)


# Preprocessing


def test_images_are_fed_as_the_released_scripts_do_or_as_the_encoder_was_trained():
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    plain = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    expected = F.interpolate(plain[None], size=(224, 224), mode="bilinear", align_corners=False)[0]
    ours = preprocessing("tensor", normalise=False)(image)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    smoothed = F.interpolate(plain[None], size=(224, 224), mode="bilinear", align_corners=False, antialias=True)[0]
    torch.testing.assert_close(ours, smoothed, atol=1e-5, rtol=0)  # upwards, anti-aliasing changes nothing
    torch.testing.assert_close(preprocessing("tensor", normalise=True)(image), (ours - 0.5) / 0.5)
    resized = np.array(image.resize((224, 224), Image.Resampling.BILINEAR))
    torch.testing.assert_close(
        preprocessing("image", normalise=False)(image), torch.from_numpy(resized).permute(2, 0, 1).float() / 255
    )
    wide = Image.fromarray(generator.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    width = round(400 * 256 / 300)
    scaled = np.array(wide.resize((width, 256), Image.Resampling.BILINEAR))
    left = round((width - 224) / 2)
    crop = torch.from_numpy(scaled[16:240, left : left + 224]).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(preprocessing("crop", normalise=False)(wide), crop, atol=1 / 255 + 1e-6, rtol=0)


# Folders


def test_core50_brings_all_objects_in_eight_sessions_and_tests_three_others_each_time(tmp_path):
    fixtures.core50(tmp_path, objects=50)
    data = CORe50(root=str(tmp_path), batch_size=32, **SIZE)
    data.setup()
    assert len(data.stream.tasks) == 8
    sessions = [{data.train_set.items[i].parts[-3] for i in task} for task in data.stream.tasks]
    assert sessions == [{f"s{s}"} for s in (1, 2, 4, 5, 6, 8, 9, 11)]
    assert {path.parts[-3] for path in data.test_set.items} == {"s3", "s7", "s10"}
    assert all(len(test) == 150 for test in data.stream.tests)
    for task in data.stream.tasks:
        assert sorted(data.train_set.labels[task].tolist()) == list(range(50))
    image, label = data.train_set[11]
    assert image[0].mean().item() * 255 == pytest.approx(label + 1)  # object o12 is class 11, not class 12 or 3
    (tmp_path / "core50_128x128" / "s7").rename(tmp_path / "elsewhere")
    with pytest.raises(EncoreError, match=r"s7: no such folder"):
        CORe50(root=str(tmp_path), **SIZE).setup()


@pytest.fixture(scope="module")
def renditions(tmp_path_factory):
    """ImageNet-R in small: 20 class folders of 5 or 10 pictures, and a README beside them."""
    root = tmp_path_factory.mktemp("renditions")
    for number in range(20):
        folder = root / "imagenet-r" / f"n{number:08}"
        folder.mkdir(parents=True)
        for i in range(5 if number % 2 else 10):
            (folder / f"art_{i}.jpg").write_bytes(tiny.png(10 * number))
    (root / "imagenet-r" / "README.txt").write_text("about")
    return root


def test_split_imagenet_r_cuts_every_task_at_four_fifths_with_the_published_seed(renditions):
    data = SplitImageNetR(root=str(renditions), batch_size=4, **SIZE)
    data.setup()
    assert len(data.stream.tasks) == 10
    assert [len(task) for task in data.stream.tasks] == [12] * 10
    assert len(data.stream.tests[-1]) == 30
    assert not {str(p) for p in data.train_set.items} & {str(p) for p in data.test_set.items}
    torch.manual_seed(42)
    kept, held_out = torch.utils.data.random_split(range(15), [12, 3])  # what the released script does first
    files, labels, _ = formats.read_imagenet_r(renditions)
    train, test = split_tasks(labels, 2)
    assert train[:12].tolist() == list(kept)
    assert test[:3].tolist() == list(held_out)
    assert sorted([*train, *test]) == list(range(len(files)))


def test_folders_and_pictures_that_are_missing_or_broken_are_named(renditions, tmp_path):
    with pytest.raises(EncoreError, match="no class folders"):
        formats.read_imagenet_r(tmp_path)
    (tmp_path / "n01").mkdir()
    with pytest.raises(EncoreError, match=r"n01: no images in it"):
        formats.read_imagenet_r(tmp_path)
    (tmp_path / "n01" / "a.jpg").write_bytes(tiny.png(1)[:30])
    data = SplitImageNetR(root=str(renditions), **SIZE)
    data.setup()
    data.train_set.items = [tmp_path / "n01" / "a.jpg"]
    with pytest.raises(EncoreError, match=r"a\.jpg: cannot be decoded"):
        data.train_set[0]


# Five data sets


def test_five_datasets_come_in_the_released_order_with_fifty_classes(tmp_path):
    root = tmp_path
    fixtures.five_datasets(root)
    (root / "notMNIST" / "Train" / "C" / "broken.png").write_bytes(b"no image")
    data = FiveDatasets(root=str(root), batch_size=8, **SIZE)
    with pytest.warns(UserWarning, match="skipped 1 broken files"):
        data.setup()
    assert [classes.tolist() for classes in data.stream.classes] == [
        list(range(first, first + 10)) for first in range(0, 50, 10)
    ]
    assert [len(task) for task in data.stream.tasks] == [20] * 5
    for dataset, size in ((data.train_set, 100), (data.test_set, 50)):
        assert len(dataset) == size
        for index in range(size):
            image, label = dataset[index]
            assert image.shape == (3, 16, 16)
            assert image.mean().item() * 255 == pytest.approx(label, abs=1e-3)
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01")
    with pytest.raises(EncoreError, match="not a whole idx file"):
        formats.read_mnist(root / "MNIST", "test")
    (root / "test_32x32.mat").write_bytes(b"no matrix")
    with pytest.raises(EncoreError, match="not SVHN"):
        formats.read_svhn(root, "test")


# Small streams


def test_the_seed_decides_the_order_of_the_digits_and_no_test_image_is_trained_on():
    one, two = DigitStream(source="digits", seed=0), DigitStream(source="digits", seed=1)
    one.setup()
    two.setup()
    assert len(one.stream.tasks) == 5
    assert sorted(c for classes in one.stream.classes for c in classes) == list(range(10))
    assert [c.tolist() for c in one.stream.classes] != [c.tolist() for c in two.stream.classes]
    assert torch.equal(one.train_set.images, two.train_set.images)
    assert len(one.train_set) + len(one.test_set) == 1797
    assert one.train_set.images.min() == -1
    assert 0.9 < one.train_set.images.max() <= 1


@requires_mirror("omniglot")
def test_test_drawers_never_train_and_ink_is_positive():
    data = CharacterStream(num_tasks=3, classes_a_task=4, seed=0)
    data.setup()
    assert len(data.train_set) == len(data.test_set) == 12 * 10
    assert len(data.stream.tasks) == 3
    assert data.train_set.images.mean() < 0  # mostly paper
    assert data.train_set.images.max() > 0.5
    joined = torch.cat([data.train_set.images, data.test_set.images]).flatten(1)
    assert len(joined.unique(dim=0)) == 240


# Weight files


CONFIG = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def write_hub(directory: Path) -> Path:
    """A tiny ViTModel in the hub's format, with pooler as published."""
    tiny.randomise(ViTModel(ViTConfig(**CONFIG))).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_features_equal_the_class_token_of_transformers_after_the_last_norm(images, tmp_path):
    theirs = tiny.randomise(ViTModel(ViTConfig(**CONFIG), add_pooling_layer=False))
    theirs.save_pretrained(tmp_path / "plain")
    expected = theirs(images).last_hidden_state[:, 0]
    ours = interop.from_hub(tmp_path / "plain")
    torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=1e-5)
    assert ours.norm.eps == 1e-12
    assert expected.std(dim=0).mean() > 0.01
    classifier = tiny.randomise(ViTForImageClassification(ViTConfig(**CONFIG)))
    classifier.save_pretrained(tmp_path / "classifier")
    expected = classifier.vit(images).last_hidden_state[:, 0]
    torch.testing.assert_close(interop.from_hub(tmp_path / "classifier")(images), expected, atol=1e-5, rtol=1e-5)
    expected = ViTModel.from_pretrained(write_hub(tmp_path / "pooler")).eval()(images).last_hidden_state[:, 0]
    torch.testing.assert_close(interop.from_hub(tmp_path / "pooler")(images), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_timm_names_mean_what_timm_computes(tmp_path, images):
    model = tiny.randomise(FrozenViT(image_size=16, patch_size=8, dim=128, depth=1, num_heads=2, mlp_dim=48))
    state = interop.state_to_timm(model.state_dict())
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    names = ["patch_embed.proj", *(f"blocks.0.{name}" for name in block), "norm"]
    assert set(state) == {"cls_token", "pos_embed", *(f"{n}.{kind}" for n in names for kind in ("weight", "bias"))}
    assert (state["cls_token"].shape, state["pos_embed"].shape) == ((1, 1, 128), (1, 5, 128))
    linear = lambda x, name: F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])  # noqa: E731
    norm = lambda x, name: F.layer_norm(x, (128,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)  # noqa: E731
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8)
    x = torch.cat([state["cls_token"].expand(3, -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + state["pos_embed"]
    q, k, v = linear(norm(x, "blocks.0.norm1"), "blocks.0.attn.qkv").reshape(3, 5, 3, 2, 64).permute(2, 0, 3, 1, 4)
    attended = ((q @ k.transpose(-2, -1)) / math.sqrt(64)).softmax(-1) @ v
    x = x + linear(attended.transpose(1, 2).reshape(3, 5, 128), "blocks.0.attn.proj")
    hidden = F.gelu(linear(norm(x, "blocks.0.norm2"), "blocks.0.mlp.fc1"))
    x = x + linear(hidden, "blocks.0.mlp.fc2")
    expected = norm(x, "norm")[:, 0]
    torch.save(state | {"head.weight": torch.ones(7, 128), "head.bias": torch.ones(7)}, tmp_path / "timm.pth")
    ours = interop.from_timm(tmp_path / "timm.pth")
    torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), model.state_dict().values(), strict=True))


def test_directories_of_other_models_are_refused(tmp_path):
    write_hub(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "deit"}, "model_type 'deit'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"num_hidden_layers": 1}, "weights do not fit FrozenViT: unknown blocks.layers.1"),
        ({"image_size": 32}, r"positions is \(5, 32\), the model wants \(17, 32\)"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(EncoreError, match=message):
            interop.from_hub(tmp_path)
    with pytest.raises(EncoreError, match="not a timm ViT"):
        interop.from_timm(tmp_path)
