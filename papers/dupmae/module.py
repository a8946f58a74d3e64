"""Training: pre-training with one, two or all three losses (Sec. 3), and the stages of fine-tuning (Sec. 4.1)."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from common.eval.ranking import ranking_metrics
from common.eval.ranking_data import Encoded, Groups
from common.formats.collection import Ranking, write_ranking
from common.formats.wordpiece import PAD
from common.interop.bert import bert_to_hub
from common.layers.bert import Bert
from common.training.recipe import Optim, Recipe, batch_length
from papers.dupmae.interop import load_start, save_retriever
from papers.dupmae.model import SIZES, Batch, DupMAE, bag_of_words, lexical
from papers.dupmae.retriever import Index, Retriever, contrastive_loss, distillation_loss

Method = Literal["mlm", "retromae", "dupmae"]
Size = Literal["tiny", "base"]


def build_bert(size: Size, vocab_size: int, dropout: float) -> Bert:
    """The encoder of a size; `dropout` also on attention, as in BERT."""
    return SIZES[size](vocab_size, dropout, dropout)


class Pretraining(Recipe):
    """L = L_mlm [+ L_reconstruction [+ bag_weight * L_bag]], for method mlm, retromae or dupmae.

    start: a hub directory of BERT or a checkpoint of an earlier pre-training; without it weights are random.
    export: folder for the trained encoder with its word head, in the hub's format.
    """

    def __init__(
        self,
        optim: Optim,
        size: Size = "base",
        method: Method = "dupmae",
        vocab_size: int = 30522,
        start: str | None = None,
        export: str | None = None,
        bag_weight: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(optim)
        self.save_hyperparameters("size", "vocab_size")
        bert = build_bert(size, vocab_size, dropout)
        self.model = DupMAE(bert, dropout=dropout, attention_dropout=dropout, embed_query=method == "dupmae")
        if method == "mlm":
            self.model.decoder.requires_grad_(False)
        if start is not None:
            load_start(self.model.mlm, start)
        self.method, self.bag_weight, self.export = method, bag_weight, export

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of the method by name, and `loss`, their weighted sum."""
        model, tokens = self.model, batch.tokens
        # a random replacement may be [PAD] too: the clean ids say what is padding
        hidden = model.mlm.bert(batch.inputs, tokens.ne(PAD))
        found = {"mlm": model.masked_word_loss(hidden, batch.labels)}
        found["loss"] = found["mlm"]
        if self.method != "mlm":
            found["reconstruction"] = model.reconstruction_loss(hidden[:, 0], tokens, batch.text, batch.allowed)
            found["loss"] = found["loss"] + found["reconstruction"]
        if self.method == "dupmae":
            found["bag"] = model.bag_loss(hidden, tokens, batch.text)
            found["loss"] = found["loss"] + self.bag_weight * found["bag"]
        return found

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        found = self.loss(batch) | {"word_recall": word_recall(self.model, batch)}
        self.log_loss("val", found, batch_size=batch_length(batch))

    def on_train_end(self) -> None:
        if self.export is not None and self.trainer.is_global_zero:
            bert_to_hub(self.model.mlm, self.export)


@torch.no_grad()
def word_recall(model: DupMAE, batch: Batch) -> Tensor:
    """Share of a text's n distinct words among the n largest entries of mu, a mean over texts. The input is clean."""
    valid = batch.tokens.ne(PAD)
    mu = lexical(model.mlm, model.mlm.bert(batch.tokens, valid), valid)
    present = bag_of_words(batch.tokens, batch.text, mu.shape[1]) > 0
    number = present.sum(1, keepdim=True)
    ranked = present.gather(1, mu.argsort(dim=1, descending=True))
    first = torch.arange(mu.shape[1], device=mu.device) < number
    return ((ranked & first).sum(1) / number[:, 0]).mean()


class Retrieval(Recipe):
    """Fine-tuning: in-batch and hard negatives, and with teacher scores in the batch the distillation loss
    plus contrastive_weight times the contrastive one. Validation and test retrieve from the whole collection.

    start: hub directory or checkpoint of the pre-training, or of the stage before. ranking: where `test` writes the
    `depth` best documents of every query; export: folder for the retriever at the end of training.
    """

    def __init__(
        self,
        optim: Optim,
        size: Size = "base",
        vocab_size: int = 30522,
        start: str | None = None,
        dim: int | None = 384,
        top_k: int = 384,
        contrastive_weight: float = 1e-4,
        dropout: float = 0.1,
        depth: int = 1000,
        ranking: str | None = None,
        export: str | None = None,
    ) -> None:
        super().__init__(optim)
        self.save_hyperparameters("size", "vocab_size")
        self.model = Retriever(build_bert(size, vocab_size, dropout), dim, top_k)
        if start is not None:
            load_start(self.model, start)
        if top_k == 0:
            self.model.mlm.head.requires_grad_(False)
        self.contrastive_weight, self.depth, self.ranking_file, self.export = contrastive_weight, depth, ranking, export
        self.index = Index(vocab_size, top_k)
        self.found: Ranking = {}

    def loss(self, batch: Groups) -> dict[str, Tensor]:
        queries, passages = self.model(batch.queries), self.model(batch.passages)
        loss = contrastive_loss(self.model, queries, passages)
        if batch.teacher is None:
            return {"loss": loss}
        distillation = distillation_loss(self.model, queries, passages, batch.teacher)
        return {"loss": distillation + self.contrastive_weight * loss, "contrastive": loss}

    def on_validation_epoch_start(self) -> None:
        self.index, self.found = Index(self.index.vocab_size, self.index.top_k), {}

    def validation_step(self, batch: Encoded, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loader 0 gives the documents, loader 1 the queries."""
        encoded = self.model(batch.tokens)
        if dataloader_idx == 0:
            self.index.add(batch.ids, encoded)
            return
        scores, rows = self.index.search(encoded, self.depth)
        for query, values, best in zip(batch.ids, scores.tolist(), rows.tolist()):
            self.found[query] = [(self.index.ids[i], value) for i, value in zip(best, values)]

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_test_epoch_end(self) -> None:
        self._measure("test")
        if self.ranking_file is not None and self.trainer.is_global_zero:
            Path(self.ranking_file).parent.mkdir(parents=True, exist_ok=True)
            write_ranking(self.ranking_file, self.found)

    def _measure(self, stage: str) -> None:
        collection = self.trainer.datamodule.collection  # type: ignore[attr-defined]
        judged = {query: collection.judged[query] for query in self.found}
        metrics = ranking_metrics(self.found, judged, shared_ids=collection.shared_ids)
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()})

    def on_train_end(self) -> None:
        if self.export is not None and self.trainer.is_global_zero:
            save_retriever(self.model, self.export)
