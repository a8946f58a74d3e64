"""CLIP against the public class, for `encore speed`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.fast.pairs import Side, Size, Subject, captions, save_once
from common.losses import info_nce
from papers.clip.interop import from_hub


def pair(side: Side, folder: Path, size: Size) -> Subject:
    """CLIP ViT-B/32's contrastive step on captions of 8 to 24 tokens in a context of 77, as web captions are; small:
    two towers of width 64, captions of 5 to 16 tokens in a context of 20. Inference: image and text features."""
    from transformers import CLIPConfig, CLIPModel

    base = size == "base"
    batch, side_length, vocab, context = (8, 224, 49408, 77) if base else (64, 32, 1000, 20)
    images = torch.randn(batch, 3, side_length, side_length)
    tokens = captions(batch, vocab, context, (8, 25) if base else (5, 17))
    if side == "ours":
        model: Any = from_hub(folder)
        return Subject(
            model,
            lambda: info_nce(model.encode_image(images), model.encode_text(tokens), model.scale),
            lambda: torch.cat([model.encode_image(images), model.encode_text(tokens)]),
        )
    config: Any = CLIPConfig()
    if not base:
        tower = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = CLIPConfig(
            text_config=tower | {"vocab_size": vocab, "max_position_embeddings": context},
            vision_config=tower | {"image_size": 32, "patch_size": 4},
            projection_dim=64,
        )
    config.text_config.eos_token_id = vocab - 1
    model = CLIPModel(config)
    save_once(model, folder)
    mask = (torch.arange(context)[None] <= tokens.argmax(1, keepdim=True)).long()
    inputs = {"input_ids": tokens, "pixel_values": images, "attention_mask": mask}

    def features() -> Tensor:
        out = model(**inputs)
        return torch.cat([out.image_embeds, out.text_embeds])

    return Subject(model, lambda: model(**inputs, return_loss=True).loss, features)
