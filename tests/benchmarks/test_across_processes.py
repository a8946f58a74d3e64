"""One training run over two processes: the losses of one process with the whole batch, contrastive ones included."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.paper import paths
from tests.benchmarks.across import BATCHES, CONTINUED, CORNERS, EXPORTED, KEPT, STEPS

ALONE = [sys.executable, "-m", "tests.benchmarks.across"]
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *ALONE[1:]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with what every process recorded: as one of two with ddp and with fsdp, and alone."""
    folder = tmp_path_factory.mktemp("across")
    finish(start(TOGETHER, folder, "ddp", "fsdp", "fsdp-from-ddp"))
    finish(start(ALONE, folder, "auto", "from-fsdp"))
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
    alone = record(runs, paper, "auto", 0)
    ranks = [record(runs, paper, strategy, rank) for rank in range(2)]
    assert [len(each["losses"]) for each in (alone, *ranks)] == [STEPS] * 3
    assert ranks[0]["losses"] != ranks[1]["losses"], "each process must have rows of its own"
    assert mean(ranks) == pytest.approx(alone["losses"], rel=2e-6)
    assert len(set(alone["losses"])) == STEPS, "the weights must change between the steps"
    assert ranks[0]["decay"] == alone["decay"]
    assert ranks[0]["validation"] == pytest.approx(alone["validation"])


def distance(ours, theirs):
    """||ours - theirs|| / ||theirs|| over all tensors of two dictionaries."""
    torch = pytest.importorskip("torch")
    assert ours.keys() == theirs.keys()
    difference, size = (
        torch.cat([value(name).flatten().double() for name in theirs]).norm()
        for value in (lambda name: ours[name] - theirs[name], lambda name: theirs[name])
    )
    return float(difference / size)


def checkpoint(runs, paper, strategy):
    from common.interop import read_checkpoint

    return read_checkpoint(runs / f"{paper}-{strategy}" / "kept.ckpt")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("paper", BATCHES)
def test_the_checkpoint_of_two_processes_is_the_file_that_one_process_writes(runs, paper, strategy):
    """Weights differ by more than rounding: Adam turns that of a vanishing gradient into a step of its own size. Its
    moments, which are means of gradients, tell a gradient that was not averaged or was summed."""
    alone, together = (checkpoint(runs, paper, each) for each in ("auto", strategy))
    assert distance(together["state_dict"], alone["state_dict"]) < 2e-3
    ours, theirs = (each["optimizer_states"][0] for each in (together, alone))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, moments in theirs["state"].items():
        for name, moment in moments.items():
            assert distance({0: ours["state"][number][name]}, {0: moment}) < 2e-4, (number, name)


@pytest.mark.parametrize("paper", BATCHES)
def test_a_checkpoint_of_sharded_processes_is_continued_by_a_single_one(runs, paper):
    continued = record(runs, paper, "from-fsdp", 0)["losses"]
    assert continued == pytest.approx(record(runs, paper, "auto", 0)["losses"][KEPT:], rel=2e-6)


@pytest.mark.parametrize("paper", CONTINUED)
def test_sharded_processes_continue_a_checkpoint_that_is_not_sharded(runs, paper):
    for rank in range(2):
        continued = record(runs, paper, "fsdp-from-ddp", rank)["losses"]
        assert continued == pytest.approx(record(runs, paper, "ddp", rank)["losses"][KEPT:], rel=2e-6)


def test_what_cannot_be_sharded_trains_as_with_ddp(runs):
    """Statistics of one process hold for all, weights that a step normalises stay so, and clipping sees all shards."""
    for rank in range(2):
        ours, theirs = (record(runs, CORNERS, strategy, rank)["losses"] for strategy in ("fsdp", "ddp"))
        assert ours == pytest.approx(theirs, rel=2e-6)
    ours, theirs = (checkpoint(runs, CORNERS, strategy)["state_dict"] for strategy in ("fsdp", "ddp"))
    for name, value in theirs.items():
        assert distance({name: ours[name]}, {name: value}) < 2e-6, name


def test_the_end_of_training_sees_whole_weights_on_the_first_process(runs):
    """Where encoders are exported; layers too, which are whole during their own forward only."""
    torch = pytest.importorskip("torch")
    ours, theirs = (
        torch.load(runs / f"{CORNERS}-{strategy}" / EXPORTED, weights_only=True) for strategy in ("fsdp", "ddp")
    )
    for name, value in theirs.items():
        assert distance({name: ours[name]}, {name: value}) < 2e-6, name


def mean(ranks):
    """Loss of each step, averaged over the processes as their gradients are."""
    return [sum(losses) / len(ranks) for losses in zip(*(each["losses"] for each in ranks))]


def test_a_process_that_is_not_the_first_leaves_the_log_alone(tmp_path, monkeypatch):
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from common.training.log import MetricsCSV

    (tmp_path / "metrics.csv").write_text("loss,step\n1.0,0\n")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log = MetricsCSV(tmp_path)
    log.keep_before(0)
    log.log_metrics({"loss": 2.0}, 1)
    assert (tmp_path / "metrics.csv").read_text() == "loss,step\n1.0,0\n"
