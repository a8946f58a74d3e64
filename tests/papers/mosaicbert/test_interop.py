"""MosaicBERT's weights under the released names, both ways, and what fine-tuning starts from."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import EncoreError
from papers.mosaicbert import interop
from papers.mosaicbert.model import Classifier, MaskedLM, MosaicBert, bert_tiny
from tests import tiny

SIZE = {"vocab_size": 50, "dim": 24, "depth": 3, "num_heads": 3, "mlp_dim": 40, "dropout": 0.0}
RIGHT = torch.arange(9) < torch.tensor([9, 4, 1, 6])[:, None]


@pytest.fixture
def tokens():
    return torch.randint(5, 50, (4, 9), generator=torch.Generator().manual_seed(2))


RELEASED = {
    "bert.embeddings.word_embeddings.weight": (50, 24),
    "bert.embeddings.token_type_embeddings.weight": (2, 24),
    "bert.embeddings.LayerNorm.weight": (24,),
    "bert.embeddings.LayerNorm.bias": (24,),
    "bert.encoder.layer.0.attention.self.Wqkv.weight": (72, 24),
    "bert.encoder.layer.0.attention.self.Wqkv.bias": (72,),
    "bert.encoder.layer.0.attention.output.dense.weight": (24, 24),
    "bert.encoder.layer.0.attention.output.dense.bias": (24,),
    "bert.encoder.layer.0.attention.output.LayerNorm.weight": (24,),
    "bert.encoder.layer.0.attention.output.LayerNorm.bias": (24,),
    "bert.encoder.layer.0.mlp.gated_layers.weight": (80, 24),
    "bert.encoder.layer.0.mlp.wo.weight": (24, 40),
    "bert.encoder.layer.0.mlp.wo.bias": (24,),
    "bert.encoder.layer.0.mlp.layernorm.weight": (24,),
    "bert.encoder.layer.0.mlp.layernorm.bias": (24,),
    "cls.predictions.transform.dense.weight": (24, 24),
    "cls.predictions.transform.dense.bias": (24,),
    "cls.predictions.transform.LayerNorm.weight": (24,),
    "cls.predictions.transform.LayerNorm.bias": (24,),
    "cls.predictions.decoder.weight": (50, 24),
    "cls.predictions.decoder.bias": (50,),
}  # names and shapes of the released model code


@pytest.fixture
def saved(tmp_path):
    model = tiny.randomise(MaskedLM(MosaicBert(**(SIZE | {"depth": 1}))))
    interop.save(model, tmp_path / "mlm")
    return model, tmp_path / "mlm"


def test_saved_weights_have_the_released_names_and_come_back_equal(saved, tokens, tmp_path):
    model, folder = saved
    state = load_file(folder / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in state.items()} == RELEASED
    again = interop.load(folder)
    assert isinstance(again, MaskedLM)
    assert torch.equal(again(tokens, RIGHT), model(tokens, RIGHT))
    config = json.loads((folder / "config.json").read_text())
    assert (config["intermediate_size"], config["alibi_starting_size"], config["vocab_size"]) == (40, 512, 50)
    del state["cls.predictions.decoder.weight"]  # tied, so a file may lack it
    torch.save({f"model.{name}": value for name, value in state.items()}, tmp_path / "composer.bin")
    (tmp_path / "composer").mkdir()
    (tmp_path / "composer.bin").rename(tmp_path / "composer" / "pytorch_model.bin")
    (tmp_path / "composer" / "config.json").write_text(json.dumps(config))
    assert torch.equal(interop.load(tmp_path / "composer")(tokens, RIGHT), model(tokens, RIGHT))


def test_classifiers_convert_both_ways_with_pooler_and_output(tokens, tmp_path):
    model = tiny.randomise(Classifier(MosaicBert(**SIZE), 3))
    interop.save(model, tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"} <= names
    again = interop.load(tmp_path)
    assert isinstance(again, Classifier)
    assert torch.equal(again(tokens, RIGHT), model(tokens, RIGHT))
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]


def test_fine_tuning_starts_from_masked_words_with_a_new_pooler_and_from_a_classifier_with_its_pooler(saved, tmp_path):
    model, folder = saved
    classifier = Classifier(MosaicBert(**(SIZE | {"depth": 1})), 2)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    assert interop.start_from(classifier, folder) == ["pooler.weight", "pooler.bias", "out.weight", "out.bias"]
    after = classifier.state_dict()
    assert torch.equal(after["encoder.blocks.0.mlp.fc1.weight"], model.encoder.blocks[0].mlp.fc1.weight)
    assert all(torch.equal(after[name], before[name]) for name in ("pooler.weight", "out.weight"))
    third = Classifier(MosaicBert(**(SIZE | {"depth": 1})), 3)
    torch.save(
        {"state_dict": {f"model.{n}": v for n, v in classifier.state_dict().items()} | {"scores.x": torch.ones(1)}},
        tmp_path / "a.ckpt",
    )
    assert interop.start_from(third, tmp_path / "a.ckpt") == ["out.weight", "out.bias"]
    assert torch.equal(third.pooler.weight, classifier.pooler.weight)


def test_weights_that_do_not_fit_are_refused_with_the_reason(saved, tmp_path):
    _, folder = saved
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    words, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    cases = {
        "differs from the word embeddings": (state | {decoder: state[decoder] + 1}, {}),
        "missing encoder.embeddings.words": ({k: v for k, v in state.items() if k != words}, {}),
        "hidden_act is 'relu'": (state, {"hidden_act": "relu"}),
        "attention_probs_dropout_prob is 0.1": (state, {"attention_probs_dropout_prob": 0.1}),
        "missing encoder.blocks.1": (state, {"num_hidden_layers": 2}),
        r"fc1.weight is \(80, 24\), the model wants \(96, 24\)": (state, {"intermediate_size": 48}),
    }
    for message, (weights, settings) in cases.items():
        save_file(weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config | settings))
        with pytest.raises(EncoreError, match=message):
            interop.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 50}))
    with pytest.raises(EncoreError, match="no 'hidden_size'; this is not a BERT directory"):
        interop.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:200])
    with pytest.raises(EncoreError, match="not a whole safetensors file"):
        interop.load(tmp_path)
    torch.save(state, tmp_path / "w.ckpt")
    with pytest.raises(EncoreError, match="has no state_dict"):
        interop.start_from(Classifier(MosaicBert(**SIZE), 2), tmp_path / "w.ckpt")
    with pytest.raises(EncoreError, match=r"use common\.interop\.bert"):
        interop.save(MaskedLM(bert_tiny(50)), tmp_path)
