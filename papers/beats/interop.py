"""Weights from and to the released layout: a torch file {"cfg": sizes, "model": state dict}.

Reading goes through torch.load(weights_only=True). `python -m papers.beats.interop last.ckpt beats.pt` turns a training
checkpoint of any stage into that layout, which is how one iteration's result reaches the next.
"""

import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import EncoreError
from common.interop import check_and_load, fuse_qkv, read_checkpoint, split_qkv
from common.training.trainer import atomic_save
from papers.beats.model import AudioClassifier, Encoder
from papers.beats.tokenizers import DistilledTokenizer

State = dict[str, Tensor]

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
FRONT = {  # ours: released
    "patch_embed.proj.weight": "patch_embedding.weight",
    "patch_norm.weight": "layer_norm.weight",
    "patch_norm.bias": "layer_norm.bias",
    "proj.weight": "post_extract_proj.weight",
    "proj.bias": "post_extract_proj.bias",
    "stack.position.conv.bias": "encoder.pos_conv.0.bias",
    "stack.position.conv.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    "stack.position.conv.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
    "stack.norm.weight": "encoder.layer_norm.weight",
    "stack.norm.bias": "encoder.layer_norm.bias",
    "stack.bias.table.weight": "encoder.layers.0.self_attn.relative_attention_bias.weight",
}
LAYER = {
    "attn.out": "self_attn.out_proj",
    "attn.gate_proj": "self_attn.grep_linear",
    "norm1": "self_attn_layer_norm",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "norm2": "final_layer_norm",
}
QUANTIZER = {
    "codebook": "quantize.embedding.weight",
    "embed_avg": "quantize.embedding.embed_avg",
    "init_counts": "quantize.embedding.cluster_size",
    "initialised": "quantize.embedding.initted",
    "usage": "quantize.cluster_size",
}


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


def _pairs(depth: int) -> dict[str, str]:
    """ours: released, for every tensor of the encoder but the query, key and value projections."""
    pairs = dict(FRONT)
    for i in range(depth):
        ours, theirs = f"stack.layers.{i}", f"encoder.layers.{i}"
        pairs[f"{ours}.attn.gate_scale"] = f"{theirs}.self_attn.grep_a"
        for a, b in LAYER.items():
            pairs |= {f"{ours}.{a}.{kind}": f"{theirs}.{b}.{kind}" for kind in ("weight", "bias")}
    return pairs


def _qkv(i: int, kind: str) -> tuple[tuple[str, str, str], str]:
    prefix = f"encoder.layers.{i}.self_attn."
    released = (f"{prefix}q_proj.{kind}", f"{prefix}k_proj.{kind}", f"{prefix}v_proj.{kind}")
    return released, f"stack.layers.{i}.attn.qkv.{kind}"


def encoder_to_released(state: State, depth: int) -> State:
    """Our encoder's state dict under the released names. Every layer lists the shared bias table, as in the release."""
    state = dict(state)
    for i in range(depth):
        for kind in ("weight", "bias"):
            released, ours = _qkv(i, kind)
            split_qkv(state, ours, *released)
    released_names = _pairs(depth)
    state = {released_names.get(name, name): value for name, value in state.items()}
    for i in range(depth):
        gate = f"encoder.layers.{i}.self_attn.grep_a"
        state[gate] = state[gate].reshape(1, -1, 1, 1)
        bias = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
        state[bias.format(i)] = state[bias.format(0)]
    return state


def encoder_from_released(state: State, depth: int) -> State:
    """Inverse of encoder_to_released; names it does not know stay as they are."""
    state = dict(state)
    for i in range(depth):
        if i:
            state.pop(f"encoder.layers.{i}.self_attn.relative_attention_bias.weight", None)
        for kind in ("weight", "bias"):
            released, ours = _qkv(i, kind)
            if all(name in state for name in released):
                fuse_qkv(state, *released, ours)
        gate = f"encoder.layers.{i}.self_attn.grep_a"
        if gate in state:
            state[gate] = state[gate].flatten()
    ours_names = {theirs: ours for ours, theirs in _pairs(depth).items()}
    return {ours_names.get(name, name): value for name, value in state.items()}


def read_released(path: str | Path) -> tuple[dict[str, Any], State]:
    """(cfg, state) of a released file. EncoreError when it is another kind of file or another design."""
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not {"cfg", "model"} <= content.keys():
        raise EncoreError(
            f"{path}: not in the released layout (a file with 'cfg' and 'model'); convert a training checkpoint with "
            "python -m papers.beats.interop"
        )
    cfg = content["cfg"]
    for field in SIZES.values():
        if field not in cfg:
            raise EncoreError(f"{path}: cfg has no field {field!r}; it is not a BEATs checkpoint")
    for field, wanted in DESIGN.items():
        if cfg.get(field, wanted) != wanted:
            raise EncoreError(f"{path}: cfg says {field}={cfg[field]!r}; only {wanted!r} is built here")
    return cfg, content["model"]


def load_encoder(path: str | Path) -> Encoder | AudioClassifier:
    """Encoder of a released file, in eval mode; with its classifier where it was fine-tuned."""
    cfg, state = read_released(path)
    encoder = Encoder(**{ours: cfg[theirs] for ours, theirs in SIZES.items()})
    if "quantize.embedding.weight" in state:
        raise EncoreError(f"{path}: holds a tokenizer, not an encoder; use load_tokenizer")
    if not cfg.get("finetuned_model"):
        check_and_load(encoder, encoder_from_released(state, cfg["encoder_layers"]), path)
        return encoder.eval()
    classifier = AudioClassifier(encoder, cfg["predictor_class"], dropout=cfg.get("predictor_dropout", 0.1))
    state = encoder_from_released(state, cfg["encoder_layers"])
    head = {name.replace("predictor", "head"): state.pop(name) for name in ("predictor.weight", "predictor.bias")}
    check_and_load(classifier, {f"encoder.{name}": value for name, value in state.items()} | head, path)
    return classifier.eval()


def load_tokenizer(path: str | Path) -> DistilledTokenizer:
    """Self-distilled tokenizer of a released file, in eval mode."""
    cfg, state = read_released(path)
    if "quantize.embedding.weight" not in state:
        raise EncoreError(f"{path}: holds an encoder, not a tokenizer; use load_encoder")
    encoder = Encoder(**{ours: cfg[theirs] for ours, theirs in SIZES.items()})
    tokenizer = DistilledTokenizer(encoder, num_codes=cfg["quant_n"], code_dim=cfg["quant_dim"])
    rest = {theirs: f"quantizer.{ours}" for ours, theirs in QUANTIZER.items()}
    rest |= {f"quantize_layer.{i}.{kind}": f"head.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    ours = encoder_from_released(state, cfg["encoder_layers"])
    ours = {rest.get(name, f"encoder.{name}"): value for name, value in ours.items()}
    check_and_load(tokenizer, ours, path)
    return tokenizer.eval()


def save(model: Encoder | AudioClassifier | DistilledTokenizer, path: str | Path) -> None:
    """Writes the model in the released layout; load_encoder or load_tokenizer reads it back."""
    encoder = model if isinstance(model, Encoder) else model.encoder
    sizes = encoder_sizes(encoder)
    cfg: dict[str, Any] = {SIZES[name]: value for name, value in sizes.items()} | DESIGN | {"finetuned_model": False}
    state = encoder_to_released(encoder.state_dict(), sizes["depth"])
    if isinstance(model, AudioClassifier):
        cfg |= {
            "finetuned_model": True,
            "predictor_class": model.head.out_features,
            "predictor_dropout": model.dropout.p,
        }
        state |= {f"predictor.{name}": value for name, value in model.head.state_dict().items()}
    elif isinstance(model, DistilledTokenizer):
        cfg |= {"quant_n": model.num_codes, "quant_dim": model.quantizer.codebook.shape[1]}
        quantizer = model.quantizer.state_dict()
        state |= {theirs: quantizer[ours] for ours, theirs in QUANTIZER.items()}
        state |= {f"quantize_layer.{name}": value for name, value in model.head.state_dict().items()}
    atomic_save({"cfg": cfg, "model": {k: v.detach().cpu().contiguous() for k, v in state.items()}}, Path(path))


def export(checkpoint: str | Path, path: str | Path) -> None:
    """A training checkpoint of PretrainModule, TokenizerModule or FineTuneModule -> a file in the released layout."""
    content = read_checkpoint(checkpoint)
    if not isinstance(content, dict) or not {"hyper_parameters", "state_dict"} <= content.keys():
        raise EncoreError(f"{checkpoint}: not a training checkpoint of this paper; give the last.ckpt of a run")
    sizes, state = content["hyper_parameters"], content["state_dict"]
    encoder = Encoder(**(sizes.get("encoder") or {}))
    model: Encoder | AudioClassifier | DistilledTokenizer
    if "num_classes" in sizes:
        prefix, model = "model.", AudioClassifier(encoder, sizes["num_classes"])
    elif "commitment" in sizes:
        tokenizer = DistilledTokenizer(encoder, num_codes=sizes["num_codes"], code_dim=sizes["code_dim"])
        prefix, model = "tokenizer.", tokenizer
    else:
        prefix, model = "encoder.", encoder
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    check_and_load(model, own, checkpoint)
    save(model, path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m papers.beats.interop CHECKPOINT.ckpt OUT.pt")
    try:
        export(*sys.argv[1:])
    except EncoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
