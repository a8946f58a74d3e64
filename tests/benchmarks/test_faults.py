"""What may go wrong around a run: kills, a second run, full and read-only disks, damaged files, a clock that jumps."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from benchmarks.paper import catalog, paths
from benchmarks.paper.files import read_json
from benchmarks.run.engines import Job, child
from benchmarks.run.records import read_curves, read_record
from benchmarks.run.standing import Standing
from benchmarks.run.unit import remove_damaged
from benchmarks.run.units import Unit, identity
from tests.benchmarks.chaos import Fire
from tests.benchmarks.test_cli import put_record
from tests.benchmarks.test_run import CLAIMS, UNIT, alive, metrics, run_of, wait_until

HOLDS_THE_LOCK = """
import sys, time
from benchmarks.run.units import Unit
with Unit("toy", "better", "method", 0, "cpu").lock():
    {then}
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process_holds_the_unit(then="pass"):
    code = HOLDS_THE_LOCK.format(then=then)
    holder = subprocess.Popen([sys.executable, "-c", code], env=paths.child_environment(), stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()


@contextmanager
def mounted(folder, options):
    """A small file system of its own at `folder`, where this may mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def start(tree, *arguments):
    return subprocess.Popen(
        **tree.command("reproduce", "toy", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_results_under_kills_at_random_moments_are_those_of_an_undisturbed_run(tree, monkeypatch):
    """The short form of `make chaos`."""
    monkeypatch.setenv("TOY_SECONDS", "0.5")
    tree.edit("baseline: baseline", "baseline: 3")
    outcome = Fire(tree.root, "toy", "better", seed=1, say=lambda line: None).rage(kills=5)
    assert sum(outcome.kills.values()) >= 5
    assert outcome.different == outcome.torn == []
    assert outcome.runs >= 1
    assert not alive("benchmarks.run.unit toy")


def test_two_runs_on_one_folder_run_every_unit_once(tree, monkeypatch):
    monkeypatch.setenv("TOY_SECONDS", "0.5")
    both = [start(tree, "--workers", "2") for _ in range(2)]
    said = [run.communicate(timeout=60) for run in both]
    assert [run.returncode for run in both] == [0, 0], said
    assert len(tree.calls()) == len(set(tree.calls())) == 6
    assert len(metrics(tree)) == 6


def test_when_one_of_two_runs_dies_the_other_takes_over_its_units(tree, monkeypatch):
    monkeypatch.setenv("TOY_SECONDS", "6")  # the first run must still be at its units when it is killed
    tree.edit("seeds: [0, 1, 2]", "seeds: [0, 1]")
    first = start(tree, "--workers", "2")
    wait_until(lambda: len(tree.calls()) == 2)
    second = start(tree, "--workers", "4")
    wait_until(lambda: len(tree.calls()) == 4)
    assert len(set(tree.calls())) == 4, "the second run did not go round the units of the first"
    first.kill()
    first.communicate()
    out, error = second.communicate(timeout=120)
    assert second.returncode == 0, error
    assert "units that another process is running" in out
    assert len(metrics(tree)) == 4
    assert sorted(tree.calls().count(call) for call in set(tree.calls())) == [1, 1, 2, 2]


def test_a_lock_ends_with_its_process_though_what_it_forked_lives_on(tree):
    assert UNIT.runner() is None
    forks = "import os; child = os.fork() or time.sleep(60)"
    with another_process_holds_the_unit(then=forks) as holder:
        assert UNIT.runner() == holder.pid
    assert UNIT.runner() is None


def test_waiting_for_another_process_does_not_use_up_the_time_limit(tree):
    job = Job(UNIT, limit=4.0)
    with another_process_holds_the_unit():
        started = child.start(job, threads=1)
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            assert child.outcome(started) is None
            time.sleep(0.05)
    wait_until(lambda: child.outcome(started) is not None)
    assert child.outcome(started) == ""
    assert len(tree.calls()) == 1


def test_a_full_disk_is_one_clear_error_and_what_was_finished_stays(tree, monkeypatch):
    runs = tree.root / "small"
    monkeypatch.setenv("ENCORE_RUNS", str(runs))
    tree.edit(
        "    state_file = run",
        '    (run.dir / "big").write_bytes(bytes(run.seed * 300_000))\n    state_file = run',
        CLAIMS,
    )
    with mounted(runs, "size=512k"):
        done = tree.encore("reproduce", "toy", "--workers", "1")
        assert done.returncode == 1
        assert "Traceback" not in done.stdout + done.stderr
        assert "No space left on device" in done.stderr or "cannot write to" in done.stderr
        finished = [unit for unit in (UNIT, Unit("toy", "better", "baseline", 0, "cpu")) if unit.result()]
        assert len(finished) == 2, "seed 0 fits"
        subprocess.run(["mount", "-o", "remount,size=4m", str(runs)], check=True)
        again = tree.encore("reproduce", "toy")
        assert again.returncode == 0, again.stderr
        assert "3 units have a fresh result" in again.stdout
        assert len(metrics(tree)) == 6


def test_a_read_only_results_folder_costs_no_result(tree):
    tree.edit("seeds: [0, 1, 2]", "seeds: [0]")
    with mounted(tree.root / "benchmarks", "ro"):
        done = tree.encore("reproduce", "toy")
        assert done.returncode == 0, "a run writes nothing there"
        assert "this run" in done.stdout
        done = tree.encore("record", "toy")
        assert done.returncode == 2
        assert [line for line in done.stderr.splitlines() if "Read-only file system" in line], done.stderr
        assert "Traceback" not in done.stderr
    assert tree.encore("record", "toy").returncode == 0
    assert len(tree.calls()) == 2, "the units were run again"
    assert len(read_record("toy", "better")["units"]) == 2


def test_runs_that_cannot_be_written_are_said_at_once(tree, monkeypatch):
    monkeypatch.setenv("ENCORE_RUNS", str(tree.root / "fixed"))
    with mounted(tree.root / "fixed", "ro"):
        done = tree.encore("reproduce", "toy")
    assert done.returncode == 2
    assert "cannot write to fixed/toy/cpu/better: Read-only file system; make room, or set ENCORE_RUNS" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def broken(whole):
    """The text cut at every length, and with other things in the place of what a reader expects."""
    yield from (whole[:length] for length in range(0, len(whole), max(1, len(whole) // 15)))
    content = json.loads(whole)
    for key in content:
        for wrong in (None, [], {}, "x", -1, [None], {"x": [[1]]}, float("nan")):
            yield json.dumps({**content, key: wrong})
    yield from ("[" * 5000, "null", "[]", '"text"', "\0", "\ud800".encode("utf-8", "surrogatepass").decode("latin1"))


def test_a_damaged_result_counts_as_none_and_is_made_again(tree):
    tree.edit("seeds: [0, 1, 2]", "seeds: [0]")
    assert tree.encore("reproduce", "toy").returncode == 0
    file = UNIT.dir / "result.json"
    whole, paper = file.read_text(), catalog.load_one("toy")
    wanted = identity(paper.claims[0])
    damaged = 0
    for text in broken(whole):
        file.write_text(text)
        result = UNIT.fresh_result(wanted)
        damaged += result is None
        if result is not None:
            assert result["metrics"].keys() <= {"score"}
        assert Standing(paper, run=True).verdicts["better"].verdict in ("inconclusive", "missing")
    assert damaged > 40
    file.write_text(whole[: len(whole) // 2])
    assert tree.encore("reproduce", "toy").returncode == 0
    assert len(tree.calls()) == 3
    assert json.loads(file.read_text())["metrics"] == json.loads(whole)["metrics"]
    record = tree.root / "benchmarks/results/toy/better.json"
    assert tree.encore("record", "toy").returncode == 0
    before = record.read_text()
    record.write_text(before[:100])
    assert tree.encore("record", "toy").returncode == 0
    assert record.read_text() == before, "it is made again from the units"
    assert len(tree.calls()) == 3


@pytest.mark.parametrize("name", ["better.json", "better.curves.json", "facts.json"])
def test_a_damaged_committed_file_stops_no_reader(tree, name):
    put_record(tree)
    paper = catalog.load_one("toy")
    tree.encore("facts", "toy")
    file = tree.root / "benchmarks/results/toy" / name
    whole = file.read_text()
    verdicts = set()
    for text in broken(whole):
        file.write_text(text)
        standing = Standing(paper)
        verdicts.add((standing.verdicts["better"].verdict, standing.matches))
        assert standing.full()
        units = read_curves("toy", "better").values()
        assert all(len(point) == 2 for unit in units for line in unit.values() for point in line)
    assert verdicts <= {(verdict, n) for verdict in ("reproduced", "missing", "stale", "inconclusive") for n in (0, 1)}
    file.write_text(whole[:50])
    assert tree.encore("report").returncode == 0
    assert tree.encore("list").returncode == 0


def test_a_damaged_checkpoint_is_removed_and_its_steps_are_trained_again(tree):
    torch = pytest.importorskip("torch")
    whole, damaged, cut, empty = (UNIT.dir / "fit" / f"{name}.ckpt" for name in ("whole", "damaged", "cut", "empty"))
    whole.parent.mkdir(parents=True)
    torch.save({"weight": torch.arange(1000.0)}, whole)
    content = whole.read_bytes()
    middle = content.index(torch.arange(500.0, 502.0).numpy().tobytes())
    damaged.write_bytes(content[:middle] + b"\xff" + content[middle + 1 :])
    cut.write_bytes(content[: len(content) // 2])
    empty.write_bytes(b"")
    remove_damaged(UNIT)
    assert [file.name for file in sorted(whole.parent.iterdir())] == ["whole.ckpt"]


def test_a_checkpoint_damaged_between_two_runs_costs_its_steps_and_not_the_unit(tree, monkeypatch):
    """The unit is killed at its third step; the checkpoint it left is cut; the number is the same in the end."""
    tree.edit(
        "        os.replace(state_file.with_suffix",
        '        (run.dir / "last.ckpt").write_bytes(b"PK not a checkpoint")\n'
        '        if state["step"] == 3 and not os.environ.get("SPARE"):\n            os.kill(os.getpid(), 9)\n'
        "        os.replace(state_file.with_suffix",
        CLAIMS,
    )
    assert tree.encore("reproduce", "toy", "--seeds", "0").returncode == 1
    assert (UNIT.dir / "last.ckpt").exists()
    (UNIT.dir / "unit.json").write_text("{")  # nor does it matter whether what was started is readable
    monkeypatch.setenv("SPARE", "1")
    assert tree.encore("reproduce", "toy", "--seeds", "0").returncode == 0
    assert UNIT.result()["metrics"] == {"score": 11.6667}


def test_a_clock_that_jumps_changes_nothing(tree):
    """Results that claim to be of the future, files older than what they depend on: only content counts."""
    tree.edit("seeds: [0, 1, 2]", "seeds: [0]")
    assert tree.encore("reproduce", "toy").returncode == 0
    before = metrics(tree)
    for index, file in enumerate(sorted((tree.root / "runs").rglob("*"))):
        os.utime(file, (index % 2 * 4e9, index % 2 * 4e9))
    file = UNIT.dir / "result.json"
    result = json.loads(file.read_text())
    result["provenance"]["started"] = "2099-01-01T00:00:00+00:00"
    file.write_text(json.dumps(result))
    again = tree.encore("reproduce", "toy")
    assert again.returncode == 0
    assert "2 units have a fresh result" in again.stdout
    assert metrics(tree) == before
    tree.edit("    state_file = run", "    time.time = lambda: -1e9\n    state_file = run", CLAIMS)
    third = tree.encore("reproduce", "toy")
    assert third.returncode == 0, third.stderr
    assert metrics(tree) == before
    assert all(0 <= unit["seconds"] < 60 for unit in run_of()["units"])


def test_writers_of_one_file_never_show_a_reader_half_of_it(tmp_path):
    """Three processes write one file over and over while this one reads it."""
    file = tmp_path / "record.json"
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom benchmarks.paper.files import write_atomic\n"
        "for i in range(60):\n    write_atomic(Path(sys.argv[1]), json.dumps({'value': [int(sys.argv[2])] * 20000}))\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(file), str(i)], cwd=paths.REPOSITORY) for i in range(3)
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if file.exists():
            content = read_json(file)
            assert content is not None
            assert len(set(content["value"])) == 1
            assert len(content["value"]) == 20000
            seen.add(content["value"][0])
    assert seen
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
