"""Runs that are killed outright at random moments and started again, held against one that is left alone."""

import csv
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten_with_path


def in_child(work: Callable[[], Any], kill_after: float | None = None, number: int = signal.SIGKILL) -> int:
    """Exit status of `work` in a fork of this process, negative where a signal ended it; killed after some seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        torch.set_num_threads(1)  # the threads of an OpenMP team are not forked: waiting for them would never end
        try:
            if kill_after is not None:
                timer = threading.Timer(kill_after, os.kill, (os.getpid(), number))
                timer.daemon = True
                timer.start()
            work()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def assert_kills_change_nothing(train: Callable[[Path], Any], tmp_path: Path, kills: int = 3, seed: int = 0) -> int:
    """train(folder) starts a run or goes on with it. Killed `kills` times, it ends with the checkpoint (weights,
    optimizer, schedule, random state) and the log of one that was left alone. Returns how many kills came in time."""
    whole, often = tmp_path / "whole", tmp_path / "often"
    started = time.perf_counter()
    assert in_child(lambda: train(whole)) == 0
    seconds, moments, hit = time.perf_counter() - started, random.Random(seed), 0
    for _ in range(kills):
        if in_child(lambda: train(often), kill_after=moments.uniform(0.1, 0.95) * seconds) < 0:
            hit += 1
        else:  # it was quicker than the first, on a machine whose load has changed: again, and sooner
            shutil.rmtree(often)
            seconds /= 2
    assert in_child(lambda: train(often)) == 0
    assert_same_run(whole, often)
    return hit


def assert_same_run(one: Path, other: Path) -> None:
    """Equal checkpoints and equal logs, but for measured speed."""
    a, b = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (one, other))
    for part in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(a[part], b[part], part)
    assert_equal(a["callbacks"]["RandomState"], b["callbacks"]["RandomState"], "random state")
    assert logged(one) == logged(other)


def assert_equal(a: Any, b: Any, where: str) -> None:
    (left, form), (right, other) = tree_flatten_with_path(a), tree_flatten_with_path(b)
    assert form == other, f"{where} has another form"
    for (path, x), (_, y) in zip(left, right, strict=True):
        same = torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        assert same, f"{where}{''.join(map(str, path))} differs"


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and not k.startswith("speed/")} for row in rows]
