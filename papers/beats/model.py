"""BEATs' architecture: post-norm Transformer with DeepNorm, gated relative bias and convolutional position.

Shapes: B clips, T frames, M mel bins, N tokens (patches, time-major: index = t * M/patch + f), K codes, D width.
A padding or keep mask is (B, N) bool; padding True = no audio there, keep True = the encoder sees the token.
"""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import EncoreError
from common.layers import MLP, PatchEmbed
from common.layers.positions import RelativeBias
from common.masking import keep_tokens, put_tokens

FBANK_MEAN, FBANK_STD = 15.41663, 6.55582  # of AudioSet fbanks; inputs are (fbank - mean) / (2 * std), released code
MASK_RATIO = 0.75
BUCKETS = {"num_buckets": 320, "max_distance": 800}  # of the relative bias


def num_masked(num_tokens: int, mask_ratio: float = MASK_RATIO) -> int:
    """Masked tokens of a clip: all but int((1 - mask_ratio) * N), so 372 of 496."""
    return num_tokens - int((1 - mask_ratio) * num_tokens)


def deepnorm_alpha(depth: int) -> float:
    """Weight of the residual branch in an encoder of `depth` layers (DeepNet, encoder-only row)."""
    return (2 * depth) ** 0.25


def deepnorm_beta(depth: int) -> float:
    """Initial gain of the value, output and feed-forward projections (DeepNet, encoder-only row)."""
    return (8 * depth) ** -0.25


class GatedRelativeAttention(nn.Module):
    """Self-attention whose shared relative bias is scaled by a gate of the query (WavLM, Sec. 3.1).

    The gate is a * (b * w_h - 1) + 2 with (a, b) = sigmoid of 8 projections of the unscaled query, summed in two
    groups of 4; it depends on the query's position only. The released code guards the softmax against fp16 overflow
    by scaling and subtracting the row maximum; scaled_dot_product_attention already does the latter.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise EncoreError(f"attention width {dim} is not a multiple of num_heads {num_heads}; change either")
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.gate_proj = nn.Linear(dim // num_heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(num_heads))

    def gate(self, query: Tensor) -> Tensor:
        """query: (B, heads, N, head_dim), before scaling -> gate (B, heads, N, 1)."""
        a, b = torch.sigmoid(rearrange(self.gate_proj(query), "... (two four) -> ... two four", two=2).sum(-1)).split(
            1, -1
        )
        return a * (b * self.gate_scale[:, None, None] - 1) + 2

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor | None = None) -> Tensor:
        """x: (B, N, D); bias: (B or 1, heads, N, N); padding: (B, N) bool -> (B, N, D)."""
        query, key, value = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        logits = self.gate(query) * bias
        if padding is not None:
            logits = logits.masked_fill(padding[:, None, None, :], torch.finfo(logits.dtype).min)
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=logits.to(query.dtype), dropout_p=dropout)
        return self.out(rearrange(x, "b h n d -> b n (h d)"))


class DeepNormLayer(nn.Module):
    """Post-norm layer x = LN(alpha * x + Sublayer(x)) for attention, then for the feed-forward network."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        alpha: float,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.attn = GatedRelativeAttention(dim, num_heads, dropout=attention_dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor | None = None) -> Tensor:
        """x: (B, N, D) -> (B, N, D)."""
        x = self.norm1(self.alpha * x + self.dropout(self.attn(x, bias, padding)))
        return self.norm2(self.alpha * x + self.dropout(self.mlp(x)))


class ConvPosition(nn.Module):
    """Convolutional position of wav2vec 2.0: grouped Conv1d over tokens with weight norm along the kernel, GELU."""

    def __init__(self, dim: int, kernel_size: int = 128, groups: int = 16) -> None:
        super().__init__()
        conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel_size * dim)))
        conv.bias = nn.Parameter(torch.zeros(dim))
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, D) -> (B, N, D); an even kernel gives one step too many, the last is dropped."""
        return F.gelu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)


class TransformerStack(nn.Module):
    """Convolutional position, LayerNorm, dropout, then DeepNorm layers that share one relative bias.

    The encoder's body, and at depth 3 the label predictor's and the estimator's. No LayerNorm after the last layer.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        *,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        conv_kernel: int = 128,
        conv_groups: int = 16,
    ) -> None:
        super().__init__()
        self.position = ConvPosition(dim, conv_kernel, conv_groups)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.bias = RelativeBias(num_heads, **BUCKETS)
        layers = [
            DeepNormLayer(
                dim,
                num_heads,
                mlp_dim,
                alpha=deepnorm_alpha(depth),
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(depth)
        ]
        self.layers = nn.ModuleList(layers)
        self.apply(init_normal)
        for layer in layers:
            init_deepnorm(layer, deepnorm_beta(depth))

    def forward(self, x: Tensor, padding: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """x: (B, N, D) of the whole clip -> (B, N, D), or (B, visible, D) with keep: the same number in every row.

        A dropped token is treated as padding is: it enters the position convolution as zero (so nothing of it leaks),
        and the tokens that stay keep their index for convolution and bias.
        """
        absent = padding if keep is None else (~keep if padding is None else padding | ~keep)
        if absent is not None:
            x = x.masked_fill(absent[..., None], 0)
        x = x + self.position(x)
        positions = torch.arange(x.shape[1], device=x.device)[None]
        length = x.shape[1]
        if keep is not None:
            x = keep_tokens(x, keep)
            positions = keep_tokens(positions.expand(keep.shape), keep)
            padding = None if padding is None else keep_tokens(padding, keep)
        x = self.dropout(self.norm(x))
        bias = self.bias(positions, length)
        for layer in self.layers:
            x = layer(x, bias, padding)
        return x


class Encoder(nn.Module):
    """Spectrogram patches -> contextual tokens. One design for every iteration, and inside the learned tokenizer."""

    def __init__(
        self,
        *,
        patch_size: int = 16,
        patch_dim: int = 512,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        conv_kernel: int = 128,
        conv_groups: int = 16,
    ) -> None:
        super().__init__()
        self.patch_size, self.dim = patch_size, dim
        self.patch_embed = PatchEmbed(patch_size, 1, patch_dim, bias=False)
        self.patch_norm = nn.LayerNorm(patch_dim)
        self.proj = nn.Linear(patch_dim, dim)
        init_normal(self.proj)
        self.stack = TransformerStack(
            dim,
            depth,
            num_heads,
            mlp_dim,
            dropout=dropout,
            attention_dropout=attention_dropout,
            conv_kernel=conv_kernel,
            conv_groups=conv_groups,
        )

    def forward(self, spectrogram: Tensor, padding: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """spectrogram: (B, 1, T, M), normalised -> (B, N, D), or (B, visible, D) with keep.

        Trailing frames that fill no patch are dropped. EncoreError if there is less than one patch.
        """
        embedded = self.patch_embed(crop_to_patches(spectrogram, self.patch_size))
        return self.stack(self.proj(self.patch_norm(embedded)), padding, keep)


def crop_to_patches(spectrogram: Tensor, patch_size: int) -> Tensor:
    """(B, 1, T, M) without the trailing frames that fill no patch; EncoreError if nothing is left."""
    frames, mels = spectrogram.shape[-2:]
    if frames < patch_size or mels < patch_size:
        raise EncoreError(
            f"spectrogram of {frames} frames x {mels} mel bins is smaller than one {patch_size} x {patch_size} patch; "
            "use longer audio, or pad it"
        )
    return spectrogram[..., : frames - frames % patch_size, : mels - mels % patch_size]


def token_padding(frames: Tensor, num_frames: int, num_mels: int, patch_size: int) -> Tensor:
    """frames: (B,) valid frames of each clip in a batch padded to num_frames -> (B, N) bool, True = padding.

    A patch with at least one valid frame counts as audio.
    """
    steps = torch.arange(num_frames // patch_size, device=frames.device) * patch_size
    return (steps[None] >= frames[:, None]).repeat_interleave(num_mels // patch_size, dim=1)


class LabelPredictor(nn.Module):
    """Small Transformer over the full sequence, then K logits at the masked tokens; used in pre-training only."""

    def __init__(self, num_labels: int = 1024, *, dim: int = 768, depth: int = 3, **stack: Any) -> None:
        super().__init__()
        self.stack = TransformerStack(dim, depth, **{"num_heads": 12, "mlp_dim": 3072, **stack})
        self.head = nn.Linear(dim, num_labels)
        init_normal(self.head)

    def forward(self, visible: Tensor, keep: Tensor, padding: Tensor | None = None) -> Tensor:
        """visible: (B, visible, D) encoder outputs; keep: (B, N) -> logits (total predicted tokens, K).

        Rows follow `predicted_tokens(keep, padding)` in row-major order. Zeros stand at the masked tokens.
        """
        x = self.stack(put_tokens(visible, keep), padding)
        return self.head(x[predicted_tokens(keep, padding)])


def predicted_tokens(keep: Tensor, padding: Tensor | None = None) -> Tensor:
    """(B, N) bool: the tokens that carry a loss, masked and not padding."""
    return ~keep if padding is None else ~keep & ~padding


class AudioClassifier(nn.Module):
    """Encoder and a linear classifier per token; the clip's logits are the mean over non-padded tokens' logits."""

    def __init__(self, encoder: Encoder, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, num_classes)
        init_normal(self.head)

    def token_logits(self, spectrogram: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, 1, T, M) -> (B, N, classes): what an iter3+ tokenizer learns to predict."""
        return self.head(self.dropout(self.encoder(spectrogram, padding)))

    def forward(self, spectrogram: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, 1, T, M) -> (B, classes) logits."""
        logits = self.token_logits(spectrogram, padding)
        if padding is None:
            return logits.mean(dim=1)
        audio = ~padding[..., None]
        return (logits * audio).sum(dim=1) / audio.sum(dim=1)


def init_normal(module: nn.Module) -> None:
    """Normal(0, 0.02) weights and zero bias for Linear and Embedding, as in BERT."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def init_deepnorm(layer: DeepNormLayer, beta: float) -> None:
    """Xavier normal: gain 1 for query and key, beta for value, output and feed-forward weights."""
    query, key, value = layer.attn.qkv.weight.detach().chunk(3)
    for weight, gain in (
        (query, 1.0),
        (key, 1.0),
        (value, beta),
        (layer.attn.out.weight, beta),
        (layer.mlp.fc1.weight, beta),
        (layer.mlp.fc2.weight, beta),
    ):
        nn.init.xavier_normal_(weight, gain=gain)


def beats_base(num_classes: int | None = None, num_heads: int = 12) -> Encoder | AudioClassifier:
    """The only published size (90M): encoder, or with num_classes the fine-tuned classifier (527 for AudioSet)."""
    encoder = Encoder(num_heads=num_heads)
    return encoder if num_classes is None else AudioClassifier(encoder, num_classes)


def beats_base_predictor() -> LabelPredictor:
    """Label predictor of base pre-training: 3 layers of the encoder's width, 1024 labels."""
    return LabelPredictor()
