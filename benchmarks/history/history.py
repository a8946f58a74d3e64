"""Past gaps of the claims: every committed state of their records, read from git in two calls for all papers."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.paper import paths
from benchmarks.paper.git import blobs, git
from benchmarks.paper.schema import Claim, Paper
from benchmarks.run.records import Record, record_file, valid_record
from benchmarks.run.verdict import ClaimVerdict, decide, judge
from common.errors import EncoreError

NO_GIT = "Past gaps are read from git, which is not here or has no history of this tree."
MARK = "\x01"


@dataclass(frozen=True)
class Past:
    """One committed record of a claim. `verdict` is that of its own seeds, whatever code it came from."""

    commit: str
    date: str
    gap: float
    interval: tuple[float, float] | None
    n: int
    verdict: ClaimVerdict
    code: str


class History:
    """The committed records of all claims of `papers`; `absent` says why there is none."""

    def __init__(self, papers: list[Paper]) -> None:
        self.absent = ""
        self._pasts: dict[tuple[str, str], list[Past]] = {}
        files = {
            paths.shown(record_file(paper.slug, claim.id)): (paper.slug, claim)
            for paper in papers
            for claim in paper.claims
        }
        try:
            for commit, date, file, record in _committed(files):
                slug, claim = files[file]
                if past := _past(claim, record, commit, date):
                    self._pasts.setdefault((slug, claim.id), []).append(past)
        except (EncoreError, subprocess.SubprocessError):
            self.absent = NO_GIT

    def of(self, slug: str, claim: str) -> list[Past]:
        """Oldest first; a commit after which gap, interval and n are what they were before is left out."""
        kept: list[Past] = []
        for past in self._pasts.get((slug, claim), []):
            if not kept or (past.gap, past.interval, past.n) != (kept[-1].gap, kept[-1].interval, kept[-1].n):
                kept.append(past)
        return kept


def _past(claim: Claim, record: Record, commit: str, date: str) -> Past | None:
    """None where the record holds no pair of the arms the claim has today."""
    verdict = judge(claim, record, record, sorted({unit["seed"] for unit in record["units"]}))
    if verdict.gap is None:
        return None
    outcome = decide(verdict.interval, claim.margin)
    return Past(commit[:12], date, verdict.gap, verdict.interval, verdict.n, outcome, verdict.code)


def _committed(files: dict[str, tuple[str, Claim]]) -> Iterator[tuple[str, str, str, Record]]:
    """(commit, date, file, record) of every commit that wrote one of the files, oldest first."""
    form = f"--format={MARK}%H %cs"
    names_only = ("--name-only", "--relative", "--diff-filter=d", "-z")
    log = git("log", "--reverse", form, *names_only, "--", "benchmarks/results")
    wanted = []
    for entry in log.split(MARK)[1:]:
        first, *names = entry.split("\0")
        commit, date = first.split()
        wanted += [(commit, date, name) for name in (name.strip("\n") for name in names) if name in files]
    if not wanted:
        return
    texts = blobs([f"{commit}:./{file}" for commit, _, file in wanted])
    for (commit, date, file), text in zip(wanted, texts):
        try:
            record = valid_record(json.loads(text))
        except (ValueError, RecursionError):
            continue
        if record is not None:
            yield commit, date, file, record
