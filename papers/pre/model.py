"""Prompt learning on a frozen CLIP: the learnable context, the encoder that reparameterises it, every variant and size.

Shapes: M context tokens of the text tower's width D, C classes, N tokens a prompt, e dimensions of the joint space.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import EncoreError
from common.layers import MLP, Transformer, sincos_1d
from papers.clip import model as clips
from papers.clip.model import CLIP

Variant = Literal["lstm1", "lstm2", "mlp1", "mlp2", "transformer"]
DROPOUT = 0.05  # of the two-layer variants; nothing to act on in the others
BOTTLENECK = 64


class BiLSTM(nn.Module):
    """Bidirectional LSTM along the context tokens, D / 2 wide in each direction: (M, D) -> (M, D)."""

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        dropout = DROPOUT if num_layers > 1 else 0.0  # torch applies it between layers only
        self.lstm = nn.LSTM(dim, dim // 2, num_layers, dropout=dropout, bidirectional=True)

    def forward(self, context: Tensor) -> Tensor:
        return self.lstm(context)[0]


class BottleneckMLP(nn.Module):
    """Linear to 64, ReLU, Linear back, for each token by itself; applied `times` times with the same weights."""

    def __init__(self, dim: int, times: int) -> None:
        super().__init__()
        self.mlp, self.times = MLP(dim, BOTTLENECK, activation="relu"), times

    def forward(self, context: Tensor) -> Tensor:
        for _ in range(self.times):
            context = self.mlp(context)
        return context


class ContextTransformer(nn.Module):
    """Two post-norm layers with two heads along the context tokens, on top of sinusoidal positions: (M, D) -> (M, D).

    Sizes and initial values are torch's defaults for TransformerEncoderLayer(D, 2).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        rates = {"dropout": DROPOUT, "attention_dropout": DROPOUT, "activation_dropout": DROPOUT}
        self.blocks = Transformer(2, dim, 2, 2048, norm="post", activation="relu", **rates)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("qkv.weight"):
                nn.init.xavier_uniform_(parameter)
            elif name.endswith(("qkv.bias", "out.bias")):
                nn.init.zeros_(parameter)

    def forward(self, context: Tensor) -> Tensor:
        positions = sincos_1d(*context.shape).to(context)
        return self.blocks((context + positions)[None])[0]


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "lstm1": lambda dim: BiLSTM(dim, 1),
    "lstm2": lambda dim: BiLSTM(dim, 2),
    "mlp1": lambda dim: BottleneckMLP(dim, 1),
    "mlp2": lambda dim: BottleneckMLP(dim, 2),
    "transformer": ContextTransformer,
}


class PromptEncoder(nn.Module):
    """The reparameterisation (Sec. 3.2): E' = f(E) + E, or E' = f(E) without the residual. (M, D) -> (M, D).

    separate: one network for every context token, which then sees that token alone; else one network sees all M.
    """

    def __init__(
        self, variant: Variant, dim: int, num_context: int, *, residual: bool = True, separate: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        copies = num_context if separate else 1
        self.networks = nn.ModuleList(NETWORKS[variant](dim) for _ in range(copies))

    def forward(self, context: Tensor) -> Tensor:
        parts = context.chunk(len(self.networks))  # single tokens, or all of them
        out = torch.cat([network(part) for network, part in zip(self.networks, parts, strict=True)])
        return out + context if self.residual else out


class Prompt(nn.Module):
    """What is learned: the context E and, unless variant is None (CoOp), its encoder. Called, it gives E', (M, D).

    E starts from N(0, 0.02^2) until `start_from` puts words there.
    """

    def __init__(
        self,
        dim: int,
        num_context: int = 4,
        variant: Variant | None = "lstm1",
        *,
        residual: bool = True,
        separate: bool = False,
    ) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.randn(num_context, dim) * 0.02)
        self.encoder: PromptEncoder | None = None
        if variant is not None:
            self.encoder = PromptEncoder(variant, dim, num_context, residual=residual, separate=separate)

    def __len__(self) -> int:
        return len(self.context)

    @torch.no_grad()
    def start_from(self, embeddings: Tensor) -> None:
        """Start the context from the token embeddings of M tokens, (M, D)."""
        if embeddings.shape != self.context.shape:
            raise EncoreError(
                f"the context is {tuple(self.context.shape)} (tokens, width), what it should start from is "
                f"{tuple(embeddings.shape)}; set num_context to the number of tokens of the words"
            )
        self.context.copy_(embeddings)

    def forward(self) -> Tensor:
        return self.context if self.encoder is None else self.encoder(self.context)

    @torch.no_grad()
    def fold(self) -> None:
        """Put E' in the place of E and drop the encoder: from then on inference is CoOp's, with the same prompts.

        The encoder is asked in eval mode, so that no dropout is frozen into the context.
        """
        if self.encoder is not None:
            self.context.copy_(self.encoder.eval()(self.context))
            self.encoder = None


class PromptedCLIP(nn.Module):
    """CLIP as a classifier whose prompts are "[SOS] E'_1 ... E'_M name . [EOS]" with learned E' (Sec. 3.1, 3.2).

    The CLIP that is given is frozen in place: it takes no gradient and stays in eval mode (the ResNets' batch
    statistics too), whatever mode the prompt is in. Further arguments are those of Prompt.
    """

    def __init__(
        self,
        clip: CLIP,
        num_context: int = 4,
        variant: Variant | None = "lstm1",
        *,
        residual: bool = True,
        separate: bool = False,
    ) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(False).eval()
        dim = clip.text.positions.shape[1]
        self.prompt = Prompt(dim, num_context, variant, residual=residual, separate=separate)

    def train(self, mode: bool = True) -> "PromptedCLIP":
        super().train(mode)
        self.clip.eval()
        return self

    def start_from(self, ids: Tensor) -> None:
        """Start the context from the words with these token ids, (M,)."""
        self.prompt.start_from(self.clip.text.token_embedding(ids))

    def classifier(self, tokens: Tensor) -> Tensor:
        """Weights w_c of the classes, (C, e), unit rows.

        tokens (C, N): the tokenised prompts, [SOS], M ids in place of the context, name, ".", [EOS], zeros. The M ids
        are not looked at; [EOS], the largest id, says where the text feature is read.
        """
        text, num_context = self.clip.text, len(self.prompt)
        eos = tokens.argmax(dim=1)
        embedded = text.token_embedding(tokens[:, : int(eos.max()) + 1])
        context = self.prompt().to(embedded.dtype).expand(len(tokens), -1, -1)
        x = torch.cat([embedded[:, :1], context, embedded[:, 1 + num_context :]], dim=1)
        x = text.blocks(x + text.positions[: x.shape[1]], is_causal=True, read=eos[:, None])[:, 0]
        return F.normalize(text.proj(text.norm(x)), dim=-1)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, e), L2-normalised, without gradient."""
        return self.clip.encode_image(images)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, C): scaled cosines of images (B, 3, R, R) and the prompts of `tokens` (C, N)."""
        return self.clip.scale * self.encode_image(images) @ self.classifier(tokens).T


def pre_vit_b16(variant: Variant | None = "lstm1", *, residual: bool = True, separate: bool = False) -> PromptedCLIP:
    """The paper's setting: ViT-B/16, four context tokens, one BiLSTM."""
    return PromptedCLIP(clips.clip_vit_b16(), variant=variant, residual=residual, separate=separate)


def pre_vit_b32(variant: Variant | None = "lstm1") -> PromptedCLIP:
    """On ViT-B/32."""
    return PromptedCLIP(clips.clip_vit_b32(), variant=variant)


def pre_rn50(variant: Variant | None = "lstm1", num_context: int = 4) -> PromptedCLIP:
    """On ResNet-50."""
    return PromptedCLIP(clips.clip_rn50(), variant=variant, num_context=num_context)


def pre_rn101(variant: Variant | None = "lstm1") -> PromptedCLIP:
    """On ResNet-101."""
    return PromptedCLIP(clips.clip_rn101(), variant=variant)


def coop_vit_b16() -> PromptedCLIP:
    """The baseline CoOp: the context is learned directly, 2,048 trainable parameters."""
    return pre_vit_b16(None)
