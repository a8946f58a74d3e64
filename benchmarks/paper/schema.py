"""The form of papers/<slug>/paper.yaml, the only place a paper's figures live (`load.py` reads the files)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from benchmarks.paper.choices import pick

Source = Literal["official-code", "official-readme", "paper-text", "abstract", "third-party", "derived", "recalled"]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100)]
EntryPoint = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Number = Annotated[int | float, Field(gt=-1e300, lt=1e300)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Strict(BaseModel):
    """No unknown keys: a typo in paper.yaml is an error, not a silently ignored figure."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Fact(Strict):
    """A figure that follows from the sizes alone; `build` is called under torch.device("meta").

    For `parameters` and `trainable_parameters` it returns the module (`part` picks a submodule), else the number.
    """

    id: Identifier
    build: EntryPoint
    args: dict[str, JsonValue] = {}
    part: str | None = None
    quantity: Identifier
    reported: Number
    rel_tol: float = Field(0.0, ge=0, lt=1)
    source: Source
    note: str | None = None


ConfigName = Annotated[str, Field(pattern=r"^[\w.*?-]+\.yaml$", max_length=100)]
Key = Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=200)]


class Constant(Strict):
    """One published constant of training, held against where it stands: a key of configs, a product of keys, or what a
    callable returns (for constants that stand in code).

    Configs are files of the paper's configs/ folder, also by pattern ("paper_glue_*.yaml"); the row matches when all of
    them do. `devices` in a product is the number of processes (devices times nodes).
    """

    config: ConfigName | None = None
    configs: list[ConfigName] = []
    key: Key | None = None
    product: list[Key] = []
    build: EntryPoint | None = None
    args: dict[str, JsonValue] = {}
    reported: JsonValue
    rel_tol: float = Field(0.0, ge=0, lt=1)
    source: Source
    note: str | None = None

    @model_validator(mode="after")
    def says_where(self) -> Constant:
        if (self.key is not None) + bool(self.product) + (self.build is not None) != 1:
            raise ValueError("give one of key, product and build")
        if (self.config is not None) + bool(self.configs) != (self.build is None):
            raise ValueError("give config or configs with a key or a product, and neither with build")
        return self

    @field_validator("reported")
    @classmethod
    def numbers_are_numbers(cls, reported: JsonValue) -> JsonValue:
        for value in reported if isinstance(reported, list) else [reported]:
            if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+e[+-]?\d+", value, re.IGNORECASE):
                raise ValueError(f"yaml reads {value} as text: write it as 5.0e-4 is written")
        return reported

    @property
    def patterns(self) -> list[str]:
        return [self.config] if self.config is not None else list(self.configs)

    @property
    def where(self) -> str:
        """What a reader is shown of it: "paper_*.yaml model.init_args.lr"."""
        value = self.key or " x ".join(self.product) or str(self.build)
        arguments = ", ".join(f"{name}={value}" for name, value in self.args.items())
        return " ".join([*self.patterns, f"{value}({arguments})" if arguments else value])


class ArmMetric(Strict):
    """One metric of one arm of a claim or measurement."""

    arm: Identifier
    metric: Identifier


class Gate(Strict):
    """The plateau gate: a gap may be read when each side is better than this by `at_least`, in the mean over seeds."""

    untrained: Identifier | ArmMetric | None = None
    chance: Number | None = None
    at_least: float = Field(ge=0, lt=1e300)

    @model_validator(mode="after")
    def is_above_one_thing(self) -> Gate:
        if (self.untrained is None) == (self.chance is None):
            raise ValueError("name either untrained (an arm) or chance (a number); for both write a list of two gates")
        return self

    @property
    def floor(self) -> str | ArmMetric | Number:
        return self.chance if self.untrained is None else self.untrained  # type: ignore[return-value]


class Needs(Strict):
    """What one unit asks a cluster for (engines ray and slurm). The local engine gives it a share of the machine."""

    cores: int = Field(default=1, ge=1, le=10_000)
    gpus: int = Field(default=0, ge=0, le=10_000)
    memory_gb: float = Field(default=4.0, gt=0, le=1e5)


class Experiment(Strict):
    """What a claim and a measurement share: arms and seeds of one entry point, run as separate units."""

    id: Identifier
    statement: str
    entry: EntryPoint
    seeds: list[Seed] = Field(min_length=1)
    data: str | list[str]
    minutes: float = Field(15.0, gt=0, le=1e6)
    needs: Needs = Needs()
    note: str | None = None

    @field_validator("seeds")
    @classmethod
    def seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is named twice")
        return seeds

    @property
    def sources(self) -> list[str]:
        """The named data sources it reads; "generated" stands for exactly generated data."""
        return [self.data] if isinstance(self.data, str) else list(self.data)


class Claim(Experiment):
    """A statement of the paper checked by training: gap = method - baseline, paired by seed.

    arms: more arms than the two sides; or, of all arms, {arm: {setting: its value}}: in these settings, and in no
    others, arms differ (null: whatever the value is). same_start: every arm trains first from the same weights of a
    seed. same_training: arms differ only in what is done with the trained weights.
    """

    paper_ref: str
    metric: Identifier
    method: Identifier | ArmMetric
    baseline: Identifier | ArmMetric | Number
    higher_is_better: bool
    arms: list[Identifier] | dict[Identifier, dict[str, JsonValue]] = []
    same_start: bool = False
    same_training: bool = False
    gate: list[Gate] = []
    margin: float = Field(0.0, ge=0)
    secondary: list[Identifier] = []

    @field_validator("gate", mode="before")
    @classmethod
    def one_gate_or_several(cls, gate: object) -> object:
        return [gate] if isinstance(gate, dict) else gate

    @model_validator(mode="after")
    def mapping_names_every_arm(self) -> Claim:
        if absent := isinstance(self.arms, dict) and [arm for arm in self.all_arms if arm not in self.arms]:
            raise ValueError(f"arms says in which settings arms differ, but nothing of {', '.join(absent)}")
        return self

    @model_validator(mode="after")
    def method_differs_from_baseline(self) -> Claim:
        if self.side(self.method) == self.side(self.baseline):
            raise ValueError("method and baseline are the same")
        return self

    def side(self, of: str | ArmMetric | Number) -> tuple[str, str] | float:
        """(arm, metric) of the method or the baseline, or the fixed number."""
        if isinstance(of, ArmMetric):
            return of.arm, of.metric
        return (of, self.metric) if isinstance(of, str) else float(of)

    @property
    def all_arms(self) -> list[str]:
        return list(dict.fromkeys([arm for arm, _ in self._read()] + list(self.arms)))

    def metrics_of(self, arm: str) -> set[str]:
        """The metrics that arm must return for the gap and the gate."""
        return {metric for each, metric in self._read() if each == arm}

    def _read(self) -> list[tuple[str, str]]:
        """(arm, metric) of method, baseline and gate."""
        sides = [self.side(of) for of in (self.method, self.baseline, *(gate.floor for gate in self.gate))]
        return [side for side in sides if isinstance(side, tuple)]


class Measurement(Experiment):
    """Runs whose values stand beside reported rows, without a verdict on a gap."""

    arms: list[Identifier] = Field(min_length=1)
    rows: dict[Identifier, ArmMetric]

    @property
    def all_arms(self) -> list[str]:
        return list(self.arms)

    def metrics_of(self, arm: str) -> set[str]:
        """The metrics that arm must return for its reported rows."""
        return {cell.metric for cell in self.rows.values() if cell.arm == arm}


class NamedValue(Strict):
    name: str
    value: Number | str | None


class Reported(Strict):
    """One number kept from the paper, with what stands behind it here: a fact, a claim, a measurement or a recipe."""

    id: Identifier
    table: str
    dataset: str
    metric: str
    setting: str
    method: str | None = None
    value: Number | str | None
    unit: str
    baseline: NamedValue | None = None
    source: Source
    note: str | None = None
    recipe: Annotated[str, Field(pattern=r"^configs/[\w.-]+\.yaml$", max_length=100)] | None = None
    fact: str | None = None
    claim: str | None = None


class Paper(Strict):
    """One papers/<slug>/paper.yaml."""

    slug: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: str
    authors: str | list[str]
    year: int = Field(ge=1950, le=2100)
    venue: str
    arxiv: str | None = None
    code: str | None = None
    modality: list[str] = Field(min_length=1)
    builds_on: list[str] = []
    fidelity: Literal["confirmed", "partly", "reconstructed"]
    choices: list[str] = []
    facts: list[Fact] = []
    recipe: list[Constant] = []
    claims: list[Claim] = []
    measurements: list[Measurement] = []
    reported: list[Reported] = []
    missing: list[str] = []  # what could be built here and is not
    limits: list[str] = []  # what cannot: weights, data or tools that are not public, methods of other papers

    @field_validator("arxiv", mode="before")
    @classmethod
    def arxiv_is_quoted(cls, arxiv: object) -> object:
        if isinstance(arxiv, float):
            raise ValueError('write the number in quotes, or yaml drops its zeros: arxiv: "2103.00020"')
        return arxiv

    @property
    def experiments(self) -> list[Claim | Measurement]:
        return [*self.claims, *self.measurements]

    def experiment(self, identifier: str) -> Claim | Measurement:
        """The claim or measurement of that id; EncoreError naming the choices when there is none."""
        return pick(identifier, {e.id: e for e in self.experiments}, f"claim of {self.slug}")
