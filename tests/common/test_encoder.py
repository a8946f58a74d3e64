"""Exported encoders agree with what was trained, with transformers, and with themselves under padding."""

import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks.tools.export import export
from common.errors import EncoreError
from common.interop.encoder import Encoder, encoder_class, mean_over
from tests import exported

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(5)


def made(slug, tmp_path, **sizes):
    """(the model that was trained, its exported directory)"""
    model = exported.CHECKPOINTS[slug](tmp_path / f"{slug}.ckpt", **sizes)
    return model, export(slug, tmp_path / f"{slug}.ckpt", tmp_path / slug)


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


@torch.no_grad()
def test_clip_agrees_with_transformers_on_images_and_texts(tmp_path):
    from transformers import CLIPModel

    model, directory = made("clip", tmp_path)
    theirs = CLIPModel.from_pretrained(directory).eval()
    encoder = Encoder.from_directory(directory)
    images = torch.randn(3, 3, 16, 16)
    tokens, pooled = encoder.encode(images)
    vision = theirs.vision_model(pixel_values=images)
    close(tokens, vision.last_hidden_state)
    close(pooled, F.normalize(theirs.visual_projection(vision.pooler_output), dim=-1))
    close(pooled, model.encode_image(images))

    ids = torch.tensor([[38, 3, 5, 39, 0, 0], [38, 7, 8, 9, 10, 39]])
    tokens, pooled = encoder.encode(ids)
    text = theirs.text_model(input_ids=ids)
    close(tokens[1], text.last_hidden_state[1])
    close(tokens[0, :4], text.last_hidden_state[0, :4])
    assert not tokens[0, 4:].any()
    close(pooled, F.normalize(theirs.text_projection(text.pooler_output), dim=-1))


@torch.no_grad()
def test_a_clip_with_a_resnet_comes_back_with_its_feature_map(tmp_path):
    from papers.clip.export import CLIPEncoder
    from papers.clip.model import CLIP, ModifiedResNet, TextTransformer

    image = ModifiedResNet(image_size=32, layers=(1, 1, 1, 1), width=8, embed_dim=12)
    model = exported.randomised(CLIP(image, TextTransformer(dim=64, depth=1, vocab_size=40, embed_dim=12)))
    CLIPEncoder(model).to_hub(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    tokens, pooled = Encoder.from_directory(tmp_path, "clip").encode(images)
    close(pooled, model.encode_image(images))
    close(F.normalize(model.image.attnpool(tokens.transpose(1, 2).unflatten(2, (1, 1))), dim=-1), pooled)


@torch.no_grad()
def test_bart_agrees_with_transformers_and_padding_changes_nothing(tmp_path):
    from transformers import BartModel

    model, directory = made("bart", tmp_path)
    encoder = Encoder.from_directory(directory)
    ids = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 2, 1, 1, 1]])
    tokens, pooled = encoder.encode(ids)
    real = ids.ne(1)
    theirs = BartModel.from_pretrained(directory).eval()
    hidden = theirs.encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state
    close(tokens[real], hidden[real])
    assert not tokens[~real].any()
    close(pooled[1], hidden[1, :3].mean(0))
    close(pooled[1:], encoder.encode(ids[1:, :3]).pooled)
    close(tokens[real], model.encode(ids)[real])


@torch.no_grad()
def test_videomae_agrees_with_transformers(tmp_path):
    from transformers import VideoMAEModel

    _, directory = made("videomae_v2", tmp_path)
    video = torch.randn(2, 3, 4, 16, 16)
    tokens, pooled = Encoder.from_directory(directory).encode(video)
    theirs = VideoMAEModel.from_pretrained(directory).eval()
    close(tokens, theirs(pixel_values=video.transpose(1, 2)).last_hidden_state)
    close(pooled, tokens.mean(1))


@torch.no_grad()
def test_a_fine_tuned_videomae_is_pooled_as_its_head_saw_it(tmp_path):
    from papers.videomae_v2.export import VideoMAEEncoder
    from papers.videomae_v2.model import vit_tiny_patch8_32

    model = exported.randomised(vit_tiny_patch8_32(5))
    VideoMAEEncoder(model).to_hub(tmp_path)
    video = torch.randn(2, 1, 8, 32, 32)
    tokens, pooled = Encoder.from_directory(tmp_path, "videomae_v2").encode(video)
    close(model.head(pooled), model(video))
    close(tokens, model.encoder(video))


@torch.no_grad()
def test_beats_agrees_with_what_was_trained_and_with_a_released_file(tmp_path):
    from papers.beats.interop import load_encoder

    model, directory = made("beats", tmp_path)
    encoder = Encoder.from_directory(directory)
    sounds = [torch.randn(24, 8), torch.randn(9, 8)]
    batch = encoder.collate(sounds)
    tokens, pooled = encoder.encode(batch)
    close(tokens[:1], model(sounds[0][None, None]))
    close(pooled[0], model(sounds[0][None, None])[0].mean(0))
    assert tokens.shape == (2, 12, 16)  # 24 / 4 steps of 8 / 4 patches
    assert not tokens[1, 6:].any()  # 9 frames begin three patches
    close(pooled[1], tokens[1, :6].mean(0))
    short = encoder.encode(encoder.collate([sounds[1][:8]]))
    padded = encoder.encode(encoder.collate([sounds[0], sounds[1][:8]]))
    close(padded.pooled[1:], short.pooled)

    from common.interop import load_config, load_weights

    torch.save({"cfg": load_config(directory), "model": load_weights(directory)}, tmp_path / "released.pt")
    close(load_encoder(tmp_path / "released.pt")(sounds[0][None, None]), tokens[:1])


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "num_points"), [("pointer", None), ("attention", 5), ("lstm", 5)])
def test_pointer_networks_agree_with_what_was_trained(architecture, num_points, tmp_path):
    model, directory = made("pointer_networks", tmp_path, architecture=architecture, num_points=num_points)
    encoder = Encoder.from_directory(directory)
    points = torch.rand(3, 5, 2)
    memory, state = model.encode(points)
    tokens, pooled = encoder.encode(points)
    close(tokens, memory.states)
    close(pooled, state.h)
    tokens, pooled = encoder.encode({"points": points, "lengths": torch.tensor([5, 2, 4])})
    assert not tokens[1, 2:].any()
    assert tokens[1, :2].any(dim=-1).all()
    if num_points is None:
        close(pooled[1:2], encoder.encode(points[1:2, :2]).pooled)


def test_a_row_of_padding_only_is_pooled_to_zero_not_to_nan():
    tokens, pooled = mean_over(torch.ones(2, 3, 4), torch.tensor([[True, False, False], [False] * 3]))
    assert pooled[0].eq(1).all()
    assert not pooled[1].any()
    assert tokens.sum() == 4


def test_gradients_flow_through_encode(tmp_path):
    _, directory = made("pointer_networks", tmp_path)
    encoder = Encoder.from_directory(directory)
    assert not encoder.training
    encoder.encode(torch.rand(2, 4, 2)).pooled.sum().backward()
    assert encoder.model.encoder.weight_ih_l0.grad.abs().sum() > 0
    with torch.no_grad():
        tokens, pooled = encoder.encode(torch.rand(2, 4, 2))
    assert not tokens.requires_grad
    assert not pooled.requires_grad


HOSTILE = [
    "os",
    "../clip",
    "clip.export",
    "papers.clip",
    "clip:load",
    "Clip",
    "",
    "clip\n",
    ["clip"],
    {"a": 1},
    None,
    3,
]


@pytest.mark.parametrize("paper", HOSTILE)
def test_a_config_can_choose_nothing_but_a_paper(paper, tmp_path):
    _, directory = made("pointer_networks", tmp_path)
    config = json.loads((directory / "config.json").read_text())
    config["encore"] = {"paper": paper, "format": 1, "entry": "os:system"}
    (directory / "config.json").write_text(json.dumps(config))
    before = set(sys.modules)
    with pytest.raises(EncoreError, match=r"config\.json: (.* is not the name of a paper|os has no encoder)"):
        Encoder.from_directory(directory)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encore": {"paper": "clip", "format": 2}}, "format 1"),
        ({"encore": "clip"}, "format 1"),
        ({"encore": {"paper": "clip", "format": 1}}, "model_type is 'pointer_networks', not clip"),
        ({"encore": {"paper": "bart", "format": 1}}, "not bart"),
        ({"encore": {"paper": "nosuchpaper", "format": 1}}, "no encoder to export"),
        ({"hidden_dim": "eight"}, "does not describe"),
        ({"hidden_dim": 9}, "other size"),
        ({"architecture": "gru"}, "no architecture"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(change, message, tmp_path):
    _, directory = made("pointer_networks", tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(EncoreError, match=message):
        Encoder.from_directory(directory)


def test_a_directory_of_the_hub_needs_the_name_of_the_paper(tmp_path):
    from papers.bart.interop import save
    from papers.bart.model import bart_tiny

    save(bart_tiny(50), tmp_path)
    with pytest.raises(EncoreError, match="paper="):
        Encoder.from_directory(tmp_path)
    assert Encoder.from_directory(tmp_path, paper="bart").encode(torch.tensor([[0, 4, 2]])).tokens.shape == (1, 3, 96)
    _, directory = made("pointer_networks", tmp_path)
    with pytest.raises(EncoreError, match="of 'pointer_networks', not of 'bart'"):
        Encoder.from_directory(directory, paper="bart")


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def test_pickled_weights_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, directory = made("pointer_networks", tmp_path)
    (directory / "model.safetensors").unlink()
    torch.save({"marker": Harmful()}, directory / "pytorch_model.bin")
    with pytest.raises(EncoreError, match=r"pytorch_model\.bin"):
        Encoder.from_directory(directory)
    assert not (tmp_path / "harmed").exists()


def test_every_export_file_names_its_encoder():
    for file in ROOT.glob("papers/*/export.py"):
        found = encoder_class(file.parent.name)
        assert found.__module__ == f"papers.{file.parent.name}.export"
        assert "(B, " in found.__doc__


@torch.no_grad()
def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    import soundfile

    sizes = {"clip": {"image_size": 224, "patch_size": 32}, "videomae_v2": {"frames": 16, "image_size": 224}}
    sizes["beats"] = {"patch_size": 16}
    for slug in exported.CHECKPOINTS:
        made(slug, tmp_path / "exports", **sizes.get(slug, {}))
    rng = np.random.default_rng(0)
    for name in ("one.jpg", "two.jpg"):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(tmp_path / name)
    for name, seconds in (("long.wav", 1.0), ("short.wav", 0.5)):
        soundfile.write(tmp_path / name, rng.normal(0, 0.1, int(16000 * seconds)), 16000)
    write_video(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "README.md").read_text().partition("## Using the encoders elsewhere")[2].partition("\n## ")[0]
    names: dict = {}
    shapes = []
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(code, names)
        shapes.append((names["encoder"].__class__.__module__.split(".")[1], *names["tokens"].shape[:2]))
        assert len(names["pooled"]) == len(names["tokens"])
    assert shapes == [
        ("clip", 2, 50),
        ("bart", 2, 5),
        ("videomae_v2", 1, 1568),
        ("beats", 2, 48),
        ("pointer_networks", 4, 10),
    ]


def write_video(path):
    import av

    with warnings.catch_warnings(), av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        for i in range(70):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 3 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
