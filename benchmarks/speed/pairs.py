"""Our models and the public classes at equal weights, batch, loss and optimizer, at base and at our claims' size.

A pair is a function (side, folder, size) -> Subject. The public class's weights go to `folder` in its own format, and
our side loads them from there, so both start equal: first losses and outputs agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.fast.in_backward import StepInBackward

Side = Literal["ours", "theirs"]
Size = Literal["base", "small"]


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


def vit(side: Side, folder: Path, size: Size) -> Subject:
    """ViT-B/16 at 224 px and 1,000 classes; small: 32 px in patches of 4, width 64, 10 classes. Peer: transformers."""
    from transformers import ViTConfig, ViTForImageClassification

    from benchmarks.speed.vit import load_hub_vit

    sizes, batch, classes = VIT_SIZES[size]
    images, labels = torch.randn(batch, 3, sizes["image_size"], sizes["image_size"]), torch.randint(classes, (batch,))
    if side == "ours":
        model: Any = _our_vit(sizes, classes)
        load_hub_vit(model, folder)
        return Subject(model, lambda: F.cross_entropy(model(images), labels), lambda: model(images))
    config = ViTConfig(
        image_size=sizes["image_size"], patch_size=sizes["patch_size"], hidden_size=sizes["dim"],
        num_hidden_layers=sizes["depth"], num_attention_heads=sizes["num_heads"], intermediate_size=4 * sizes["dim"],
        layer_norm_eps=1e-6, hidden_dropout_prob=0.0,
    )  # fmt: skip
    config.num_labels = classes
    model = ViTForImageClassification(config)
    save_once(model, folder)
    return Subject(
        model,
        lambda: F.cross_entropy(model(pixel_values=images).logits, labels),
        lambda: model(pixel_values=images).logits,
    )


def vit_timm(side: Side, folder: Path, size: Size) -> Subject:
    """The same sizes against timm's VisionTransformer."""
    from safetensors.torch import load_file, save_file
    from timm.models.vision_transformer import VisionTransformer

    from benchmarks.speed.vit import from_timm

    sizes, batch, classes = VIT_SIZES[size]
    images, labels = torch.randn(batch, 3, sizes["image_size"], sizes["image_size"]), torch.randint(classes, (batch,))
    file = folder / "timm.safetensors"
    if side == "ours":
        model: Any = _our_vit(sizes, classes)
        model.load_state_dict(from_timm(load_file(file)))
    else:
        model = VisionTransformer(
            img_size=sizes["image_size"], patch_size=sizes["patch_size"], embed_dim=sizes["dim"], depth=sizes["depth"],
            num_heads=sizes["num_heads"], num_classes=classes,
        )  # fmt: skip
        if file.exists():
            model.load_state_dict(load_file(file))
        save_file(model.state_dict(), file)
    return Subject(model, lambda: F.cross_entropy(model(images), labels), lambda: model(images))


VIT_SIZES: dict[str, tuple[dict[str, int], int, int]] = {
    "base": ({"image_size": 224, "patch_size": 16, "dim": 768, "depth": 12, "num_heads": 12}, 4, 1000),
    "small": ({"image_size": 32, "patch_size": 4, "dim": 64, "depth": 2, "num_heads": 4}, 64, 10),
}


def _our_vit(sizes: dict[str, int], classes: int) -> nn.Module:
    from common.layers import ViT

    return ViT(**sizes, num_classes=classes)  # type: ignore[arg-type]


def clip(side: Side, folder: Path, size: Size) -> Subject:
    """CLIP ViT-B/32's contrastive step on captions of 8 to 24 tokens in a context of 77, as web captions are; small:
    two towers of width 64, captions of 5 to 16 tokens in a context of 20. Inference: image and text features."""
    from transformers import CLIPConfig, CLIPModel

    from common.losses import info_nce
    from papers.clip.interop import from_hub

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


def bart(side: Side, folder: Path, size: Size) -> Subject:
    """BART-base's denoising step on documents of 64 to 256 tokens, padded to the longest; small: 2 + 2 layers of width
    96 on 16 to 64 tokens. Inference: the decoder's states at the target's positions, without logits."""
    from transformers import BartConfig, BartForConditionalGeneration

    from common.fast.packed import Packing
    from papers.bart.interop import load
    from papers.bart.model import shift_right

    base = size == "base"
    batch, lengths, vocab = (4, (64, 256), 50265) if base else (32, (16, 64), 600)
    source, target = documents(batch, lengths, vocab, 0.85), documents(batch, lengths, vocab, 1.0)
    inputs = shift_right(target)
    if side == "ours":
        model: Any = load(folder)

        def states() -> Tensor:
            encoded, wanted = Packing(source != 1), Packing(target != 1)
            return model.decode_rows(inputs, wanted, model.encode_rows(source, encoded), encoded)

        return Subject(model, lambda: model.loss(source, target), states)
    width, depth, heads = (768, 6, 12) if base else (96, 2, 4)
    config = BartConfig(
        vocab_size=vocab, d_model=width, encoder_layers=depth, decoder_layers=depth, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
        max_position_embeddings=1024 if base else 64, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
    )  # fmt: skip
    peer = BartForConditionalGeneration(config)
    save_once(peer, folder)
    labels = target.masked_fill(target == 1, -100)
    given = {"input_ids": source, "attention_mask": (source != 1).long(), "decoder_input_ids": inputs}
    return Subject(
        peer,
        lambda: peer(**given, labels=labels).loss,
        lambda: peer.model(**given).last_hidden_state[target != 1],
    )


def bert(side: Side, folder: Path, size: Size) -> Subject:
    """BERT-base's masked-word step on sentences of 16 to 128 tokens, 15 % masked; small: 2 layers of width 96 on 8 to
    48 tokens. Inference: the last states of real tokens."""
    from transformers import BertConfig, BertForMaskedLM

    from common.fast.packed import Packing
    from common.interop.bert import bert_from_hub
    from common.layers.bert import packed_loss, packed_states
    from papers.bart.model import set_dropout

    base = size == "base"
    batch, lengths, vocab = (8, (16, 128), 30522) if base else (32, (8, 48), 2048)
    tokens = documents(batch, lengths, vocab, 1.0)
    valid = tokens != 1
    tokens = tokens.masked_fill(~valid, 0)
    labels = tokens.masked_fill(~valid | (torch.rand(tokens.shape) > 0.15), -100)
    labels[:, 1] = tokens[:, 1]
    if side == "ours":
        model: Any = bert_from_hub(folder)
        set_dropout(model, 0.0)
        return Subject(
            model,
            lambda: packed_loss(model, tokens, labels, valid),
            lambda: packed_states(model.bert, tokens, Packing(valid)),
        )
    width, depth, heads = (768, 12, 12) if base else (96, 2, 4)
    config = BertConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=512 if base else 64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    save_once(model, folder)
    given = {"input_ids": tokens, "attention_mask": valid.long()}
    return Subject(
        model, lambda: model(**given, labels=labels).loss, lambda: model.bert(**given).last_hidden_state[valid]
    )


def videomae(side: Side, folder: Path, size: Size) -> Subject:
    """VideoMAE-B's pre-training at 16 x 224 x 224 without decoder mask (what the public class does); small:
    8 x 32 x 32, width 64. Inference: the reconstruction."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    from papers.videomae_v2.interop import from_hub
    from papers.videomae_v2.masking import tube_mask
    from papers.videomae_v2.model import true_indices
    from papers.videomae_v2.module import Pretraining

    base = size == "base"
    batch, frames, side_length, grid = (2, 16, 224, (8, 14, 14)) if base else (16, 8, 32, (4, 4, 4))
    video, mask = torch.rand(batch, frames, 3, side_length, side_length), tube_mask(grid, 0.9 if base else 0.75, batch)
    if side == "ours":
        module = Pretraining(from_hub(folder), lr=1e-5)
        clips = {"video": video.transpose(1, 2), "hidden": mask, "decoded": mask}
        visible, decoded = true_indices(~mask), true_indices(mask)
        model: Any = module.model
        return Subject(
            module,
            lambda: module.loss(clips),
            lambda: model.reconstruct(clips["video"], visible, decoded),
        )
    sizes: dict[str, Any] = {}
    if not base:
        sizes = {
            "image_size": 32, "patch_size": 8, "num_frames": 8, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 256, "decoder_hidden_size": 64,
            "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 256,
        }  # fmt: skip
    config = VideoMAEConfig(norm_pix_loss=True, layer_norm_eps=1e-6, use_mean_pooling=False, **sizes)
    peer = VideoMAEForPreTraining(config)
    peer.decoder.norm.eps = 1e-6
    save_once(peer, folder)
    inputs = {"pixel_values": video, "bool_masked_pos": mask}
    return Subject(peer, lambda: peer(**inputs).loss, lambda: peer(**inputs).logits)


PAIRS: dict[str, Callable[[Side, Path, Size], Subject]] = {
    "vit": vit,
    "vit-timm": vit_timm,
    "clip": clip,
    "bart": bart,
    "bert": bert,
    "videomae": videomae,
}


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
