"""Ray and SLURM: the same units, the same numbers, worker kill and requeue included."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest

from benchmarks.paper import catalog, paths
from benchmarks.paper.schema import Needs
from benchmarks.run import engines
from benchmarks.run.engines import Job, run_units
from benchmarks.run.engines import ray as ray_engine
from benchmarks.run.engines import slurm as slurm_engine
from benchmarks.run.plan import entries_of
from benchmarks.run.units import Unit, identity
from common.errors import EncoreError
from tests.benchmarks.test_run import alive, metrics, wait_until

UNIT = Unit("toy", "better", "method", 0, "cpu")
EXPECTED = {
    (arm, seed): {"score": float(f"{offset + 5 / (3 + seed):.6g}")}
    for arm, offset in (("method", 10.0), ("baseline", 5.0))
    for seed in (0, 1, 2)
}


def needs_extra(package, extra):
    try:
        __import__(package)
    except ImportError:
        return pytest.mark.skip(reason=f"{package} is not installed: make setup EXTRAS={extra}")
    return lambda test: test


def jobs_of(seeds=None):
    paper = catalog.load_one("toy")
    return [entry.job for entry in entries_of(paper, paper.claims[0], "cpu", seeds)]


def attempts(unit):
    return unit.result()["provenance"]["attempts"]


def finished_steps(unit):
    file = unit.dir / "state.json"
    return json.loads(file.read_text())["step"] if file.exists() else 0


@needs_extra("ray", "ray")
def test_ray_gives_the_numbers_of_the_local_engine_though_a_worker_is_killed(tree, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TOY_SECONDS", "2")
    engine = subprocess.Popen(
        **tree.command("reproduce", "toy", "--engine", "ray", "--workers", "2"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: finished_steps(UNIT) >= 2, 90)
    worker = psutil.Process(UNIT.runner()).parent()
    assert "ray" in " ".join(worker.cmdline())
    worker.send_signal(signal.SIGKILL)
    out, error = engine.communicate(timeout=120)
    assert engine.returncode == 0, error
    assert "[6/6]" in out
    assert metrics(tree) == EXPECTED
    assert attempts(UNIT) == 2, "the killed unit was not continued"
    assert len(tree.calls()) == 7, "another unit was run twice"
    assert not alive("benchmarks.run.unit toy")


@needs_extra("ray", "ray")
def test_ray_stopped_by_sigterm_leaves_nothing_running_and_says_how_to_continue(tree, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TOY_SECONDS", "60")
    engine = subprocess.Popen(
        **tree.command("reproduce", "toy", "--engine", "ray", "--workers", "1", "--seeds", "0"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: tree.calls(), 90)
    engine.send_signal(signal.SIGTERM)
    _, error = engine.communicate(timeout=60)
    assert engine.returncode == 128 + signal.SIGTERM
    assert "Continue with: encore reproduce toy --engine ray" in error
    assert not alive("benchmarks.run.unit toy")


def ray_that_gives(result):
    """A stand-in for the package: its only task gives `result`, or raises it."""

    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        cause = ValueError("boom")

    def get(task):
        if isinstance(result, str):
            raise {"task": RayTaskError, "worker": RayError}[result]("the worker died\nand more")
        return result

    return SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError))


def test_a_result_of_another_machine_is_written_here_once(tree, monkeypatch):
    origin = {**identity(catalog.load_one("toy").claims[0]), "commit": "abc", "started": "2026", "machine": {}}
    result = {"metrics": {"score": 1.0}, "seconds": 1.0, "curves": {}, "provenance": origin}
    assert UNIT.result() is None
    for _ in range(2):
        assert ray_engine._collect(ray_that_gives(("", result, 3.0)), None, Job(UNIT, 60)) == ("", 3.0)
        assert UNIT.result() == result
        monkeypatch.setattr(ray_engine, "write_atomic", lambda *_: pytest.fail("written twice"))
    assert ray_engine._collect(ray_that_gives("task"), None, Job(UNIT, 60))[0] == "boom"
    assert ray_engine._collect(ray_that_gives("worker"), None, Job(UNIT, 60))[0].startswith(
        "its Ray worker died 4 times"
    )


def test_a_task_asks_for_what_the_paper_declares_and_must_fit_on_one_machine(tree):
    tree.edit("    data: generated\n    entry", "    data: generated\n    needs: {cores: 4, memory_gb: 0.5}\n    entry")
    (job, *_) = jobs_of()
    assert ray_engine._wanted(job) == {"num_cpus": 4, "num_gpus": 0, "memory": 2**29}
    assert ray_engine._fits(job, {"CPU": 4.0, "memory": 2**30})
    assert not ray_engine._fits(job, {"CPU": 3.0, "memory": 2**30})
    assert slurm_engine.parameters(job, 6)["cpus_per_task"] == 4
    paper = catalog.load_one("toy")
    gpu = entries_of(paper, paper.claims[0], "gpu", None)[0].job
    assert ray_engine._wanted(gpu)["num_gpus"] == slurm_engine.parameters(gpu, 6)["gpus_per_node"] == 1


@needs_extra("submitit", "slurm")
def test_slurm_jobs_write_results_and_a_timeout_is_requeued_from_the_checkpoint(tree, monkeypatch):
    """With submitit's local executor in the place of SLURM."""
    monkeypatch.setenv("TOY_SECONDS", "3")
    interrupted = []

    def interrupt_once():
        """submitit's way to say that the time is over, sent to the job of the unit once it has done a step."""
        wait_until(lambda: finished_steps(UNIT) >= 1 and UNIT.runner(), 90)
        interrupted.append(psutil.Process(UNIT.runner()).parent())
        interrupted[0].send_signal(signal.SIGUSR2)

    monkeypatch.setattr(slurm_engine, "POLL_SECONDS", 0.05)
    jobs = jobs_of([0])
    tree.edit(
        "    state_file = run",
        '    os.environ["TOY_SECONDS"] = "0" if run.arm == "baseline" else "6"\n    state_file = run',
        "papers/toy/claims.py",
    )
    watch = threading.Thread(target=interrupt_once)
    watch.start()
    assert slurm_engine.run_units(jobs, workers=None, cluster="local") == {}
    watch.join()
    assert interrupted
    assert attempts(UNIT) == 2
    assert UNIT.result()["metrics"] == EXPECTED["method", 0]
    assert not alive("benchmarks.run.unit toy")


FAKE_SBATCH = """\
#!{python}
\"\"\"Runs the tasks of a job array side by side, as SLURM would.\"\"\"
import os, re, shutil, subprocess, sys
script = sys.argv[1]
shutil.copy(script, "{folder}/script.sh")
last = int(re.search(r"--array=0-(\\d+)", open(script).read())[1])
for task in range(last + 1):
    names = {{"SLURM_ARRAY_JOB_ID": 7, "SLURM_ARRAY_TASK_ID": task, "SLURM_JOB_ID": 8 + task, "SLURM_NTASKS": 1,
              "SLURM_JOB_NUM_NODES": 1, "SLURM_NODEID": 0, "SLURM_PROCID": 0, "SLURM_LOCALID": 0}}
    environment = {{**os.environ, **{{name: str(value) for name, value in names.items()}}}}
    subprocess.Popen(["bash", script], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""
FAKE_SRUN = """\
#!/bin/bash
while [ "$1" != {python} ]; do shift; done
exec "$@"
"""


@needs_extra("submitit", "slurm")
def test_one_array_of_slurm_tasks_with_requeue_runs_the_units(tree, monkeypatch, tmp_path):
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, text in {
        "sbatch": FAKE_SBATCH,
        "srun": FAKE_SRUN,
        "sacct": "#!/bin/bash\n",
        "scancel": "#!/bin/bash\n",
    }.items():
        (bin / name).write_text(text.format(python=sys.executable, folder=tmp_path) if "{" in text else text)
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    tree.edit("    data: generated\n    entry", "    data: generated\n    minutes: 30\n    entry")
    done = tree.encore("reproduce", "toy", "--engine", "slurm", "--seeds", "0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(tree.calls()) == 4
    assert UNIT.result()["metrics"] == EXPECTED["method", 0]
    script = (tmp_path / "script.sh").read_text()
    for line in ("array=0-3%4", "requeue", "cpus-per-task=1", "mem=4GB", "time=35", "job-name=encore-toy-better"):
        assert re.search(rf"^#SBATCH --{line}$", script, re.MULTILINE), script
    assert re.search(r"^#SBATCH --signal=USR2@\d+$", script, re.MULTILINE)
    assert "srun" in script


@needs_extra("submitit", "slurm")
def test_slurm_where_no_job_can_be_submitted_is_one_clear_error(tree, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EncoreError, match="no srun here"):
        run_units("slurm", jobs_of(), workers=None)


def test_units_that_need_the_same_make_one_array_longest_first(monkeypatch):
    seconds = {"a": 5.0, "b": 9.0, "c": 7.0}
    monkeypatch.setattr(engines, "past_seconds", lambda unit: seconds[unit.arm])
    jobs = [Job(Unit("toy", "one", arm, 0, "cpu"), 60) for arm in "abc"]
    jobs += [Job(Unit("toy", "two", "a", 0, "cpu"), 60, Needs(cores=2))]
    assert [[job.unit.arm for job in array] for array in slurm_engine.arrays(jobs)] == [["b", "c", "a"], ["a"]]


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_whose_extra_is_missing_says_how_to_get_it(tree, monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EncoreError, match=f"engine {engine} needs {package}: make setup EXTRAS={engine}"):
        run_units(engine, jobs_of(), workers=None)


def test_the_lock_of_the_extras_agrees_with_the_one_of_the_base_and_names_no_index():
    def pins(name):
        text = (paths.REPOSITORY / name).read_text()
        assert not re.search(r"https?://", text)
        packages = re.split(r"\n(?=[\w.-]+==)", text)[1:]
        assert all("--hash=sha256:" in package for package in packages)
        return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))

    base, extras = pins("requirements.lock"), pins("requirements-extras.lock")
    assert {"ray", "submitit"} <= extras.keys()
    assert not {"ray", "submitit"} & base.keys()
    assert {name: version for name, version in extras.items() if name in base and version != base[name]} == {}


def test_an_unknown_engine_is_answered_with_the_choices(tree):
    done = tree.encore("reproduce", "toy", "--engine", "rai")
    assert done.returncode == 2
    assert done.stderr == "error: unknown engine: 'rai'. Did you mean ray? Choices: local, ray, slurm\n"
    assert tree.calls() == []
