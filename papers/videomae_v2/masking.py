"""Dual masking (Sec. 3.2): which cubes the encoder does not see, and which ones the decoder rebuilds.

Maps are bool over the flattened (T', H', W') grid of cubes. `hidden` is True where the encoder sees nothing;
`decoded` is True where the decoder has a mask token. (The public code stores the complement of `decoded`.)
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from common.errors import EncoreError
from common.masking import random_mask

Grid = tuple[int, int, int]
CELL = 4
"""A running cell has 2 x 2 positions, hence 4 phases."""


def tube_mask(grid: Grid, ratio: float, batch: int = 1) -> Tensor:
    """Encoder mask: one random map of int(ratio * H'W') hidden cells, the same in every time slot (VideoMAE, Sec. 3.3).

    Returns (batch, T' * H' * W') bool, True = hidden.
    """
    slots, height, width = grid
    hidden = random_mask(batch, height * width, int(ratio * height * width))
    return hidden.repeat(1, slots)


def running_cell(grid: Grid, ratio: float, start: int) -> Tensor:
    """Decoder map: in each time slot the same positions of every 2 x 2 cell, one step further round the cell a slot.

    ratio: share of positions that are NOT decoded, in {.25, .5, .75}; start: the phase, 0..3.
    Returns (T' * H' * W',) bool, True = decoded.
    """
    slots, height, width = grid
    dropped = int(CELL * ratio)
    if not 0 < dropped < CELL:
        raise EncoreError(f"decoder mask ratio {ratio}: a running cell of 4 needs a ratio of 0.25, 0.5 or 0.75")
    if height % 2 or width % 2:
        raise EncoreError(f"running cells are 2 x 2, so the grid must be even; it is {height} x {width}")
    queue = torch.arange(CELL, device="cpu") >= dropped
    frames = [queue.roll(-(start + t + 1)).view(2, 2).repeat(height // 2, width // 2) for t in range(slots)]
    return torch.stack(frames).flatten()


def running_cell_mask(grid: Grid, ratio: float, batch: int = 1) -> Tensor:
    """(batch, N) bool, True = decoded: running cells that start at an independent random phase in each clip."""
    phases = torch.stack([running_cell(grid, ratio, start) for start in range(CELL)])
    return phases[torch.randint(CELL, (batch,))]


def random_decode_mask(grid: Grid, ratio: float, batch: int = 1) -> Tensor:
    """(batch, N) bool, True = decoded: an independent random share 1 - ratio of every slot (Table 1, 'random')."""
    slots, cells = grid[0], grid[1] * grid[2]
    return ~random_mask(batch * slots, cells, int(ratio * cells)).view(batch, slots * cells)


def frame_decode_mask(grid: Grid, ratio: float, batch: int = 1) -> Tensor:
    """(batch, N) bool, True = decoded: every 1/(1 - ratio)-th slot whole, from a random phase (Table 1, 'frame')."""
    slots, cells = grid[0], grid[1] * grid[2]
    period = round(1 / (1 - ratio))
    if period < 2 or slots % period:
        raise EncoreError(f"frame masking with ratio {ratio} does not divide {slots} time slots evenly")
    phase = torch.randint(period, (batch, 1))
    decoded = (torch.arange(slots) + phase) % period == 0
    return decoded.repeat_interleave(cells, dim=1)


DECODER_MASKS: dict[str, Callable[[Grid, float, int], Tensor]] = {
    "running_cell": running_cell_mask,
    "random": random_decode_mask,
    "frame": frame_decode_mask,
}


class DualMasking:
    """Draws both maps of a batch. decoder="none": what is decoded is exactly what is hidden (VideoMAE V1, rho = 0)."""

    def __init__(
        self, grid: Grid, *, encoder_ratio: float = 0.9, decoder: str = "running_cell", decoder_ratio: float = 0.5
    ) -> None:
        if not 0 < encoder_ratio < 1:
            raise EncoreError(f"encoder mask ratio must lie between 0 and 1, got {encoder_ratio}")
        if decoder != "none" and decoder not in DECODER_MASKS:
            raise EncoreError(f"no decoder mask '{decoder}'; choose none, {', '.join(DECODER_MASKS)}")
        self.encoder = partial(tube_mask, grid, encoder_ratio)
        self.decoder = None if decoder == "none" else partial(DECODER_MASKS[decoder], grid, decoder_ratio)
        self(1)

    def __call__(self, batch: int) -> tuple[Tensor, Tensor]:
        """Returns hidden, decoded: (batch, N) bool each. Randomness: torch's global generator."""
        hidden = self.encoder(batch)
        return hidden, hidden.clone() if self.decoder is None else self.decoder(batch)


def token_counts(grid: Grid, encoder_ratio: float, decoder_ratio: float) -> dict[str, int]:
    """Tokens a clip under tube and running-cell masks: total, visible, decoded, in_loss (decoded and hidden).

    Exact for every draw when T' is a multiple of 4: each position is then decoded in (1 - ratio) T' slots.
    """
    hidden = tube_mask(grid, encoder_ratio)[0]
    decoded = running_cell(grid, decoder_ratio, 0) if decoder_ratio else hidden
    counts = {"total": hidden.numel(), "visible": int((~hidden).sum()), "decoded": int(decoded.sum())}
    return counts | {"in_loss": int((hidden & decoded).sum())}
