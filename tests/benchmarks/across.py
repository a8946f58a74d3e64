"""Trains the smoke configs of the flagship papers through their train scripts, alone or as one of several processes.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.benchmarks.across FOLDER ddp fsdp fsdp-from-ddp
    python -m tests.benchmarks.across FOLDER auto from-fsdp

Every process leaves FOLDER/<paper>-<strategy>-<rank>.json: the loss of each step, what weight decay each parameter has,
and what was measured in a validation. `from-fsdp` continues, in one process, from the checkpoint that fsdp wrote;
`fsdp-from-ddp` continues one that was not sharded (CONTINUED). Several processes also train `Corners`.

Batches of a smoke run are drawn under (seed, step, rank), so several processes see other noise than one would; here
every process draws the whole batch as one process would and keeps its rows, so that the losses can be compared.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from benchmarks.paper import paths
from common.training import cli
from common.training import loaders as loader

STEPS, KEPT = 5, 3  # how many, and after which there is a checkpoint
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
BATCHES = {"pointer_networks": 64, "clip": 16, "bart": 16, "videomae_v2": 16, "beats": 16}
CORNERS = "corners"
EXPORTED = "exported.pt"
CONTINUED = ("clip", CORNERS)  # by sharded processes
OVERRIDES = {  # sets of one size: the mean over tokens of each half is then the mean over all
    "pointer_networks": ["--data.problem", "tsp", "--data.min_points", "6", "--model.optim.lr", "0.05"],
    CORNERS: ["--trainer.gradient_clip_val", "0.05"],  # each gradient is longer
    "clip": ["--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "2"],
    "videomae_v2": ["--data.train_clips", "32"],
    "beats": ["--data.num_clips", "16"],
}


class Layer(nn.Module):
    """Subtracts a running mean of the process's own rows, and keeps its gain at unit length."""

    mean: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.gain = nn.Parameter(torch.ones(dim))
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        with torch.no_grad():
            self.gain.copy_(F.normalize(self.gain, dim=0))
            self.mean.lerp_(y.mean(0), 0.1)
        return x + self.gain * (y - self.mean)


class Corners(L.LightningModule):
    """What is sharded unevenly or not at all: a scalar, one row, tied, frozen and normalised weights, running means."""

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        torch.rand(RANK)  # so that processes would start from different weights
        self.scale, self.token = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.full((1, dim), 0.5))
        self.layers = nn.ModuleList(Layer(dim) for _ in range(2))
        self.read, self.write = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.write.weight = self.read.weight
        self.frozen = nn.Linear(dim, dim).requires_grad_(False)
        self.directions = nn.Parameter(torch.randn(5, dim))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.directions.copy_(F.normalize(self.directions, dim=1))
        x = self.read(self.frozen(batch)) + self.token
        for layer in self.layers:
            x = layer(x)
        return (self.scale * self.write(x) @ self.directions.T - 1).square().mean()

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero:
            torch.save(self.state_dict(), Path(self.trainer.default_root_dir) / EXPORTED)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


class Recorder(Callback):
    """Every step's loss before the gradients are averaged, every parameter's weight decay, and validation metrics."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.decay: dict[str, float] = {}
        self.validation: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        self.decay = {name: decays[id(p)] for name, p in pl_module.named_parameters() if id(p) in decays}

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        last = Path(trainer.default_root_dir) / "last.ckpt"
        if trainer.global_step == KEPT and trainer.is_global_zero and last.exists():
            shutil.copy(last, last.with_name("kept.ckpt"))  # the one at the end takes its place

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self.losses.append(float(loss.detach()))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}


def draw_whole_batches() -> None:
    """Each process draws the batch of all processes, in the order and under the seed of one, and keeps its rows."""
    draw_positions, draw_batch = loader.Positions.__init__, loader._Batches.__getitems__

    def positions(self: Any, length: int, batch_size: int, *, rank: int, world: int, **options: Any) -> None:
        draw_positions(self, length, batch_size * world, rank=0, world=1, **options)

    def batches(self: Any, batch: list[int]) -> Any:
        self.rank = 0
        return tree_map_only(torch.Tensor, lambda whole: whole.chunk(WORLD)[RANK], draw_batch(self, batch))

    loader.Positions.__init__, loader._Batches.__getitems__ = positions, batches  # type: ignore[method-assign]


def mask_every_clip_alike() -> None:
    """BEATs draws its masks inside the step, on each process for its own rows: here all rows have the same mask."""
    from papers.beats import module

    def mask(batch: int, length: int, masked: int, device: torch.device, generator: Any = None) -> torch.Tensor:
        order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
        return (order < masked).expand(batch, -1).to(device)

    module.random_mask = mask  # type: ignore[assignment]


def cut_texts_to_one_length() -> None:
    """BART's loss is a mean over the tokens of a batch: only halves with as many tokens have the mean of the whole."""
    from papers.bart import data

    collate = data.collate_pairs

    def evened(pairs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        source, target = collate(pairs)
        return source, target[:, : min(len(original) for _, original in pairs)]

    data.collate_pairs = evened


def train(paper: str, strategy: str, folder: Path) -> Recorder:
    """Train the paper's smoke config for STEPS steps, with a checkpoint after KEPT."""
    name, before, other = strategy.partition("from-")
    start = ["--ckpt_path", str(folder / f"{paper}-{other}" / "kept.ckpt")] if before else []
    recorder = Recorder()
    standard = cli.standard_callbacks
    cli.standard_callbacks = lambda *arguments: [*standard(*arguments), recorder]
    trainer = {"accelerator": "cpu", "devices": WORLD, "strategy": name.rstrip("-") or "auto", "max_steps": STEPS}
    trainer |= {"default_root_dir": folder / f"{paper}-{strategy}", "limit_val_batches": 0, "gradient_clip_val": "null"}
    trainer |= {"enable_model_summary": "false"}
    options = [part for name, value in trainer.items() for part in (f"--trainer.{name}", str(value))]
    options += ["--data.batch_size", str(BATCHES.get(paper, 4) // WORLD), "--checkpoint_every", str(KEPT)]
    config = ["--config", f"papers/{paper}/configs/smoke.yaml"]
    if paper == CORNERS:
        config = ["--model", "tests.benchmarks.across.Corners", "--data", "tests.common.test_training_resume.ToyData"]
    try:
        cli.run(["fit", *config, *options, *OVERRIDES.get(paper, []), *start])
    finally:
        cli.standard_callbacks = standard
    return recorder


def main() -> None:
    folder, strategies = Path(sys.argv[1]), sys.argv[2:]
    os.chdir(paths.REPOSITORY)
    torch.set_num_threads(1)
    draw_whole_batches()
    mask_every_clip_alike()
    cut_texts_to_one_length()
    for strategy in strategies:
        papers = CONTINUED if "-from-" in strategy else (*BATCHES, *([CORNERS] if WORLD > 1 else []))
        for paper in papers:
            recorder = train(paper, strategy, folder)
            file = folder / f"{paper}-{strategy}-{RANK}.json"
            file.write_text(json.dumps({name: getattr(recorder, name) for name in ("losses", "decay", "validation")}))


if __name__ == "__main__":
    main()
