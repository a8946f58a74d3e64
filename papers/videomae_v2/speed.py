"""VideoMAE against the public class, and the paper's own efficiency claims as ratios, for `encore speed`.

A ratio is a function () -> (the paper's way of doing a step, what it is compared with).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.fast.pairs import Side, Size, Step, Subject, save_once
from common.training.recipe import Optim
from papers.videomae_v2.interop import from_hub
from papers.videomae_v2.masking import DualMasking, tube_mask
from papers.videomae_v2.model import VideoMAE, true_indices
from papers.videomae_v2.module import Pretraining


def pair(side: Side, folder: Path, size: Size) -> Subject:
    """VideoMAE-B's pre-training at 16 x 224 x 224 without decoder mask (what the public class does); small:
    8 x 32 x 32, width 64. Inference: the reconstruction."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    base = size == "base"
    batch, frames, side_length, grid = (2, 16, 224, (8, 14, 14)) if base else (16, 8, 32, (4, 4, 4))
    video, mask = torch.rand(batch, frames, 3, side_length, side_length), tube_mask(grid, 0.9 if base else 0.75, batch)
    if side == "ours":
        module = Pretraining(from_hub(folder), Optim(1e-5))
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


def dual_masking(dim: int = 384, depth: int = 12) -> tuple[Step, Step]:
    """VideoMAE V2 (Sec. 3.2): a step that decodes half of the hidden cubes against one that decodes all."""
    half, whole = (_step(dim, depth, decoder=decoder) for decoder in ("running_cell", "none"))
    return half, whole


def visible_only(dim: int = 384, depth: int = 12) -> tuple[Step, Step]:
    """An encoder that reads the visible tenth of the cubes against one that reads all of them."""
    model = _model(dim, depth).encoder
    video = torch.rand(1, 3, 16, 224, 224)
    visible = true_indices(~tube_mask((8, 14, 14), 0.9, 1))

    def step(chosen: Any) -> Step:
        def run() -> float:
            model.zero_grad(set_to_none=True)
            out = model(video, chosen).mean()
            out.backward()
            return out.item()

        return run

    return step(visible), step(None)


RATIOS: dict[str, Callable[[], tuple[Step, Step]]] = {
    "dual masking": dual_masking,
    "visible tokens only": visible_only,
}


def _model(dim: int, depth: int) -> VideoMAE:
    return VideoMAE(
        image_size=224, patch_size=16, num_frames=16, tubelet_size=2, dim=dim, depth=depth, num_heads=dim // 64,
        mlp_dim=4 * dim,
        decoder_dim=dim // 2, decoder_heads=dim // 128, decoder_mlp_dim=2 * dim, decoder_depth=4,
    )  # fmt: skip


def _step(dim: int, depth: int, decoder: str) -> Step:
    torch.manual_seed(0)
    module = Pretraining(_model(dim, depth), Optim(1e-5))
    hidden, decoded = DualMasking((8, 14, 14), encoder_ratio=0.9, decoder=decoder, decoder_ratio=0.5)(1)
    batch = {"video": torch.rand(1, 3, 16, 224, 224), "hidden": hidden, "decoded": decoded}

    def step() -> float:
        module.zero_grad(set_to_none=True)
        loss = module.loss(batch)
        loss.backward()
        return loss.item()

    return step
