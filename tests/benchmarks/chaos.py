"""SIGKILL at random moments of `encore reproduce`: the results must be those of a run that nobody disturbed.

    python -m tests.benchmarks.chaos [--kills 50] [--seed 0] [--light]        (make chaos)

The claim has three units that train a small network through common.training.run.fit, so every kill meets real
checkpoints. A kill hits the engine, a unit, or the engine and all its units at once. When the run gets to its end
before the next kill, its results are compared and another begins, until there were enough kills. Meanwhile every result
file is read over and over: it must be whole whenever it is there.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.paper import paths
from benchmarks.run.units import is_result

PAPER = """\
slug: chaos
title: Training under fire
authors: [A. Author]
year: 2020
venue: Nowhere
modality: [text]
fidelity: confirmed
claims:
  - id: survives
    statement: the loss is below one
    paper_ref: none
    metric: score
    method: method
    baseline: -1.0
    higher_is_better: true
    seeds: [0, 1, 2]
    data: generated
    entry: "papers.chaos.claims:survives"
"""

CLAIMS = '''\
"""A small network on noisy numbers: dropout, shuffling, noise and the schedule all depend on where training stands."""

import time

import lightning as L
import torch
from torch import nn
from torch.utils.data import Dataset

from common.training.loaders import train_loader
from common.training.optim import adamw, schedule
from common.training.run import fit

STEPS = 60


class Numbers(Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return torch.full((4,), index / 50) + 0.1 * torch.randn(4)


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.GELU(), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        time.sleep(0.05)
        loss = (self.net(batch) - batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return schedule(adamw(self, lr=0.01), "cosine", warmup=5, total=STEPS)


def survives(run):
    L.seed_everything(run.seed, verbose=False)
    net = Net()
    data = lambda trainer: train_loader(Numbers(), 8, seed=run.seed, trainer=trainer)
    net = fit(net, data, run=run, max_steps=STEPS, checkpoint_every=10, log_every=1, accelerator="cpu")
    return {"score": -float(net.net[0].weight.square().sum())}
'''


@dataclass
class Outcome:
    """kills: by victim; runs: results compared; different: what was not as in the undisturbed run; torn: files read in
    part."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    different: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    leftovers: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.runs > 0 and not self.different and not self.torn


class Fire:
    """Runs `encore reproduce SLUG` in the tree at `root` again and again under kills."""

    def __init__(self, root: Path, slug: str, claim: str, *, seed: int = 0, say: Callable[[str], None] = print) -> None:
        self.root, self.slug, self.claim, self.say = root, slug, claim, say
        self.random = random.Random(seed)
        self.runs = root / "runs-chaos"
        self.record = root / "benchmarks" / "results" / slug / f"{claim}.json"

    def rage(self, kills: int) -> Outcome:
        """Compare disturbed runs with an undisturbed one until there were so many kills."""
        begun = time.monotonic()
        outcome = Outcome()
        self._start().wait()
        lasted = time.monotonic() - begun
        expected = self._results()
        self.say(f"undisturbed: {lasted:.1f} s, {len(expected)} results")
        with self._reading(outcome):
            while sum(outcome.kills.values()) < kills or outcome.runs == 0:
                self._forget()
                while self._one_life(outcome, lasted if sum(outcome.kills.values()) < kills else None) != 0:
                    pass
                outcome.runs += 1
                if (found := self._results()) != expected:
                    outcome.different.append(f"run {outcome.runs}: {found} instead of {expected}")
                outcome.leftovers += len(list(self.record.parent.glob(".*.tmp")))
                self.say(
                    f"run {outcome.runs}: {'as undisturbed' if found == expected else 'DIFFERENT'}, {outcome.kills}"
                )
        outcome.seconds = time.monotonic() - begun
        return outcome

    def _one_life(self, outcome: Outcome, lasted: float | None) -> int:
        """Start the engine and kill something at a random moment (None: nothing); the status it ends with."""
        engine = self._start()
        if lasted is not None:
            try:
                return engine.wait(self.random.uniform(0.0, lasted))
            except subprocess.TimeoutExpired:
                victim = self._kill(psutil.Process(engine.pid))
                outcome.kills[victim] += 1
        return engine.wait(timeout=300)

    def _kill(self, engine: psutil.Process) -> str:
        try:
            units = engine.children()
            victim = self.random.choice(["engine", "unit", "all"] if units else ["engine"])
            targets = {"engine": [engine], "unit": units and [self.random.choice(units)], "all": [engine, *units]}
            for process in targets[victim]:
                process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            return "too late"
        return victim

    def _start(self, *what: str) -> subprocess.Popen:
        environment = paths.child_environment(ENCORE_ROOT=str(self.root), ENCORE_RUNS=str(self.runs))
        command = [sys.executable, "-m", "benchmarks.cli", *(what or ("reproduce", self.slug, "--workers", "2"))]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=self.root, env=environment, **silent)

    def _forget(self) -> None:
        shutil.rmtree(self.runs, ignore_errors=True)
        for file in self.record.parent.glob("*.json"):
            file.unlink()

    def _results(self) -> dict[str, Any]:
        """What must not depend on kills: metrics and curves of every unit, and the code they came from."""
        self._start("record", self.slug, self.claim).wait()
        record = json.loads(self.record.read_text())
        curves = json.loads(self.record.with_suffix(".curves.json").read_text())
        found = {f"{u['arm']}-{u['seed']}": [u["metrics"], curves[f"{u['arm']}-{u['seed']}"]] for u in record["units"]}
        return {**found, "code": record["code"]}

    @contextmanager
    def _reading(self, outcome: Outcome) -> Iterator[None]:
        over = threading.Event()

        def read() -> None:
            while not over.wait(0.02):
                units = [
                    Path(folder) / "result.json" for folder, _, names in os.walk(self.runs) if "result.json" in names
                ]
                for file in [*units, self.record]:
                    try:
                        content = json.loads(file.read_text())
                    except FileNotFoundError:
                        continue
                    except ValueError as error:
                        outcome.torn.append(f"{file}: {error}")
                        continue
                    if not all(map(is_result, content.get("units", [content]))):
                        outcome.torn.append(f"{file}: {content}")

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield
        finally:
            over.set()
            reader.join()


def training(root: Path) -> tuple[str, str]:
    """A tree with the claim above: (paper, claim)."""
    (root / "common").symlink_to(paths.REPOSITORY / "common")
    files = {"__init__.py": "", "chaos/__init__.py": "", "chaos/paper.yaml": PAPER, "chaos/claims.py": CLAIMS}
    for name, text in files.items():
        (root / "papers" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "papers" / name).write_text(text)
    return "chaos", "survives"


def counting(root: Path) -> tuple[str, str]:
    """The tree of the tests, whose units count to five with a checkpoint at each step and need no torch."""
    from tests.benchmarks.conftest import FILES

    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text.replace("baseline: baseline", "baseline: 3"))
    for name in ("errors.py", "files.py", "plain_yaml.py"):
        shutil.copy(paths.REPOSITORY / "common" / name, root / "common" / name)
    os.environ |= {"TOY_CALLS": str(root / "calls"), "TOY_SECONDS": "1"}
    return "toy", "better"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.chaos", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--light", action="store_true", help="units that count instead of training: a minute or two")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="encore-chaos-") as folder:
        paper, claim = (counting if given.light else training)(Path(folder))
        fire = Fire(Path(folder), paper, claim, seed=given.seed, say=lambda line: print(line, flush=True))
        outcome = fire.rage(given.kills)
    for problem in [*outcome.different, *outcome.torn]:
        print(f"error: {problem}", file=sys.stderr)
    kills = ", ".join(f"{n} {victim}" for victim, n in outcome.kills.items())
    print(
        f"{sum(outcome.kills.values())} kills ({kills}) in {outcome.seconds:.0f} s; {outcome.runs} runs, "
        f"{len(outcome.different)} different, {len(outcome.torn)} torn files, {outcome.leftovers} temporary files left"
    )
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
