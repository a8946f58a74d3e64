"""The train script of every paper: Lightning's command line with Encore's trainer.

    python -m papers.clip.train fit --config papers/clip/configs/cpu.yaml [--trainer.max_steps 100] [--ckpt_path last]

A config names the module and the data module by class path. Logs go to metrics.csv in trainer.default_root_dir, and
with
--log tensorboard or --log wandb (offline unless WANDB_MODE says otherwise) to these as well. last.ckpt is written every
--checkpoint_every steps; --ckpt_path last continues from it exactly.
"""

import logging
import os
import shlex
import sys
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from common.errors import EncoreError
from common.fast.sharded import FullySharded
from common.fast.throughput import Throughput
from common.interop import read_checkpoint
from common.interop.checkpoint import RECORD, check_training_state
from common.interop.weights import check_fits
from common.plain_yaml import read_mapping
from common.training.log import MetricsCSV
from common.training.trainer import AtomicIO, last_checkpoint, standard_callbacks


class KeepConfig(SaveConfigCallback):
    """config.yaml beside the logs, and the same text in every checkpoint: one file says what its weights are."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD] = {"config": self.parser.dump(self.config, skip_none=False)}


class ClipBesideFused(Callback):
    """Lets gradients be clipped under mixed precision with a fused optimizer.

    Such an optimizer would divide gradients by the scaler's factor inside its own step, after they were clipped, so
    Lightning refuses the two together. Told that it does not, torch's scaler divides them before.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.gradient_clip_val:
            for optimizer in trainer.optimizers:
                vars(optimizer)["_step_supports_amp_scaling"] = False


class EncoreCLI(LightningCLI):
    """LightningCLI in subclass mode, with exact resume, one-line errors and a choice of loggers."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--log", default="csv", choices=["csv", "tensorboard", "wandb"], help="log here beside the CSV"
        )
        parser.add_argument("--checkpoint_every", type=int, default=500, help="steps between two last.ckpt")
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="start afresh in a folder that holds a run, which is lost"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for name in config_files(sys.argv[1:] if args is None else args):
            read_mapping(name)
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise EncoreError(one_line(str(error))) from error

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise EncoreError(f"model or data cannot be built: {one_line(str(error))}") from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        folder = Path(self._get(self.config_init, "trainer.default_root_dir") or self._usual_folder())
        kwargs.setdefault("default_root_dir", str(folder))
        devices = self._get(self.config_init, "trainer.devices")
        if self._get(self.config_init, "trainer.accelerator") == "cpu" and str(devices).isdecimal():
            _check_processes(int(devices))
        if self._get(self.config_init, "trainer.logger") is None:
            name = "metrics.csv" if self.subcommand == "fit" else f"{self.subcommand}.csv"
            kwargs["logger"] = [MetricsCSV(folder, name), *extra_loggers(self._get(self.config_init, "log"), folder)]
        own = [*standard_callbacks(folder, self._get(self.config_init, "checkpoint_every")), Throughput()]
        own.append(ClipBesideFused())
        kwargs["plugins"] = [*(self._get(self.config_init, "trainer.plugins") or []), AtomicIO()]
        if self._get(self.config_init, "trainer.strategy") == "fsdp":
            kwargs |= {"strategy": FullySharded(), "inference_mode": False}  # its weights are used in training, too
        kwargs["callbacks"] = [*(self._get(self.config_init, "trainer.callbacks") or []), *own]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:  # fsdp with float16, more devices than there are
            raise EncoreError(f"trainer: {' '.join(str(error).split())}") from error

    def _parse_ckpt_path(self) -> None:
        """Lightning would take hyper-parameters from the checkpoint here; in Encore the config alone states them."""

    def before_instantiate_classes(self) -> None:
        if self.subcommand:
            self.config[self.subcommand]["weights_only"] = True

    def before_fit(self) -> None:
        self._check_checkpoint()
        trainer: Any = self.trainer
        if trainer.is_global_zero and not trainer.fast_dev_run:
            self._keep_other_runs()

    def before_validate(self) -> None:
        self._check_checkpoint()

    before_test = before_predict = before_validate

    def after_fit(self) -> None:
        """One line: how it ended, where its weights are, what to do next."""
        trainer, path = self.trainer, last_checkpoint(self.trainer.default_root_dir)
        if not trainer.is_global_zero or path is None:
            return
        loss = trainer.callback_metrics.get("train/loss")
        said = f"loss {float(loss):.4g} " if loss is not None else ""
        print(f"{said}after {trainer.global_step} steps, kept in {path}{self._next_command(path)}", flush=True)

    def _next_command(self, path: str) -> str:
        """How to train on, where a paper's own script was used."""
        room = type(self.model).__module__.rpartition(".")[0]
        if not room.startswith("papers."):
            return ""
        config = str(Path(self.trainer.default_root_dir) / "config.yaml")
        more = ["--trainer.max_steps", str(2 * self.trainer.global_step), "--ckpt_path", path]
        return f"; to train on: {shlex.join(['python', '-m', f'{room}.train', 'fit', '--config', config, *more])}"

    def _usual_folder(self) -> str:
        """runs/<paper>/<config>, where the configuration names no folder."""
        configs = self._get(self.config_init, "config") or []
        name = Path(str(configs[-1])).stem if configs else "train"
        paper = type(self.model).__module__.split(".")[1] if type(self.model).__module__.startswith("papers.") else ""
        return str(Path("runs", paper, name))

    def _keep_other_runs(self) -> None:
        """Refuse to write over a run that this one does not go on with."""
        folder, config = Path(self.trainer.default_root_dir), self.config_init["fit"]
        path, last = config.get("ckpt_path"), folder / "last.ckpt"
        found = next((file for file in (last, folder / "metrics.csv") if file.exists()), None)
        if found is None or (path and Path(path).resolve().parent == folder.resolve()):
            return
        if not config.get("overwrite") and not (self.asked_for_last and found != last):
            raise EncoreError(
                f"{found}: a run is there already; --ckpt_path last goes on with it, --trainer.default_root_dir names "
                "another folder, --overwrite true starts afresh"
            )
        last.unlink(missing_ok=True)  # else a kill before the first checkpoint would leave the old run's

    def _check_checkpoint(self) -> None:
        """Turn `last` into a path, and a damaged or unfitting checkpoint into an error that names it."""
        config = self.config_init[self.subcommand]
        path = config.get("ckpt_path")
        self.asked_for_last = path == "last"
        if path == "last":
            path = last_checkpoint(self.trainer.default_root_dir)
            config["ckpt_path"] = path
            if path is None:
                logging.getLogger("encore").warning(
                    "no last.ckpt in %s: starting afresh", self.trainer.default_root_dir
                )
        if path:
            checkpoint = read_checkpoint(path)
            check_training_state(checkpoint, path)
            check_fits(self.model, checkpoint["state_dict"], path)


class Parsed(EncoreCLI):
    """A command line after merging its configs and filling in every default; nothing is built, seeded or run."""

    def _set_seed(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def _check_processes(wanted: int) -> None:
    most = max(4, os.cpu_count() or 1)  # a few on a small machine are a fair way to try things
    if wanted > most:
        raise EncoreError(f"trainer.devices: {wanted} processes, and this machine has cores for {most}; lower it")


def config_files(args: Any) -> list[Path]:
    """Files of configuration among the arguments."""
    given = [part for arg in args for part in str(arg).split("=", 1)] if isinstance(args, list) else []
    return [Path(part) for part in given if part.endswith((".yaml", ".yml")) and Path(part).is_file()]


DULL = (
    "Given value",
    "Problem with given class_path",
    "Subtypes:",
    "Does not val",
    "Errors:",
    "Expected a <class 'None",
)


def one_line(message: str) -> str:
    """What the argument parser says: the fields it names and the innermost reasons, without its listing of types."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    told = [line for line in lines if not line.startswith(DULL)]
    return "; ".join(told[:1] + [line for line in told[-1:] if line != told[0]])[:500]


def extra_loggers(kind: str, folder: Path) -> list[Logger]:
    """TensorBoard or Weights & Biases beside the CSV; wandb works offline unless WANDB_MODE is set."""
    if kind == "tensorboard":
        return [TensorBoardLogger(str(folder), name="tensorboard", version="")]
    if kind == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
        folder.mkdir(parents=True, exist_ok=True)
        return [WandbLogger(project="encore", save_dir=str(folder), offline=os.environ["WANDB_MODE"] == "offline")]
    return []


def run(args: list[str] | None = None, kind: type[EncoreCLI] = EncoreCLI) -> EncoreCLI:
    """Parse `args` (default: the command line) and do what they say. Raises EncoreError on bad input."""
    callbacks = [RichProgressBar(leave=True)] if sys.stderr.isatty() and sys.stdout.isatty() else []
    return kind(
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=KeepConfig,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "callbacks": callbacks,
            "max_epochs": -1,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": bool(callbacks),
        },
        seed_everything_default=0,
        parser_kwargs={"exit_on_error": False} | {name: {"exit_on_error": False} for name in EncoreCLI.subcommands()},
        args=args,
    )


def main(args: list[str] | None = None) -> None:
    """`run` for a terminal: bad input is one line on stderr and exit code 2."""
    try:
        run(args)
    except EncoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SIGTERMException:
        print("stopped by SIGTERM; the same command with --ckpt_path last goes on", file=sys.stderr)
        sys.exit(143)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        print(f"error: data.num_workers: {' '.join(str(error).split())}; its memory may be short", file=sys.stderr)
        sys.exit(2)
