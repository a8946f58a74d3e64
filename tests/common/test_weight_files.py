"""What people hand over as weights: training checkpoints, pointers, damaged or climbing indexes, random bytes."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from common.errors import EncoreError
from common.interop import load_config, load_weights, read_checkpoint
from common.interop.encoder import Encoder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605247071\n"
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def only_one_line(read, *arguments):
    """Nothing but an EncoreError of one line comes out."""
    try:
        read(*arguments)
    except EncoreError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_of_a_training_checkpoint_the_weights_are_kept(key, tmp_path):
    torch.save({"epoch": 3, "name": "run", key: {"module.a": torch.ones(2)}, "optimizer": {}}, tmp_path / "a.pt")
    assert load_weights(tmp_path / "a.pt").keys() == {"module.a"}


@pytest.mark.parametrize("content", [[1], {}, {"epoch": 1}, {"a": torch.ones(1), "b": 2}, {3: torch.ones(1)}, "text"])
def test_what_is_no_state_dict_is_one_line(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(EncoreError, match=r"a\.pt: .*(holds no weights|is no tensor)"):
        load_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.pt", load_weights),
        ("a.safetensors", load_weights),
        ("a.ckpt", read_checkpoint),
        ("config.json", lambda path: load_config(path.parent)),
        ("model.safetensors.index.json", lambda path: load_weights(path.parent)),
    ],
)
def test_a_git_lfs_pointer_says_so(name, read, tmp_path):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(EncoreError, match="is a git-lfs pointer.*git lfs pull"):
        read(tmp_path / name)


def test_a_torchscript_program_says_what_to_do(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(EncoreError, match=r"is a TorchScript program.*torch\.jit\.load"):
        load_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../a.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": "sub/../../a.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": "..\\a.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "no file beside it"),
        ({"weight_map": {"a": ""}}, "no file beside it"),
        ({"weight_map": {"a": ".."}}, "no file beside it"),
        ({"weight_map": {"a": "folder"}}, "is a folder"),
        ({"weight_map": {"a": "none.safetensors"}}, r"none\.safetensors: no such weight file"),
        ({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}, r"b should be in one\.safetensors"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": ["a"]}, "no weight_map"),
        ({}, "no weight_map"),
        ([], "not an object"),
    ],
)
def test_a_damaged_or_climbing_index_is_one_line(index, said, tmp_path):
    inside = tmp_path / "model"
    (inside / "folder").mkdir(parents=True)
    for folder in (tmp_path, inside):
        save_file({"a": torch.ones(1)}, folder / ("a.safetensors" if folder == tmp_path else "one.safetensors"))
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EncoreError, match=said):
        load_weights(inside)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "\xff", "", "null", '{"a": 1', '"x"', "NaN"])
def test_a_config_that_is_no_object_is_one_line(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EncoreError, match=r"config\.json: missing or not valid JSON"):
        load_config(tmp_path)


@QUICK
@given(content=st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_config_and_index_is_read_or_refused(content, tmp_path):
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(content)
    only_one_line(load_config, tmp_path)
    only_one_line(load_weights, tmp_path)


@QUICK
@given(places=st.dictionaries(st.text(max_size=4), JSON | st.sampled_from(["one.safetensors", "../x", "config.json"])))
def test_any_weight_map_is_read_or_refused(places, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    only_one_line(load_weights, tmp_path)


@QUICK
@given(data=st.data(), suffix=st.sampled_from(["safetensors", "pt"]))
def test_any_damage_of_a_weight_file_is_read_or_refused(data, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    state = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(len(content), 300) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    only_one_line(load_weights, path)


@QUICK
@given(data=st.data())
def test_any_change_of_clips_config_is_read_or_refused(data, tmp_path):
    from papers.clip import interop
    from papers.clip.model import CLIP, TextTransformer, VisionTransformer

    if not (tmp_path / "model.safetensors").exists():
        image = VisionTransformer(image_size=8, patch_size=4, dim=8, depth=1, embed_dim=4, num_heads=2)
        text = TextTransformer(dim=8, depth=1, embed_dim=4, vocab_size=9, context_length=5, num_heads=2)
        interop.to_hub(CLIP(image, text), tmp_path)
        (tmp_path / "whole.json").write_text((tmp_path / "config.json").read_text())
    config = json.loads((tmp_path / "whole.json").read_text())
    part = data.draw(st.sampled_from([config, config["text_config"], config["vision_config"]]))
    small = st.none() | st.booleans() | st.integers(-3, 64) | st.floats(-4, 64) | st.text(max_size=3)
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(small | st.lists(small, max_size=2) | st.just({}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    only_one_line(Encoder.from_directory, tmp_path, "clip")
