"""Small running text: the descriptions that come with scikit-learn, and WikiText-2; as documents or as sentences."""

import importlib.resources
import re
from collections.abc import Iterator
from typing import Literal

from common import sources
from common.formats.tables import read_text

Document = list[str]  # the lines of one document
Source = Literal["wikitext2", "sklearn"]


def descriptions() -> list[str]:
    """What scikit-learn says of its data sets, a text each. The lock file pins that package, so these are the same
    words on every machine."""
    folder = importlib.resources.files("sklearn.datasets") / "descr"
    return [file.read_text() for file in sorted(folder.iterdir(), key=str) if file.name.endswith(".rst")]


def paragraphs() -> list[Document]:
    """The paragraphs of `descriptions` with more than eight words, line by line."""
    parts = [[line.strip() for line in part.splitlines()] for text in descriptions() for part in text.split("\n\n")]
    return [lines for lines in parts if len(" ".join(lines).split()) > 8]


def wikitext2() -> tuple[str, str]:
    """WikiText-2 to train on and to hold out: its test and its validation text. Its training text is not part of the
    source."""
    files = sources.locate("wikitext2")
    return read_text(files["wikitext2_test.txt.gz"]), read_text(files["wikitext2_valid.txt.gz"])


def wikitext_documents(text: str) -> Iterator[Document]:
    """Articles of WikiText, which begin with ` = Title = ` and have blank lines inside."""
    article: Document = []
    for line in text.split("\n"):
        if re.match(r"^ = [^=].* = $", line) and article:
            yield article
            article = []
        if line.strip():
            article.append(line.strip())
    if article:
        yield article


def wikitext_sentences(text: str) -> list[str]:
    """Sentences of WikiText, headings left out. Its ` @-@ ` becomes `-`, its `<unk>` the word `unk`."""
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith(" = ")]
    joined = [re.sub(r" @(.)@ ", r"\1", line).replace("<unk>", "unk") for line in lines]
    return [part for line in joined for part in re.split(r"(?<= [.?!]) ", line.strip()) if len(part.split()) >= 4]


def documents(source: Source) -> tuple[list[Document], list[Document]]:
    """Documents of a source to train on and to hold out."""
    if source == "sklearn":
        found = paragraphs()
        return found[::10] + found[1::10] + found[2::10], found[9::10]
    train, valid = (list(wikitext_documents(text)) for text in wikitext2())
    return train, valid


def sentences(source: Source) -> tuple[list[str], list[str]]:
    """Sentences of a source to train on and to hold out; of the descriptions, lines with six words or more."""
    if source == "sklearn":
        lines = [line.strip() for text in descriptions() for line in text.split("\n")]
        lines = [line for line in lines if len(re.findall(r"[a-z]{2,}", line)) >= 6]
        return [line for i, line in enumerate(lines) if i % 10 < 9], lines[9::10]
    train, valid = (wikitext_sentences(text) for text in wikitext2())
    return train, valid
