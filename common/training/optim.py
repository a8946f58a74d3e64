"""Parameter groups, AdamW and learning-rate schedules."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd", "step"]
Kind = Schedule


def parameter_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    lr: float | None = None,
    layer_decay: float | None = None,
    layer_id: Callable[[str], int] | None = None,
    no_decay: Iterable[str] = (),
    decay_all: bool = False,
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters. Gains, biases and everything else with fewer than two dimensions get no
    weight decay (unless decay_all), nor do parameters whose name ends with one of `no_decay`.

    layer_decay with layer_id(name) -> 0 (embedding) .. L (head): the learning rate of layer i is
    lr * layer_decay^(L - i), where L is the largest id met (BEiT, Sec. 2.5; ELECTRA, App. B).
    """
    suffixes = tuple(no_decay)
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    ids = {name: layer_id(name) if layer_id else 0 for name, _ in named}
    last = max(ids.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        decays = (decay_all or parameter.dim() >= 2) and not (suffixes and name.endswith(suffixes))
        key = (ids[name], decays)
        if key not in groups:
            groups[key] = {"params": [], "weight_decay": weight_decay if decays else 0.0}
            if layer_decay is not None:
                if lr is None:
                    raise ValueError("layer_decay needs lr")
                groups[key]["lr"] = lr * layer_decay ** (last - ids[name])
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_id(name: str, depth: int, last: tuple[str, ...] = ("head.",)) -> int:
    """A parameter's number for layer_decay: 0 embedding, i + 1 layer i of `depth`, depth + 1 if its name holds `last`.

    name: "encoder.blocks.layers.3.norm1.weight" and the like.
    """
    if found := re.search(r"\.layers\.(\d+)\.", name):
        return int(found[1]) + 1
    return depth + 1 if any(part in name for part in last) else 0


def adamw(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    **groups: Any,
) -> torch.optim.AdamW:
    """AdamW over parameter_groups(module, ...)."""
    params = parameter_groups(module, weight_decay=weight_decay, lr=lr, **groups)
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, fused=True)


def factor(
    step: int,
    kind: Schedule,
    *,
    warmup: int,
    total: int,
    floor: float = 0.0,
    cooldown: float = 0.1,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> float:
    """Multiplier of the peak learning rate at optimizer step `step` (0-based).

    Linear warm-up over `warmup` steps (step 0 has 1/warmup of the peak), then constant; linear or cosine to `floor` (a
    share of the peak) at `total`; inverse square root of the step; `wsd` (warm-up, stable, decay): 1 until the last
    `cooldown` share of all steps, then linear to `floor`; `step`: times `gamma` at each milestone.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    if kind == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / max(step + 1, 1))
    if kind == "step":
        return gamma ** sum(step >= milestone for milestone in milestones)
    if kind == "wsd":
        kind, warmup = "linear", max(warmup, total - round(cooldown * total))
        if step < warmup:
            return 1.0
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    shape = 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return floor + (1.0 - floor) * shape


def schedule(
    optimizer: torch.optim.Optimizer, kind: Kind, *, warmup: int, total: int, floor: float = 0.0
) -> dict[str, Any]:
    """What configure_optimizers returns: the optimizer with a schedule (see `factor`) that moves every step."""
    scheduler = LambdaLR(optimizer, lambda step: factor(step, kind, warmup=warmup, total=total, floor=floor))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
