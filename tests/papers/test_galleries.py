"""What the galleries show is what the model gave, at the place where it belongs; the models here are hardly trained."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from common.gallery import Drawing, Spectrogram, png


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_a_png_holds_the_pixels_and_clips_what_lies_outside():
    assert pixels(png(np.array([[0.0, 0.5], [1.0, 7.0]]))).tolist() == [[0, 128], [255, 255]]
    colours = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (pixels(png(colours)) == colours).all()


def test_items_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="beyond the 2"):
        Drawing(title="", caption="", points=[(0, 0), (1, 1)], paths={"p": [0, 2]})
    with pytest.raises(ValueError, match="differ in length"):
        Spectrogram(title="", caption="", png=png(np.zeros((1, 1))), tokens=[[1, 2], [3]])


def test_a_tour_is_right_whatever_its_start_and_direction():
    from papers.pointer_networks.gallery import _drawing

    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    label = np.array([0, 1, 2, 3, -1])
    right = _drawing(points, label, [2, 1, 0, 3], "tsp")
    assert "answer 3 2 1 4 is the same as the exact one 1 2 3 4." in right.caption
    assert right.paths == {"exact": [0, 1, 2, 3], "Ptr-Net": [2, 1, 0, 3]}
    assert "is not the exact one" in _drawing(points, label, [0, 2, 1, 3], "tsp").caption


def test_hulls_and_tours_are_those_of_the_test_sets(tmp_path, monkeypatch):
    from papers.pointer_networks import gallery
    from papers.pointer_networks.problems import held_out

    tiny = gallery.Plan(hidden_dim=8, steps=2, test=0, batch_size=4)
    monkeypatch.setattr(gallery, "HULLS", tiny)
    monkeypatch.setattr(gallery, "TOURS", tiny)
    made = gallery.gallery(tmp_path)
    points, labels = held_out("hull", 2, 8)
    assert made.items[1].paths["exact"] == [i for i in labels[1].tolist() if i >= 0]
    assert np.allclose(made.items[1].points, points[1], atol=1e-4)
    for item in made.items[4:]:
        assert sorted(item.paths["Ptr-Net"]) == list(range(len(item.points))), "tours are constrained"
    assert "5 points" in made.items[4].title
    assert "more than the 5 it was trained on" not in made.items[4].caption
    assert "more than the 5 it was trained on" in made.items[6].caption
    assert "for 2 steps of 4 sets" in made.trained


def test_zero_shot_pictures_are_marked_right_when_the_first_prediction_is(tmp_path, monkeypatch):
    from papers.clip import gallery
    from papers.clip.data import ShapesData

    for name, value in {"STEPS": 2, "PAIRS": 128, "BATCH": 16, "SHOWN": 5}.items():
        monkeypatch.setattr(gallery, name, value)
    made = gallery.gallery(tmp_path)
    data = ShapesData(size=128, test_size=5)
    data.setup("fit")
    (item,) = made.items
    right = 0
    for index, picture in enumerate(item.pictures):
        truth, _, said = picture.label.partition(": ")
        assert truth == data.class_names[data.test_labels[index]]
        first, _, _ = picture.lines[0].rpartition(", ")
        assert said == ("right" if first == truth else "wrong")
        shares = [int(line.rpartition(", ")[2].removesuffix(" %")) for line in picture.lines]
        assert shares == sorted(shares, reverse=True)
        assert (pixels(picture.png) == data.test_images[index].permute(1, 2, 0).numpy()).all()
        right += said == "right"
    assert f"{right} of 5 are right" in item.caption
    assert made.trained.startswith("A small CLIP after 2 steps of 16 pairs, out of 128")


def test_perfect_predictions_reconstruct_the_clip_and_only_hidden_cubes_are_grey():
    from common.worlds.moving_digits import MEAN, STD, DigitClips
    from papers.videomae_v2.gallery import _item
    from papers.videomae_v2.model import pretrain_videomae_tiny_patch8_32, true_indices
    from papers.videomae_v2.module import cube_targets

    encoder = pretrain_videomae_tiny_patch8_32().encoder
    video = DigitClips("test", 1)[0]["video"]
    maps = []

    class Oracle(SimpleNamespace):
        def __call__(self, video, hidden):
            maps.append(hidden)
            return cube_targets(video, true_indices(hidden), encoder.embed, STD)

    torch.manual_seed(0)
    item = _item(Oracle(encoder=encoder), video, 0)
    shown = [pixels(picture.png).astype(int) for picture in item.pictures]
    assert [picture.label for picture in item.pictures][3:5] == ["original, frame 7", "what the encoder sees, frame 1"]
    frames = torch.round(255 * (video * STD[0] + MEAN[0]).clamp(0, 1))[0, 0, ::2].numpy()
    grey = maps[0].view(encoder.grid)[0].repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    for index, frame in enumerate(frames):
        assert np.abs(shown[index] - frame).max() <= 1
        assert np.abs(shown[8 + index] - frame).max() <= 1, "reconstructed"
        assert (shown[4 + index][grey] == 128).all()
        assert np.abs(shown[4 + index] - frame)[~grey].max() <= 1
    assert "error is 0.000" in item.caption


def test_tokens_stand_under_their_patches():
    """A tokenizer that numbers the patches, time first: token 0 belongs to the lowest band at the start."""
    from papers.beats.gallery import _item

    numbers = SimpleNamespace(num_codes=128, tokenize=lambda x: torch.arange(128)[None])
    clip = torch.zeros(128, 64)
    clip[:8, :8] = 1.0  # the first patch: lowest band, first 8 frames
    item = _item(numbers, "numbered", clip + 0.001 * torch.rand(128, 64), "a hum")
    assert (len(item.tokens), len(item.tokens[0])) == (8, 16)
    assert (item.tokens[-1][0], item.tokens[-2][0], item.tokens[-1][1]) == (0, 1, 8)
    picture = pixels(item.png)
    assert picture.shape == (64, 128)
    assert picture[-8:, :8].min() > 250
    assert "128 different codes out of 128" in item.caption


def test_restored_text_is_shown_with_its_masks(tmp_path, monkeypatch):
    import dataclasses

    from common.formats.corpora import paragraphs
    from common.formats.tokenizers import train_byte_bpe
    from papers.bart import gallery
    from papers.bart.claims import RECIPES, Text
    from papers.bart.data import Blocks, noise_vocabulary

    documents = paragraphs()[:40]
    tokenizer = train_byte_bpe([" ".join(document) for document in documents], 600)
    blocks = Blocks.of(documents, tokenizer, 24)
    text = Text(blocks, blocks, tokenizer, noise_vocabulary(tokenizer))
    recipe = dataclasses.replace(RECIPES["smoke"], vocab_size=len(tokenizer), batch_size=4)
    monkeypatch.setattr(gallery, "RECIPE", recipe)
    monkeypatch.setattr(gallery, "wikitext", lambda recipe: text)
    monkeypatch.setattr(gallery, "SHOWN", 4)
    made = gallery.gallery(tmp_path)
    (item,) = made.items
    assert item.rows[1][0] == tokenizer.decode(blocks[1]).strip()
    assert any("<mask>" in row[1] for row in item.rows)
    assert not any(special in cell for row in item.rows for cell in row for special in ("<s>", "</s>", "<pad>"))
    assert f"{sum(row[0] == row[2] for row in item.rows)} of 4 exactly" in item.caption
    assert "after 4 steps" in made.trained


def test_hidden_tubes_alone_wear_the_colour_of_their_prototype():
    from papers.sigma import gallery

    frames = torch.rand(8, 32, 32)
    hidden = torch.zeros(64, dtype=torch.bool)
    hidden[torch.tensor([1, 7, 40, 63])] = True
    numbers = hidden.nonzero()[:, 0]
    item = gallery._item(frames, hidden, numbers, torch.tensor([1, 7, 0, 0]), (4, 4, 4), 0)
    shown = [pixels(picture.png).astype(float) / 255 for picture in item.pictures]
    assert "agree for 2 of 4 hidden tubes; 4 prototypes appear in the second row and 3 in the third" in item.caption
    assert [item.pictures[i].label for i in (0, 5, 11)] == [
        "original, frame 1",
        "assigned, frame 3",
        "predicted, frame 7",
    ]
    for time, row, column in np.ndindex(4, 4, 4):
        part = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        tube = 16 * time + 4 * row + column
        expected = grey = frames[2 * time][part].numpy()[..., None]
        if hidden[tube]:
            expected = 0.4 * grey + 0.6 * np.array(gallery._colour(tube))
        assert np.abs(shown[4 + time][part] - expected).max() < 0.01
        assert np.abs(shown[time][part] - grey).max() < 0.01


def test_codes_are_what_the_loss_compares():
    from common.training.recipe import Optim
    from papers.sigma import gallery
    from papers.sigma.assignment import assign
    from papers.sigma.model import sigma_tiny_patch8_32
    from papers.sigma.module import Pretraining
    from papers.videomae_v2.masking import DualMasking

    torch.manual_seed(0)
    module = Pretraining(sigma_tiny_patch8_32(num_prototypes=8), Optim(1e-3), std=(0.2,))
    video = torch.rand(4, 1, 8, 32, 32)
    hidden, _ = DualMasking((4, 4, 4), encoder_ratio=0.75, decoder="none")(4)
    targets, predicted = gallery.codes(module, video, hidden)
    with torch.no_grad():
        x_phi, x_psi = module.features({"video": video, "hidden": hidden})
        expected = assign(module.model.prototypes(x_phi, detach=True), eps=0.05, hard=True)
    assert targets.shape == predicted.shape == (4, 48)
    assert (expected.view(4, 48) == targets).all()
    assert len(targets.unique()) > 4, "shared among the prototypes"
    nearest = module.model.prototypes(x_psi, detach=True).view(4, 48, 8).argmax(2)
    assert (nearest == predicted).all()


def test_only_altered_frames_are_restored(monkeypatch):
    """A model that answers 7 everywhere, on frames of zeros and ones."""
    from papers.tera import gallery
    from papers.tera.alteration import Altered

    clip = torch.zeros(10, 80)
    clip[:, 40:] = 1.0
    mask = torch.zeros(1, 10, 80, dtype=torch.bool)
    mask[:, 2:4] = True

    def alter(features, lengths, policy):
        assert (policy.time, policy.frequency, lengths.tolist()) == (0.15, 0.2, [10])
        return Altered(features.masked_fill(mask, 0.5), features, mask, lengths)

    monkeypatch.setattr(gallery, "alter", alter)
    item = gallery._item(lambda x: torch.full_like(x, 7.0), clip, 1)
    clean, altered, restored = (pixels(picture.png).astype(int) for picture in item.pictures)
    assert clean.shape == (80, 10)
    assert (clean[:40] == 255).all(), "high bands at the top"
    assert (clean[40:] == 0).all()
    assert (altered[:, 2:4] == 128).all()
    assert (restored[:, 2:4] == 255).all()
    assert (restored[:, 4:] == clean[:, 4:]).all()
    assert "20 % of the entries" in item.caption
    assert "0.50 after the alteration and 6.50 as" in item.caption


@pytest.mark.parametrize("paper", ["sigma", "tera"])
def test_galleries_are_made_of_a_trained_model(paper, tmp_path, monkeypatch):
    import importlib

    module = importlib.import_module(f"papers.{paper}.gallery")
    for name, value in {"STEPS": 2, "CLIPS": 20, "BATCH": 4, "SHOWN": 2}.items():
        monkeypatch.setattr(module, name, value)
    made = module.gallery(tmp_path)
    assert len(made.items) == 2
    assert "after 2 steps of 4 " in made.trained
    assert made == module.gallery(tmp_path / "again")
