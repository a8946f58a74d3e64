"""Trains the smoke configs of the flagship papers through their train scripts, alone or as one of several processes.

    python -m tests.benchmarks.across FOLDER auto
    python -m torch.distributed.run --nproc-per-node 2 -m tests.benchmarks.across FOLDER ddp    (or fsdp, on two GPUs)
    python -m tests.benchmarks.across FOLDER from-fsdp

Every process leaves FOLDER/<paper>-<strategy>-<rank>.json: the loss of each step, and what weight decay each parameter
has. `from-fsdp` continues, in one process, from the checkpoint that fsdp wrote before its last step.

Batches of a smoke run are drawn under (seed, step, rank), so several processes see other noise than one would; here
every process draws the whole batch as one process would and keeps its rows, so that the losses can be compared.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._pytree import tree_map_only

from benchmarks import paths
from common.training import cli, loader

STEPS = 4
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
BATCHES = {"pointer_networks": 64, "clip": 16, "bart": 16, "videomae_v2": 16, "beats": 16}
OVERRIDES = {  # sets of one size: the mean over tokens of each half is then the mean over all
    "pointer_networks": ["--data.problem", "tsp", "--data.min_points", "6", "--model.lr", "0.05"],
    "videomae_v2": ["--data.train_clips", "32"],
    "beats": ["--data.num_clips", "16"],
}


class Recorder(Callback):
    """Every step's loss before the gradients are averaged, and the weight decay of every parameter."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.decay: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        groups = trainer.optimizers[0].param_groups
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        names = [(n.replace("_fsdp_wrapped_module.", ""), p) for n, p in pl_module.named_parameters()]
        self.decay = {name: decays[id(p)] for name, p in names if id(p) in decays}

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self.losses.append(float(loss.detach()))


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

    def mask(batch: int, length: int, masked: int, device: torch.device) -> torch.Tensor:
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
    """Train the paper's smoke config for STEPS steps, with a checkpoint before the last."""
    name, before, other = strategy.partition("from-")
    start = ["--ckpt_path", str(folder / f"{paper}-{other}" / "last.ckpt")] if before else []
    recorder = Recorder()
    standard = cli.standard_callbacks
    cli.standard_callbacks = lambda *arguments: [*standard(*arguments), recorder]
    accelerator = "gpu" if name == "fsdp" else "cpu"  # neither Lightning nor torch has FSDP on the CPU
    trainer = {"accelerator": accelerator, "devices": WORLD, "strategy": name or "auto", "max_steps": STEPS}
    trainer |= {"default_root_dir": folder / f"{paper}-{strategy}", "limit_val_batches": 0, "gradient_clip_val": "null"}
    trainer |= {"enable_model_summary": "false"}
    options = [part for name, value in trainer.items() for part in (f"--trainer.{name}", str(value))]
    options += ["--data.batch_size", str(BATCHES[paper] // WORLD), "--checkpoint_every", str(STEPS - 1)]
    config = f"papers/{paper}/configs/smoke.yaml"
    try:
        cli.run(["fit", "--config", config, *options, *OVERRIDES.get(paper, []), *start])
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
        for paper in BATCHES:
            recorder = train(paper, strategy, folder)
            file = folder / f"{paper}-{strategy}-{RANK}.json"
            file.write_text(json.dumps({"losses": recorder.losses, "decay": recorder.decay}))


if __name__ == "__main__":
    main()
