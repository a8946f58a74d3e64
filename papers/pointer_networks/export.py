"""The encoder of a Pointer Network, or of one of its two baselines, to use elsewhere."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.errors import EncoreError
from common.interop.checkpoint import Checkpoint
from common.interop.encoder import Encoded, Exported
from papers.pointer_networks.model import LSTMAttention, LSTMSeq2Seq, Seq2Seq, build

SIZES = ("architecture", "hidden_dim", "num_points")


class PointerEncoder(Exported):
    """Batches are points (B, n, 2) float; or {"points": (B, n, 2), "lengths": (B,)} where only the first count.

    tokens (B, n, H): the LSTM's state after each point, e_1..e_n; pooled (B, H): its state after all of them and `=>`.
    """

    model_types = ("pointer_networks",)
    model_class = Seq2Seq
    model: Seq2Seq

    @classmethod
    def build(cls, checkpoint: Checkpoint) -> nn.Module:
        return cls.from_config({name: checkpoint.argument(name) for name in SIZES}, checkpoint.path)

    @classmethod
    def from_config(cls, config: dict[str, Any], directory: str | Path) -> nn.Module:
        try:
            return build(*(config[name] for name in SIZES))
        except EncoreError as error:
            raise EncoreError(f"{directory}: {error}") from None

    def config(self) -> dict[str, Any]:
        names = {LSTMAttention: "attention", LSTMSeq2Seq: "lstm"}
        architecture = next((name for kind, name in names.items() if isinstance(self.model, kind)), "pointer")
        return dict(zip(SIZES, (architecture, self.model.hidden_dim, self.model.num_points)))

    def encode(self, batch: Tensor | dict[str, Tensor]) -> Encoded:
        padded = batch if isinstance(batch, dict) else {"points": batch}
        memory, state = self.model.encode(padded["points"], padded.get("lengths"))
        return Encoded(memory.states.masked_fill(~memory.valid[:, 1:, None], 0), state.h)


ENCODER = PointerEncoder
