"""`encore carry`: a result stays fresh over a change of code that changes no number.

For a stale record, a base is found: a commit whose tree, by its own fingerprint, is what the record (or its last
`carried` entry) was made by. The units of the first seeds then run at scale smoke in that tree and in the present one,
on this machine, each in a process of its own. Where every metric, before it is rounded, and every loss that both log
under one name at one step are equal bit for bit, the hashes of now are written into the record as `carried`.

The data must have the same checksums, and metric, sides and arms the same definition. The config hash may differ
otherwise: it also names the entry point, which is but an address, and the smoke runs compare what is found there.
What measures time or memory differs from run to run: such a claim is not carried, it runs again.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.paper import fingerprint, paths
from benchmarks.paper.files import digest, read_json, write_atomic
from benchmarks.paper.git import commit_of, git
from benchmarks.paper.schema import Claim, Measurement, Paper
from benchmarks.run import elsewhere, provenance
from benchmarks.run.curves import read_series
from benchmarks.run.engines import interruptible, threads_of_a_unit
from benchmarks.run.records import Record, dump, read_record, record_file
from benchmarks.run.units import identity, same_identity
from common.errors import EncoreError

AT_ONCE = 2
SCALE = "smoke"
DEFINITION = ("metric", "method", "baseline", "higher_is_better", "arms", "rows")
POLL_SECONDS = 0.05
REMOVE = "import shutil, sys, time; sys.stdin.read(); time.sleep(1); shutil.rmtree(sys.argv[1], ignore_errors=True)"
Outcome = dict[str, Any]  # of a unit: {"metrics": {name: value}, "losses": {name: {step: value}}}


@dataclass(frozen=True, eq=False)
class Stale:
    """A claim or measurement whose record is of other code, configuration or data. wanted: the present identity."""

    paper: Paper
    experiment: Claim | Measurement
    record: Record
    wanted: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        return self.paper.slug, self.experiment.id

    @property
    def name(self) -> str:
        return " ".join(self.key)


@dataclass(frozen=True)
class Trial:
    """One unit in one tree. `commit`: the tree's; empty for the present one."""

    stale: Stale
    arm: str
    seed: int
    commit: str = ""

    @property
    def kept(self) -> Path:
        """Where the outcome of a base is remembered."""
        return paths.runs() / ".carry" / self.commit[:12] / "/".join(self.stale.key) / f"{self.arm}-{self.seed}.json"


@dataclass
class Started:
    process: subprocess.Popen
    folder: Path
    begun: float = field(default_factory=time.monotonic)


class Scratch:
    """Trees of other commits in a temporary folder, which goes with this process, however that ends."""

    def __enter__(self) -> "Scratch":
        self.folder = Path(tempfile.mkdtemp(prefix="encore-carry-"))
        remove = [sys.executable, "-c", REMOVE, str(self.folder)]
        self.remover = subprocess.Popen(remove, stdin=subprocess.PIPE, start_new_session=True)
        self.answers: dict[str, dict[tuple[str, str], Any]] = {}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.remover.kill()
        self.remover.communicate()

    def tree(self, commit: str) -> Path:
        """The files of a commit."""
        tree = self.folder / commit[:12]
        if not tree.exists():
            archive = self.folder / "archive.tar"
            git("archive", "--format=tar", f"--output={archive}", commit)
            with tarfile.open(archive) as tar:
                tar.extractall(tree, filter="data")
            archive.unlink()
        return tree

    def described(self, commit: str, every: list[Stale]) -> dict[tuple[str, str], Any]:
        """{(paper, claim): its {identity, definition} by that commit's own harness, or None}."""
        if commit not in self.answers:
            keys = [stale.key for stale in every]
            command = [*_python(), "identities", json.dumps(keys)]
            tree = self.tree(commit)
            asked = subprocess.run(
                command, cwd=tree, env=_environment(tree, self.folder / "runs"), capture_output=True, text=True
            )
            found = json.loads(asked.stdout) if asked.returncode == 0 else [None] * len(keys)
            self.answers[commit] = dict(zip(keys, found))
        return self.answers[commit]


def carry(papers: list[Paper], *, since: str = "", seeds: int = 2, dry_run: bool = False) -> int:
    """Carry what is stale to the present code where no number moved; exit status 1 when something was not carried.

    since: a commit to take as base where neither the record's units nor its history name a valid one.
    """
    since = commit_of(since) if since else ""
    pairs = [(paper, experiment) for paper in papers for experiment in paper.experiments]
    records = {(paper.slug, each.id): read_record(paper.slug, each.id) for paper, each in pairs}
    every = [
        Stale(paper, each, record, wanted)
        for paper, each in pairs
        if (record := records[paper.slug, each.id]) and not same_identity(record, wanted := identity(each))
    ]
    print(f"{sum(map(bool, records.values())) - len(every)} results are fresh, {len(every)} are stale", flush=True)
    left = 0
    with Scratch() as scratch:
        for stale in every:
            try:
                base, chain = _base(stale, every, scratch, since)
                if dry_run:
                    units = len(stale.experiment.all_arms) * len(stale.experiment.seeds[:seeds])
                    print(f"{stale.name}: {units} units would run in {base[:12]} and here", flush=True)
                    continue
                print(
                    f"{stale.name}: carried from {base[:12]}, {_carry(stale, base, chain, scratch, seeds)}", flush=True
                )
            except EncoreError as error:
                left += 1
                print(f"{stale.name}: not carried: {error}", file=sys.stderr, flush=True)
    return 1 if left else 0


def _base(stale: Stale, every: list[Stale], scratch: Scratch, since: str) -> tuple[str, list[dict]]:
    """(commit, the `carried` entries that led to its code); EncoreError when there is none or the claim is another."""
    record, seen = stale.record, []
    chain = record.get("carried", [])
    if record["data"] != stale.wanted["data"]:
        raise EncoreError(f"its data changed: {_differing(record['data'], stale.wanted['data'])}")
    for commit in _candidates(record, record_file(*stale.key), since):
        found = scratch.described(commit, every)[stale.key]
        seen.append(commit[:12])
        if found is None or not same_identity(record, found["identity"]):
            continue
        both = found["definition"], elsewhere.definition(stale.experiment)
        then, now = ({key: definition.get(key) for key in DEFINITION} for definition in both)
        if then != now:
            raise EncoreError(f"its definition in paper.yaml changed since {commit[:12]}: {_differing(then, now)}")
        return commit, [] if _is(found["identity"], record) else chain
    looked = f"looked at {', '.join(seen)}" if seen else "the record names none"
    raise EncoreError(f"no commit is known at which it was fresh ({looked}): name one with --from")


def _candidates(record: Record, file: Path, since: str) -> Iterator[str]:
    """Commits at which the record may have been fresh: where its units ran, where it was last written, --from."""
    origins = sorted((unit["provenance"] for unit in record["units"]), key=lambda origin: origin["started"])
    names = [origin["commit"] for origin in reversed(origins)]
    seen = set()
    for name in [*dict.fromkeys(names), git("log", "-1", "--format=%H", "--", str(file)).strip(), since]:
        try:
            commit = commit_of(name) if name else ""
        except EncoreError:  # "...+changes", of another clone, or rewritten since
            continue
        if commit and commit not in seen:
            seen.add(commit)
            yield commit


def _carry(stale: Stale, base: str, chain: list[dict], scratch: Scratch, seeds: int) -> str:
    """Run both sides, compare, write; what was compared, in words. EncoreError when a number moved."""
    arms, chosen = stale.experiment.all_arms, stale.experiment.seeds[:seeds]
    sides = [[Trial(stale, arm, seed, commit) for seed in chosen for arm in arms] for commit in (base, "")]
    outcomes = _run([*sides[0], *sides[1]], scratch)
    pairs = [(now, outcomes[then], outcomes[now]) for then, now in zip(*sides)]
    moved = [line for trial, then, now in pairs for line in differences(then, now, f"{trial.arm} seed {trial.seed}")]
    if moved:
        more = f", and {len(moved) - 3} more" if len(moved) > 3 else ""
        raise EncoreError("; ".join(moved[:3]) + more + f" (against {base[:12]})")
    fingerprint.forget()
    if identity(stale.experiment) != stale.wanted or read_record(*stale.key) != stale.record:
        raise EncoreError("its code or its record changed meanwhile: run this again")
    entry = {
        **stale.wanted,
        "from": base[:12],
        "commit": provenance.commit(),
        "smoke": digest({f"{trial.arm}-{trial.seed}": now for trial, _, now in pairs}),
        "seeds": chosen,
        "date": provenance.now()[:10],
    }
    head = {key: value for key, value in stale.record.items() if key != "units"}
    record = {**head, "carried": [*chain, entry], "units": stale.record["units"]}
    write_atomic(record_file(*stale.key), dump(record))
    metrics = sum(len(now["metrics"]) for _, _, now in pairs)
    losses = sum(len(_shared(then, now)) for _, then, now in pairs)
    return f"{metrics} metrics and {losses} losses of {len(pairs)} units are equal"


def differences(then: Outcome, now: Outcome, who: str) -> list[str]:
    """One line for every metric and shared loss that is not the same to the last bit."""
    found = []
    one, other = then["metrics"], now["metrics"]
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other:
            found.append(f"{who}: {name} is there only {'before' if name in one else 'now'}")
        elif one[name].hex() != other[name].hex():
            found.append(f"{who}: {name} was {one[name]!r} and is {other[name]!r}")
    for name, step in _shared(then, now):
        a, b = then["losses"][name][step], now["losses"][name][step]
        if a.hex() != b.hex():
            found.append(f"{who}: {name} at step {step} was {a!r} and is {b!r}")
            break  # what follows differs with it
    return found


def _shared(then: Outcome, now: Outcome) -> list[tuple[str, str]]:
    """(name, step) of the losses that both logged."""
    one, other = then["losses"], now["losses"]
    return [(name, step) for name in one if name in other for step in one[name] if step in other[name]]


def _run(trials: list[Trial], scratch: Scratch) -> dict[Trial, Outcome]:
    """Outcomes of all, two at a time; EncoreError when one fails. What a base gave is remembered."""
    outcomes = {trial: known for trial in trials if trial.commit and (known := _remembered(trial))}
    waiting = [trial for trial in trials if trial not in outcomes]
    running: dict[Trial, Started] = {}
    with interruptible() as check:
        try:
            while waiting or running:
                check()
                while waiting and len(running) < AT_ONCE:
                    trial = waiting.pop(0)
                    running[trial] = _start(trial, scratch)
                for trial, started in list(running.items()):
                    if (outcome := _outcome(trial, started)) is not None:
                        del running[trial]
                        outcomes[trial] = outcome
                        shutil.rmtree(started.folder, ignore_errors=True)
                        if trial.commit:
                            write_atomic(trial.kept, json.dumps({**outcome, "place": _place()}))
                time.sleep(POLL_SECONDS)
        finally:
            for started in running.values():
                if started.process.poll() is None:
                    os.killpg(started.process.pid, signal.SIGKILL)
                    started.process.wait()
    return outcomes


def _start(trial: Trial, scratch: Scratch) -> Started:
    tree = scratch.tree(trial.commit) if trial.commit else paths.root()
    folder = Path(tempfile.mkdtemp(dir=scratch.folder))
    unit = [*trial.stale.key, trial.arm, str(trial.seed), SCALE]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*_python(), "unit", str(folder / "metrics.json"), *unit],
            cwd=tree,
            env=_environment(tree, folder / "runs"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Started(process, folder)


def _outcome(trial: Trial, started: Started) -> Outcome | None:
    """None while it runs; EncoreError when it failed."""
    where = f"in {trial.commit[:12]}" if trial.commit else "here"
    status = started.process.poll()
    if status is None:
        if time.monotonic() - started.begun > trial.stale.experiment.minutes * 60:
            raise EncoreError(f"{trial.arm} seed {trial.seed} did not end {where} within its time limit")
        return None
    metrics = read_json(started.folder / "metrics.json")
    if status or metrics is None:
        errors = [read_json(file) or {} for file in started.folder.rglob("error.json")]
        said = [line for line in (started.folder / "log").read_text(errors="replace").splitlines() if line.strip()]
        why = next((str(error["error"]) for error in errors if "error" in error), said[-1] if said else f"{status}")
        raise EncoreError(f"{trial.arm} seed {trial.seed} does not run {where}: {why}")
    (folder,) = (file.parent for file in started.folder.rglob("unit.json"))
    losses = {name: curve for name, curve in read_series(folder).items() if "loss" in name}
    return json.loads(json.dumps({"metrics": metrics, "losses": losses}))  # as it is remembered: steps are strings


def _remembered(trial: Trial) -> Outcome | None:
    kept = read_json(trial.kept) or {}
    whole = kept.get("place") == _place() and {"metrics", "losses"} <= kept.keys()
    return {key: kept[key] for key in ("metrics", "losses")} if whole else None


def _place() -> str:
    """What the same code may give other numbers on: versions, machine, threads."""
    machine = provenance.machine() | {"threads": threads_of_a_unit(AT_ONCE)}
    return digest([provenance.versions(), machine])


def _python() -> list[str]:
    return [sys.executable, "-P", elsewhere.__file__]


def _environment(tree: Path, runs: Path) -> dict[str, str]:
    """That of a unit which finds papers/, common/ and the harness of the tree, and no other."""
    threads = str(threads_of_a_unit(AT_ONCE))
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    environment = paths.child_environment(TOKENIZERS_PARALLELISM="false", **limits)
    own = (str(paths.root()), str(paths.REPOSITORY))
    given = [path for path in environment["PYTHONPATH"].split(os.pathsep) if path not in own]
    harness = [] if (tree / "benchmarks" / "__init__.py").is_file() else [own[1]]
    path = os.pathsep.join([str(tree), *harness, *given])
    return {**environment, "PYTHONPATH": path, "ENCORE_ROOT": str(tree), "ENCORE_RUNS": str(runs)}


def _is(one: dict[str, Any], record: Record) -> bool:
    return all(record[key] == value for key, value in one.items())


def _differing(then: dict[str, Any], now: dict[str, Any]) -> str:
    keys = [key for key in dict.fromkeys([*then, *now]) if then.get(key) != now.get(key)]
    return "; ".join(f"{key} was {then.get(key)} and is {now.get(key)}" for key in keys)
