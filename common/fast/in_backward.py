"""The optimizer's step inside the backward pass: every parameter is updated as soon as its gradient is whole."""

import ctypes
import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from common.errors import EncoreError

BUCKET_BYTES = 16 * 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST_KEPT = 32 * 2**20  # the most that mallopt takes


def keep_freed_memory() -> None:
    """Have glibc keep what this process frees, in blocks of up to 32 MiB, for its next allocation.

    By default it goes back to the system again and again where gradients come and go, and touching new memory takes
    longer than the arithmetic on it. Without glibc nothing happens; memory of a GPU is torch's own business.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)


class StepInBackward:
    """Makes `optimizer` update its parameters during `backward()`, bucket after bucket, and frees their gradients.

    The weights become those of an ordinary step: an update needs its own parameter's gradient alone. What is saved is
    memory, for the gradients of all parameters are never there together. A bucket holds at least `bucket_bytes` of
    parameters, so a small model keeps a single optimizer step. `optimizer.step()` stays where it is in the loop: it
    updates what is in no full bucket, and without a gradient a parameter stays as it is, as ever.

    Right only where gradients are final when `backward()` has made them: one backward pass a step, no clipping by the
    norm of all gradients, no averaging over processes, no gradient scaler. A second backward pass before `step()` is an
    EncoreError; the rest cannot be seen from here (StepsInBackward, the callback, looks for them).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.optimizer = optimizer
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.buckets = _buckets(trained, bucket_bytes)
        self.bucket_of = {parameter: i for i, bucket in enumerate(self.buckets) for parameter in bucket}
        self.inside = False
        self.handles: list[Any] = [optimizer.register_step_post_hook(self._after_step)]
        if any(p.device.type == "cpu" for p in trained):
            keep_freed_memory()
        self.handles += [p.register_post_accumulate_grad_hook(self._gradient_is_whole) for p in trained]
        self._forget()

    def remove(self) -> None:
        """Back to an ordinary optimizer."""
        for handle in self.handles:
            handle.remove()

    def _forget(self) -> None:
        self.seen: set[torch.Tensor] = set()
        self.missing = [len(bucket) for bucket in self.buckets]

    def _gradient_is_whole(self, parameter: torch.Tensor) -> None:
        if parameter in self.seen:
            raise EncoreError(
                "step in backward: a second backward pass before the optimizer's step; gradients cannot be "
                "accumulated this way, train without it"
            )
        self.seen.add(parameter)
        number = self.bucket_of[parameter]
        self.missing[number] -= 1
        if self.missing[number] == 0:
            self._step(set(self.buckets[number]))

    def _step(self, bucket: set[torch.Tensor]) -> None:
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [
            {**group, "params": members} for group in groups if (members := [p for p in group["params"] if p in bucket])
        ]
        self.inside = True
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups, self.inside = groups, False
        for parameter in bucket:
            parameter.grad = None

    def _after_step(self, *_: Any) -> None:
        if not self.inside:
            self._forget()


def _buckets(parameters: list[torch.Tensor], least: int) -> list[list[torch.Tensor]]:
    """The parameters from the last to the first, as gradients come, in lists of at least `least` bytes."""
    buckets: list[list[torch.Tensor]] = [[]]
    for parameter in reversed(parameters):
        if sum(p.nbytes for p in buckets[-1]) >= least:
            buckets.append([])
        buckets[-1].append(parameter)
    return buckets


class StepsInBackward(Callback):
    """StepInBackward for a Lightning run: `--trainer.callbacks+=common.fast.in_backward.StepsInBackward`.

    EncoreError where it would change the result: clipping, accumulation, several processes, a gradient scaler.
    """

    def __init__(self, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.bucket_bytes = bucket_bytes
        self.active: list[StepInBackward] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        reasons = {
            "trainer.gradient_clip_val": bool(trainer.gradient_clip_val),
            "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches != 1,
            "trainer.devices": trainer.world_size > 1,
            "trainer.precision": getattr(trainer.precision_plugin, "scaler", None) is not None,
        }
        for field, needed in reasons.items():
            if needed:
                raise EncoreError(f"{field} needs all gradients before the optimizer's step; leave out StepsInBackward")
        self.active = [StepInBackward(optimizer, self.bucket_bytes) for optimizer in trainer.optimizers]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for steps in self.active:
            steps.remove()
        self.active = []

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)
