"""Published BART weights: from and to the hub's format (safetensors + config.json), names mapped both ways.

`load` gives a BART, a BARTClassifier or a BARTTokenClassifier, whichever the file holds; `load_into` fills a model you
built; `save` writes a directory that transformers' BartForConditionalGeneration, BartForSequenceClassification or
BartForQuestionAnswering open.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import EncoreError
from common.interop import check_and_load, load_config, load_weights, save_weights
from common.interop.layout import Drop, Entry, Fused, Layout
from papers.bart.model import BART, BOS, EOS, PAD, BARTClassifier, BARTTokenClassifier

State = dict[str, Tensor]
Row = Entry | tuple[str, str]

_SELF: list[Row] = [
    Fused(("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."), "attn.qkv."),
    ("self_attn.out_proj.", "attn.out."),
    ("self_attn_layer_norm.", "norm1."),
    ("fc1.", "mlp.fc1."),
    ("fc2.", "mlp.fc2."),
    ("final_layer_norm.", "norm2."),
]
_CROSS: list[Row] = [
    ("encoder_attn.q_proj.", "cross.q."),
    Fused(("encoder_attn.k_proj.", "encoder_attn.v_proj."), "cross.kv."),
    ("encoder_attn.out_proj.", "cross.out."),
    ("encoder_attn_layer_norm.", "norm_cross."),
]
_STACK: list[Row] = [("embed_positions.", "positions."), ("layernorm_embedding.", "norm."), Drop("version")]


def _side(name: str, layer: list[Row]) -> Layout:
    return Layout(_STACK).under(f"{name}.", f"{name}.") + Layout(layer).under(
        f"{name}.layers.*.", f"{name}.blocks.layers.*."
    )


BODY = Layout([("shared.weight", "tokens.weight")]) + _side("encoder", _SELF) + _side("decoder", _SELF + _CROSS)
HEADS = Layout(
    [
        ("classification_head.dense.", "head.dense."),
        ("classification_head.out_proj.", "head.out."),
        ("qa_outputs.", "out."),
    ]
)
LAYOUT = BODY.under("model.")  # of a BART
HEADED = HEADS + BODY.under("model.", "bart.")  # of one with a head
TIED = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def load(path: str | Path) -> BART | BARTClassifier | BARTTokenClassifier:
    """The model of a hub directory, sized by its config.json, in eval mode.

    EncoreError when file and config disagree.
    """
    config, state = load_config(path), load_weights(path)
    bart = BART(**model_arguments(config, path))
    model: BART | BARTClassifier | BARTTokenClassifier = bart
    if "classification_head.out_proj.weight" in state:
        classes = state["classification_head.out_proj.weight"].shape[0]
        model = BARTClassifier(bart, classes, dropout=config.get("classifier_dropout") or 0.0)
    elif "qa_outputs.weight" in state:
        model = BARTTokenClassifier(bart, state["qa_outputs.weight"].shape[0])
    check_and_load(model, from_hub(state, path), path)
    return model.eval()


def load_into(model: nn.Module, path: str | Path) -> None:
    """Weights of a hub directory into a model built here: a BART, or one with a head.

    A head that the file does not have keeps its initialisation (fine-tuning starts that way); everything else must fit,
    or the EncoreError says which sizes differ.
    """
    state = from_hub(load_weights(path), path)
    if not isinstance(model, BART) and "tokens.weight" in state:
        state = {f"bart.{k}": v for k, v in state.items()}
        state |= {k: v for k, v in model.state_dict().items() if not k.startswith("bart.")}
    if isinstance(model, BART) and "bart.tokens.weight" in state:
        state = {k.removeprefix("bart."): v for k, v in state.items() if k.startswith("bart.")}
    check_and_load(model, state, path)


def save(model: BART | BARTClassifier | BARTTokenClassifier, directory: str | Path) -> None:
    """Writes model.safetensors and config.json in the hub's format."""
    bart = model if isinstance(model, BART) else model.bart
    config = hub_config(bart)
    if isinstance(model, BART):
        config["architectures"] = ["BartForConditionalGeneration"]
    else:
        classifier = isinstance(model, BARTClassifier)
        classes = (model.head.out if isinstance(model, BARTClassifier) else model.out).out_features
        config["architectures"] = ["BartForSequenceClassification" if classifier else "BartForQuestionAnswering"]
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(classes)}
    save_weights(directory, to_hub(model), config)


def from_hub(state: State, source: str | Path = "checkpoint") -> State:
    """Hub names to ours. With a head in the file our names begin with `bart.` and the head's own."""
    state = {name.removeprefix("model."): value for name, value in state.items()}
    tied = [state.pop(name) for name in TIED if name in state]
    if not tied:
        raise EncoreError(f"{source}: no embedding matrix ({TIED[0]}); this is not a BART checkpoint")
    if any(t.shape != tied[0].shape or not torch.equal(t, tied[0]) for t in tied[1:]):
        raise EncoreError(f"{source}: encoder, decoder and output embeddings differ, but BART shares one matrix")
    bias = state.pop("final_logits_bias", None)
    if bias is not None and bool(bias.any()):
        raise EncoreError(f"{source}: final_logits_bias is not zero, but BART has no bias on its output logits")
    headed = any(name.startswith(("classification_head.", "qa_outputs.")) for name in state)
    layout = HEADS + BODY.under(ours="bart.") if headed else BODY
    return layout.to_ours({TIED[0]: tied[0], **state}, source)


def to_hub(model: BART | BARTClassifier | BARTTokenClassifier) -> State:
    """Our names to the hub's; the embedding is written once, as `model.shared.weight`."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    if not isinstance(model, BART):
        return HEADED.to_theirs(state)
    return LAYOUT.to_theirs(state) | {"final_logits_bias": torch.zeros(1, model.tokens.num_embeddings)}


def model_arguments(config: dict[str, Any], source: str | Path = "config.json") -> dict[str, Any]:
    """Arguments of BART for a hub config. EncoreError when the config asks for something BART does not have."""
    wanted = {
        "activation_function": "gelu",
        "scale_embedding": False,
        "normalize_before": False,
        "add_final_layer_norm": False,
    }
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise EncoreError(f"{source}: {key} is {config[key]!r}, BART has {value!r}; this is another architecture")
    for name in ("layers", "ffn_dim", "attention_heads"):
        if config[f"encoder_{name}"] != config[f"decoder_{name}"]:
            raise EncoreError(f"{source}: encoder_{name} and decoder_{name} differ, but BART's two sides are alike")
    return {
        "vocab_size": config["vocab_size"],
        "dim": config["d_model"],
        "depth": config["encoder_layers"],
        "num_heads": config["encoder_attention_heads"],
        "mlp_dim": config["encoder_ffn_dim"],
        "max_positions": config["max_position_embeddings"],
        "dropout": config.get("dropout", 0.1),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "activation_dropout": config.get("activation_dropout", 0.0),
    }


def hub_config(bart: BART) -> dict[str, Any]:
    """config.json for a BART."""
    c = bart.config
    sides = {
        f"{side}_{name}": c[ours]
        for side in ("encoder", "decoder")
        for name, ours in (("layers", "depth"), ("ffn_dim", "mlp_dim"), ("attention_heads", "num_heads"))
    }
    return sides | {
        "model_type": "bart",
        "is_encoder_decoder": True,
        "vocab_size": c["vocab_size"],
        "d_model": c["dim"],
        "max_position_embeddings": c["max_positions"],
        "dropout": c["dropout"],
        "attention_dropout": c["attention_dropout"],
        "activation_dropout": c["activation_dropout"],
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": EOS,
        "forced_eos_token_id": EOS,
    }
