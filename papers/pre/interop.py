"""Learned prompts from and to the files of the authors' repository (prompt_learner/model.pth.tar-50).

Such a file is a torch pickle {state_dict, epoch, optimizer, scheduler, val_result}; its state dict has the context, the
encoder, and the frozen embeddings around them (token_prefix, token_suffix), which follow from CLIP and are not read.
Separate networks are not in such files, because the authors' code does not register them, and no file of their
transformer exists. Weights of CLIP itself are loaded by papers.clip.interop.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import EncoreError
from common.interop import check_and_load, read_checkpoint
from common.training.trainer import atomic_save
from papers.pre.model import BiLSTM, BottleneckMLP, Prompt

State = dict[str, Tensor]

NAMES = [  # (ours, theirs), as beginnings
    ("context", "ctx"),
    ("encoder.networks.0.lstm.", "encoder_network.lstm_head."),
    ("encoder.networks.0.mlp.fc1.", "encoder_network.module.0."),
    ("encoder.networks.0.mlp.fc2.", "encoder_network.module.2."),
]
FROZEN = ("token_prefix", "token_suffix")
OWN = "model.prompt."  # of a training checkpoint


class _Left:
    """Stands for the schedule and optimizer objects in a file's "scheduler": read past, not built."""

    def __setstate__(self, state: object) -> None: ...


def _plain(*factory: type) -> dict[Any, Any]:
    return {}


READ_PAST: list[Any] = [
    (_Left, "torch.optim.sgd.SGD"),
    (_Left, "torch.optim.lr_scheduler.CosineAnnealingLR"),
    (_plain, "collections.defaultdict"),
    dict,
]


def _rename(key: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def state_from_released(state: State) -> State:
    """A released state dict under our names. The MLP applied twice lists its two layers twice; they are one."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    kept = {key: value for key, value in state.items() if key not in FROZEN}
    for again, first in (("module.3.", "module.0."), ("module.5.", "module.2.")):
        for key in [key for key in kept if key.startswith(f"encoder_network.{again}")]:
            twin = key.replace(again, first)
            if twin not in kept or not torch.equal(kept[key], kept[twin]):
                raise EncoreError(f"{key} and {twin} differ, but the MLP applied twice shares its layers")
            del kept[key]
    return {_rename(key, [(theirs, ours) for ours, theirs in NAMES]): value for key, value in kept.items()}


def state_to_released(prompt: Prompt) -> State:
    """The inverse: the authors' code reads it with strict=False and computes the frozen embeddings itself."""
    networks = [] if prompt.encoder is None else list(prompt.encoder.networks)
    if len(networks) > 1 or not all(isinstance(network, BiLSTM | BottleneckMLP) for network in networks):
        raise EncoreError(
            "the released layout has no place for separate networks or the transformer; fold the prompt first, then it "
            "is a context alone"
        )
    state = {_rename(key, NAMES): value for key, value in prompt.state_dict().items()}
    if networks and isinstance(network := networks[0], BottleneckMLP) and network.times == 2:
        for key, value in list(state.items()):
            if layer := re.fullmatch(r"encoder_network\.module\.([02])\.(\w+)", key):
                state[f"encoder_network.module.{int(layer[1]) + 3}.{layer[2]}"] = value
    return state


def load_prompt(prompt: Prompt, path: str | Path) -> None:
    """Fill `prompt` from a released file, or from a training checkpoint of this room.

    Raises EncoreError that says what differs, e.g. another variant or number of context tokens.
    """
    state = read_checkpoint(path, READ_PAST).get("state_dict", {})
    own = {key.removeprefix(OWN): value for key, value in state.items() if key.startswith(OWN)}
    if not own and "ctx" not in state:
        raise EncoreError(f"{path}: has no state_dict with a ctx, so it is not a prompt learner's file")
    check_and_load(prompt, own or state_from_released(state), path)


def save_prompt(prompt: Prompt, path: str | Path, *, epoch: int = 50) -> None:
    """Write a file that the authors' `load_model` and `load_prompt` read."""
    state = {key: value.detach().cpu().clone() for key, value in state_to_released(prompt).items()}
    atomic_save({"state_dict": state, "epoch": epoch, "val_result": None}, Path(path))
