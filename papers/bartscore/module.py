"""Tuning a scorer on pairs (Sec. 3.3, `+Para`), and comparing it with people (Sec. 4): `fit`, then `test`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from common.training.recipe import Optim, Recipe
from papers.bart.model import BART
from papers.bartscore import interop
from papers.bartscore.judged import Judged, protocol_of
from papers.bartscore.meta import agreement
from papers.bartscore.model import BARTScorer
from papers.bartscore.scorer import Side, TextScorer, judge

Batch = tuple[Tensor, Tensor]


class Tuning(Recipe):
    """A scorer that learns to rewrite: the loss is minus the mean BARTScore of the pairs of a batch.

    So every pair counts the same, however long it is, as in the official script (a batch is the mean of per-pair
    means, not the mean over tokens).

    checkpoint: hub directory of a BART; weights: tuned weights over it (see interop.load_weights_into).
    prompts: `test` averages over the paper's prompts on this side; None tests without prompts.
    """

    def __init__(
        self,
        model: BART,
        optim: Optim,
        checkpoint: str | None = None,
        weights: str | None = None,
        prompts: Side | None = None,
    ) -> None:
        super().__init__(optim)
        self.scorer = BARTScorer(model)
        if checkpoint is not None:
            interop.load_into(self.scorer, checkpoint)
        if weights is not None:
            interop.load_weights_into(self.scorer, weights)
        self.prompts: Side | None = prompts
        self.found: dict[str, list[tuple[list[Judged], dict[str, Any]]]] = {}

    def loss(self, batch: Batch) -> Tensor:
        """source (B, N), target (B, T) -> scalar, nats a token."""
        return -self.scorer(*batch).mean()

    def test_step(self, batch: list[int], batch_idx: int) -> None:
        """batch: places in the data module's list of (set, judged text)."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        score = TextScorer(self.scorer, data.tokenizer, data.max_length)
        judged = [data.judged[i] for i in batch]
        for name in dict.fromkeys(name for name, _ in judged):
            rows = [row for other, row in judged if other == name]
            self.found.setdefault(name, []).append((rows, judge(score, rows, protocol_of(name), self.prompts)))

    def on_test_epoch_end(self) -> None:
        """Logs test/<set>/<what people judged>/<statistic>/<quantity> and writes every score to scores.jsonl."""
        lines = []
        for name, parts in self.found.items():
            rows = [row for part, _ in parts for row in part]
            scores = {key: np.concatenate([part[key] for _, part in parts]) for key in parts[0][1]}
            for quantity, values in scores.items():
                for what, value in agreement(protocol_of(name), rows, values).items():
                    self.log(f"test/{name}/{what}/{quantity}", value)
            for i, row in enumerate(rows):
                key = {"set": name, "document": row.document, "system": row.system}
                lines.append(json.dumps(key | {quantity: float(values[i]) for quantity, values in scores.items()}))
        folder = Path(self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.jsonl").write_text("\n".join(lines) + "\n")
        self.found.clear()
