"""DupMAE's encoder to use elsewhere, pre-trained or fine-tuned for retrieval."""

from pathlib import Path
from typing import Self

from torch import Tensor, nn

from common.errors import EncoreError
from common.formats.wordpiece import PAD
from common.interop import check_and_load
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Exported, expect
from papers.dupmae import interop
from papers.dupmae.model import SIZES
from papers.dupmae.retriever import Retriever


class DupMAEEncoder(Exported):
    """Batches are token ids (B, N) int64: `[CLS]` text `[SEP]`, padding id 0 after it.

    tokens (B, N, D): BERT's last states. pooled (B, D): that of `[CLS]`, or (B, d) what a fine-tuned retriever makes of
    it; inner products rank documents for a query. The lexical part of the representation is left out.
    """

    model: Retriever

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        model = cls.build(checkpoint)
        state = checkpoint.part("model.")  # of a pre-training the decoder is left out
        own = {name: value for name, value in state.items() if name.startswith(("mlm.", "reduce."))}
        check_and_load(model, own, checkpoint.path)
        return cls(model)

    @classmethod
    def build(cls, checkpoint: Checkpoint) -> nn.Module:
        size, reduce = checkpoint.argument("size"), checkpoint.state.get("model.reduce.weight")
        if size not in SIZES:
            raise EncoreError(f"{checkpoint.path}: {size!r} is no size of DupMAE, which are {', '.join(SIZES)}")
        bert = SIZES[size](checkpoint.argument("vocab_size"))
        return Retriever(bert, dim=None if reduce is None else len(reduce), top_k=0)

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        expect(directory, "bert")
        return cls(interop.load_retriever(directory))

    def to_hub(self, directory: str | Path) -> None:
        interop.save_retriever(self.model, directory)

    def encode(self, batch: Tensor) -> Encoded:
        valid = batch.ne(PAD)
        states = self.model.mlm.bert(batch, valid)
        return Encoded(states.masked_fill(~valid[..., None], 0), self.model.reduce(states[:, 0]))


ENCODER = DupMAEEncoder
