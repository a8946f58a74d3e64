"""TERA's encoder and reconstruction head (Sec. III-A): a BERT encoder that reads acoustic frames, one token a frame."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.layers import Transformer, key_padding_mask, sincos_1d

EPS = 1e-12  # of every LayerNorm, as in BERT
INIT_STD = 0.02
LONGEST = 1500  # frames the released models are pre-trained on; longer input is encoded in chunks


def init_weights(module: nn.Module, std: float = INIT_STD) -> None:
    """Linear weights N(0, std), biases 0, LayerNorm 1 and 0 (released code)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)


class Encoder(nn.Module):
    """Linear projection of the frames + fixed sinusoidal positions, LayerNorm, then post-norm Transformer layers.

    There is no class token, no final norm and no down-sampling: L frames of 10 ms give L tokens. The default is base.
    """

    def __init__(
        self,
        input_dim: int = 80,
        *,
        dim: int = 768,
        depth: int = 3,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.input_dim, self.dim, self.dropout, self.init_std = input_dim, dim, dropout, init_std
        self.project = nn.Linear(input_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.blocks = Transformer(
            depth, dim, num_heads, mlp_dim, norm="post", eps=EPS, dropout=dropout, attention_dropout=dropout
        )
        self.positions: Tensor
        self.register_buffer("positions", sincos_1d(1, dim), persistent=False)
        init_weights(self, init_std)

    def embed(self, features: Tensor) -> Tensor:
        """(B, L, input_dim) -> (B, L, dim): projection and position summed (the projection is not scaled), then
        LayerNorm."""
        length = features.shape[1]
        if length > len(self.positions):
            self.positions = sincos_1d(max(length, LONGEST + 1), self.dim).to(self.positions)
        x = self.norm(self.project(features) + self.positions[:length])
        return F.dropout(x, self.dropout, self.training)

    def hidden_states(self, features: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """The embedding and the output of every layer: depth + 1 tensors (B, L, dim).

        features: (B, L, input_dim), CMVN-normalised, zeros after lengths (B,) frames; without lengths none is padding.
        What stands at padding is not meaningful.
        """
        mask = None if lengths is None else key_padding_mask(lengths, features.shape[1])
        states = [self.embed(features)]
        for block in self.blocks:
            states.append(block(states[-1], mask=mask))
        return states

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, L, input_dim) -> (B, L, dim): the last layer, which is TERA's representation."""
        return self.hidden_states(features, lengths)[-1]

    def chunks(
        self, features: Tensor, lengths: Tensor | None = None, longest: int = LONGEST
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Input of any length in the fewest near-equal chunks of at most `longest` frames, with their lengths."""
        first = 0
        for chunk in features.chunk(math.ceil(features.shape[1] / longest), dim=1):
            # a row that ended in an earlier chunk still needs one key to attend to; its output is padding
            yield chunk, None if lengths is None else (lengths - first).clamp(1, chunk.shape[1])
            first += chunk.shape[1]

    def extract(self, features: Tensor, lengths: Tensor | None = None, longest: int = LONGEST) -> list[Tensor]:
        """hidden_states for input of any length: as in the released extractor every chunk starts at position 0 and sees
        only itself."""
        parts = [self.hidden_states(*chunk) for chunk in self.chunks(features, lengths, longest)]
        return [torch.cat(states, dim=1) for states in zip(*parts)]


class WeightedSum(nn.Module):
    """Learned convex combination of the embedding and all layers: softmax weights that start equal."""

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_states))

    def forward(self, states: list[Tensor]) -> Tensor:
        """num_states tensors (B, L, D) -> (B, L, D)"""
        return torch.einsum("n,nbld->bld", self.weights.softmax(dim=0), torch.stack(states))


class ReconstructionHead(nn.Module):
    """Linear, GELU, LayerNorm, Linear: (..., dim) -> (..., output_dim). Dropped after pre-training."""

    def __init__(self, dim: int, output_dim: int, init_std: float = INIT_STD) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.output = nn.Linear(dim, output_dim)
        init_weights(self, init_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.norm(F.gelu(self.dense(x))))


class TERA(nn.Module):
    """Encoder and reconstruction head: altered frames (B, L, input_dim) -> clean frames (B, L, input_dim)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ReconstructionHead(encoder.dim, encoder.input_dim, encoder.init_std)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(features, lengths))


def reconstruction_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean |prediction - target| over the entries where mask (bool) is True, pooled over the batch; all (B, L, H).

    0, without a gradient, when nothing is masked.
    """
    error = (prediction - target).abs().masked_select(mask)
    return error.sum() / max(error.numel(), 1)


def tera_base(input_dim: int = 80, dropout: float = 0.1) -> Encoder:
    """3 layers, the paper's main model; input_dim is 40 for fMLLR."""
    return Encoder(input_dim, depth=3, dropout=dropout)


def tera_medium(input_dim: int = 80, dropout: float = 0.1) -> Encoder:
    """6 layers."""
    return Encoder(input_dim, depth=6, dropout=dropout)


def tera_large(input_dim: int = 80, dropout: float = 0.1) -> Encoder:
    """12 layers, Mockingjay's size."""
    return Encoder(input_dim, depth=12, dropout=dropout)


def tera_slim(input_dim: int = 80, dropout: float = 0.3) -> Encoder:
    """12 thin layers, in the repository only."""
    return Encoder(input_dim, dim=384, depth=12, num_heads=8, mlp_dim=768, dropout=dropout)
