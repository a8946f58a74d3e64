"""BERT weights from and to the public hub's format: BertModel and BertForMaskedLM."""

from pathlib import Path
from typing import Any

from common.errors import EncoreError
from common.interop.weights import State, check_and_load, fuse_qkv, load_config, load_weights, save_weights, split_qkv
from common.layers.bert import Bert, BertMLM

EMBEDDINGS = {
    "embeddings.word_embeddings.": "embeddings.words.",
    "embeddings.position_embeddings.": "embeddings.positions.",
    "embeddings.token_type_embeddings.": "embeddings.segments.",
    "embeddings.LayerNorm.": "embeddings.norm.",
}
LAYER = {
    "attention.output.dense.": "attn.out.",
    "attention.output.LayerNorm.": "norm1.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "output.LayerNorm.": "norm2.",
}
HEAD = {
    "cls.predictions.transform.dense.": "head.dense.",
    "cls.predictions.transform.LayerNorm.": "head.norm.",
    "cls.predictions.bias": "head.bias",
}
TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")  # word embeddings and head bias again
NEXT_SENTENCE = ("pooler.dense.weight", "pooler.dense.bias", "cls.seq_relationship.weight", "cls.seq_relationship.bias")
UNUSED = (*TIED, *NEXT_SENTENCE, ".position_ids")


def bert_arguments(config: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """Arguments of `Bert` from a config.json; EncoreError naming the field when it is not a BERT we build."""
    for field, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(field, wanted) != wanted:
            raise EncoreError(f"{source}: config.json: {field} is {config[field]!r}, only {wanted!r} is supported")
    try:
        return {
            "vocab_size": config["vocab_size"],
            "dim": config["hidden_size"],
            "depth": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "mlp_dim": config["intermediate_size"],
            "max_positions": config["max_position_embeddings"],
            "num_segments": config["type_vocab_size"],
            "dropout": config["hidden_dropout_prob"],
            "attention_dropout": config["attention_probs_dropout_prob"],
        }
    except KeyError as error:
        raise EncoreError(f"{source}: config.json has no {error.args[0]!r}; this is not a BERT directory") from None


def bert_from_hub(path: str | Path) -> BertMLM:
    """The model of a hub directory, in eval mode; a masked-word head that the file lacks is freshly initialised."""
    model = BertMLM(Bert(**bert_arguments(load_config(path), path)))
    load_bert(model, path)
    return model.eval()


def load_bert(model: BertMLM, path: str | Path) -> None:
    """Weights of a hub directory or file into a model built here; sizes that differ are an EncoreError."""
    state = from_hub(load_weights(path))
    if not any(name.startswith("head.") for name in state):
        state |= {name: value for name, value in model.state_dict().items() if name.startswith("head.")}
    check_and_load(model, state, path)


def bert_to_hub(model: BertMLM, directory: str | Path) -> None:
    """Writes a directory that transformers' BertForMaskedLM (and BertModel) opens."""
    sizes = model.bert.config
    config = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": sizes["vocab_size"],
        "hidden_size": sizes["dim"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "intermediate_size": sizes["mlp_dim"],
        "max_position_embeddings": sizes["max_positions"],
        "type_vocab_size": sizes["num_segments"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    save_weights(directory, to_hub(model), config)


def from_hub(state: State) -> State:
    """Hub names of BertModel or BertForMaskedLM to those of BertMLM; pooler and next-sentence head are left out."""
    state = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in state.items()
        if not name.endswith(UNUSED)
    }
    state = {name if name.startswith(("bert.", "cls.")) else f"bert.{name}": value for name, value in state.items()}
    for name in [name for name in state if ".attention.self.query." in name]:
        key, value = (name.replace(".query.", f".{part}.") for part in ("key", "value"))
        if key in state and value in state:
            fuse_qkv(state, name, key, value, name.replace(".attention.self.query.", ".attn.qkv."))
    return {
        _renamed(name, EMBEDDINGS | LAYER | HEAD).replace("encoder.layer.", "blocks.layers."): v
        for name, v in state.items()
    }


def to_hub(model: BertMLM) -> State:
    """Names of BertMLM to those of BertForMaskedLM."""
    state = {name.replace("blocks.layers.", "encoder.layer."): value for name, value in model.state_dict().items()}
    for name in [name for name in state if ".attn.qkv." in name]:
        split_qkv(
            state, name, *(name.replace(".attn.qkv.", f".attention.self.{part}.") for part in ("query", "key", "value"))
        )
    back = {ours: theirs for theirs, ours in (EMBEDDINGS | LAYER | HEAD).items()}
    return {_renamed(name, back): value for name, value in state.items()}


def _renamed(name: str, names: dict[str, str]) -> str:
    """The first part of `names` that occurs is replaced; longer parts are tried first."""
    for old in sorted(names, key=len, reverse=True):
        if old in name:
            return name.replace(old, names[old])
    return name
