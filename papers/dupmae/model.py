"""DupMAE (Sec. 3): BERT, a one-layer decoder that rebuilds the text from [CLS], and a bag of words out of the rest."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.formats.wordpiece import PAD
from common.layers import MLP
from common.layers.attention import Attention
from common.layers.bert import EPS, Bert, BertMLM, bert_base
from common.layers.init import init_weights, same_gain_std
from papers.dupmae.pooling import max_pooled_logits

IGNORED = -100


class Batch(NamedTuple):
    """A pre-training batch; N tokens a row, `[CLS]` first, `[SEP]` last, then padding.

    tokens: (B, N) the clean ids; text: (B, N) bool, False at special tokens and padding; inputs, labels: (B, N) what
    the encoder reads and must restore (-100 elsewhere); allowed: (B, N, N) bool, the keys each decoder row may see.
    """

    tokens: Tensor
    text: Tensor
    inputs: Tensor
    labels: Tensor
    allowed: Tensor


class EnhancedDecoder(nn.Module):
    """A BERT layer with queries of their own (RetroMAE, Sec. 3.3): the residual is that of the query.

    h = LN(attention(query, memory) + query); LN(MLP(h) + h). With query = memory it is an ordinary BERT layer.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, *, dropout: float = 0.1, attention_dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads, kv_dim=dim, dropout=attention_dropout)
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, mlp_dim, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.dropout = dropout

    def forward(self, query: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
        """query: (B, N, D); memory: (B, M, D), keys and values; allowed: (B, N, M) bool. Returns (B, N, D)."""
        read = F.dropout(self.attn(query, memory, mask=allowed[:, None]), self.dropout, self.training)
        x = self.norm1(read + query)
        return self.norm2(self.mlp(x) + x)


class DupMAE(nn.Module):
    """The pre-training model. After pre-training only `mlm` is kept: the encoder, and the head for the lexical part.

    embed_query: the queries of the decoder go through the embedding module (position, segment, LayerNorm, dropout);
    without it they are [CLS] plus position, as in RetroMAE v1.
    """

    def __init__(
        self, bert: Bert, *, dropout: float = 0.1, attention_dropout: float = 0.1, embed_query: bool = True
    ) -> None:
        super().__init__()
        size = bert.config
        self.mlm = BertMLM(bert)
        self.decoder = EnhancedDecoder(
            size["dim"], size["num_heads"], size["mlp_dim"], dropout=dropout, attention_dropout=attention_dropout
        )
        self.embed_query = embed_query
        init_weights(self, same_gain_std(size["dim"]))

    def masked_word_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of the hidden words. hidden: (B, N, D); labels: (B, N), -100 where nothing is asked."""
        asked = labels.ne(IGNORED)
        return F.cross_entropy(self.mlm.logits(hidden[asked]), labels[asked])

    def decode(self, cls: Tensor, tokens: Tensor, allowed: Tensor) -> Tensor:
        """Enhanced decoding. cls: (B, D) sentence embeddings; tokens: (B, N) CLEAN ids; allowed: (B, N, N) bool.

        Row i asks with the sentence embedding and its position, and reads the sentence embedding (key 0) and the
        embeddings of the clean tokens that its mask shows. Returns (B, N, D).
        """
        embeddings, length = self.mlm.bert.embeddings, tokens.shape[1]
        memory = torch.cat([cls[:, None], embeddings(tokens)[:, 1:]], dim=1)
        query = cls[:, None].expand(-1, length, -1)
        if self.embed_query:
            query = embeddings.add_positions(query)
        else:
            query = query + embeddings.positions.weight[:length]
        return self.decoder(query, memory, allowed)

    def reconstruction_loss(self, cls: Tensor, tokens: Tensor, text: Tensor, allowed: Tensor) -> Tensor:
        """Mean cross entropy of ALL tokens of the text (B, N), hidden in the encoder's input or not."""
        return F.cross_entropy(self.mlm.logits(self.decode(cls, tokens, allowed)[text]), tokens[text])

    def bag_loss(self, hidden: Tensor, tokens: Tensor, text: Tensor) -> Tensor:
        """The words of the text out of all states but the first. hidden: (B, N, D); tokens, text: (B, N)."""
        mu = lexical(self.mlm, hidden, tokens.ne(PAD))
        return bag_of_words_loss(mu, bag_of_words(tokens, text, mu.shape[1]))


def lexical(mlm: BertMLM, hidden: Tensor, valid: Tensor) -> Tensor:
    """mu (B, V): head logits of the states (B, N, D) of the ordinary tokens, max-pooled. `[SEP]` counts, [CLS] not."""
    head, words = mlm.head, mlm.bert.embeddings.words.weight
    states = head.norm(F.gelu(head.dense(hidden[:, 1:])))
    return max_pooled_logits(states, words, head.bias, valid[:, 1:])


def bag_of_words(tokens: Tensor, text: Tensor, vocab_size: int) -> Tensor:
    """(B, V) weights: 1/n at every DISTINCT id of a text of n tokens, however often it occurs; 0 elsewhere.

    tokens: (B, N) ids; text: (B, N) bool.
    """
    weights = torch.zeros(len(tokens), vocab_size + 1, device=tokens.device)  # the last column takes what is not text
    share = (1 / text.sum(1, keepdim=True)).expand_as(tokens)
    return weights.scatter_(1, tokens.masked_fill(~text, vocab_size), share)[:, :vocab_size]


def bag_of_words_loss(mu: Tensor, weights: Tensor) -> Tensor:
    """Mean over texts of -sum_v w_v log softmax(mu)_v (Sec. 3.2). mu, weights: (B, V)."""
    return -(weights * mu.float().log_softmax(dim=-1)).sum(1).mean()


def dupmae_base(dropout: float = 0.1, attention_dropout: float = 0.1) -> DupMAE:
    """BERT-base and the one-layer decoder (parameters in pre-training: fact params-pretraining)."""
    bert = bert_base(dropout=dropout, attention_dropout=attention_dropout)
    return DupMAE(bert, dropout=dropout, attention_dropout=attention_dropout)


def retromae_base(dropout: float = 0.1, attention_dropout: float = 0.1) -> DupMAE:
    """RetroMAE v1: the same modules, queries without LayerNorm."""
    bert = bert_base(dropout=dropout, attention_dropout=attention_dropout)
    return DupMAE(bert, dropout=dropout, attention_dropout=attention_dropout, embed_query=False)


def tiny_bert(vocab_size: int = 2048, dropout: float = 0.0, attention_dropout: float = 0.0) -> Bert:
    """2 layers, width 96: the size of our small-scale claims."""
    return Bert(
        vocab_size=vocab_size,
        dim=96,
        depth=2,
        num_heads=4,
        mlp_dim=384,
        max_positions=160,
        dropout=dropout,
        attention_dropout=attention_dropout,
    )


SIZES = {"tiny": tiny_bert, "base": bert_base}
