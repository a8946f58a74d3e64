"""Samples per second and achieved FLOP/s of a training run."""

from collections import deque
from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from common.fast.flops import batch_rows, flop_counter


class Throughput(Callback):
    """Logs `speed/samples_per_second` and `speed/flops_per_second` over the last `window` steps.

    FLOPs of a step (forward and backward) are counted once, on the second batch, and taken as constant.
    """

    def __init__(self, window: int = 20) -> None:
        self.marks: deque[tuple[float, int]] = deque(maxlen=window + 1)
        self.flops: int | None = None
        self.samples = 0
        self.counter: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.marks.clear()
        self.samples = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.flops is None and self.marks:
            self.counter = flop_counter()
            self.counter.__enter__()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop_counting()  # the counter hooks into every module of the process

    def _stop_counting(self) -> None:
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            self.flops = self.counter.get_total_flops()
            self.counter = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_counting()
        self.samples += batch_rows(batch) * trainer.world_size
        self.marks.append((perf_counter(), self.samples))
        if len(self.marks) > 1:
            (t0, n0), (t1, n1) = self.marks[0], self.marks[-1]
            seconds = max(t1 - t0, 1e-9)
            speed = {"speed/samples_per_second": (n1 - n0) / seconds}
            if self.flops is not None:
                speed["speed/flops_per_second"] = self.flops * trainer.world_size * (len(self.marks) - 1) / seconds
            pl_module.log_dict(speed)
