"""One training run over two processes: the losses of one process with the whole batch, contrastive ones included."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import paths
from tests.benchmarks.across import BATCHES, STEPS

ALONE = [sys.executable, "-m", "tests.benchmarks.across"]
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *ALONE[1:]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with what every process recorded: alone, as one of two with ddp and fsdp, alone from fsdp's checkpoint."""
    folder = tmp_path_factory.mktemp("across")
    both = [start(ALONE, folder, "auto"), start(TOGETHER, folder, "ddp", "fsdp")]
    for process in both:
        finish(process)
    finish(start(ALONE, folder, "from-fsdp"))
    return folder


def start(command, folder, *strategies):
    return subprocess.Popen(
        [*command, str(folder), *strategies],
        cwd=paths.REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said


def record(folder, paper, strategy, rank):
    return json.loads((folder / f"{paper}-{strategy}-{rank}.json").read_text())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("paper", BATCHES)
def test_two_processes_have_the_losses_of_one_with_the_whole_batch(runs, paper, strategy):
    alone = record(runs, paper, "auto", 0)["losses"]
    ranks = [record(runs, paper, strategy, rank)["losses"] for rank in range(2)]
    assert [len(losses) for losses in (alone, *ranks)] == [STEPS] * 3
    assert ranks[0] != ranks[1], "each process must have rows of its own"
    together = [sum(losses) / 2 for losses in zip(*ranks)]
    assert together == pytest.approx(alone, rel=2e-5)
    assert alone[0] != alone[1]


@pytest.mark.parametrize("paper", BATCHES)
def test_a_checkpoint_of_sharded_processes_is_continued_by_a_single_one(runs, paper):
    """Weights, optimizer, schedule and position in the data: the next loss is the one of an undivided run."""
    (continued,) = record(runs, paper, "from-fsdp", 0)["losses"]
    assert continued == pytest.approx(record(runs, paper, "auto", 0)["losses"][-1], rel=2e-5)


@pytest.mark.parametrize("paper", BATCHES)
def test_every_parameter_has_the_same_weight_decay_under_every_strategy(runs, paper):
    alone = record(runs, paper, "auto", 0)["decay"]
    assert set(alone.values()) != set()
    for strategy in ("ddp", "fsdp"):
        found = record(runs, paper, strategy, 0)["decay"]
        assert {name.replace("module.", "", 1) if name not in alone else name: v for name, v in found.items()} == alone
