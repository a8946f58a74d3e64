"""The file of figures that `encore speed --json benchmarks/speed/results.json` keeps, and the report shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from benchmarks.paper import paths
from common.errors import EncoreError

Text = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^\P{Cc}*$")]
Positive = Annotated[float, Field(gt=1e-9, lt=1e9)]
Count = Annotated[int, Field(ge=1, lt=2**50)]
Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.Z+-]+$", max_length=40)]


class Form(BaseModel):
    """Fields that the report does not read may be there; those it reads have exactly their types."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Machine(Form):
    cpu: Text
    cores: Count
    gpu: Text | None = None


class Origin(Form):
    """Where a figure came from (benchmarks.run.provenance), and on how many threads."""

    threads: Count
    commit: Text
    versions: dict[Text, Text]
    machine: Machine
    started: Time


class Timing(Form):
    """benchmarks.speed.measure.Paired: seconds of both sides, and theirs / ours over the rounds."""

    ours: Positive
    theirs: Positive
    ratio: Positive
    low: Positive
    high: Positive

    @model_validator(mode="after")
    def the_ratio_lies_in_its_range(self) -> Timing:
        if not self.low <= self.ratio <= self.high:
            raise ValueError("the ratio does not lie between low and high")
        return self


class Memory(Form):
    """Bytes by which a fresh process grows over three training steps."""

    ours: Count
    theirs: Count


class Row(Origin):
    """One pair at one size in one setting; `memory_ratio` is ours / theirs, the ratios of times are theirs / ours.

    Memory is measured where the pair is not compiled.
    """

    pair: Text
    size: Literal["base", "small"]
    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    compiled: bool
    peer: Text
    what: Text | None = None
    training: Timing
    inference: Timing
    memory: Memory | None = None
    memory_ratio: Positive | None = None
    share_of_matmul_rate: Positive | None
    mfu: Positive | None = None

    @model_validator(mode="after")
    def memory_is_whole(self) -> Row:
        if (self.memory is None) != (self.memory_ratio is None) or (self.memory is None and not self.compiled):
            raise ValueError("memory and memory_ratio belong together, and to every row that is not compiled")
        return self

    @property
    def setting(self) -> str:
        device = {"cpu": "CPU", "cuda": "GPU"}[self.device]
        return f"{device}, {self.precision}" + (", compiled" if self.compiled else "")

    @property
    def name(self) -> str:
        return f"{self.pair} {self.size} ({self.setting})"


class Ratio(Origin, Timing):
    """A paper's own efficiency claim: its way of doing a step is `ours`, what it is compared with `theirs`."""

    what: Text | None = None


class Curve(Form):
    """Seconds of a step at every x, and the power of x that fits them."""

    x: Annotated[list[Positive], Field(min_length=2, max_length=100)]
    seconds: list[Positive]
    exponent: Annotated[float, Field(gt=-10, lt=10)]

    @model_validator(mode="after")
    def every_x_has_its_seconds(self) -> Curve:
        if len(self.x) != len(self.seconds):
            raise ValueError(f"{len(self.x)} values of x and {len(self.seconds)} of seconds")
        return self


class Growth(Origin):
    tokens: Curve
    width: Curve
    what: Text | None = None


class Results(Form):
    """The whole file: rows, the papers' claims as ratios, the growth of a step; each may still be missing."""

    rows: Annotated[list[Row], Field(max_length=1000)] = []
    ratios: Annotated[dict[Text, Ratio], Field(max_length=100)] = {}
    growth: Growth | None = None

    @field_validator("rows")
    @classmethod
    def rows_differ(cls, rows: list[Row]) -> list[Row]:
        names = [row.name for row in rows]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice} is there twice")
        return rows

    @model_validator(mode="after")
    def something_was_measured(self) -> Results:
        if not (self.rows or self.ratios or self.growth):
            raise ValueError("rows, ratios and growth are all missing or empty")
        return self


def committed() -> Path:
    return paths.root() / "benchmarks" / "speed" / "results.json"


def read(file: Path) -> Results | None:
    """What a file of figures holds; None when there is no file, EncoreError naming file and field when it is none."""
    content = parsed(file)
    if content is None:
        return None
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    message = "is required and not there" if problems[0]["type"] == "missing" else problems[0]["msg"]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = _field(problems[0]["loc"])
    raise EncoreError(f"{paths.shown(file)}: {where}: {message.removeprefix('Value error, ')}{more}")


def parsed(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file of figures; None when there is no file, EncoreError when it is cut off or damaged."""
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise EncoreError(f"{paths.shown(file)}: not valid JSON: nested too deep") from error
    except (OSError, ValueError) as error:
        raise EncoreError(f"{paths.shown(file)}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise EncoreError(f"{paths.shown(file)}: must be an object with rows, ratios and growth")
    return content


def _field(location: tuple[int | str, ...]) -> str:
    """rows[0].training.ratio; a key of the file that is no plain word is quoted and cut."""
    parts = (
        f"[{part}]" if isinstance(part, int) else f".{part if re.fullmatch(r'[a-z_]+', part) else ascii(part[:40])}"
        for part in location
    )
    return "".join(parts).lstrip(".") or "(file)"
