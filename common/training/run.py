"""One unit of work of a claim, and training inside it so that a kill costs at most one checkpoint interval."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning as L
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.errors import EncoreError
from common.interop import check_and_load, read_checkpoint
from common.interop.weights import names
from common.training.loaders import train_loader
from common.training.trainer import atomic_save, build_trainer, last_checkpoint
from common.training.wiring import Wiring, handed_to, mark_handed, weights_digest

Scale = Literal["smoke", "cpu", "gpu"]
M = TypeVar("M", bound=L.LightningModule)
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """(paper, claim, arm, seed) at a scale. `dir` belongs to this unit alone and survives a kill.

    `record` fills with what the unit is wired to; the harness compares it between arms and seeds.
    """

    paper: str
    claim: str
    arm: str
    seed: int
    scale: Scale
    dir: Path
    threads: int = 1
    record: Wiring = field(default_factory=Wiring, compare=False, repr=False)

    def split(self, name: str, data: T, *, overlap: str | None = None) -> T:
        """`data`, unchanged, declared as the examples of a split: a list, a tensor of rows, a map-style dataset.

        name: "train", "valid" or "test", or one of these with a name of its own, "train:fold0". No example may be in
        two splits of different roles ("train:fold0" is held against "test:fold0" and "test", not "test:fold1") unless
        `overlap` says why; arms of a seed must give the same examples under the same name. Declare what identifies an
        example (the clean image, the text), not a view of it. Of more than 4096 examples as many, evenly spaced, are
        looked at. `fit` refuses to train on an object that was declared as a test split.
        """
        self.record.split(name, data, overlap)
        return data

    def settings(self, **settings: Any) -> None:
        """Records what this arm does, as JSON values; what `fit` knows (steps, batch, rates, ...) it records itself.

        paper.yaml says under `arms` in which of them arms may differ.
        """
        try:
            self.record.settings |= json.loads(json.dumps(settings))
        except TypeError as error:
            raise EncoreError(f"settings of arm {self.arm}: {error}; record numbers, text, lists of them") from error


def sizes(run: Run, *, smoke: T, cpu: T, gpu: T | None = None) -> T:
    """The value for run.scale; without one for `gpu` that of `cpu`."""
    return {"smoke": smoke, "cpu": cpu, "gpu": cpu if gpu is None else gpu}[run.scale]


class _FromFunction(L.LightningDataModule):
    """A data module around a function trainer -> training loader."""

    def __init__(self, make: Callable[[L.Trainer], DataLoader]) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        return self.make(self.trainer)


def fit(
    module: M,
    data: L.LightningDataModule | Callable[[L.Trainer], DataLoader],
    *,
    run: Run,
    max_steps: int,
    name: str = "fit",
    checkpoint_every: int = 100,
    log_every: int = 10,
    **trainer: Any,
) -> M:
    """Train `module` for max_steps on `data`: a data module, or a function `lambda trainer: train_loader(...,
    trainer=trainer)` (`train_on` writes that one).

    Training is seeded with run.seed; build the module under a seed of your own choice (lightning.seed_everything).
    Checkpoints go to run.dir / name: a killed fit continues from the last one with the same numbers, a finished fit is
    not repeated (its weights are loaded). Returns the module, in eval mode, on the device it was trained on.

    run.record.fits[name] then says: module (class), steps, batch_size (examples an optimizer step), examples (steps *
    batch_size), lr (largest of each optimizer), parameters (trainable), data (the split it was trained on, None when
    that is not a declared one), start and end (digests of all weights), handed_over (digest of weights received).
    """
    folder = run.dir / name
    done = folder / "done.ckpt"
    if done.exists():
        kept = read_checkpoint(done)
        check_and_load(module, kept["state_dict"], done)
        run.record.fits[name] = kept.get("fit", {})
        return module.eval()
    facts: dict[str, Any] = {"module": type(module).__name__, "steps": max_steps}
    facts |= {"start": weights_digest(module.state_dict()), "handed_over": handed_to(module)}
    L.seed_everything(run.seed, verbose=False)
    loop = build_trainer(folder, max_steps=max_steps, checkpoint_every=checkpoint_every, log_every=log_every, **trainer)
    source = data if isinstance(data, L.LightningDataModule) else _FromFunction(data)
    loop.fit(module, datamodule=source, ckpt_path=last_checkpoint(folder), weights_only=True)
    if loop.interrupted:
        raise KeyboardInterrupt
    facts |= _facts_of(loop, run) | {"end": weights_digest(module.state_dict())}
    run.record.fits[name] = facts
    atomic_save({"state_dict": module.state_dict(), "fit": facts}, done)
    return module.eval()


def _facts_of(loop: L.Trainer, run: Run) -> dict[str, Any]:
    """What a finished training used: its batch size, rates, trainable parameters, and the split."""
    loader: Any = loop.train_dataloader
    data = getattr(loader.dataset, "dataset", loader.dataset)  # train_loader wraps what it is given
    split = run.record.name_of(data)
    if split is not None and split.startswith("test"):
        raise EncoreError(f"{run.claim}, arm {run.arm}: trains on its split {split!r}; train on a split of its own")
    each = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 0)
    batch = each * loop.world_size * loop.accumulate_grad_batches
    groups = [one.param_groups for one in loop.optimizers]
    rates = [max((group.get("initial_lr", group["lr"]) for group in each), default=0.0) for each in groups]
    return {
        "batch_size": batch,
        "examples": batch * loop.global_step,
        "lr": rates[0] if len(rates) == 1 else rates,
        "parameters": sum(p.numel() for p in loop.lightning_module.parameters() if p.requires_grad),
        "data": split,
    }


def train_on(
    run: Run,
    module: M,
    dataset: Any,
    *,
    steps: int,
    batch_size: int,
    collate: Callable[[list[Any]], Any] | None = None,
    name: str = "fit",
    **options: Any,
) -> M:
    """`fit` on shuffled batches of a map-style dataset, in an order that run.seed alone decides: equal for all arms.

    options: of `fit`, such as gradient_clip_val.
    """

    def loader(trainer: L.Trainer) -> DataLoader:
        return train_loader(dataset, batch_size, seed=run.seed, num_batches=steps, trainer=trainer, collate_fn=collate)

    return fit(module, loader, run=run, max_steps=steps, name=name, **options)


def hand_over(
    source: nn.Module | Mapping[str, Tensor],
    target: nn.Module,
    *,
    rename: Mapping[str, str] | None = None,
    fresh: Collection[str] = (),
) -> None:
    """Load the weights of `source`, a module or a state dict, into `target`; a later `fit` records that it happened.

    rename: {prefix in source: prefix in target}; the weights under other prefixes are left out. fresh: names or
    prefixes (up to a dot) of target that keep their initial weights, such as a new head. What only source has is not
    used. EncoreError when another weight or buffer of target finds none in source, a shape differs, or `fresh` names
    nothing.
    """
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if rename is not None:
        pairs = [(old, new, key) for key in state for old, new in rename.items() if key.startswith(old)]
        state = {new + key.removeprefix(old): state[key] for old, new, key in pairs}
    own = target.state_dict()
    kept = {key for key in own for part in fresh if key == part or key.startswith(f"{part.rstrip('.')}.")}
    idle = [part for part in fresh if not any(key == part or key.startswith(f"{part.rstrip('.')}.") for key in own)]
    used = {key: state[key] for key in own if key in state and key not in kept}
    tied = {own[key].data_ptr() for key in used}
    untouched = [key for key in own if key not in used and key not in kept and own[key].data_ptr() not in tied]
    shapes = [key for key in used if used[key].shape != own[key].shape]
    problems = [f"nothing reaches {names(untouched)}"] if untouched else []
    problems += [f"other shape: {names(shapes)}"] if shapes else []
    problems += [f"fresh names nothing: {names(idle)}"] if idle else []
    problems += ["no weight is used"] if not used else []
    if problems:
        raise EncoreError(
            f"hand-over to {type(target).__name__}: {'; '.join(problems)}; correct rename, or name what is new in fresh"
        )
    target.load_state_dict(used, strict=False)
    mark_handed(target, used)
