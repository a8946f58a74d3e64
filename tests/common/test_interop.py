"""Weight files: whole, sharded, damaged, of another size, and not to be trusted."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from common.errors import EncoreError
from common.interop import check_and_load, load_config, load_weights, read_checkpoint, save_weights
from common.interop.layout import Fused, Layout


def test_a_directory_saved_here_loads_with_the_same_weights(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 2), "tied": torch.ones(2)}
    state["view"] = state["a"].T  # neither contiguous nor owning its memory
    save_weights(tmp_path / "model", state, {"width": 2})
    loaded = load_weights(tmp_path / "model")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[k], state[k]) for k in state)
    assert load_config(tmp_path / "model") == {"width": 2}
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_shards_are_put_together(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_weights(tmp_path).keys() == {"a", "b"}


def test_damaged_or_missing_files_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-7])
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04nothing")
    for name, message in [
        ("cut.safetensors", "not a whole safetensors file"),
        ("cut.pt", "not a readable checkpoint"),
        ("none.pt", "no such checkpoint"),
        ("none.safetensors", "no such weight file"),
    ]:
        with pytest.raises(EncoreError, match=message) as error:
            load_weights(tmp_path / name)
        assert name in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoreError, match="no model.safetensors"):
        load_weights(tmp_path / "empty")


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


def test_code_hidden_in_a_weight_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Bomb()}, "bomb.pt")
    Path("bare.bin").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pt", "bare.bin"):
        with pytest.raises(EncoreError, match=name):
            read_checkpoint(name)
    assert not Path("exploded").exists()


def test_weights_of_another_size_say_what_differs() -> None:
    state = nn.Linear(3, 2).state_dict()
    with pytest.raises(EncoreError, match=r"here: .* weight is \(2, 3\), the model wants \(4, 3\)"):
        check_and_load(nn.Linear(3, 4, bias=False), {"weight": state["weight"]}, "here")
    with pytest.raises(EncoreError, match="missing bias"):
        check_and_load(nn.Linear(3, 2), {"weight": state["weight"]}, "here")
    with pytest.raises(EncoreError, match="unknown bias"):
        check_and_load(nn.Linear(3, 2, bias=False), state, "here")


def test_fusing_and_splitting_are_inverse_and_ordered() -> None:
    layout = Layout([Fused(("q", "k", "v"), "qkv")])
    state = layout.to_ours({name: torch.full((2, 3), float(i)) for i, name in enumerate("qkv")})
    assert state["qkv"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    state = layout.to_theirs(state)
    assert {k: float(v[0, 0]) for k, v in state.items()} == {"q": 0, "k": 1, "v": 2}
