"""DupMAE's weights: hub directories both ways, retrievers with their pooler, checkpoints as a start."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import EncoreError
from papers.dupmae import interop
from papers.dupmae.model import lexical
from tests.papers.dupmae.test_model import CLS, SEP, D, V, small, small_retriever


@pytest.fixture
def tokens():
    torch.manual_seed(2)
    rows = torch.randint(5, V, (3, 12))
    for row, length in zip(rows, (12, 9, 6)):
        row[0], row[length - 1], row[length:] = CLS, SEP, 0
    return rows


@torch.no_grad()
def test_a_pretrained_encoder_opens_in_transformers_and_starts_a_retriever(tokens, tmp_path):
    import transformers

    from common.interop.bert import bert_to_hub

    model = small()
    bert_to_hub(model.mlm, tmp_path / "encoder")
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path / "encoder").eval()
    valid = tokens.ne(0)
    torch.testing.assert_close(
        theirs(tokens, valid.long()).logits[valid], model.mlm(tokens, valid)[valid], rtol=1e-4, atol=1e-5
    )
    start = small_retriever()
    interop.load_start(start, tmp_path / "encoder")
    torch.testing.assert_close(start(tokens).lexical, lexical(model.mlm, model.mlm.bert(tokens, valid), valid))
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "last.ckpt")
    again = small_retriever()
    interop.load_start(again, tmp_path / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(again.mlm.state_dict().values(), start.mlm.state_dict().values()))
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(EncoreError, match=r"other\.ckpt: holds no encoder of DupMAE"):
        interop.load_start(again, tmp_path / "other.ckpt")


@torch.no_grad()
def test_retrievers_are_saved_as_the_released_code_saves_them_and_read_back(tokens, tmp_path):
    model = small_retriever()
    interop.save_retriever(model, tmp_path)
    pooler = torch.load(tmp_path / "pooler.pt", weights_only=True)
    assert {name: tuple(t.shape) for name, t in pooler.items()} == {
        "linear_q.weight": (8, D), "linear_q.bias": (8,), "linear_p.weight": (8, D), "linear_p.bias": (8,)
    }  # fmt: skip
    again = interop.load_retriever(tmp_path, top_k=5)
    torch.testing.assert_close(again.score(again(tokens), again(tokens)), model.score(model(tokens), model(tokens)))
    stage = small_retriever()
    stage.reduce.weight.zero_()
    interop.load_start(stage, tmp_path)
    assert torch.equal(stage.reduce.weight, model.reduce.weight)
    torch.save(pooler | {"linear_p.bias": torch.ones(8)}, tmp_path / "pooler.pt")
    with pytest.raises(EncoreError, match="queries and passages have different linear maps"):
        interop.load_retriever(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("bert.encoder.layer.1.output.dense.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(EncoreError, match="missing bert"):
        interop.load_start(stage, tmp_path)
