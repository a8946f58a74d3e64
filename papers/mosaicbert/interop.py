"""Weights under the names of the released code (mosaicml/mosaic-bert-base), both ways, and the start of fine-tuning.

The released model is code that comes with its weights, not a class of transformers; `load` and `save` map a hub
directory with config.json and model.safetensors or pytorch_model.bin.
"""

from pathlib import Path
from typing import Any

import torch

from common.errors import EncoreError
from common.interop import check_and_load, load_config, load_weights, read_checkpoint
from common.interop.bert import bert_arguments, bert_config
from common.interop.layout import Also, Layout
from common.interop.weights import State
from papers.mosaicbert.model import Classifier, MaskedLM, MosaicBert

WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
LAYER = "bert.encoder.layer.*."
ENCODER = Layout(
    [
        ("bert.embeddings.word_embeddings.", "encoder.embeddings.words."),
        ("bert.embeddings.token_type_embeddings.", "encoder.embeddings.segments."),
        ("bert.embeddings.LayerNorm.", "encoder.embeddings.norm."),
        (f"{LAYER}attention.self.Wqkv.", "encoder.blocks.*.attn.qkv."),
        (f"{LAYER}attention.output.dense.", "encoder.blocks.*.attn.out."),
        (f"{LAYER}attention.output.LayerNorm.", "encoder.blocks.*.norm1."),
        (f"{LAYER}mlp.gated_layers.", "encoder.blocks.*.mlp.fc1."),
        (f"{LAYER}mlp.wo.", "encoder.blocks.*.mlp.fc2."),
        (f"{LAYER}mlp.layernorm.", "encoder.blocks.*.norm2."),
    ]
)
MASKED_LM = ENCODER + Layout(
    [
        ("cls.predictions.transform.dense.", "head.dense."),
        ("cls.predictions.transform.LayerNorm.", "head.norm."),
        ("cls.predictions.decoder.bias", "head.bias"),
        Also(DECODER, "encoder.embeddings.words.weight"),
    ]
)
CLASSIFIER = ENCODER + Layout([("bert.pooler.dense.", "pooler."), ("classifier.", "out.")])

FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "attention_probs_dropout_prob": 0.0}
SIZES = ("vocab_size", "dim", "depth", "num_heads", "mlp_dim", "dropout")


def load(path: str | Path) -> MaskedLM | Classifier:
    """The model of a hub directory, sized by its config.json, in eval mode: whichever head the weights have."""
    config, state = load_config(path), read(path)
    encoder = MosaicBert(**bert_arguments({"hidden_dropout_prob": 0.1} | config, path, SIZES, FIXED))
    model = Classifier(encoder, len(state["out.bias"])) if "out.bias" in state else MaskedLM(encoder)
    check_and_load(model, state, path)
    return model.eval()


def read(path: str | Path) -> State:
    """Weights under our names. EncoreError where the decoder's matrix is not the word embeddings again."""
    state = load_weights(path)
    words, decoder = (next((v for name, v in state.items() if name.endswith(end)), None) for end in (WORDS, DECODER))
    if words is not None and decoder is not None and not torch.equal(decoder, words):
        raise EncoreError(f"{path}: {DECODER} differs from the word embeddings, but MosaicBERT shares them")
    layout = CLASSIFIER if any(name.endswith("classifier.weight") for name in state) else MASKED_LM
    return layout.to_ours(state, path)


def save(model: MaskedLM | Classifier, directory: str | Path) -> None:
    """Writes model.safetensors and config.json that the released code reads."""
    if not isinstance(model.encoder, MosaicBert):
        raise EncoreError("the BERT baseline has a format of its own; use common.interop.bert")
    fields: dict[str, Any] = {
        "attention_probs_dropout_prob": 0.0,
        "alibi_starting_size": 512,
        "initializer_range": 0.02,
        "max_position_embeddings": 512,  # of no effect: there are no positions
        "type_vocab_size": 2,
    }
    if isinstance(model, Classifier):
        fields["architectures"] = ["BertForSequenceClassification"]
        fields["id2label"] = {str(i): f"LABEL_{i}" for i in range(model.out.out_features)}
    layout = CLASSIFIER if isinstance(model, Classifier) else MASKED_LM
    layout.save(model, directory, bert_config(model.encoder.config, **fields))


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
        state = read(path)
    state = {name: value for name, value in state.items() if name.startswith(("encoder.", "pooler."))}
    own = model.state_dict()
    new = [name for name in own if name.startswith("out.") or (name.startswith("pooler.") and name not in state)]
    check_and_load(model, state | {name: own[name] for name in new}, path)
    return new
