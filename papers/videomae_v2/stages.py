"""Progressive training (Sec. 3.4): pre-train without labels, post-pre-train on a labelled mix, fine-tune on the target.

Each stage starts from the one before; what is taken over, and what is new, is checked name by name.
"""

import json
from pathlib import Path

from common.errors import EncoreError
from common.interop import check_and_load, load_weights, read_checkpoint
from common.interop.layout import Layout
from common.interop.weights import State
from papers.videomae_v2.interop import HUB, RELEASED
from papers.videomae_v2.model import VideoClassifier, encoder_weights

NEW_AFTER_PRETRAINING = ("fc_norm.", "head.")


def stage_weights(path: Path, released: Layout = RELEASED) -> State:
    """State dict, in our names, of a training checkpoint, a hub directory, or a file of the released code."""
    if path.is_dir() or path.suffix == ".safetensors":
        return HUB.to_ours(load_weights(path), path)
    checkpoint = read_checkpoint(path)
    if "state_dict" in checkpoint:
        return {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    return released.to_ours(checkpoint.get("model", checkpoint.get("module", checkpoint)), path)


def start_from(model: VideoClassifier, state: State, source: str | Path, *, label_map: Path | None = None) -> list[str]:
    """Give `model` the weights of the stage before; returns the names that stay as initialised.

    From a VideoMAE: its encoder; fc_norm and head are new. From a VideoClassifier: all but a head of another number of
    classes, whose rows `label_map` may pick (Kinetics-710 -> 400). Anything else that does not fit is an EncoreError.
    """
    state, own = encoder_weights(state), model.state_dict()
    new: list[str] = []
    if "head.weight" not in state:
        if label_map is not None:
            raise EncoreError(f"{source}: a label map was given, but these weights have no classifier head to map")
        new = [name for name in own if name.startswith(NEW_AFTER_PRETRAINING)]
    elif label_map is not None:
        rows = read_label_map(label_map, classes=len(own["head.bias"]), available=len(state["head.bias"]))
        state |= {name: state[name][rows] for name in ("head.weight", "head.bias")}
    elif state["head.weight"].shape[0] != own["head.weight"].shape[0]:
        new = ["head.weight", "head.bias"]
    check_and_load(model, state | {name: own[name] for name in new}, source)
    return new


def read_label_map(path: Path, *, classes: int, available: int) -> list[int]:
    """JSON list: for each of `classes` labels, its row among the earlier stage's `available` ones."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoreError(f"{path}: cannot be read as a JSON list of label numbers ({error})") from error
    if not isinstance(rows, list) or len(rows) != classes or not all(isinstance(r, int) for r in rows):
        raise EncoreError(
            f"{path}: must be a JSON list of {classes} label numbers, one for each class of this data set"
        )
    if min(rows) < 0 or max(rows) >= available:
        raise EncoreError(f"{path}: label numbers must lie in 0..{available - 1}, the earlier stage's classes")
    return rows
