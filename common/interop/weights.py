"""Reading and writing weight files. Nothing is unpickled beyond tensors and plain containers."""

import json
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import EncoreError
from common.files import replacing

State = dict[str, Tensor]
WRAPPED = ("state_dict", "model_state_dict", "model", "module")  # where training checkpoints keep their weights
POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST_JSON = 64 << 20


def load_weights(path: str | Path) -> State:
    """State dict of a file (.safetensors, .bin, .pt, .pth) or of a hub directory (one file or sharded with an index).

    Of a training checkpoint ({"epoch": ..., "state_dict": {...}}; WRAPPED names the keys) only the weights are kept.
    Raises EncoreError that names the file when it is missing, truncated, or holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (path / name).exists():
                return load_weights(path / name)
            if (path / f"{name}.index.json").exists():
                return _sharded(path / f"{name}.index.json")
        raise EncoreError(
            f"{path}: no model.safetensors or pytorch_model.bin there; point to a directory saved by the hub"
        )
    if path.suffix == ".safetensors":
        if not path.exists():
            raise EncoreError(f"{path}: no such weight file")
        refuse_pointer(path)
        try:
            return load_file(path)
        except Exception as error:  # of a damaged header the library raises what it likes
            reason = " ".join(str(error).split())[:200]
            raise EncoreError(f"{path}: not a whole safetensors file ({reason}); fetch or save it again") from error
    return _unwrapped(read_checkpoint(path), path)


def _unwrapped(content: Any, path: Path) -> State:
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPED if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        raise EncoreError(f"{path}: holds no weights but {type(content).__name__}; give a file with a state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise EncoreError(
                f"{path}: {str(key)[:60]!r} is no tensor but {type(value).__name__}, so this is no state dict; "
                f"save the weights alone, or under {' or '.join(WRAPPED[:2])}"
            )
    return content


def _sharded(index: Path) -> State:
    """The shards that an index names, which lie beside it, with every tensor where the index has it."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise EncoreError(f"{index}: has no weight_map {{tensor: file}}; fetch it again")
    state: State = {}
    for shard in sorted(set(places.values())):
        if shard in ("", ".", "..") or PureWindowsPath(shard).name != shard:
            raise EncoreError(f"{index}: names the shard {shard[:80]!r}, which is no file beside it; fetch it again")
        if (index.parent / shard).is_dir():
            raise EncoreError(f"{index}: names the shard {shard[:80]!r}, which is a folder; fetch the shard")
        found = load_weights(index.parent / shard)
        absent = [name for name, place in places.items() if place == shard and name not in found]
        if absent:
            raise EncoreError(f"{index}: {names(absent)} should be in {shard}; fetch both again, from one revision")
        state |= found
    return state


def refuse_pointer(path: str | Path) -> None:
    """EncoreError when a file is only the text that git-lfs leaves in a clone for a file that was not fetched."""
    with suppress(OSError), Path(path).open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise EncoreError(f"{path}: is a git-lfs pointer, not the file itself; run git lfs pull in its clone")


def read_checkpoint(path: str | Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """A torch file (weights, or a training checkpoint) through torch.load(weights_only=True), on the CPU.

    allowed: what else it may name, in the form of torch.serialization.safe_globals.
    """
    path = Path(path)
    if not path.exists():
        raise EncoreError(f"{path}: no such checkpoint; check the path, or train without one to start afresh")
    refuse_pointer(path)
    try:
        _check_sums(path)
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler of a damaged file raises what it likes
        if "TorchScript" in str(error):
            raise EncoreError(
                f"{path}: is a TorchScript program, which is not run here; where you trust it, turn it into tensors: "
                f'torch.save(torch.jit.load(file, map_location="cpu").state_dict(), "state.pt")'
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoreError(f"{path}: not a readable checkpoint ({reason}); it is damaged or not a torch file") from error


def _check_sums(path: Path) -> None:
    """BadZipFile when a checksum in the archive is wrong, which torch.load does not look at."""
    if zipfile.is_zipfile(path):  # files of the time before torch 1.6 are none, and have no checksums
        with zipfile.ZipFile(path) as archive:
            if wrong := archive.testzip():
                raise zipfile.BadZipFile(f"its part {wrong} has changed since it was written")


def load_config(directory: str | Path) -> dict[str, Any]:
    """config.json of a hub directory, an object."""
    return read_json(Path(directory) / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a hub directory, at most LARGEST_JSON bytes."""
    refuse_pointer(path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"more than {LARGEST_JSON:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise EncoreError(
            f"{path}: missing or not valid JSON ({error}); the directory must be one saved by the hub"
        ) from error
    return content


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
