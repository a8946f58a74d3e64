"""Weights from and to s3prl's checkpoints of TERA and Mockingjay: a torch file with "Transformer" and "SpecHead"
(state dicts in BERT's names), "Upstream_Config" (or, before 2021, "Config") with sizes and front end.

Nothing but tensors and plain containers is read: two kinds of objects that these files also hold (the command line's
arguments and the optimizer's schedule) are replaced by an empty shell. `python -m papers.tera.interop last.ckpt
states.ckpt` turns a training checkpoint into that layout.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import EncoreError, one_line
from common.interop import check_and_load, read_checkpoint
from common.interop.checkpoint import load_checkpoint
from common.interop.layout import Fused, Layout
from common.training.trainer import atomic_save
from papers.tera.features import DIMENSIONS
from papers.tera.model import EPS, INIT_STD, LONGEST, TERA, Encoder

State = dict[str, Tensor]


class Shell:
    """Stands for an object of a checkpoint that is not needed; holds its attributes, runs none of its code."""


UNREAD = ["argparse.Namespace"] + [
    f"{package}.{schedule}"
    for package in ("optimizers", "s3prl.optimizers", "transformer.optimization")
    for schedule in ("ConstantLR", "WarmupLinearSchedule", "WarmupConstantSchedule", "WarmupCosineSchedule")
]
SIZES = {"dim": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads"}
SIZES |= {"mlp_dim": "intermediate_size", "dropout": "hidden_dropout_prob"}  # Encoder argument: released field
DESIGN = {"hidden_act": "gelu", "share_layer": False, "pre_layer_norm": False, "downsample_rate": 1}
LAYER = "encoder.layer.*."
LAYOUT = Layout(
    [
        ("input_representations.spec_transform.", "project."),
        ("input_representations.LayerNorm.", "norm."),
        Fused(
            tuple(f"{LAYER}attention.self.{part}." for part in ("query", "key", "value")),
            "blocks.layers.*.attn.qkv.",
        ),
        (f"{LAYER}attention.output.dense.", "blocks.layers.*.attn.out."),
        (f"{LAYER}attention.output.LayerNorm.", "blocks.layers.*.norm1."),
        (f"{LAYER}intermediate.dense.", "blocks.layers.*.mlp.fc1."),
        (f"{LAYER}output.dense.", "blocks.layers.*.mlp.fc2."),
        (f"{LAYER}output.LayerNorm.", "blocks.layers.*.norm2."),
    ],
    spelled={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)
HEAD = Layout(
    [("dense.", "dense."), ("LayerNorm.", "norm."), ("output.", "output.")],
    spelled=LAYOUT.spelled,
)
MEL_INPUT = {"feat_type": "mel", "channel": 0, "log": True, "delta": 0, "cmvn": True}
KALDI_FRAMES = {"frame_length": 25.0, "frame_shift": 10.0}
AUDIO: dict[str, dict[str, Any]] = {  # front end: released "audio" section
    "mel": {
        "target_level": -25,
        "win_ms": 25,
        "hop_ms": 10,
        "n_freq": 201,
        "n_mels": 80,
        "n_mfcc": 13,
        "input": MEL_INPUT,
        "target": MEL_INPUT | {"channel": 1},
    },
    "fbank": {
        "kaldi": {"feat_type": "fbank", "fbank": {"num_mel_bins": 80, "use_log_fbank": True} | KALDI_FRAMES},
        "delta": {"order": 2, "win_length": 5},
        "cmvn": {"use_cmvn": True},
    },
    "mfcc": {
        "kaldi": {"feat_type": "mfcc", "mfcc": {"num_ceps": 13} | KALDI_FRAMES},
        "delta": {"order": 2, "win_length": 5},
        "cmvn": {"use_cmvn": True},
    },
}


def read_released(path: str | Path) -> tuple[dict[str, Any], dict[str, State]]:
    """(upstream config, {"Transformer", "SpecHead"}) of a released file.

    EncoreError when it is another kind of file or another design (shared layers, pre-norm).
    """
    shells = [(type("Shell", (Shell,), {}), name) for name in UNREAD]  # one class a name, or torch would mix them up
    with torch.serialization.safe_globals(shells):  # type: ignore[arg-type]
        content = read_checkpoint(path)
    if not isinstance(content, dict) or "Transformer" not in content:
        raise EncoreError(
            f"{path}: not in the released layout (a file with 'Transformer'); convert a training checkpoint with "
            "python -m papers.tera.interop"
        )
    configs = (content.get("Upstream_Config"), content.get("Config"))
    config = next((c for c in configs if isinstance(c, dict) and "transformer" in c), None)
    if config is None:
        raise EncoreError(f"{path}: neither 'Upstream_Config' nor 'Config' tells the sizes of the transformer")
    sizes = config["transformer"]
    for field in SIZES.values():
        if field not in sizes:
            raise EncoreError(f"{path}: its config has no field {field!r}; it is not a TERA checkpoint")
    for field, wanted in DESIGN.items():
        if sizes.get(field, wanted) != wanted:
            raise EncoreError(f"{path}: its config says {field}={sizes[field]!r}; only {wanted!r} is built here")
    return config, {part: content[part] for part in ("Transformer", "SpecHead") if part in content}


def _encoder(config: dict[str, Any], state: State, path: str | Path) -> Encoder:
    sizes: dict[str, Any] = {ours: config["transformer"][theirs] for ours, theirs in SIZES.items()}
    if "input_representations.spec_transform.weight" not in state:
        raise EncoreError(f"{path}: has no input_representations.spec_transform; it is not a TERA checkpoint")
    encoder = Encoder(state["input_representations.spec_transform.weight"].shape[1], **sizes)
    check_and_load(encoder, LAYOUT.to_ours(state, path), path)
    return encoder


def load_encoder(path: str | Path) -> Encoder:
    """Encoder of a released file, in eval mode."""
    config, states = read_released(path)
    return _encoder(config, states["Transformer"], path).eval()


def load(path: str | Path) -> TERA:
    """Encoder and reconstruction head of a released file, in eval mode."""
    config, states = read_released(path)
    if "SpecHead" not in states:
        raise EncoreError(f"{path}: has no 'SpecHead'; use load_encoder")
    model = TERA(_encoder(config, states["Transformer"], path))
    check_and_load(model.head, HEAD.to_ours(states["SpecHead"], path), path)
    return model.eval()


def front_end(path: str | Path) -> str:
    """The front end a released file was trained on: a kind of features.extract, or "stored"."""
    config, _ = read_released(path)
    audio = config.get("audio")
    if audio is None:
        return "stored"
    for kind, section in AUDIO.items():
        if all(audio.get(field) == value for field, value in section.items() if field != "target"):
            return kind
    raise EncoreError(f"{path}: its front end is none of {', '.join(AUDIO)}: {audio}")


def encoder_sizes(encoder: Encoder) -> dict[str, Any]:
    """The arguments that build an encoder like this one."""
    layer: Any = encoder.blocks.layers[0]
    return {
        "input_dim": encoder.input_dim,
        "dim": encoder.dim,
        "depth": len(encoder.blocks),
        "num_heads": layer.attn.num_heads,
        "mlp_dim": layer.mlp.fc1.out_features,
        "dropout": encoder.dropout,
    }


def save(model: TERA, path: str | Path) -> None:
    """Writes the model in the released layout, which s3prl's `tera_local` also reads.

    The front end is told by the input dimension (80 mel, 240 fbank, 39 mfcc); any other is called stored features.
    """
    sizes = encoder_sizes(model.encoder)
    transformer: dict[str, Any] = {theirs: sizes[ours] for ours, theirs in SIZES.items()} | DESIGN
    transformer |= {"input_dim": sizes["input_dim"], "attention_probs_dropout_prob": sizes["dropout"]}
    transformer |= {"initializer_range": INIT_STD, "layer_norm_eps": EPS}
    config: dict[str, Any] = {"transformer": transformer, "task": {"sequence_length": LONGEST}}
    kind = next((kind for kind, dim in DIMENSIONS.items() if dim == sizes["input_dim"]), None)
    if kind is not None:
        config["audio"] = AUDIO[kind]
    content = {
        "Transformer": cloned(LAYOUT.to_theirs(model.encoder.state_dict())),
        "SpecHead": cloned(HEAD.to_theirs(model.head.state_dict())),
        "Upstream_Config": config,
        "Config": {},
    }
    atomic_save(content, Path(path))


def cloned(state: State) -> State:
    """Tensors of their own, so that a file holds no more than each."""
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def export(checkpoint: str | Path, path: str | Path) -> None:
    """A training checkpoint of PretrainModule -> a file in the released layout."""
    content = load_checkpoint(checkpoint)
    model = TERA(Encoder(**(content.argument("encoder") or {})))
    check_and_load(model, content.part("model."), checkpoint)
    save(model, path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m papers.tera.interop CHECKPOINT.ckpt OUT.ckpt")
    one_line(export, *sys.argv[1:])
