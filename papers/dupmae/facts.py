"""Numbers that follow from the sizes and the recipe."""

import inspect
import math

import torch

from common.masking.words import whole_word_masks
from papers.dupmae.masking import MOST_DRAWS
from papers.dupmae.model import dupmae_base
from papers.dupmae.module import Pretraining
from papers.dupmae.retriever import dupmae_retriever


def masked_tokens(length: int, ratio: float) -> int:
    """Tokens that a mask hides of a text of `length` tokens, special ones included, whose words are single pieces."""
    words = torch.arange(-1, length - 1, device="cpu")[None].clone()
    words[0, -1] = -1
    mask = whole_word_masks(words, torch.tensor([length], device="cpu"), ratio, draws=1)
    return int(mask.sum())


def masks_drawn(length: int) -> int:
    """Decoder masks drawn for a text."""
    return min(length, MOST_DRAWS)


def default_bag_weight() -> float:
    """Weight of the bag-of-words loss."""
    return inspect.signature(Pretraining).parameters["bag_weight"].default


def uniform_bag_loss() -> float:
    """Bag-of-words loss of a text without repeated words before anything is learned: ln V, in nats."""
    return math.log(dupmae_base().mlm.bert.config["vocab_size"])


def numbers_a_document() -> int:
    """Values kept of a document: the reduced [CLS] and the top words (whose ids come on top)."""
    retriever = dupmae_retriever()
    return retriever.reduce(torch.zeros(1, 768)).shape[1] + retriever.top_k


def decoder_over_encoder() -> float:
    """Parameters of the decoder over those of the encoder's layers."""
    model = dupmae_base()
    decoder, layers = (sum(p.numel() for p in part.parameters()) for part in (model.decoder, model.mlm.bert.blocks))
    return decoder / layers
