"""common.worlds.small_images: one function, sets as their homes number them."""

import numpy as np
import pytest

from common.errors import EncoreError
from common.worlds.small_images import small_images
from tests.helpers import requires_mirror


def test_digits_need_no_file_and_their_splits_share_no_row():
    train, test = small_images("digits", "train"), small_images("digits", "test")
    assert (len(train.labels), len(test.labels)) == (1347, 450)
    from sklearn.datasets import load_digits

    content = load_digits()
    assert np.array_equal(test.labels, content.target[::4])
    assert train.images.shape[1:] == (8, 8)
    assert train.images.max() == 255


def test_the_first_of_every_class_come_class_by_class():
    few = small_images("digits", "train", per_class=3)
    assert few.labels.tolist() == [c for c in range(10) for _ in range(3)]
    everything = small_images("digits", "train")
    assert np.array_equal(few.images[:3], everything.images[everything.labels == 0][:3])


@requires_mirror("omniglot")
def test_columns_stay_beside_their_images():
    found = small_images("omniglot", "evaluation", per_class=2)
    assert found.images.shape == (2 * 659, 28, 28)
    assert found.columns["drawer"].tolist()[:4] == [1, 2, 1, 2]


@requires_mirror("mnist")
def test_mnist_is_balanced_in_training_and_whole_in_the_test():
    assert np.bincount(small_images("mnist", "train").labels).tolist() == [1000] * 10
    assert len(small_images("mnist", "test").labels) == 10_000


@requires_mirror("cifar10")
def test_colour_sets_are_resized_and_keep_three_channels():
    assert small_images("cifar10", "test", size=16, per_class=1).images.shape == (10, 16, 16, 3)


@pytest.mark.parametrize("name, split, said", [("minst", "train", "no small image set"), ("digits", "val", "no split")])
def test_unknown_sets_and_splits_are_named(name, split, said):
    with pytest.raises(EncoreError, match=said):
        small_images(name, split)
    with pytest.raises(EncoreError, match="digits are 8x8"):
        small_images("digits", "train", size=28)
