"""Weights from and to the released layout: a torch file {"cfg": sizes, "model": state dict}.

Reading goes through torch.load(weights_only=True). `python -m papers.beats.interop last.ckpt beats.pt` turns a training
checkpoint of any stage into that layout, which is how one iteration's result reaches the next.
"""

import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import EncoreError, one_line
from common.interop import check_and_load, read_checkpoint
from common.interop.checkpoint import Checkpoint, load_checkpoint
from common.interop.layout import Changed, Drop, Fused, Layout
from common.training.trainer import atomic_save
from papers.beats.model import AudioClassifier, Encoder
from papers.beats.tokenizers import DistilledTokenizer

State = dict[str, Tensor]
Model = Encoder | AudioClassifier | DistilledTokenizer

SIZES = {  # Encoder argument: released field
    "patch_size": "input_patch_size",
    "patch_dim": "embed_dim",
    "dim": "encoder_embed_dim",
    "depth": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    "mlp_dim": "encoder_ffn_embed_dim",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "conv_kernel": "conv_pos",
    "conv_groups": "conv_pos_groups",
}
DESIGN = {  # released fields that must have these values: what every published model uses, and all that is built here
    "conv_bias": False,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
}
BIAS = "encoder.layers.{}.self_attn.relative_attention_bias.weight"  # every layer lists the one shared table
LAYERS = "encoder.layers.*."
LAYOUT = Layout(
    [
        ("patch_embedding.", "patch_embed.proj."),
        ("layer_norm.", "patch_norm."),
        ("post_extract_proj.", "proj."),
        ("encoder.pos_conv.0.bias", "stack.position.conv.bias"),
        ("encoder.pos_conv.0.weight_g", "stack.position.conv.parametrizations.weight.original0"),
        ("encoder.pos_conv.0.weight_v", "stack.position.conv.parametrizations.weight.original1"),
        ("encoder.layer_norm.", "stack.norm."),
        (BIAS.format(0), "stack.bias.table.weight"),
        Drop(BIAS.format("*")),
        Fused(
            tuple(f"{LAYERS}self_attn.{part}_proj." for part in ("q", "k", "v")),
            "stack.layers.*.attn.qkv.",
        ),
        Changed(
            f"{LAYERS}self_attn.grep_a",
            "stack.layers.*.attn.gate_scale",
            lambda gate: gate.flatten(),
            lambda gate: gate.reshape(1, -1, 1, 1),
        ),
        (f"{LAYERS}self_attn.out_proj.", "stack.layers.*.attn.out."),
        (f"{LAYERS}self_attn.grep_linear.", "stack.layers.*.attn.gate_proj."),
        (f"{LAYERS}self_attn_layer_norm.", "stack.layers.*.norm1."),
        (f"{LAYERS}fc1.", "stack.layers.*.mlp.fc1."),
        (f"{LAYERS}fc2.", "stack.layers.*.mlp.fc2."),
        (f"{LAYERS}final_layer_norm.", "stack.layers.*.norm2."),
    ]
)
CLASSIFIER = LAYOUT.under(ours="encoder.") + Layout([("predictor.", "head.")])
TOKENIZER = LAYOUT.under(ours="encoder.") + Layout(
    [
        ("quantize_layer.", "head."),
        ("quantize.embedding.weight", "quantizer.codebook"),
        ("quantize.embedding.embed_avg", "quantizer.embed_avg"),
        ("quantize.embedding.cluster_size", "quantizer.init_counts"),
        ("quantize.embedding.initted", "quantizer.initialised"),
        ("quantize.cluster_size", "quantizer.usage"),
    ]
)
LAYOUTS = {Encoder: LAYOUT, AudioClassifier: CLASSIFIER, DistilledTokenizer: TOKENIZER}


def encoder_sizes(encoder: Encoder) -> dict[str, Any]:
    """The arguments that build an encoder like this one."""
    layer: Any = encoder.stack.layers[0]
    conv = encoder.stack.position.conv
    return {
        "patch_size": encoder.patch_size,
        "patch_dim": encoder.patch_norm.normalized_shape[0],
        "dim": encoder.dim,
        "depth": len(encoder.stack.layers),
        "num_heads": layer.attn.num_heads,
        "mlp_dim": layer.mlp.fc1.out_features,
        "dropout": layer.dropout.p,
        "attention_dropout": layer.attn.dropout,
        "conv_kernel": conv.kernel_size[0],
        "conv_groups": conv.groups,
    }


def released(model: Model) -> State:
    """The model's tensors under the released names."""
    state = LAYOUTS[type(model)].to_theirs(model.state_dict())
    depth = sum(name.endswith("self_attn.grep_a") for name in state)
    return state | {BIAS.format(i): state[BIAS.format(0)] for i in range(depth)}


def read_sizes(cfg: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """The arguments of an Encoder from released fields. EncoreError for another design."""
    for field in SIZES.values():
        if field not in cfg:
            raise EncoreError(f"{source}: cfg has no field {field!r}; it is not a BEATs checkpoint")
    for field, wanted in DESIGN.items():
        if cfg.get(field, wanted) != wanted:
            raise EncoreError(f"{source}: cfg says {field}={cfg[field]!r}; only {wanted!r} is built here")
    return {ours: cfg[theirs] for ours, theirs in SIZES.items()}


def _read(path: str | Path) -> tuple[Encoder, dict[str, Any], State, bool]:
    """An encoder of the sizes that a released file states, its cfg and tensors, and whether they are a tokenizer's."""
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not {"cfg", "model"} <= content.keys():
        raise EncoreError(
            f"{path}: not in the released layout (a file with 'cfg' and 'model'); convert a training checkpoint with "
            "python -m papers.beats.interop"
        )
    state = content["model"]
    return Encoder(**read_sizes(content["cfg"], path)), content["cfg"], state, "quantize.embedding.weight" in state


def _load(model: Model, state: State, path: str | Path) -> Any:
    check_and_load(model, LAYOUTS[type(model)].to_ours(state, path), path)
    return model.eval()


def load_encoder(path: str | Path) -> Encoder | AudioClassifier:
    """Encoder of a released file, in eval mode; with its classifier where it was fine-tuned."""
    encoder, cfg, state, tokenizer = _read(path)
    if tokenizer:
        raise EncoreError(f"{path}: holds a tokenizer, not an encoder; use load_tokenizer")
    if not cfg.get("finetuned_model"):
        return _load(encoder, state, path)
    dropout = cfg.get("predictor_dropout", 0.1)
    return _load(AudioClassifier(encoder, cfg["predictor_class"], dropout=dropout), state, path)


def load_tokenizer(path: str | Path) -> DistilledTokenizer:
    """Self-distilled tokenizer of a released file, in eval mode."""
    encoder, cfg, state, tokenizer = _read(path)
    if not tokenizer:
        raise EncoreError(f"{path}: holds an encoder, not a tokenizer; use load_encoder")
    return _load(DistilledTokenizer(encoder, num_codes=cfg["quant_n"], code_dim=cfg["quant_dim"]), state, path)


def save(model: Model, path: str | Path) -> None:
    """Writes the model in the released layout; load_encoder or load_tokenizer reads it back."""
    sizes = encoder_sizes(model if isinstance(model, Encoder) else model.encoder)
    cfg: dict[str, Any] = {SIZES[name]: value for name, value in sizes.items()} | DESIGN | {"finetuned_model": False}
    if isinstance(model, AudioClassifier):
        cfg |= {"finetuned_model": True, "predictor_class": model.head.out_features}
        cfg |= {"predictor_dropout": model.dropout.p}
    elif isinstance(model, DistilledTokenizer):
        cfg |= {"quant_n": model.num_codes, "quant_dim": model.quantizer.codebook.shape[1]}
    state = {name: value.detach().cpu().contiguous() for name, value in released(model).items()}
    atomic_save({"cfg": cfg, "model": state}, Path(path))


def trained(checkpoint: Checkpoint) -> Model:
    """The model of a training checkpoint of any stage: encoder, tokenizer or fine-tuned classifier, in eval mode."""
    encoder = Encoder(**(checkpoint.argument("encoder") or {}))
    model: Model
    if "num_classes" in checkpoint.arguments:
        prefix, model = "model.", AudioClassifier(encoder, checkpoint.argument("num_classes"))
    elif any(name.startswith("teacher.") for name in checkpoint.state):
        codes = {name: checkpoint.argument(name) for name in ("num_codes", "code_dim")}
        prefix, model = "tokenizer.", DistilledTokenizer(encoder, **codes)
    else:
        prefix, model = "encoder.", encoder
    check_and_load(model, checkpoint.part(prefix), checkpoint.path)
    return model.eval()


def export(checkpoint: str | Path, path: str | Path) -> None:
    """A training checkpoint of any stage -> a file in the released layout."""
    save(trained(load_checkpoint(checkpoint)), path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m papers.beats.interop CHECKPOINT.ckpt OUT.pt")
    one_line(export, *sys.argv[1:])
