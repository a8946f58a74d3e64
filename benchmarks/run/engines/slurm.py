"""The SLURM engine: one job array for the units that need the same, one unit a task, through submitit.

A job that runs out of its time or is preempted is put back into the queue and goes on from its last checkpoint, and
SLURM itself requeues it when its node fails. The nodes need this tree, runs/ and the environment under the same paths.
Partition, account and the like come from SLURM's own variables (SBATCH_PARTITION, SBATCH_ACCOUNT, ...). Ctrl-C and
SIGTERM cancel the jobs; when this process dies otherwise they go on, and the next run finds what they finished.
"""

import math
import time
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from benchmarks.paper import paths
from benchmarks.run.engines import RETRIES, Job, interruptible, longest_first, optional, past_seconds
from benchmarks.run.engines.child import run_to_end
from benchmarks.run.progress import progress_view
from benchmarks.run.units import Unit
from common.errors import EncoreError

POLL_SECONDS = 0.5
SPARE_MINUTES = 5  # beyond a unit's own limit, so that the limit, not SLURM, ends it and says why


@dataclass(frozen=True)
class Task:
    """What a SLURM job runs: the unit as a child process, as in the local engine. Returns why it failed, or ""."""

    job: Job

    def __call__(self) -> str:
        return run_to_end(self.job, threads=self.job.needs.cores)

    def checkpoint(self) -> Any:
        """submitit asks for this before it puts the job back: the same again, the unit's checkpoints are its own."""
        return optional("submitit", "slurm").helpers.DelayedSubmission(self)


def run_units(jobs: list[Job], *, workers: int | None, cluster: str = "slurm") -> dict[Unit, str]:
    """See benchmarks.run.engines; `workers` bounds the tasks of an array run at a time. cluster: submitit's name."""
    submitit = optional("submitit", "slurm")
    folder = paths.runs() / ".slurm"
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=RETRIES)
    except RuntimeError as error:
        raise EncoreError("there is no srun here: start the engine slurm on a machine that can submit jobs") from error
    failed: dict[Unit, str] = {}
    with progress_view({job.unit: past_seconds(job.unit) for job in jobs}, workers or len(jobs)) as view:
        running: dict[Unit, Any] = {}
        with interruptible() as check:
            try:
                for alike in arrays(jobs):
                    executor.update_parameters(**parameters(alike[0], workers or len(alike)))
                    with executor.batch():
                        submitted = [executor.submit(Task(job)) for job in alike]
                    running |= {job.unit: handle for job, handle in zip(alike, submitted)}
                while running:
                    check()
                    for unit, handle in [(unit, handle) for unit, handle in running.items() if handle.done()]:
                        del running[unit]
                        why = _why_failed(handle)
                        if why:
                            failed[unit] = why
                        view.ended(unit, past_seconds(unit) or 0.0, why)
                    time.sleep(POLL_SECONDS)
            finally:
                for handle in running.values():
                    handle.cancel(check=False)
    return failed


def arrays(jobs: list[Job]) -> list[list[Job]]:
    """The jobs in groups of the same claim, limit and needs, the longest first: each group is one job array."""

    def kind(job: Job) -> tuple:
        return job.unit.paper, job.unit.claim, job.limit, job.needs.model_dump_json()

    return [list(group) for _, group in groupby(sorted(longest_first(jobs), key=kind), key=kind)]


def parameters(job: Job, at_once: int) -> dict[str, Any]:
    """submitit's parameters of the array that a job belongs to."""
    return {
        "name": f"encore-{job.unit.paper}-{job.unit.claim}",
        "timeout_min": math.ceil(job.limit / 60) + SPARE_MINUTES,
        "cpus_per_task": job.needs.cores,
        "gpus_per_node": job.needs.gpus,
        "mem_gb": job.needs.memory_gb,
        "slurm_array_parallelism": at_once,
        "slurm_additional_parameters": {"requeue": True},
    }


def _why_failed(handle: Any) -> str:
    """ "" when the unit has a result; else what it, or SLURM, or Python said."""
    error = handle.exception()
    if error is None:
        return handle.result()
    lines = [line for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if line.startswith(("EncoreError", "OSError")) or "Error: " in line]
    what = raised[-1] if raised else " ".join(lines[:2])
    return f"job {handle.job_id}: {what}; see {paths.shown(handle.paths.stderr)}"
