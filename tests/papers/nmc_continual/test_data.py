"""On-disk formats and preprocessing, on tiny files in the real formats."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from common.errors import EncoreError
from common.interop.pickles import ARRAYS, load_pickle
from papers.nmc_continual import fixtures, formats
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


def test_a_pickle_that_calls_something_is_refused_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "harmed"
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for content in ({b"data": tiny.Harmful()}, tiny.Harmful(), [np.zeros(3), eval], np.array([tiny.Harmful()], object)):
        (folder / "train").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(EncoreError, match=r"train: refused or unreadable \(it asks for"):
            formats.read_cifar(tmp_path, "cifar100", "train")
    assert not trace.exists()
    pickle.loads(pickle.dumps(tiny.Harmful()))
    assert trace.exists()  # the pickle was a loaded one
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "plain").write_bytes(pickle.dumps({b"a": array, "b": ["x", 1.5, None]}, protocol=2))
    np.testing.assert_array_equal(load_pickle(tmp_path / "plain", ARRAYS, encoding="bytes")[b"a"], array)


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
    image, label = data.train_set[87].values()
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
    image, label = data.train_set[11].values()
    assert image[0].mean().item() * 255 == pytest.approx(label + 1)  # object o12 is class 11, not class 12 or 3
    (tmp_path / "core50_128x128" / "s7").rename(tmp_path / "elsewhere")
    with pytest.raises(EncoreError, match=r"s7: no such folder"):
        CORe50(root=str(tmp_path), **SIZE).setup()


@pytest.fixture(scope="module")
def renditions(tmp_path_factory):
    """ImageNet-R in small: 20 class folders of 5 or 10 pictures, and a README beside them."""
    root = tmp_path_factory.mktemp("renditions")
    for number in range(20):
        for i in range(5 if number % 2 else 10):
            tiny.image(root / "imagenet-r" / f"n{number:08}" / f"art_{i}.jpg", 10 * number)
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
            image, label = dataset[index].values()
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
