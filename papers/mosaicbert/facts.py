"""Figures that follow from sizes and closed forms, for `encore facts`."""

from typing import Any

from common.layers.bert import bert_base
from papers.mosaicbert.attention import alibi_slopes
from papers.mosaicbert.data import EVALUATION_RATIO
from papers.mosaicbert.model import ENCODERS, Classifier, MaskedLM, pad_vocabulary

SAMPLES, BATCH, DOCUMENTS = 286_720_000, 4096, 364_868_892


def masked_lm(size: str) -> MaskedLM:
    """The pre-training model of a size."""
    return MaskedLM(ENCODERS[size]())


def encoder_with_pooler(size: str) -> int:
    """Parameters of encoder and pooler, without the last linear map."""
    model = Classifier(ENCODERS[size](), 2)
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("out."))


def vocabulary() -> int:
    """BERT's 30,522 pieces, padded."""
    return pad_vocabulary(30_522)


def slope(num_heads: int, head: int) -> float:
    """ALiBi's slope of a head, counted from 1."""
    return alibi_slopes(num_heads)[head - 1]


def steps() -> int:
    """Optimizer steps of the published pre-training."""
    return SAMPLES // BATCH


def warmup_steps(share: float) -> int:
    """Steps of its warm-up."""
    return round(share * steps())


def corpus_share() -> float:
    """Percent of C4's training documents seen."""
    return 100 * SAMPLES / DOCUMENTS


def coupled_decay(lr: float, weight_decay: float) -> float:
    """The weight_decay of torch's AdamW that decays as much."""
    return weight_decay / lr


def glue_steps(examples: int, batch: int, epochs: int) -> int:
    """Optimizer steps of a fine-tuning task, the last batch of each epoch incomplete, as in the released code."""
    return epochs * -(-examples // batch)


def evaluation_ratio() -> float:
    """Share of words hidden in validation."""
    return EVALUATION_RATIO


def dropout(size: str) -> float:
    """Dropout of an encoder, wherever its block has one."""
    return ENCODERS[size]().config["dropout"]


def attention_dropout() -> float:
    """Dropout on the attention of the BERT baseline."""
    first: Any = bert_base().blocks.layers[0]
    return first.attn.dropout
