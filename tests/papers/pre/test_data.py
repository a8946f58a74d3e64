"""The CoOp splits on disk, few-shot sampling, Base and New classes, the small tasks."""

import random
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from common.errors import EncoreError
from papers.pre import fixtures, tasks
from papers.pre.data import (
    LAYOUTS,
    FewShotData,
    Item,
    Splits,
    base_and_new,
    few_shot,
    labelled,
    read_splits,
    train_transform,
)
from papers.pre.tasks import KEYWORDS, VENDORS, EmojiPretraining, EmojiTask, ShapesTask, emoji_pool, pretraining_data
from tests.helpers import requires_mirror
from tests.papers.pre.test_model import TOKENIZER


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DTD and FGVC-Aircraft in small."""
    root = tmp_path_factory.mktemp("data")
    fixtures.dtd(root)
    fixtures.aircraft(root)
    TOKENIZER.save(root / "tokenizer")
    return root


def few_shot_data(root, **changes) -> FewShotData:
    options = {
        "root": str(root), "dataset": "dtd", "tokenizer": str(root / "tokenizer"), "shots": 4, "image_size": 16,
        "context_length": 24, "batch_size": 4, "num_workers": 0,
    }  # fmt: skip
    data = FewShotData(**(options | changes))
    data.setup("fit")
    return data


# Splits


def test_the_first_half_of_the_labels_is_base_and_the_larger_one_when_odd():
    items = [Item(f"{label}", label, f"c{label}") for label in (5, 2, 9, 0, 7)]
    base, new = base_and_new(Splits(items, items[:1]))
    assert [(item.label, item.name) for item in base.train] == [(2, "c5"), (1, "c2"), (0, "c0")]
    assert [(item.label, item.name) for item in new.train] == [(1, "c9"), (0, "c7")]
    assert [item.name for item in base.test] == ["c5"]
    assert new.test == []
    with pytest.raises(EncoreError, match="at least two classes"):
        base_and_new(Splits(items[:1], []))


def test_shots_are_those_that_python_draws_class_by_class_in_the_order_of_the_split():
    items = [Item(f"{label}-{i}", label, "") for label, n in ((4, 30), (1, 3), (2, 20)) for i in range(n)]
    groups = defaultdict(list)
    for item in items:
        groups[item.label].append(item)
    random.seed(3)
    expected = []
    for group in groups.values():
        expected += random.sample(group, 16) if len(group) >= 16 else group
    assert few_shot(items, 16, random.Random(3)) == expected
    assert few_shot(items, 16, random.Random(4)) != expected
    assert len({item.path for item in expected}) == 35


def test_base_images_train_and_each_half_is_tested_among_its_own_names(root):
    data = few_shot_data(root)
    assert data.base_names == fixtures.CLASSES[:3]
    assert data.new_names == fixtures.CLASSES[3:]
    assert data.hand_prompt == "{} texture."
    assert sorted(item.label for item in data.base.train) == [0] * 4 + [1] * 4 + [2] * 4
    train = {item.path for item in data.base.train}
    base, new = (loader.dataset.dataset for loader in data.val_dataloader())
    assert [len(base), len(new)] == [6, 4]
    assert not train & set(base.items)
    for images, names in ((base, data.base_names), (new, data.new_names)):
        assert all(path.parent.name == names[label] for path, label in zip(images.items, images.labels))
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert len(data.train_dataloader()) == 3
    assert few_shot_data(root, seed=2).base.train != data.base.train
    assert len(few_shot_data(root, batch_size=32).train_dataloader()) == 1  # fewer images than a batch


def test_fgvc_aircraft_is_read_from_its_own_lists(root):
    data = few_shot_data(root, dataset="fgvc_aircraft", shots=1)
    assert data.base_names == ["707-320", "727 200"]
    assert data.new_names == ["MD-11"]
    assert [item.path.name for item in data.new.test] == ["0000005.jpg"]
    assert data.base.test[1].name == "727 200"


def test_every_data_set_of_the_paper_has_a_place():
    assert len(LAYOUTS) == 8
    assert all(layout.hand_prompt.count("{}") == 1 for layout in LAYOUTS.values())


def test_training_images_are_cropped_and_flipped_at_random():
    ramp = Image.merge("RGB", [Image.linear_gradient("L").rotate(90)] * 3)  # dark on the left
    torch.manual_seed(0)
    crops = torch.stack([train_transform(16)(ramp) for _ in range(40)])
    assert crops.shape == (40, 3, 16, 16)
    slope = crops[:, 0, :, -1].mean(dim=1) - crops[:, 0, :, 0].mean(dim=1)
    assert 8 < (slope > 0).sum() < 32
    assert slope.abs().max() > 2 * slope.abs().min()  # of several sizes


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", r"DescribableTextures\.json: not a split file"),
        ('{"train": []}', "not a split file"),
        ('{"train": [["a.png", 0]], "test": []}', "not a split file"),
        ('{"train": [["a", 0, "x"], ["b", 0, "y"]], "test": []}', "label 0 is both 'x' and 'y'"),
    ],
)
def test_a_damaged_split_file_is_named(tmp_path, content, message):
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text(content)
    with pytest.raises(EncoreError, match=message):
        read_splits(tmp_path, "dtd")


def test_missing_data_are_named(root, tmp_path):
    with pytest.raises(EncoreError, match="unknown data set 'cub'"):
        read_splits(root, "cub")
    with pytest.raises(EncoreError, match=r"eurosat/2750: no such folder; put the images"):
        read_splits(root, "eurosat")
    (tmp_path / "eurosat" / "2750").mkdir(parents=True)
    with pytest.raises(EncoreError, match=r"split_zhou_EuroSAT\.json: cannot be read"):
        read_splits(tmp_path, "eurosat")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    items = [Item(tmp_path / "broken.png", 0, "x"), Item(tmp_path / "none.png", 0, "x")]
    images = labelled(items, train_transform(16))
    for i, name in enumerate(("broken", "none")):
        with pytest.raises(EncoreError, match=rf"{name}\.png: cannot be decoded"):
            images[i]
    folder = tmp_path / "fgvc_aircraft"
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("707-320\n")
    (folder / "images_variant_train.txt").write_text("0000000 707-320\n0000001 Concorde\n")
    with pytest.raises(EncoreError, match=r"train\.txt, line 2: 'Concorde' is not in variants"):
        read_splits(tmp_path, "fgvc_aircraft")


# Small tasks


def test_shapes_are_divided_by_the_seed_and_shown_in_noise():
    task = ShapesTask(seed=1, shots=3, test_each=2, pretraining_size=128)
    task.setup("fit")
    assert len(task.base_names) == len(task.new_names) == 32
    assert not set(task.base_names) & set(task.new_names)
    assert len(task.train) == 96
    assert len(task.tests["new"]) == 64
    assert torch.bincount(task.train.labels).tolist() == [3] * 32
    clean = ShapesTask(seed=1, shots=3, test_each=2, pretraining_size=128, noise=0.0)
    clean.setup("fit")
    assert (clean.train.images.float() - task.train.images.float()).std() > 20
    assert clean.base_names == task.base_names
    other = ShapesTask(seed=2, shots=3, test_each=2, pretraining_size=128)
    other.setup("fit")
    assert other.base_names != task.base_names
    red = [i for i, name in enumerate(task.base_names) if name.startswith("red")]
    rows = [i for i, label in enumerate(clean.train.labels.tolist()) if label in red]
    grey = clean.train.images.float().mean(dim=(2, 3))
    assert (grey[rows, 0] - grey[rows, 2]).mean() > 5  # labels follow the images


def test_captions_of_pre_training_end_in_a_full_stop_as_prompts_do():
    data = pretraining_data("shapes", 0, 128)
    full_stop = data.tokenizer.encode(".")[0]
    ends = data.train.tokens.argmax(dim=1)
    assert (data.train.tokens[torch.arange(len(ends)), ends - 1] == full_stop).all()


def test_half_of_the_emoji_captions_are_keywords_alone():
    data = EmojiPretraining(seed=3)
    keywords = {"red apple": ["fruit", "school", "food", "red"], "x": []}
    captions = data.captions(["red apple"] * 400 + ["x"] * 20, keywords)
    assert all(caption.endswith(".") and "x" in caption for caption in captions[400:])
    named = [caption for caption in captions[:400] if "red apple" in caption]
    assert 170 < len(named) < 230
    others = " ".join(set(captions[:400]) - set(named))
    assert "apple" not in others
    assert all(word in others for word in keywords["red apple"])
    assert data.captions(["red apple"] * 5, keywords) == captions[:5]


@requires_mirror("emoji")
def test_emoji_of_the_task_are_by_other_vendors_and_shots_show_other_concepts_than_tests(monkeypatch):
    assert not set(VENDORS) & set(EmojiPretraining.train_vendors)
    images, labels, concepts = emoji_pool()
    rows = {image.numpy().tobytes(): i for i, image in enumerate(images)}
    monkeypatch.setattr(tasks, "pretraining_data", lambda *args: SimpleNamespace(tokenizer=TOKENIZER))
    task = EmojiTask(seed=5)
    task.setup("fit")
    shots = [rows[image.numpy().tobytes()] for image in task.train.images]
    tests = [rows[image.numpy().tobytes()] for image in task.tests["base"].images]
    assert not {concepts[i] for i in shots} & {concepts[i] for i in tests}
    assert torch.bincount(task.train.labels).tolist() == [16] * len(task.base_names)
    assert torch.bincount(task.tests["new"].labels).max() == 40
    for part, names in ((task.train, task.base_names), (task.tests["new"], task.new_names)):
        for image, label in zip(part.images[::40], part.labels[::40]):
            assert KEYWORDS[labels[rows[image.numpy().tobytes()]]] == names[label]
