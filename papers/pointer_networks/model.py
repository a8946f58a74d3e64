"""Ptr-Net (Sec. 2.3) and its two baselines: the sequence-to-sequence LSTM (Sec. 2.1) and the LSTM with content-based
attention (Sec. 2.2).

Positions are numbered as the paper draws them: 0 is the end marker `<=`, j = 1..n is the input point P_j. A target
sequence is C_1..C_m followed by 0.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from common.errors import EncoreError

END = 0
Architecture = Literal["pointer", "attention", "lstm"]


class State(NamedTuple):
    """What the decoder carries from step to step: LSTM state h, c (B, H), and the blended context d' (B, H), zero
    where unused.
    """

    h: Tensor
    c: Tensor
    context: Tensor


class Memory(NamedTuple):
    """What the encoder leaves: states e (B, n, H), their projections or keys (B, n or n + 1, H), `valid` positions
    (B, n + 1).
    """

    states: Tensor
    keys: Tensor
    valid: Tensor


class AdditiveScores(nn.Module):
    """u_ij = v^T tanh(W1 e_j + W2 d_i) (Eq. 3)."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.v = nn.Linear(hidden_dim, 1, bias=False)

    def forward(self, keys: Tensor, queries: Tensor) -> Tensor:
        """keys (B, n, H) already projected by w1, decoder states (B, m, H) -> scores (B, m, n)."""
        return self.v((keys[:, None] + self.w2(queries)[:, :, None]).tanh_()).squeeze(-1)


class Seq2Seq(nn.Module):
    """What all three models share: an encoder that reads P_1..P_n and the marker `=>`, a decoder fed with
    coordinates.
    """

    def __init__(self, hidden_dim: int, num_points: int | None) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.num_points = num_points  # None: any number of points
        self.marker = nn.Parameter(torch.empty(2))  # `=>`: closes the input, opens the output
        self.encoder = nn.LSTM(2, hidden_dim, batch_first=True)

    def initialize(self) -> None:
        """Every weight uniform in [-0.08, 0.08] (Sec. 4.1)."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.08, 0.08)

    def encode(self, points: Tensor, lengths: Tensor | None = None) -> tuple[Memory, State]:
        """points (B, n, 2), of which the first lengths[b] count (None: all) -> memory and the decoder's initial
        state.
        """
        batch, n, _ = points.shape
        if self.num_points is not None and n != self.num_points:
            raise EncoreError(
                f"{type(self).__name__} is for sets of {self.num_points} points, got {n}; train one model per size"
            )
        if lengths is None:
            read, (h, c) = self.encoder(torch.cat([points, self.marker.expand(batch, 1, 2)], dim=1))
            valid = torch.ones(batch, n + 1, dtype=torch.bool, device=points.device)
        else:
            position = torch.arange(n + 1, device=points.device)
            at_marker = (position == lengths[:, None])[..., None]
            inputs = torch.where(at_marker, self.marker, nn.functional.pad(points, (0, 0, 0, 1)))
            packed = pack_padded_sequence(inputs, lengths.cpu() + 1, batch_first=True, enforce_sorted=False)
            outputs, (h, c) = self.encoder(packed)
            read, _ = pad_packed_sequence(outputs, batch_first=True, total_length=n + 1)
            valid = position <= lengths[:, None]
        states = read[:, :n]
        memory = Memory(states, self.keys(states), valid)
        return memory, State(h[0], c[0], torch.zeros_like(h[0]))

    def keys(self, states: Tensor) -> Tensor:
        """What decoding reads of the encoder states (B, n, H); the plain LSTM reads nothing."""
        return states[:, :0]

    def decode(self, memory: Memory, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """m steps over coordinates (B, m, 2): logits (B, m, n + 1), -inf at padded points, and the state after the
        last step.
        """
        raise NotImplementedError

    def decoder_inputs(self, points: Tensor, targets: Tensor) -> Tensor:
        """`=>` and then the coordinates of C_1..C_{m-1}: (B, m, 2). Whatever follows the end marker is fed as the
        first point.
        """
        index = (targets[:, :-1] - 1).clamp(min=0)
        previous = points.gather(1, index[..., None].expand(-1, -1, 2))
        return torch.cat([self.marker.expand(len(points), 1, 2), previous], dim=1)

    def forward(self, points: Tensor, targets: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Teacher forcing: points (B, n, 2), targets (B, m) in 0..n or negative (padding) -> logits (B, m, n + 1)."""
        memory, state = self.encode(points, lengths)
        return self.decode(memory, self.decoder_inputs(points, targets), state)[0]


def mask_padding(logits: Tensor, valid: Tensor) -> Tensor:
    """-inf where `valid` (B, n + 1) is False; logits (B, m, n + 1)."""
    return logits.masked_fill(~valid[:, None], float("-inf"))


class PointerNetwork(Seq2Seq):
    """The softmax over attention scores is the output; `<=` is one more, learned key. For any number of points."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__(hidden_dim, num_points=None)
        self.decoder = nn.LSTM(2, hidden_dim, batch_first=True)
        self.scores = AdditiveScores(hidden_dim)
        self.end = nn.Parameter(torch.empty(hidden_dim))  # e_0, the encoder state that stands for `<=`
        self.initialize()

    def keys(self, states: Tensor) -> Tensor:
        return self.scores.w1(torch.cat([self.end.expand(len(states), 1, -1), states], dim=1))

    def decode(self, memory: Memory, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        outputs, (h, c) = self.decoder(inputs, (state.h[None], state.c[None]))
        return mask_padding(self.scores(memory.keys, outputs), memory.valid), State(h[0], c[0], state.context)


class LSTMSeq2Seq(Seq2Seq):
    """Output softmax(W_o d_i) over a dictionary of n fixed classes and the end: one model per n."""

    def __init__(self, hidden_dim: int, num_points: int) -> None:
        super().__init__(hidden_dim, num_points)
        self.decoder = nn.LSTM(2, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, num_points + 1, bias=False)
        self.initialize()

    def decode(self, memory: Memory, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        outputs, (h, c) = self.decoder(inputs, (state.h[None], state.c[None]))
        return mask_padding(self.output(outputs), memory.valid), State(h[0], c[0], state.context)


class LSTMAttention(Seq2Seq):
    """Attention blends: d' = sum_j softmax_j(u_ij) e_j, output softmax(W_o [d; d']) over n fixed classes and the end.

    [d; d'] also feeds the next step: d as the LSTM's own state, d' as further input. d' depends on d, so training
    needs a loop over time here; projections that do not depend on it are computed outside.
    """

    def __init__(self, hidden_dim: int, num_points: int) -> None:
        super().__init__(hidden_dim, num_points)
        self.decoder = nn.LSTMCell(2 + hidden_dim, hidden_dim)
        self.scores = AdditiveScores(hidden_dim)
        self.output = nn.Linear(2 * hidden_dim, num_points + 1, bias=False)
        self.initialize()

    def keys(self, states: Tensor) -> Tensor:
        return self.scores.w1(states)

    def decode(self, memory: Memory, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        h, c, context = state
        padding = ~memory.valid[:, None, 1:]
        steps = []
        for step in inputs.unbind(dim=1):
            h, c = self.decoder(torch.cat([step, context], dim=1), (h, c))
            weights = self.scores(memory.keys, h[:, None]).masked_fill(padding, float("-inf")).softmax(dim=-1)
            context = (weights @ memory.states).squeeze(1)
            steps.append(torch.cat([h, context], dim=1))
        return mask_padding(self.output(torch.stack(steps, dim=1)), memory.valid), State(h, c, context)


def build(architecture: Architecture, hidden_dim: int, num_points: int | None = None) -> Seq2Seq:
    """One of the three models; the baselines need num_points, the one size they are for."""
    if architecture not in get_args(Architecture):
        raise EncoreError(f"there is no architecture {architecture!r}, only {', '.join(get_args(Architecture))}")
    if architecture == "pointer":
        return PointerNetwork(hidden_dim)
    if num_points is None:
        raise EncoreError(
            f"{architecture} has a fixed output dictionary: give num_points, the size of the sets it is trained on"
        )
    return LSTMAttention(hidden_dim, num_points) if architecture == "attention" else LSTMSeq2Seq(hidden_dim, num_points)


def pointer_network_512() -> PointerNetwork:
    """Ptr-Net with the larger of the paper's two hidden sizes."""
    return PointerNetwork(512)


def pointer_network_256() -> PointerNetwork:
    """Ptr-Net with the smaller of the paper's two hidden sizes."""
    return PointerNetwork(256)


def pointer_network_128() -> PointerNetwork:
    """Ptr-Net at the size of the cpu scale."""
    return PointerNetwork(128)


def largest_initial_weight(hidden_dim: int = 64) -> float:
    """Of an untrained Ptr-Net: the bound of its uniform distribution, but for the luck of some 10,000 draws."""
    return max(parameter.abs().max().item() for parameter in PointerNetwork(hidden_dim).parameters())


def parameters_without_markers(hidden_dim: int) -> int:
    """Parameters of the two LSTMs, W1, W2 and v: what Eq. 3 and Sec. 2.1 spell out."""
    model = PointerNetwork(hidden_dim)
    return sum(p.numel() for p in model.parameters()) - model.marker.numel() - model.end.numel()
