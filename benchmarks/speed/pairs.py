"""Training steps of our models and of the public classes at equal weights, batch, loss and optimizer.

Each function builds one side ("ours" or "theirs") and returns a step() that trains once and returns the loss. Weights
come from the public class through a directory in the hub's format, so both sides start equal: first losses agree.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Side = Literal["ours", "theirs"]
Step = Callable[[], float]


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Forward, backward and fused AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def vit_b16(side: Side, folder: Path, batch: int = 4) -> Step:
    """ViT-B/16 classification, 224 px, 1,000 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    from benchmarks.speed.vit import load_hub_vit
    from common.layers import vit_base_patch16_224

    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
    if side == "ours":
        model: Any = vit_base_patch16_224()
        load_hub_vit(model, folder)
        return training_step(model, lambda: F.cross_entropy(model(images), labels))
    config = ViTConfig(layer_norm_eps=1e-6, hidden_dropout_prob=0.0)
    config.num_labels = 1000
    model = ViTForImageClassification(config)
    save_once(model, folder)
    return training_step(model, lambda: F.cross_entropy(model(pixel_values=images).logits, labels))


def clip_vit_b32(side: Side, folder: Path, batch: int = 8) -> Step:
    """CLIP ViT-B/32 contrastive step; captions of 8 to 24 tokens in a context of 77, as web captions are."""
    from transformers import CLIPConfig, CLIPModel

    from common.losses import info_nce
    from papers.clip.interop import from_hub

    images, tokens = torch.randn(batch, 3, 224, 224), captions(batch)
    if side == "ours":
        model: Any = from_hub(folder)
        return training_step(
            model,
            lambda: info_nce(model.encode_image(images), model.encode_text(tokens), model.scale),
        )
    config: Any = CLIPConfig()
    config.text_config.eos_token_id = 49407
    model = CLIPModel(config)
    save_once(model, folder)
    mask = (torch.arange(77)[None] <= tokens.argmax(1, keepdim=True)).long()
    return training_step(
        model, lambda: model(input_ids=tokens, pixel_values=images, attention_mask=mask, return_loss=True).loss
    )


def bart_base(side: Side, folder: Path, batch: int = 4) -> Step:
    """BART-base denoising step; documents of 64 to 256 tokens, padded to the longest."""
    from transformers import BartConfig, BartForConditionalGeneration

    from papers.bart.interop import load
    from papers.bart.model import shift_right

    source, target = documents(batch, 0.85), documents(batch, 1.0)
    if side == "ours":
        model: Any = load(folder)
        return training_step(model, lambda: model.loss(source, target))
    config = BartConfig(
        d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12,
        encoder_ffn_dim=3072, decoder_ffn_dim=3072, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
    )  # fmt: skip
    peer = BartForConditionalGeneration(config)
    save_once(peer, folder)
    labels = target.masked_fill(target == 1, -100)
    inputs = shift_right(target)
    return training_step(
        peer,
        lambda: (
            peer(input_ids=source, attention_mask=(source != 1).long(), decoder_input_ids=inputs, labels=labels).loss
        ),
    )


def videomae_base(side: Side, folder: Path, batch: int = 2) -> Step:
    """VideoMAE-B pre-training at 16 x 224 x 224 without decoder masking (what the public class does)."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    from papers.videomae_v2.interop import from_hub
    from papers.videomae_v2.masking import tube_mask
    from papers.videomae_v2.module import Pretraining

    video, mask = torch.rand(batch, 16, 3, 224, 224), tube_mask((8, 14, 14), 0.9, batch)
    if side == "ours":
        module = Pretraining(from_hub(folder), lr=1e-5)
        clips = {"video": video.transpose(1, 2), "hidden": mask, "decoded": mask}
        return training_step(module, lambda: module.loss(clips))
    config = VideoMAEConfig(norm_pix_loss=True, layer_norm_eps=1e-6, use_mean_pooling=False)
    model = VideoMAEForPreTraining(config)
    model.decoder.norm.eps = 1e-6
    save_once(model, folder)
    return training_step(model, lambda: model(pixel_values=video, bool_masked_pos=mask).loss)


PAIRS: dict[str, Callable[..., Step]] = {
    "vit-b16": vit_b16,
    "clip-vit-b32": clip_vit_b32,
    "bart-base": bart_base,
    "videomae-b": videomae_base,
}


def save_once(model: Any, folder: Path) -> None:
    """Leave the weights for the other side, unless they are there already; then take them."""
    if (folder / "model.safetensors").exists():
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())
    else:
        model.save_pretrained(folder)


def captions(batch: int) -> Tensor:
    """(batch, 77) ids: start, words, end = the largest id, zeros."""
    tokens = torch.randint(1, 40_000, (batch, 77))
    lengths = torch.randint(8, 25, (batch,))
    tokens[:, 0] = 49406
    tokens[torch.arange(batch), lengths - 1] = 49407
    return tokens.masked_fill(torch.arange(77)[None] >= lengths[:, None], 0)


def documents(batch: int, share: float) -> Tensor:
    """(batch, N) ids of lengths 64 to 256 (times `share`), <s> first, </s> last, padding 1."""
    lengths = (torch.linspace(64, 256, batch) * share).long()
    tokens = torch.randint(4, 50_000, (batch, int(lengths.max())))
    tokens[:, 0] = 0
    tokens[torch.arange(batch), lengths - 1] = 2
    return tokens.masked_fill(torch.arange(tokens.shape[1])[None] >= lengths[:, None], 1)
