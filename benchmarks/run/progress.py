"""What the engine shows while it works: bars on a terminal, one plain line a unit elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from benchmarks.run.units import Unit


class View(Protocol):
    def started(self, unit: Unit) -> None: ...

    def waits(self, units: int) -> None:
        """So many units are left, and other processes are running them."""

    def ended(self, unit: Unit, seconds: float, why_failed: str) -> None: ...


@contextmanager
def progress_view(expected: dict[Unit, float | None], workers: int) -> Iterator[View]:
    """`expected`: seconds each unit took the last time, None when unknown."""
    if sys.stdout.isatty():
        with _Bars(expected, workers) as bars:
            yield bars
    else:
        yield _Lines(len(expected), workers)


class _Lines:
    def __init__(self, total: int, workers: int) -> None:
        self.total, self.done, self.waited_for = total, 0, 0
        print(f"{total} units, {workers} at a time", flush=True)

    def started(self, unit: Unit) -> None:
        print(f"        start {unit.name}", flush=True)

    def waits(self, units: int) -> None:
        if units != self.waited_for:
            print(f"        {_waits(units)}", flush=True)
            self.waited_for = units

    def ended(self, unit: Unit, seconds: float, why_failed: str) -> None:
        self.done += 1
        outcome = f"FAILED: {why_failed}" if why_failed else f"{seconds:.1f} s"
        print(f"[{self.done}/{self.total}] {unit.name}: {outcome}", flush=True)


class _Bars:
    def __init__(self, expected: dict[Unit, float | None], workers: int) -> None:
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

        self.expected, self.done = expected, 0
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn()
        )
        self.whole = self.bars.add_task(f"units, {workers} at a time", total=len(expected), count=f"0/{len(expected)}")
        self.tasks: dict[Unit, TaskID] = {}

    def __enter__(self) -> "_Bars":
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def started(self, unit: Unit) -> None:
        before = self.expected[unit]
        usual = f" [dim](usually {before:.0f} s)[/dim]" if before else ""
        self.tasks[unit] = self.bars.add_task(f"  {unit.name}{usual}", total=None, count="")

    def waits(self, units: int) -> None:
        self.bars.update(self.whole, description=_waits(units))

    def ended(self, unit: Unit, seconds: float, why_failed: str) -> None:
        from rich.markup import escape

        if unit in self.tasks:
            self.bars.remove_task(self.tasks.pop(unit))
        self.done += 1
        self.bars.update(self.whole, completed=self.done, count=f"{self.done}/{len(self.expected)}")
        outcome = f"[red]failed: {escape(why_failed)}[/red]" if why_failed else f"[green]{seconds:.1f} s[/green]"
        self.bars.console.print(f"  {unit.name}: {outcome}", highlight=False)


def _waits(units: int) -> str:
    return f"wait  for {units} unit{'s' if units > 1 else ''} that another process is running"
