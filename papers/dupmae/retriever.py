"""The unified representation for retrieval (Sec. 3.3): a reduced [CLS], and the largest words of the other tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import EncoreError
from common.eval import ranking
from common.formats.wordpiece import PAD
from common.layers.bert import INIT_STD, Bert, BertMLM, bert_base
from common.layers.init import init_weights
from common.losses import gather_with_grad
from papers.dupmae.model import lexical


class Representation(NamedTuple):
    """dense: (B, d), the [CLS] part; lexical: (B, V), one weight a word (V = 0 without a lexical part)."""

    dense: Tensor
    lexical: Tensor


class Retriever(nn.Module):
    """One encoder for queries and documents.

    dim: width of the [CLS] part after its linear map; None keeps [CLS] as it is (RetroMAE v1). top_k: words kept of a
    document's lexical part; 0 leaves that part away, on both sides.
    """

    def __init__(self, bert: Bert, dim: int | None = 384, top_k: int = 384) -> None:
        super().__init__()
        self.mlm = BertMLM(bert)
        width = bert.config["dim"]
        self.reduce = nn.Identity() if dim is None else nn.Linear(width, dim)
        init_weights(self.reduce, INIT_STD)
        self.top_k = top_k

    def forward(self, tokens: Tensor) -> Representation:
        """tokens: (B, N) ids, `[CLS]` text `[SEP]`, `[PAD]` on the right."""
        valid = tokens.ne(PAD)
        hidden = self.mlm.bert(tokens, valid)
        words = lexical(self.mlm, hidden, valid) if self.top_k else hidden.new_zeros(len(hidden), 0)
        return Representation(self.reduce(hidden[:, 0]), words)

    def score(self, queries: Representation, documents: Representation) -> Tensor:
        """(Q, P): <h_q, h_d> + sum of mu_q * mu_d over the top-k words of the document."""
        return scores(queries, Representation(documents.dense, sparsify(documents.lexical, self.top_k)))


def scores(queries: Representation, documents: Representation) -> Tensor:
    """(Q, P) inner products of both parts, summed; the documents' lexical parts are sparse already."""
    return queries.dense @ documents.dense.T + queries.lexical @ documents.lexical.T


def sparsify(mu: Tensor, k: int) -> Tensor:
    """mu (B, V) with all but the k largest entries of every row set to 0; their gradient flows."""
    if k >= mu.shape[1]:
        return mu
    top = mu.topk(k, dim=1)
    return torch.zeros_like(mu).scatter(1, top.indices, top.values)


def contrastive_loss(retriever: Retriever, queries: Representation, passages: Representation) -> Tensor:
    """Cross entropy of every query's positive among the passages of all queries on all ranks.

    queries: Q rows; passages: Q * G rows, each query's positive first in its group of G, then its hard negatives.
    Each rank scores its own queries; averaged over ranks (what DDP does with gradients) loss and gradient are those of
    one process with the whole batch.
    """
    group, rest = divmod(len(passages.dense), len(queries.dense))
    if rest:
        raise EncoreError(f"{len(passages.dense)} passages cannot be shared out over {len(queries.dense)} queries")
    everyone = Representation(gather_with_grad(passages.dense), gather_with_grad(passages.lexical))
    first = 0
    if len(everyone.dense) > len(passages.dense):
        first = torch.distributed.get_rank() * len(passages.dense)
    target = first + group * torch.arange(len(queries.dense), device=queries.dense.device)
    return F.cross_entropy(retriever.score(queries, everyone).float(), target)


def distillation_loss(
    retriever: Retriever, queries: Representation, passages: Representation, teacher: Tensor
) -> Tensor:
    """KL(teacher || student) over the G candidates of every query, as a mean over all Q * G elements.

    teacher: (Q, G) raw logits of a cross-encoder, made a distribution by softmax; the student's are its own scores.
    The mean over elements is that of the released code; it is the batch mean divided by G.
    """
    own = retriever.score(queries, passages).float()
    groups = own.unflatten(1, (len(own), -1))[torch.arange(len(own)), torch.arange(len(own))]  # (Q, G)
    return F.kl_div(groups.log_softmax(1), teacher.softmax(1), reduction="none").mean()


class Index:
    """Documents as their dense parts and the top-k entries of their lexical parts, kept on the CPU."""

    def __init__(self, vocab_size: int, top_k: int) -> None:
        self.vocab_size, self.top_k = vocab_size, min(top_k, vocab_size)
        self.ids: list[str] = []
        self.parts: list[tuple[Tensor, ...]] = []  # dense, and words and weights where there is a lexical part

    def add(self, ids: Sequence[str], documents: Representation) -> None:
        """Documents in the order of `ids`; their lexical parts need not be sparse."""
        self.ids += ids
        new = [documents.dense.float()]
        if self.top_k:
            top = documents.lexical.float().topk(self.top_k, dim=1)
            new += [top.indices.int(), top.values]
        self.parts.append(tuple(part.cpu() for part in new))

    def search(self, queries: Representation, depth: int, chunk: int = 4096) -> tuple[Tensor, Tensor]:
        """The `depth` best documents of every query: scores and rows of the index, (Q, depth) each, best first."""
        queries = Representation(queries.dense.float(), queries.lexical.float())
        device = queries.dense.device
        if len(self.parts) > 1:
            self.parts = [tuple(torch.cat(part) for part in zip(*self.parts))]

        def score(part: slice) -> Tensor:
            dense, *top = (stored[part].to(device) for stored in self.parts[0])
            words = torch.zeros(len(dense), queries.lexical.shape[1], device=device)
            if top:
                words.scatter_(1, top[0].long(), top[1])
            return scores(queries, Representation(dense, words))

        return ranking.search(score, len(self.ids), depth, chunk)


def dupmae_retriever() -> Retriever:
    """BERT-base, [CLS] reduced from 768 to 384, 384 words: about the memory of one 768-d vector a document."""
    return Retriever(bert_base())


def retromae_retriever() -> Retriever:
    """RetroMAE v1: the 768-d [CLS] alone."""
    return Retriever(bert_base(), dim=None, top_k=0)
