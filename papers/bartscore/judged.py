"""Text judged by people: what the released sets hold, how each is scored (SETS), and the two forms they are read in."""

import io
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common import sources
from common.errors import EncoreError
from common.formats.tables import read_table
from papers.bartscore.text import detokenize

Statistic = Literal["by_document", "pooled", "pearson", "accuracy", "darr", "values"]


@dataclass(frozen=True)
class Judged:
    """One hypothesis with what it is compared with. scores: {what people judged: their score}."""

    document: str
    system: str
    source: str
    references: tuple[str, ...]
    hypothesis: str
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """How a set is scored and compared with people.

    aggregate: over several references. from_source: whether source -> hypothesis makes sense (it does for summaries,
    not for meaning representations and foreign sentences). prompts: which set goes between reference and hypothesis.
    tokenized: texts are detokenised first. better, worse: names of the two systems of a pair.
    """

    statistic: Statistic
    human: tuple[str, ...] = ()
    aggregate: Literal["mean", "max"] = "mean"
    from_source: bool = True
    prompts: Literal["reference", "translation"] = "reference"
    tokenized: bool = True
    better: str = "better"
    worse: str = "worse"


_DATA_TO_TEXT = Protocol("pooled", ("informativeness", "naturalness", "quality"), aggregate="max", from_source=False)
_TRANSLATION = Protocol("darr", from_source=False, prompts="translation", tokenized=False)

SETS = {
    "realsumm": Protocol("by_document", ("litepyramid_recall",)),
    "summeval": Protocol("by_document", ("coherence", "consistency", "fluency", "relevance")),
    "newsroom": Protocol("by_document", ("coherence", "fluency", "informativeness", "relevance")),
    "rank19": Protocol("accuracy", better="correct", worse="incorrect"),
    "qags_cnn": Protocol("pearson", ("fact",)),
    "qags_xsum": Protocol("pearson", ("fact",)),
    "bagel": _DATA_TO_TEXT,
    "sfhot": _DATA_TO_TEXT,
    "sfres": _DATA_TO_TEXT,
    **{f"{language}_en": _TRANSLATION for language in ("de", "fi", "gu", "kk", "lt", "ru", "zh")},
    "generated": Protocol("pooled", ("informativeness", "naturalness", "quality"), "max", False, tokenized=False),
    "readme": Protocol("values", aggregate="max", from_source=False, tokenized=False),
}

README = (
    Judged("0", "", "", ("This is fun.",), "This is interesting."),
    Judged("1", "", "", ("I feel good today.", "I feel sad today."), "I'm super happy today."),
    Judged("2", "", "", ("Not bad.", "Sounds like a good idea."), "This is a good idea."),
)  # the examples of the official readme, scored from hypothesis to reference


def read(name: str, folder: str | Path | None = None) -> list[Judged]:
    """The judged texts of a set, in the form in which they are scored (detokenised where SETS says so).

    folder: a directory with the released `data.pkl`s as <set>/data.pkl, e.g. BAGEL/data.pkl or kk-en/data.pkl (any
    case, _ or -); without it the named source "generation_eval", which has all sets but de, fi, ru, zh.
    """
    protocol = protocol_of(name)
    if name == "readme":
        return list(README)
    rows = read_released(_released_file(Path(folder), name)) if folder else read_named(name)
    return [prepare(row) for row in rows] if protocol.tokenized else rows


def protocol_of(name: str) -> Protocol:
    """SETS[name], or an EncoreError that lists the names."""
    if name not in SETS:
        raise EncoreError(f"no judged set {name!r}; there are: {', '.join(SETS)}")
    return SETS[name]


def prepare(row: Judged) -> Judged:
    """The row with all texts detokenised."""
    references = tuple(detokenize(text) for text in row.references)
    return Judged(row.document, row.system, detokenize(row.source), references, detokenize(row.hypothesis), row.scores)


def read_named(name: str) -> list[Judged]:
    """A set of the source "generation_eval", texts as released."""
    files = sources.locate("generation_eval")
    if f"{name}.parquet" not in files:
        have = ", ".join(sorted(file.removesuffix(".parquet") for file in files))
        raise EncoreError(f"generation_eval has no {name!r} (it has {have}); give the folder of the released data.pkl")
    columns = ("doc_id", "system", "source", "references", "hypothesis", "scores")
    table = read_table(files[f"{name}.parquet"], columns)
    return [
        Judged(document, system, source, tuple(references), hypothesis, json.loads(scores))
        for document, system, source, references, hypothesis, scores in zip(*(table[c] for c in columns))
    ]


def _released_file(folder: Path, name: str) -> Path:
    wanted = name.replace("_", "").lower()
    found = [
        f
        for f in sorted(folder.glob("*/data.pkl"))
        if f.parent.name.replace("_", "").replace("-", "").lower() == wanted
    ]
    if not found:
        raise EncoreError(f"{folder}: no folder of {name} with a data.pkl in it; it is laid out like the released one")
    return found[0]


class _Plain(pickle.Unpickler):
    """Reads containers, texts and numbers, and numpy scalars; anything else in the file is refused unread."""

    allowed = frozenset({("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_released(file: Path) -> list[Judged]:
    """The rows of a released data.pkl of any of the three tasks. Only plain data is unpickled.

    Raises EncoreError, naming the file, when it is missing, truncated, hostile or laid out otherwise.
    """
    try:
        content = _Plain(io.BytesIO(file.read_bytes())).load()
        rows = [row for key, item in content.items() for row in _rows(str(key), item)]
    except (OSError, EOFError, pickle.UnpicklingError, UnicodeDecodeError, IndexError) as error:
        raise EncoreError(f"{file}: not a readable data.pkl ({error}); take it again from neulab/BARTScore") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EncoreError(f"{file}: not laid out like the released sets ({type(error).__name__}: {error})") from None
    if not rows:
        raise EncoreError(f"{file}: holds no judged text")
    return rows


def _rows(key: str, item: dict[str, Any]) -> list[Judged]:
    if "better" in item:  # machine translation
        return [Judged(key, which, item["src"], (item["ref"],), item[which]["sys"]) for which in ("better", "worse")]
    references = tuple(item["ref_summs"]) if "ref_summs" in item else (item["ref_summ"],)
    if "sys_summs" in item:  # summaries
        return [
            Judged(key, str(system), item["src"], references, made["sys_summ"], _numbers(made["scores"]))
            for system, made in item["sys_summs"].items()
        ]
    return [Judged(key, "system", item["src"], references, item["sys_summ"], _numbers(item["scores"]))]


def _numbers(scores: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}
