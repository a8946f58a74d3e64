"""Reading and writing weight files. Nothing is unpickled beyond tensors and plain containers."""

import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import EncoreError
from common.files import replacing

State = dict[str, Tensor]


def load_weights(path: str | Path) -> State:
    """State dict of a file (.safetensors, .bin, .pt, .pth) or of a hub directory (one file or sharded with an index).

    Raises EncoreError that names the file when it is missing, truncated, or holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (path / name).exists():
                return load_weights(path / name)
            index = path / f"{name}.index.json"
            if index.exists():
                shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                return {key: value for shard in shards for key, value in load_weights(path / shard).items()}
        raise EncoreError(
            f"{path}: no model.safetensors or pytorch_model.bin there; point to a directory saved by the hub"
        )
    if path.suffix == ".safetensors":
        if not path.exists():
            raise EncoreError(f"{path}: no such weight file")
        try:
            return load_file(path)
        except SafetensorError as error:
            raise EncoreError(f"{path}: not a whole safetensors file ({error}); fetch or save it again") from error
    return read_checkpoint(path)


def read_checkpoint(path: str | Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """A torch file (weights, or a training checkpoint) through torch.load(weights_only=True), on the CPU.

    allowed: what else it may name, in the form of torch.serialization.safe_globals.
    """
    path = Path(path)
    if not path.exists():
        raise EncoreError(f"{path}: no such checkpoint; check the path, or train without one to start afresh")
    try:
        _check_sums(path)
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoreError(f"{path}: not a readable checkpoint ({reason}); it is damaged or not a torch file") from error


def _check_sums(path: Path) -> None:
    """BadZipFile when a checksum in the archive is wrong, which torch.load does not look at."""
    if zipfile.is_zipfile(path):  # files of the time before torch 1.6 are none, and have no checksums
        with zipfile.ZipFile(path) as archive:
            if wrong := archive.testzip():
                raise zipfile.BadZipFile(f"its part {wrong} has changed since it was written")


def load_config(directory: str | Path) -> dict[str, Any]:
    """config.json of a hub directory."""
    path = Path(directory) / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EncoreError(
            f"{path}: missing or not valid JSON ({error}); the directory must be one saved by the hub"
        ) from error


def save_weights(directory: str | Path, state: State, config: dict[str, Any]) -> None:
    """Writes model.safetensors and config.json; each file appears whole or not at all."""
    tensors = {k: v.detach().contiguous().clone() for k, v in state.items()}
    with replacing(Path(directory) / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with replacing(Path(directory) / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_fits(model: nn.Module, state: State, source: str | Path) -> None:
    """Raises EncoreError, in one line, when names are missing or unknown or shapes differ; `source` is named in it."""
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the model wants {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    problems = [f"missing {names(missing)}"] if missing else []
    problems += [f"unknown {names(unknown)}"] if unknown else []
    problems += [f"other size: {names(sorted(shapes), '; ')}"] if shapes else []
    if problems:
        what = ", ".join(problems)
        raise EncoreError(f"{source}: weights do not fit {type(model).__name__}: {what}; pick the matching size")


def check_and_load(model: nn.Module, state: State, source: str | Path) -> None:
    """load_state_dict(strict) after check_fits."""
    check_fits(model, state, source)
    model.load_state_dict(state)


def names(items: list[str], separator: str = ", ", most: int = 3) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


def fuse_qkv(state: State, q: str, k: str, v: str, target: str) -> None:
    """In place: rows of q, k, v (e.g. "...q_proj.weight") become one tensor under `target`, in that order."""
    state[target] = torch.cat([state.pop(q), state.pop(k), state.pop(v)])


def split_qkv(state: State, source: str, *targets: str) -> None:
    """In place: the inverse of fuse_qkv, for two (k, v) or three (q, k, v) equal parts."""
    parts = state.pop(source).chunk(len(targets))
    state.update({name: part.clone() for name, part in zip(targets, parts)})
