"""Weights under the names of the released code (mosaicml/mosaic-bert-base), both ways, and the start of fine-tuning.

The released model is code that comes with its weights, not a class of transformers; `load` and `save` map a hub
directory with config.json and model.safetensors or pytorch_model.bin. Names may begin with `model.`, as they do in
weights saved by the authors' trainer.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import EncoreError
from common.interop import check_and_load, load_config, load_weights, read_checkpoint, save_weights
from papers.mosaicbert.model import Classifier, MaskedLM, MosaicBert

State = dict[str, Tensor]

NAMES = {  # parts of names: released -> ours
    "embeddings.word_embeddings.": "embeddings.words.",
    "embeddings.token_type_embeddings.": "embeddings.segments.",
    "embeddings.LayerNorm.": "embeddings.norm.",
    "encoder.layer.": "blocks.",
    ".attention.self.Wqkv.": ".attn.qkv.",
    ".attention.output.dense.": ".attn.out.",
    ".attention.output.LayerNorm.": ".norm1.",
    ".mlp.gated_layers.": ".mlp.fc1.",
    ".mlp.wo.": ".mlp.fc2.",
    ".mlp.layernorm.": ".norm2.",
}
HEADS = {
    "cls.predictions.transform.dense.": "head.dense.",
    "cls.predictions.transform.LayerNorm.": "head.norm.",
    "cls.predictions.decoder.bias": "head.bias",
    "bert.pooler.dense.": "pooler.",
    "classifier.": "out.",
}
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


def load(path: str | Path) -> MaskedLM | Classifier:
    """The model of a hub directory, sized by its config.json, in eval mode: whichever head the weights have."""
    config, state = load_config(path), from_released(load_weights(path), path)
    encoder = MosaicBert(**encoder_arguments(config, path))
    model = Classifier(encoder, len(state["out.bias"])) if "out.bias" in state else MaskedLM(encoder)
    check_and_load(model, state, path)
    return model.eval()


def save(model: MaskedLM | Classifier, directory: str | Path) -> None:
    """Writes model.safetensors and config.json that the released code reads."""
    if not isinstance(model.encoder, MosaicBert):
        raise EncoreError("the BERT baseline has a format of its own; use common.interop.bert")
    save_weights(directory, to_released(model), released_config(model))


def from_released(state: State, source: str | Path) -> State:
    """Released names to ours. The decoder's matrix must be the word embeddings again."""
    state = {name.removeprefix("model."): value for name, value in state.items()}
    if WORDS not in state:
        raise EncoreError(f"{source}: no {WORDS}; these are not weights of MosaicBERT")
    decoder = state.pop(DECODER, None)
    if decoder is not None and not torch.equal(decoder, state[WORDS]):
        raise EncoreError(f"{source}: {DECODER} differs from the word embeddings, but MosaicBERT shares them")
    return {_renamed(name): value for name, value in state.items()}


def _renamed(name: str) -> str:
    for theirs, ours in HEADS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return f"encoder.{name.removeprefix('bert.')}"


def to_released(model: MaskedLM | Classifier) -> State:
    """Our names to the released ones; the tied decoder is written too, as in the published file."""
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("encoder."):
            name = f"bert.{name.removeprefix('encoder.')}"
            for theirs, ours in NAMES.items():
                name = name.replace(ours, theirs)
        else:
            theirs, ours = next(pair for pair in HEADS.items() if name.startswith(pair[1]))
            name = theirs + name.removeprefix(ours)
        state[name] = value
    return state | ({DECODER: state[WORDS]} if isinstance(model, MaskedLM) else {})


def encoder_arguments(config: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """Arguments of MosaicBert from a config.json. EncoreError when it asks for something MosaicBERT does not have."""
    wanted = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "attention_probs_dropout_prob": 0.0}
    for field, value in wanted.items():
        if config.get(field, value) != value:
            raise EncoreError(f"{source}: config.json: {field} is {config[field]!r}, MosaicBERT has {value!r}")
    try:
        return {
            "vocab_size": config["vocab_size"],
            "dim": config["hidden_size"],
            "depth": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "mlp_dim": config["intermediate_size"],
            "dropout": config.get("hidden_dropout_prob", 0.1),
        }
    except KeyError as error:
        raise EncoreError(f"{source}: config.json has no {error.args[0]!r}; this is not a BERT directory") from None


def released_config(model: MaskedLM | Classifier) -> dict[str, Any]:
    """config.json of a model."""
    sizes: dict[str, Any] = model.encoder.config
    config = {
        "architectures": ["BertForMaskedLM" if isinstance(model, MaskedLM) else "BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": sizes["vocab_size"],
        "hidden_size": sizes["dim"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "intermediate_size": sizes["mlp_dim"],
        "hidden_dropout_prob": sizes["dropout"],
        "attention_probs_dropout_prob": 0.0,
        "alibi_starting_size": 512,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,  # of no effect: there are no positions
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }
    if isinstance(model, Classifier):
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(model.out.out_features)}
    return config


def start_from(model: Classifier, path: Path) -> list[str]:
    """Encoder weights for fine-tuning, and the pooler's if `path` has one; the output layer is always new.

    path: a training checkpoint of Pretraining or FineTuning, a hub directory, or released weights. Returns the names
    that stay as initialised; anything else that does not fit is an EncoreError.
    """
    if path.suffix == ".ckpt":
        checkpoint = read_checkpoint(path)
        if "state_dict" not in checkpoint:
            raise EncoreError(
                f"{path}: has no state_dict, so it is not a training checkpoint; give released weights by .bin"
            )
        state = {n.removeprefix("model."): v for n, v in checkpoint["state_dict"].items() if n.startswith("model.")}
    else:
        state = from_released(load_weights(path), path)
    state = {name: value for name, value in state.items() if name.startswith(("encoder.", "pooler."))}
    new = [
        name
        for name in model.state_dict()
        if name.startswith("out.") or (name.startswith("pooler.") and name not in state)
    ]
    check_and_load(model, state | {name: model.state_dict()[name] for name in new}, path)
    return new
