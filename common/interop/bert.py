"""BERT weights from and to the public hub's format: BertModel and BertForMaskedLM."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import EncoreError
from common.interop.layout import Drop, Fused, Layout
from common.interop.weights import load_config
from common.layers.bert import Bert, BertMLM

LAYER = "bert.encoder.layer.*."
BERT = Layout(
    [
        ("bert.embeddings.word_embeddings.", "bert.embeddings.words."),
        ("bert.embeddings.position_embeddings.", "bert.embeddings.positions."),
        ("bert.embeddings.token_type_embeddings.", "bert.embeddings.segments."),
        ("bert.embeddings.LayerNorm.", "bert.embeddings.norm."),
        *(
            Fused(
                tuple(f"{LAYER}attention.self.{part}.{kind}" for part in ("query", "key", "value")),
                f"bert.blocks.layers.*.attn.qkv.{kind}",
            )
            for kind in ("weight", "bias")
        ),
        (f"{LAYER}attention.output.dense.", "bert.blocks.layers.*.attn.out."),
        (f"{LAYER}attention.output.LayerNorm.", "bert.blocks.layers.*.norm1."),
        (f"{LAYER}intermediate.dense.", "bert.blocks.layers.*.mlp.fc1."),
        (f"{LAYER}output.dense.", "bert.blocks.layers.*.mlp.fc2."),
        (f"{LAYER}output.LayerNorm.", "bert.blocks.layers.*.norm2."),
        ("cls.predictions.transform.dense.", "head.dense."),
        ("cls.predictions.transform.LayerNorm.", "head.norm."),
        ("cls.predictions.bias", "head.bias"),
        *(Drop(f"cls.predictions.decoder.{kind}") for kind in ("weight", "bias")),  # words and head bias again
        *(Drop(name) for name in ("bert.embeddings.position_ids", "bert.pooler.", "cls.seq_relationship.")),
    ],
    spelled={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    base="bert.",
)
FIELDS = {  # arguments of Bert: fields of config.json
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
FIXED = {"hidden_act": "gelu", "position_embedding_type": "absolute"}


def bert_arguments(
    config: dict[str, Any], source: str | Path, fields: Sequence[str] = tuple(FIELDS), fixed: Mapping[str, Any] = FIXED
) -> dict[str, Any]:
    """Arguments of `Bert` (or those of `fields`) from a config.json. EncoreError naming the field when it lacks one, or
    says something else than `fixed`, which is all that we build."""
    for field, wanted in fixed.items():
        if config.get(field, wanted) != wanted:
            raise EncoreError(f"{source}: config.json: {field} is {config[field]!r}, only {wanted!r} is supported")
    try:
        return {name: config[FIELDS[name]] for name in fields}
    except KeyError as error:
        raise EncoreError(f"{source}: config.json has no {error.args[0]!r}; this is not a BERT directory") from None


def bert_config(sizes: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """config.json of a masked language model with these arguments of Bert; `fields` are added as they are."""
    return {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        **{FIELDS[name]: value for name, value in sizes.items()},
        **fields,
    }


def bert_from_hub(path: str | Path) -> BertMLM:
    """The model of a hub directory, in eval mode; a masked-word head that the file lacks is freshly initialised."""
    model = BertMLM(Bert(**bert_arguments(load_config(path), path)))
    load_bert(model, path)
    return model.eval()


def load_bert(model: BertMLM, path: str | Path) -> None:
    """Weights of a hub directory or file into a model built here; sizes that differ are an EncoreError."""
    BERT.load(model, path, fresh=("head.",))


def bert_to_hub(model: BertMLM, directory: str | Path) -> None:
    """Writes a directory that transformers' BertForMaskedLM (and BertModel) opens."""
    BERT.save(model, directory, bert_config(model.bert.config))
