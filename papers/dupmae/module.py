"""Training: pre-training with one, two or all three losses (Sec. 3), and the stages of fine-tuning (Sec. 4.1)."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from common.formats.wordpiece import PAD
from common.interop.bert import bert_to_hub
from common.layers.bert import Bert, bert_base
from common.training.optim import adamw, schedule
from papers.dupmae.collection import write_ranking
from papers.dupmae.data import Encoded, Groups
from papers.dupmae.interop import load_start, save_retriever
from papers.dupmae.model import Batch, DupMAE, bag_of_words, lexical, tiny_bert
from papers.dupmae.retriever import Retriever, contrastive_loss, distillation_loss
from papers.dupmae.search import Index, Ranking, ranking_metrics

Method = Literal["mlm", "retromae", "dupmae"]
Size = Literal["tiny", "base"]


def build_bert(size: Size, vocab_size: int, dropout: float) -> Bert:
    """The encoder of a size; `dropout` also on attention, as in BERT."""
    return {"tiny": tiny_bert, "base": bert_base}[size](vocab_size, dropout, dropout)


def decayed(module: L.LightningModule, *, lr: float, weight_decay: float, warmup: float, total_steps: int) -> Any:
    """AdamW, linear warm-up over a share of all steps, linear decay to zero."""
    optimizer = adamw(module, lr=lr, weight_decay=weight_decay)
    return schedule(optimizer, "linear", warmup=round(warmup * total_steps), total=total_steps)


class Pretraining(L.LightningModule):
    """L = L_mlm [+ L_reconstruction [+ bag_weight * L_bag]], for method mlm, retromae or dupmae.

    start: a hub directory of BERT or a checkpoint of an earlier pre-training; without it weights are random.
    export: folder for the trained encoder with its word head, in the hub's format.
    """

    def __init__(
        self,
        size: Size = "base",
        method: Method = "dupmae",
        vocab_size: int = 30522,
        start: str | None = None,
        export: str | None = None,
        bag_weight: float = 0.1,
        dropout: float = 0.1,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        total_steps: int = 262_000,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = DupMAE(
            build_bert(size, vocab_size, dropout),
            dropout=dropout,
            attention_dropout=dropout,
            embed_query=method == "dupmae",
        )
        if method == "mlm":
            self.model.decoder.requires_grad_(False)
        if start is not None:
            load_start(self.model.mlm, start)
        self.method, self.bag_weight, self.export = method, bag_weight, export
        self.optimizer = {"lr": lr, "weight_decay": weight_decay, "warmup": warmup, "total_steps": total_steps}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of the method by name, and `loss`, their weighted sum."""
        model, tokens = self.model, batch.tokens
        hidden = model.mlm.bert(
            batch.inputs, tokens.ne(PAD)
        )  # a random replacement may be [PAD] too: ask the clean ids
        found = {"mlm": model.masked_word_loss(hidden, batch.labels)}
        found["loss"] = found["mlm"]
        if self.method != "mlm":
            found["reconstruction"] = model.reconstruction_loss(hidden[:, 0], tokens, batch.text, batch.allowed)
            found["loss"] = found["loss"] + found["reconstruction"]
        if self.method == "dupmae":
            found["bag"] = model.bag_loss(hidden, tokens, batch.text)
            found["loss"] = found["loss"] + self.bag_weight * found["bag"]
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        found = self.losses(batch)
        self.log_dict({f"train/{name}": value for name, value in found.items()}, prog_bar=True)
        return found["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        found = self.losses(batch) | {"word_recall": word_recall(self.model, batch)}
        self.log_dict({f"val/{name}": value for name, value in found.items()}, batch_size=len(batch.tokens))

    def on_train_end(self) -> None:
        if self.export is not None and self.trainer.is_global_zero:
            bert_to_hub(self.model.mlm, self.export)

    def configure_optimizers(self) -> Any:
        return decayed(self, **self.optimizer)  # type: ignore[arg-type]


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


class Retrieval(L.LightningModule):
    """Fine-tuning: in-batch and hard negatives, and with teacher scores in the batch the distillation loss
    plus contrastive_weight times the contrastive one. Validation and test retrieve from the whole collection.

    start: hub directory or checkpoint of the pre-training, or of the stage before. ranking: where `test` writes the
    `depth` best documents of every query; export: folder for the retriever at the end of training.
    """

    def __init__(
        self,
        size: Size = "base",
        vocab_size: int = 30522,
        start: str | None = None,
        dim: int | None = 384,
        top_k: int = 384,
        contrastive_weight: float = 1e-4,
        dropout: float = 0.1,
        lr: float = 2e-5,
        weight_decay: float = 0.0,
        warmup: float = 0.0,
        total_steps: int = 15_717,
        depth: int = 1000,
        ranking: str | None = None,
        export: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = Retriever(build_bert(size, vocab_size, dropout), dim, top_k)
        if start is not None:
            load_start(self.model, start)
        if top_k == 0:
            self.model.mlm.head.requires_grad_(False)
        self.contrastive_weight, self.depth, self.ranking_file, self.export = contrastive_weight, depth, ranking, export
        self.optimizer = {"lr": lr, "weight_decay": weight_decay, "warmup": warmup, "total_steps": total_steps}
        self.index = Index(vocab_size, top_k)
        self.found: Ranking = {}

    def training_step(self, batch: Groups, batch_idx: int) -> Tensor:
        queries, passages = self.model(batch.queries), self.model(batch.passages)
        loss = contrastive_loss(self.model, queries, passages)
        if batch.teacher is not None:
            self.log("train/contrastive", loss)
            distillation = distillation_loss(self.model, queries, passages, batch.teacher)
            loss = distillation + self.contrastive_weight * loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.index, self.found = Index(self.index.vocab_size, self.index.top_k), {}

    def validation_step(self, batch: Encoded, batch_idx: int, dataloader_idx: int) -> None:
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
        judged = self.trainer.datamodule.collection.judged  # type: ignore[attr-defined]
        metrics = ranking_metrics(self.found, {query: judged[query] for query in self.found})
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()})

    def on_train_end(self) -> None:
        if self.export is not None and self.trainer.is_global_zero:
            save_retriever(self.model, self.export)

    def configure_optimizers(self) -> Any:
        return decayed(self, **self.optimizer)  # type: ignore[arg-type]
