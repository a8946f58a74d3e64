"""A model of ours and a public class at equal weights, to be timed: what `encore speed` measures.

A pair is a function (side, folder, size) -> Subject. The public class's weights go to `folder` in its own format, and
our side loads them from there, so both start equal: first losses and outputs agree. A paper has its own in speed.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.fast.in_backward import StepInBackward

Side = Literal["ours", "theirs"]
Size = Literal["base", "small"]
Step = Callable[[], float]


@dataclass
class Subject:
    """A model with its training loss and its inference, each on one fixed batch.

    in_backward: every weight is updated as soon as its gradient is there (common.fast.in_backward).
    """

    model: nn.Module
    loss: Callable[[], Tensor]
    infer: Callable[[], Tensor]
    in_backward: bool = False

    def in_bfloat16(self, device: torch.device) -> None:
        """From now on under autocast: matrix products in bfloat16, as one trains on an accelerator."""
        low = torch.autocast(device.type, torch.bfloat16)
        self.loss, self.infer = low(self.loss), low(self.infer)

    def training_step(self) -> Callable[[], float]:
        """Forward, backward and fused AdamW, under the weights as they go on."""
        self.model.train()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        if self.in_backward:
            StepInBackward(optimizer)

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            value = self.loss()
            value.backward()
            optimizer.step()
            return value.item()

        return step

    def inference(self) -> Callable[[], float]:
        """The output in evaluation mode without gradient; returns its mean, to be compared."""
        self.model.eval()

        def run() -> float:
            with torch.inference_mode():
                return self.infer().double().mean().item()

        return run


Pair = Callable[[Side, Path, Size], Subject]


def save_once(model: Any, folder: Path) -> None:
    """Leave the weights for the other side, unless they are there already; then take them."""
    if (folder / "model.safetensors").exists():
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())
    else:
        model.save_pretrained(folder)


def captions(batch: int, vocab: int, context: int, lengths: tuple[int, int]) -> Tensor:
    """(batch, context) ids: start, words, end = the largest id, zeros; lengths from the first to below the last."""
    tokens = torch.randint(1, vocab - 2, (batch, context))
    ends = torch.randint(*lengths, (batch,))
    tokens[:, 0] = vocab - 2
    tokens[torch.arange(batch), ends - 1] = vocab - 1
    return tokens.masked_fill(torch.arange(context)[None] >= ends[:, None], 0)


def documents(batch: int, lengths: tuple[int, int], vocab: int, share: float) -> Tensor:
    """(batch, N) ids, <s> = 0 first, </s> = 2 last, padding 1; lengths evenly spread, times `share`."""
    ends = (torch.linspace(*lengths, batch) * share).long()
    tokens = torch.randint(4, vocab, (batch, int(ends.max())))
    tokens[:, 0] = 0
    tokens[torch.arange(batch), ends - 1] = 2
    return tokens.masked_fill(torch.arange(tokens.shape[1])[None] >= ends[:, None], 1)
