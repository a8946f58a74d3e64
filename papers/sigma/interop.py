"""Published weights: SIGMA's released .pth files, the hub's VideoMAE format, and DINO as hub ViT or official .pth.

A released SIGMA file is {"model": state dict} under VideoMAE's original names, with `prototypes` and, for the MLP
target, `head.*` for phi; DINO is not in it.
"""

from pathlib import Path

from common.interop import check_and_load, read_checkpoint, vit
from common.interop.layout import Drop, Layout
from common.interop.weights import State
from common.training.run import hand_over
from common.training.trainer import atomic_save
from papers.sigma.model import DINO, SIGMA
from papers.videomae_v2 import interop as videomae_v2
from papers.videomae_v2.model import VideoEncoder
from papers.videomae_v2.stages import stage_weights

RELEASED = Layout([("prototypes", "prototypes.weight"), ("head.*.", "phi.*.")])
RELEASED += videomae_v2.RELEASED.under(ours="video.")
VIDEO_ALONE = videomae_v2.RELEASED + Layout([Drop("prototypes"), Drop("head.*.")])
OWN_TARGET = "phi.vit."  # DINO, which no released file holds


def load_released(model: SIGMA, path: str | Path) -> None:
    """Give `model` the weights of a released .pth; a DINO phi keeps its own."""
    content = read_checkpoint(path)
    state = RELEASED.to_ours(content.get("model", content), path)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(OWN_TARGET)}
    check_and_load(model, state | own, path)


def save_released(model: SIGMA, path: str | Path) -> None:
    """Write a .pth that the authors' fine-tuning script loads; a DINO phi is left out."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(OWN_TARGET)}
    atomic_save({"model": RELEASED.to_theirs(state)}, Path(path))


def video_weights(path: Path) -> State:
    """State dict of the video model or classifier in `path`; phi and the prototypes are left behind.

    path: a training checkpoint of this room, a released SIGMA .pth, or a hub VideoMAE directory.
    """
    state = {name.removeprefix("video."): value for name, value in stage_weights(path, VIDEO_ALONE).items()}
    return {name: value for name, value in state.items() if not name.startswith(("phi.", "prototypes."))}


def load_encoder(encoder: VideoEncoder, path: str | Path) -> None:
    """Give the pre-trained encoder in `path` (see video_weights), its last norm included, to `encoder`."""
    hand_over(video_weights(Path(path)), encoder, rename={"encoder.": ""})


def to_hub(model: SIGMA, directory: str | Path) -> None:
    """Write the video model as a hub VideoMAE directory; VideoMAEModel takes the encoder from it."""
    videomae_v2.to_hub(model.video, directory)


def load_hub(model: SIGMA, directory: str | Path) -> None:
    """Inverse of to_hub: the video model's weights from a hub directory with a head of phi's width."""
    videomae_v2.HUB.load(model.video, directory)


def load_dino(dino: DINO, path: str | Path) -> None:
    """Weights of a hub ViT directory or .safetensors, or of an official .pth. Stays frozen."""
    hub = Path(path).is_dir() or Path(path).suffix == ".safetensors"
    (vit.HUB if hub else vit.TIMM).load(dino.vit, path)


def save_dino(dino: DINO, directory: str | Path) -> None:
    """Write a hub ViTModel directory."""
    vit.HUB.save(dino.vit, directory, vit.config_of(dino.vit))
