"""Weights: BERT from the public hub as a start, pre-trained encoders as hub directories, retrievers with their pooler.

A retriever directory is what the RetroMAE repository saves: a BertModel or BertForMaskedLM, and for a reduced [CLS]
`pooler.pt` and `pooler_config.json`.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import EncoreError
from common.interop import check_and_load, load_config, read_checkpoint
from common.interop.bert import bert_arguments, bert_to_hub, load_bert
from common.layers.bert import Bert, BertMLM
from papers.dupmae.retriever import Retriever

POOLER, POOLER_CONFIG = "pooler.pt", "pooler_config.json"


def load_start(model: BertMLM | Retriever, path: str | Path) -> None:
    """Starting weights of an encoder with its word head, or of a retriever (whose pooler may be new).

    path: a hub directory or weight file, with or without a pooler beside it, or a .ckpt of any training here.
    """
    path = Path(path)
    mlm = model if isinstance(model, BertMLM) else model.mlm
    if path.suffix != ".ckpt":
        load_bert(mlm, path)
        if isinstance(model, Retriever) and (path / POOLER).exists():
            check_and_load(model.reduce, _tied(read_checkpoint(path / POOLER), path / POOLER), path / POOLER)
        return
    state = read_checkpoint(path).get("state_dict", {})
    own = _below(state, "model.mlm.")
    if not own:
        raise EncoreError(f"{path}: holds no encoder of DupMAE; give a checkpoint of its pre-training or fine-tuning")
    check_and_load(mlm, own, path)
    if isinstance(model, Retriever) and (reduce := _below(state, "model.reduce.")):
        check_and_load(model.reduce, reduce, path)


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def save_retriever(retriever: Retriever, directory: str | Path) -> None:
    """Writes the encoder in the hub's format, and the pooler when there is one."""
    directory = Path(directory)
    bert_to_hub(retriever.mlm, directory)
    if isinstance(retriever.reduce, nn.Linear):
        state = retriever.reduce.state_dict()
        both = {f"linear_{side}.{name}": value.detach() for side in "qp" for name, value in state.items()}
        torch.save(both, directory / POOLER)
        sizes = {"input_dim": retriever.reduce.in_features, "output_dim": retriever.reduce.out_features, "tied": True}
        (directory / POOLER_CONFIG).write_text(json.dumps(sizes))


def load_retriever(directory: str | Path, top_k: int = 0) -> Retriever:
    """A retriever in eval mode. top_k: words of the lexical part, which needs the word head in the file; 0: none."""
    directory = Path(directory)
    state = read_checkpoint(directory / POOLER) if (directory / POOLER).exists() else None
    dim = None if state is None else state["linear_q.weight"].shape[0]
    retriever = Retriever(Bert(**bert_arguments(load_config(directory), directory)), dim=dim, top_k=top_k)
    load_bert(retriever.mlm, directory)
    if state is not None:
        check_and_load(retriever.reduce, _tied(state, directory / POOLER), directory / POOLER)
    return retriever.eval()


def _tied(state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The one linear map of a pooler that queries and passages share."""
    query, passage = _below(state, "linear_q."), _below(state, "linear_p.")
    if any(not torch.equal(query[name], passage[name]) for name in query.keys() & passage.keys()):
        raise EncoreError(f"{source}: queries and passages have different linear maps; only a shared one is supported")
    return query
