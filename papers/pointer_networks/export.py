"""The encoder of a Pointer Network, or of one of its two baselines, to use elsewhere."""

from pathlib import Path
from typing import Any, Self

from torch import Tensor

from common.errors import EncoreError
from common.interop import check_and_load, load_weights, save_weights
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Encoder, expect
from papers.pointer_networks.model import LSTMAttention, LSTMSeq2Seq, PointerNetwork, Seq2Seq

MODEL_TYPE = "pointer_networks"
KINDS: dict[str, Any] = {"pointer": PointerNetwork, "attention": LSTMAttention, "lstm": LSTMSeq2Seq}


class PointerEncoder(Encoder):
    """Batches are points (B, n, 2) float; or {"points": (B, n, 2), "lengths": (B,)} where only the first count.

    tokens (B, n, H): the LSTM's state after each point, e_1..e_n; pooled (B, H): its state after all of them and `=>`.
    """

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.model: Seq2Seq = model

    @classmethod
    def _of(cls, sizes: dict[str, Any], state: dict[str, Tensor], source: str | Path) -> Self:
        kind, num_points = sizes["architecture"], sizes["num_points"]
        if kind not in KINDS:
            raise EncoreError(f"{source}: there is no architecture {kind!r}, only {', '.join(KINDS)}")
        model = KINDS[kind](sizes["hidden_dim"], *([] if kind == "pointer" else [num_points]))
        check_and_load(model, state, source)
        return cls(model)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        sizes = {name: checkpoint.argument(name) for name in ("architecture", "hidden_dim", "num_points")}
        return cls._of(sizes, checkpoint.part("model."), checkpoint.path)

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        return cls._of(expect(directory, MODEL_TYPE), load_weights(directory), directory)

    def to_hub(self, directory: str | Path) -> None:
        kind = next(name for name, built in KINDS.items() if type(self.model) is built)
        sizes = {"architecture": kind, "hidden_dim": self.model.hidden_dim, "num_points": self.model.num_points}
        save_weights(directory, self.model.state_dict(), {"model_type": MODEL_TYPE, **sizes})

    def encode(self, batch: Tensor | dict[str, Tensor]) -> Encoded:
        padded = batch if isinstance(batch, dict) else {"points": batch}
        memory, state = self.model.encode(padded["points"], padded.get("lengths"))
        return Encoded(memory.states.masked_fill(~memory.valid[:, 1:, None], 0), state.h)


ENCODER = PointerEncoder
