"""The local engine: runs units side by side on this machine, each in its own process group, and keeps what is finished.

Nothing is lost by stopping it: a finished unit is skipped the next time, another continues from its checkpoint. Several
may run on the same folder: a unit that another process runs at the moment is left to it, and looked at again later.
"""

import time

from benchmarks.run.engines import Job, interruptible, longest_first, past_seconds, threads_of_a_unit
from benchmarks.run.engines.child import POLL_SECONDS, Child, outcome, start, stop
from benchmarks.run.progress import progress_view
from benchmarks.run.provenance import cores
from benchmarks.run.units import Unit

LOOK_AGAIN_SECONDS = 0.5


def run_units(jobs: list[Job], *, workers: int | None) -> dict[Unit, str]:
    """See benchmarks.run.engines."""
    waiting = longest_first(jobs)
    workers = workers or (1 if any(job.unit.scale == "gpu" for job in jobs) else cores())
    threads = threads_of_a_unit(workers)
    workers = min(workers, len(jobs))
    running: list[Child] = []
    failed: dict[Unit, str] = {}
    look_again = 0.0
    with progress_view({job.unit: past_seconds(job.unit) for job in jobs}, workers) as view, interruptible() as check:
        try:
            while waiting or running:
                check()
                while waiting and len(running) < workers and time.monotonic() >= look_again:
                    job = next((job for job in waiting if job.unit.runner() is None), None)
                    if job is None:
                        look_again = time.monotonic() + LOOK_AGAIN_SECONDS
                        view.waits(len(waiting))
                        break
                    waiting.remove(job)
                    running.append(start(job, threads))
                    view.started(job.unit)
                for child in list(running):
                    why = outcome(child)
                    if why is None:
                        continue
                    running.remove(child)
                    if why:
                        failed[child.job.unit] = why
                    view.ended(child.job.unit, child.seconds, why)
                time.sleep(POLL_SECONDS)
        finally:
            stop(running)
    return failed
