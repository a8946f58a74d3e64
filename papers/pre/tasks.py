"""Small Base-to-New tasks in memory, in another style than what the small CLIPs that they adapt were pre-trained on.

Emoji: CLIP is pre-trained on drawings of three vendors, the task has drawings of three others; classes are keywords
such as "fruit" or "vehicle". Shapes: clean renderings for pre-training, noisy ones for the task; classes are a colour
and a shape. In both the words of every class, Base and New, occur in the captions of pre-training: New means new to the
prompt, as in the paper, not new to CLIP.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import sources
from common.formats.tables import decode_images, read_table
from common.training.run import Run, fit
from common.worlds import shapes
from papers.clip.data import EmojiData, ShapesData, SmallData, channels_first, normalise
from papers.clip.model import CLIP, clip_small
from papers.clip.module import CLIPModule, clip_optim, embed
from papers.pre.data import BaseToNew

Source = Literal["emoji", "shapes"]


class EmojiPretraining(EmojiData):
    """CLIP's emoji set with all nine groups. Half of the captions are the name, half are one to three keywords, in
    patterns that end in a full stop, as prompts do.
    """

    groups = (  # type: ignore[assignment]
        "Activities",
        "Animals & Nature",
        "Flags",
        "Food & Drink",
        "Objects",
        "People & Body",
        "Smileys & Emotion",
        "Symbols",
        "Travel & Places",
    )
    caption_templates = (
        "{}.",
        "a picture of {}.",
        "emoji : {}.",
        "the symbol {} in a message.",
        "a small drawing of {}.",
    )

    def setup(self, stage: str) -> None:
        if self.train:
            return
        super().setup(stage)
        table = read_table(sources.locate("emoji")["all.parquet"], ["name", "keywords"])
        keywords = {name.lower(): [k.replace("_", " ") for k in words or ()] for name, words in zip(*table.values())}
        names = [self.train_names[image] for image in self.train.image_of.tolist()]
        self.train.tokens = self.tokenizer(self.captions(names, keywords))

    def captions(self, names: Sequence[str], keywords: dict[str, list[str]]) -> list[str]:
        """One for every name, as the seed decides."""
        rng = np.random.default_rng([self.seed, 5])
        out = []
        for name in names:
            text = name
            if keywords[name] and rng.random() < 0.5:
                text = " ".join(rng.permutation(keywords[name])[: rng.integers(1, 4)])
            out.append(self.caption_templates[rng.integers(len(self.caption_templates))].format(text))
        return out


class ShapesPretraining(ShapesData):
    """CLIP's rendered shapes with captions that end in a full stop."""

    def setup(self, stage: str) -> None:
        if self.train:
            return
        super().setup(stage)
        scenes = shapes.sample_scenes(self.size, self.seen, seed=self.seed + 1000)
        captions = shapes.captions(scenes, seed=self.seed + 1000)
        self.train.tokens = self.tokenizer([f"{caption}." for caption in captions])
        self.templates = [f"{template}." for template in shapes.TEMPLATES]


@cache
def pretraining_data(source: Source, seed: int, size: int = 12_000) -> SmallData:
    """What a small CLIP is pre-trained on, set up once a process. size: number of scenes, for shapes."""
    data: SmallData
    if source == "emoji":
        data = EmojiPretraining(batch_size=64, seed=seed)
    else:
        data = ShapesPretraining(batch_size=64, seed=seed, size=size, test_size=38)
    data.setup("fit")
    return data


def pretrain(run: Run, data: SmallData, steps: int) -> CLIP:
    """A small CLIP trained by papers/clip as stage "backbone" of the run, which `fit` continues or loads."""
    L.seed_everything(run.seed, verbose=False)
    module = CLIPModule(clip_small(len(data.tokenizer), data.context_length), optim=clip_optim(3e-3, steps // 10))
    fit(module, data, run=run, name="backbone", max_steps=steps, limit_val_batches=0)
    return module.model


def small_clip(source: Source, steps: int, *, folder: str | None = None, seed: int = 0, size: int = 12_000) -> CLIP:
    """`pretrain` for a config. The backbone is kept in folder, and trained there when it is not there yet; without a
    folder it is trained each time.
    """
    with TemporaryDirectory() as temporary:
        run = Run("pre", source, "backbone", seed, "cpu", Path(folder or temporary))
        return pretrain(run, pretraining_data(source, seed, size), steps)


class Labelled(Dataset):
    """uint8 images (N, 3, R, R) with labels (N,); once cached, their features instead."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        batch = {"label": self.labels[rows]}
        if self.features is not None:
            return batch | {"features": self.features[rows]}
        return batch | {"image": normalise(self.images[rows])}


class SmallTask(BaseToNew):
    """`shots` images of every Base class for training, test images of Base and of New classes.

    The seed draws which half of the classes is Base, and the shots; backbone_seed is that of the pre-training, whose
    tokenizer is used. Subclasses fill in the attributes in setup.
    """

    words: str  # what a context starts from, four tokens
    train: Labelled
    tests: dict[str, Labelled]

    def __init__(self, *, shots: int = 16, batch_size: int = 32, seed: int = 0, backbone_seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, seed=seed, eval_batch_size=500)
        self.shots, self.backbone_seed = shots, backbone_seed

    @staticmethod
    def collate(batch: Any) -> Any:
        """`Labelled` has made it a batch already."""
        return batch

    def divide(self, names: Sequence[str]) -> tuple[list[int], list[int]]:
        """Base and New classes, as sorted indices into names; also sets base_names and new_names."""
        order = np.random.default_rng([self.seed, 1]).permutation(len(names))
        cut = (len(names) + 1) // 2
        base, new = sorted(order[:cut].tolist()), sorted(order[cut:].tolist())
        self.base_names, self.new_names = [names[i] for i in base], [names[i] for i in new]
        return base, new

    def cache(self, clip: CLIP) -> None:
        """Keep the features of the frozen `clip`: there is no augmentation, so they never change."""
        with torch.no_grad():
            for part in (self.train, *self.tests.values()):
                part.features = embed(lambda images: clip.encode_image(normalise(images)), part.images)


VENDORS = ("blob", "emojitwo", "fxemoji")  # of the task; the others are for pre-training
KEYWORDS = (
    "animal", "ball", "bird", "building", "button", "car", "clock", "clothing", "dessert", "drink", "email", "finger",
    "fish", "flag", "flower", "fruit", "game", "hand", "heart", "insect", "kanji", "letter", "money", "music",
    "planet", "sad", "ship", "smile", "stationery", "tool", "train", "triangle", "vegetable", "vehicle", "weather",
    "woman", "zodiac",
)  # fmt: skip


@cache
def emoji_pool() -> tuple[Tensor, list[int], list[str]]:
    """Drawings of VENDORS that have one of KEYWORDS: images (N, 3, 32, 32), labels into KEYWORDS, concepts (names).

    All differ: some flags have one drawing under several names, of which the first is kept. A concept with several of
    the keywords belongs to the one that fewest concepts have.
    """
    table = read_table(sources.locate("emoji")["all.parquet"])
    names = [name.lower() for name in table["name"]]
    words = [set(words or ()) & set(KEYWORDS) for words in table["keywords"]]
    shown = [i for i, group in enumerate(table["group"]) if group in EmojiPretraining.groups]
    concepts = {word: len({names[i] for i in shown if word in words[i]}) for word in KEYWORDS}
    rows = [i for i in shown if table["vendor"][i] in VENDORS and words[i]]
    images = decode_images([table["image"][i] for i in rows], size=36)[:, 2:-2, 2:-2]
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    first.sort()
    rows = [rows[i] for i in first]
    rarest = [min(words[i], key=lambda word: (concepts[word], word)) for i in rows]
    labels = [KEYWORDS.index(word) for word in rarest]
    return channels_first(images[first]), labels, [names[i] for i in rows]


class EmojiTask(SmallTask):
    """Emoji of the vendors that pre-training leaves out, classed by keyword.

    Shots and test images show different concepts; at most `test_each` test images a class, so that flags, of which
    there are 234, do not outweigh the rest.
    """

    words, hand_prompt = "a small drawing of", "a small drawing of {}."
    test_each = 40

    def setup(self, stage: str) -> None:
        if self.train is not None:
            return
        self.tokenizer = pretraining_data("emoji", self.backbone_seed).tokenizer
        images, labels, concepts = emoji_pool()
        rng = np.random.default_rng([self.seed, 2])
        base, new = self.divide(KEYWORDS)
        shots: list[int] = []
        tests: dict[str, list[int]] = {"base": [], "new": []}
        for label in range(len(KEYWORDS)):
            rows = [int(row) for row in rng.permutation(len(labels)) if labels[row] == label]
            order = list(dict.fromkeys(concepts[row] for row in rows))
            rows.sort(key=lambda row: order.index(concepts[row]))  # drawings of one concept side by side
            if label in base:
                shots += rows[: self.shots]
                shown = {concepts[row] for row in rows[: self.shots]}
                rows = [row for row in rows if concepts[row] not in shown]
            tests["base" if label in base else "new"] += rows[: self.test_each]

        def part(rows: list[int], classes: list[int]) -> Labelled:
            return Labelled(images[rows], torch.tensor([classes.index(labels[row]) for row in rows]))

        self.train = part(shots, base)
        self.tests = {"base": part(tests["base"], base), "new": part(tests["new"], new)}


class ShapesTask(SmallTask):
    """Single objects under heavy pixel noise, classed by colour and shape (64 classes), sizes mixed."""

    words, hand_prompt = "a picture of a", "a picture of a {}."

    def __init__(
        self, *, noise: float = 40.0, test_each: int = 30, pretraining_size: int = 12_000, **task: int
    ) -> None:
        super().__init__(**task)
        self.noise, self.test_each, self.pretraining_size = noise, test_each, pretraining_size

    def setup(self, stage: str) -> None:
        if self.train is not None:
            return
        self.tokenizer = pretraining_data("shapes", self.backbone_seed, self.pretraining_size).tokenizer
        pairs = [(shape, colour) for shape in range(len(shapes.SHAPES)) for colour in range(len(shapes.COLOURS))]
        names = [f"{tuple(shapes.COLOURS)[colour]} {shapes.SHAPES[shape]}" for shape, colour in pairs]
        base, new = ([pairs[i] for i in chosen] for chosen in self.divide(names))
        self.train = self.draw(base, self.shots, 3)
        self.tests = {"base": self.draw(base, self.test_each, 4), "new": self.draw(new, self.test_each, 5)}

    def draw(self, classes: list[tuple[int, int]], each: int, stream: int) -> Labelled:
        """`each` noisy images of every class, the three sizes in turn."""
        combinations = np.array([(*pair, size % len(shapes.SIZES)) for size in range(each) for pair in classes])
        seed = self.seed * 10 + stream
        scenes = shapes.sample_scenes(len(combinations), combinations, seed=seed, two_objects=0)
        images = channels_first(shapes.render(scenes, seed=seed, noise=self.noise))
        return Labelled(images, torch.arange(len(combinations)) % len(classes))
