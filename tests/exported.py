"""Small training checkpoints as the train scripts write them, made without training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn


def save_checkpoint(path: Path, module: str, arguments: dict, model: nn.Module, prefix: str, hyper: bool) -> Path:
    """hyper: whether the module keeps its arguments itself (save_hyperparameters); the configuration is kept anyway."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = {"class_path": module, "init_args": arguments}
    data = {"class_path": "papers.toy.data.Toy", "init_args": {"source": "wikitext2", "folder": "/somewhere/of/mine"}}
    content: dict[str, Any] = {
        "epoch": 0,
        "global_step": 3,
        "state_dict": {f"{prefix}{name}": value for name, value in model.state_dict().items()},
        "encore": {"config": yaml.safe_dump({"seed_everything": 11, "model": spec, "data": data})},
    }
    if hyper:
        content["hyper_parameters"] = {"_class_path": module, **arguments}
    torch.save(content, path)
    return path


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter random: nothing may agree because it is zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def described(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def clip(path: Path, image_size: int = 16, patch_size: int = 8) -> nn.Module:
    from papers.clip.model import CLIP, TextTransformer, VisionTransformer

    image = {"image_size": image_size, "patch_size": patch_size, "dim": 32, "depth": 2, "num_heads": 4, "embed_dim": 12}
    text = {"dim": 16, "depth": 2, "num_heads": 2, "vocab_size": 40, "context_length": 9, "embed_dim": 12}
    model = randomised(CLIP(VisionTransformer(**image), TextTransformer(**text)))
    where = "papers.clip.model."
    towers = {
        "image": described(f"{where}VisionTransformer", **image),
        "text": described(f"{where}TextTransformer", **text),
    }
    arguments = {"model": described(f"{where}CLIP", **towers), "weights": None}
    save_checkpoint(path, "papers.clip.module.CLIPModule", arguments, model, "model.", hyper=False)
    return model


def bart(path: Path) -> nn.Module:
    from papers.bart.model import bart_tiny

    model = randomised(bart_tiny(vocab_size=120, max_positions=16))
    arguments = {"model": described("papers.bart.model.bart_tiny", vocab_size=120, max_positions=16)}
    save_checkpoint(path, "papers.bart.module.Denoising", arguments, model, "model.", hyper=False)
    return model


def videomae_v2(path: Path, frames: int = 4, image_size: int = 16) -> nn.Module:
    from papers.videomae_v2.model import VideoMAE

    sizes = {"dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "patch_size": 8 if image_size == 16 else 16}
    sizes |= {
        "num_frames": frames,
        "image_size": image_size,
        "decoder_dim": 8,
        "decoder_heads": 2,
        "decoder_mlp_dim": 12,
    }
    model = randomised(VideoMAE(**sizes))
    arguments = {"model": described("papers.videomae_v2.model.VideoMAE", **sizes), "lr": 0.1}
    save_checkpoint(path, "papers.videomae_v2.module.Pretraining", arguments, model, "model.", hyper=False)
    return model


def beats(path: Path, patch_size: int = 4) -> nn.Module:
    from papers.beats.model import Encoder

    sizes = {"patch_size": patch_size, "patch_dim": 12, "dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
    sizes |= {"conv_kernel": 4, "conv_groups": 2}
    model = randomised(Encoder(**sizes))
    arguments = {"encoder": sizes, "num_codes": 8}
    save_checkpoint(path, "papers.beats.module.PretrainModule", arguments, model, "encoder.", hyper=True)
    return model


def pointer_networks(path: Path, architecture: str = "pointer", num_points: int | None = None) -> nn.Module:
    from papers.pointer_networks.model import LSTMAttention, LSTMSeq2Seq, PointerNetwork

    kinds: dict[str, Callable[[], nn.Module]] = {
        "pointer": lambda: PointerNetwork(8),
        "attention": lambda: LSTMAttention(8, num_points or 0),
        "lstm": lambda: LSTMSeq2Seq(8, num_points or 0),
    }
    model = randomised(kinds[architecture]())
    arguments = {"architecture": architecture, "hidden_dim": 8, "num_points": num_points}
    save_checkpoint(path, "papers.pointer_networks.module.PointerNetworks", arguments, model, "model.", hyper=True)
    return model


CHECKPOINTS: dict[str, Callable[..., nn.Module]] = {
    "clip": clip,
    "bart": bart,
    "videomae_v2": videomae_v2,
    "beats": beats,
    "pointer_networks": pointer_networks,
}
