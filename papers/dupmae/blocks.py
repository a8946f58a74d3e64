"""Pre-training text as blocks of token ids: joined sentences, kept on disk as the RetroMAE repository keeps them.

    python -m papers.dupmae.blocks {wikipedia,books,passages} --input DIR_OR_FILE --tokenizer DIR --output DIR

wikipedia: a local data set with a column `text`, an article a row; books: the same, a sentence a row; passages: an
MS MARCO corpus.tsv or .jsonl. `--output` can be given to several runs one after the other only as different folders;
papers.dupmae.data.Corpus takes them all.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from common.errors import EncoreError
from common.formats.collection import Passage, TextFile
from common.formats.text_corpus import join, sentence_blocks
from common.formats.wordpiece import WordPiece

TITLE = 2  # a passage's title of up to so many characters is left out, as in the released script


def book_blocks(lines: Iterable[str], tokenizer: WordPiece, length: int) -> Iterator[list[int]]:
    """Blocks of running text that comes sentence by sentence."""
    stream = iter(lines)
    some = iter(lambda: list(islice(stream, 1000)), [])
    yield from join((ids for part in some for ids in tokenizer.encode_batch(part)), length)


def passage_text(passage: Passage) -> str:
    """Title and text in one, for pre-training."""
    return f"{passage.title} {passage.text}" if len(passage.title) > TITLE else passage.text


def save_blocks(kind: str, source: str | Path, tokenizer: WordPiece, output: str | Path, length: int = 510) -> int:
    """Writes the blocks of a raw corpus as a data set with the column `token_ids`; returns how many there are."""
    import datasets

    def rows() -> Iterator[dict[str, list[int]]]:
        if kind == "passages":
            passages = TextFile(source)
            texts: Iterable[str] = (passage_text(passages[i]) for i in passages)
        else:
            texts = (row["text"] for row in local_rows(source))
        make = book_blocks if kind == "books" else sentence_blocks
        yield from ({"token_ids": block} for block in make(texts, tokenizer, length))

    try:
        made = datasets.Dataset.from_generator(rows, cache_dir=str(Path(output) / "cache"))
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None  # what went wrong in `rows`
    made.save_to_disk(str(output))
    return len(made)


def local_rows(path: str | Path) -> Any:
    """Rows of a local data set with a column `text`: one written by save_to_disk, or Parquet, JSON-lines or text files.

    Nothing is downloaded.
    """
    import datasets

    path = Path(path)
    for suffix, builder in ((".parquet", "parquet"), (".jsonl", "json"), (".txt", "text")):
        if files := sorted(str(file) for file in path.glob(f"*{suffix}")):
            rows = datasets.load_dataset(builder, data_files=files, split="train", streaming=True)
            break
    else:
        rows = load_from_disk(path)
    if rows.column_names is not None and "text" not in rows.column_names:
        raise EncoreError(f"{path}: no column 'text'; it has {', '.join(rows.column_names)}")
    return rows


def load_from_disk(path: str | Path) -> Any:
    """A data set written by datasets' save_to_disk."""
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise EncoreError(
            f"{path}: not a data set saved by datasets' save_to_disk ({error}); "
            "make it with python -m papers.dupmae.blocks, or give a folder of Parquet, JSON-lines or text files"
        ) from None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m papers.dupmae.blocks", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["wikipedia", "books", "passages"])
    for name, what in (("input", "the raw corpus"), ("tokenizer", "folder with vocab.txt"), ("output", "new folder")):
        parser.add_argument(f"--{name}", required=True, help=what)
    parser.add_argument("--length", type=int, default=510, help="tokens a block, without special ones")
    given = parser.parse_args(arguments)
    try:
        count = save_blocks(given.kind, given.input, WordPiece.load(given.tokenizer), given.output, given.length)
    except EncoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{given.output}: {count} blocks")


if __name__ == "__main__":
    main()
