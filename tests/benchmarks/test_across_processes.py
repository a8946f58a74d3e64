"""One training run over two processes: the losses of one process with the whole batch, contrastive ones included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import paths
from tests.benchmarks.across import BATCHES, STEPS

ALONE = [sys.executable, "-m", "tests.benchmarks.across"]
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *ALONE[1:]]
two_gpus = pytest.mark.skipif(
    len(list(Path("/dev").glob("nvidia[0-9]*"))) < 2,
    reason="FSDP needs two GPUs: neither Lightning nor torch has it on the CPU",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with what every process recorded: alone, and as one of two with ddp."""
    folder = tmp_path_factory.mktemp("across")
    for process in [start(ALONE, folder, "auto"), start(TOGETHER, folder, "ddp")]:
        finish(process)
    return folder


@pytest.fixture(scope="module")
def sharded(runs):
    """The same with two processes under fsdp, then alone from the checkpoint they wrote."""
    finish(start(TOGETHER, runs, "fsdp"))
    finish(start(ALONE, runs, "from-fsdp"))
    return runs


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


@pytest.mark.parametrize("paper", BATCHES)
def test_two_processes_have_the_losses_of_one_with_the_whole_batch(runs, paper):
    alone = record(runs, paper, "auto", 0)
    ranks = [record(runs, paper, "ddp", rank) for rank in range(2)]
    assert [len(each["losses"]) for each in (alone, *ranks)] == [STEPS] * 3
    assert ranks[0]["losses"] != ranks[1]["losses"], "each process must have rows of its own"
    assert mean(ranks) == pytest.approx(alone["losses"], rel=2e-6)
    assert len(set(alone["losses"])) == STEPS, "the weights must change between the steps"
    assert ranks[0]["decay"] == alone["decay"]


@pytest.mark.parametrize("paper", BATCHES)
def test_the_checkpoint_of_two_processes_is_one_file_that_one_process_reads(runs, paper):
    """Not equal to the last bit: Adam turns the rounding of a vanishing gradient into a step of its own size."""
    torch = pytest.importorskip("torch")
    from common.interop import read_checkpoint

    alone, together = (
        read_checkpoint(runs / f"{paper}-{strategy}" / "last.ckpt")["state_dict"] for strategy in ("auto", "ddp")
    )
    assert alone.keys() == together.keys()
    difference, size = (
        torch.cat([value(name).flatten().double() for name in alone]).norm()
        for value in (lambda name: alone[name] - together[name], lambda name: alone[name])
    )
    assert difference < 2e-3 * size


@two_gpus
@pytest.mark.parametrize("paper", BATCHES)
def test_a_checkpoint_of_sharded_processes_is_continued_by_a_single_one(sharded, paper):
    """Losses, weight decay of every parameter, and the next loss of a single process from the sharded checkpoint."""
    alone = record(sharded, paper, "auto", 0)
    ranks = [record(sharded, paper, "fsdp", rank) for rank in range(2)]
    assert mean(ranks) == pytest.approx(alone["losses"], rel=1e-3)
    assert ranks[0]["decay"] == alone["decay"]
    (continued,) = record(sharded, paper, "from-fsdp", 0)["losses"]
    assert continued == pytest.approx(alone["losses"][-1], rel=1e-3)


def mean(ranks):
    """Loss of each step, averaged over the processes as their gradients are."""
    return [sum(losses) / len(ranks) for losses in zip(*(each["losses"] for each in ranks))]


def test_the_log_of_a_process_that_is_not_the_first_has_nothing_to_put_back(tmp_path, monkeypatch):
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from common.training.cli import FirstProcessCSV

    log = FirstProcessCSV(tmp_path)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log.keep_before(0)
