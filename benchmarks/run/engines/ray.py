"""The Ray engine: every unit is a task with its cores, GPUs and memory, on the cluster at RAY_ADDRESS or a local one.

A worker runs its unit as a child process, as the local engine does. When the worker dies, the child ends with it, and
Ray runs the task again, which goes on from the last checkpoint. A task hands its result back, and this process writes
it where it is not there yet: the workers need this tree and environment under the same paths, but not the same runs/
(a unit that is then retried on another machine starts anew).
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.paper import paths
from benchmarks.paper.files import write_atomic
from benchmarks.run.engines import RETRIES, Job, interruptible, longest_first, optional, past_seconds
from benchmarks.run.engines.child import run_to_end
from benchmarks.run.progress import progress_view
from benchmarks.run.provenance import cores
from benchmarks.run.units import Unit
from common.errors import EncoreError

OBJECT_STORE_BYTES = 80 * 2**20  # results are small
PASSED_ON = ("PYTHONPATH", "ENCORE_ROOT", "ENCORE_RUNS", "ENCORE_DATA", "ENCORE_MIRROR")
PATIENCE_SECONDS = 5.0


def run_units(jobs: list[Job], *, workers: int | None) -> dict[Unit, str]:
    """See benchmarks.run.engines; a local cluster has `workers` cores (default: those of this machine)."""
    ray = optional("ray", "ray")
    environment = paths.child_environment()
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {name: environment[name] for name in PASSED_ON if name in environment}},
        "configure_logging": False,
        "log_to_driver": False,
    }
    if not os.environ.get("RAY_ADDRESS"):
        local = {"num_cpus": workers or cores(), "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        options |= {"address": "local", **local}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EncoreError(f"no Ray cluster at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: {error}") from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for job in jobs:
            if not any(_fits(job, node) for node in nodes):
                raise EncoreError(f"no machine of the Ray cluster has what {job.unit.name} needs: {_wanted(job)}")
        with interruptible() as check:
            return _run(ray, longest_first(jobs), workers, check)
    finally:
        ray.shutdown()


def _run(ray: Any, waiting: list[Job], workers: int | None, check: Callable[[], None]) -> dict[Unit, str]:
    at_once = workers or len(waiting)
    running: dict[Any, Job] = {}
    failed: dict[Unit, str] = {}
    with progress_view({job.unit: past_seconds(job.unit) for job in waiting}, min(at_once, len(waiting))) as view:
        try:
            while waiting or running:
                check()
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    task = ray.remote(run_unit).options(name=job.unit.name, max_retries=RETRIES, **_wanted(job))
                    running[task.remote(job)] = job
                done, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
                for task in done:
                    job = running.pop(task)
                    why, seconds = _collect(ray, task, job)
                    if why:
                        failed[job.unit] = why
                    view.ended(job.unit, seconds, why)
        finally:
            _cancel(ray, running)
    return failed


def run_unit(job: Job) -> tuple[str, dict[str, Any] | None, float]:
    """On the worker: (why it failed or "", its result, seconds)."""
    begun = time.monotonic()
    why = run_to_end(job, threads=job.needs.cores)
    return why, None if why else job.unit.result(), time.monotonic() - begun


def _collect(ray: Any, task: Any, job: Job) -> tuple[str, float]:
    """Why the task failed ("" when it did not) and its seconds; writes the result where it is not there yet."""
    try:
        why, result, seconds = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return str(error.cause) or type(error.cause).__name__, 0.0
    except ray.exceptions.RayError as error:
        return f"its Ray worker died {RETRIES + 1} times ({str(error).splitlines()[0]})", 0.0
    if result is not None and result != job.unit.result():
        write_atomic(job.unit.dir / "result.json", json.dumps(result, indent=1))
    return why, seconds


def _wanted(job: Job) -> dict[str, Any]:
    needs = job.needs
    return {"num_cpus": needs.cores, "num_gpus": needs.gpus, "memory": int(needs.memory_gb * 2**30)}


def _fits(job: Job, node: dict[str, float]) -> bool:
    have = {"num_cpus": node.get("CPU", 0), "num_gpus": node.get("GPU", 0), "memory": node.get("memory", 0)}
    return all(have[name] >= amount for name, amount in _wanted(job).items())


def _cancel(ray: Any, running: dict[Any, Job]) -> None:
    """End the workers of these tasks; a unit ends when it sees that its worker is gone."""
    for task in running:
        ray.cancel(task, force=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(job.unit.runner() is not None for job in running.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
