"""Greedy and beam-search decoding, free or constrained to outputs that can be right (Sec. 4.4)."""

import torch
from torch import Tensor

from common.errors import EncoreError
from common.eval.decoding import beam_search
from papers.pointer_networks.model import END, Seq2Seq, State
from papers.pointer_networks.problems import Problem, max_steps

START = -1  # stands before the first output; the decoder is fed the marker there


@torch.no_grad()
def decode(
    model: Seq2Seq,
    points: Tensor,
    problem: Problem,
    *,
    lengths: Tensor | None = None,
    beam: int = 1,
    constrained: bool = False,
) -> list[list[int]]:
    """The most probable output found for each set of points (B, n, 2), as 0-based indices without the end marker.

    `constrained` allows only outputs that can be right: TSP a city once and the end after all of them, hull a corner
    once and the end after three. Free outputs stop at the end marker, or after as many steps as the longest right
    answer has.
    """
    if constrained and problem == "delaunay":
        raise EncoreError("decoding of triangulations is not constrained; use constrained=False")
    batch, n, _ = points.shape
    memory, state = model.encode(points, lengths)
    if beam > 1:
        points = points.repeat_interleave(beam, dim=0)
        memory = type(memory)(*(part.repeat_interleave(beam, dim=0) for part in memory))
        state = State(*(part.repeat_interleave(beam, dim=0) for part in state))
    size = memory.valid.sum(dim=1) - 1
    everyone = torch.arange(len(points), device=points.device)

    def step(prefix: Tensor) -> Tensor:
        nonlocal state
        if prefix.shape[1] == 1:
            inputs = model.marker.expand(len(points), 2)
        else:
            inputs = points[everyone, (prefix[:, -1] - 1).clamp(min=0)]
        logits, state = model.decode(memory, inputs[:, None], state)
        return logits[:, 0].log_softmax(dim=-1)

    def reorder(indices: Tensor) -> None:
        nonlocal state
        state = State(*(part[indices] for part in state))

    def allowed(prefix: Tensor) -> Tensor:
        done = prefix.shape[1] - 1
        mask = torch.ones(len(prefix), n + 1, dtype=torch.bool, device=prefix.device)
        mask.scatter_(1, prefix[:, 1:], False)
        mask[:, END] = done >= 3 if problem == "hull" else done >= size
        return mask

    found = beam_search(
        step,
        reorder,
        start=torch.full((batch,), START, dtype=torch.long, device=points.device),
        beam=beam,
        max_length=max_steps(problem, n),
        eos=END,
        pad=END,
        length_penalty=0.0,
        allowed=allowed if constrained else None,
    )
    return [until_end(row) for row in found.tokens.tolist()]


def until_end(row: list[int]) -> list[int]:
    """Positions up to the first end marker, as 0-based indices."""
    end = row.index(END) if END in row else len(row)
    return [position - 1 for position in row[:end]]
