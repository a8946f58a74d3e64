"""Hard negatives out of a ranking: what a retriever ranks high and nobody judged relevant.

python -m papers.dupmae.negatives --ranking RANKING --judged QRELS --output FILE
"""

import argparse
import sys
from collections.abc import Sequence

from common.errors import EncoreError
from common.formats.collection import mine_negatives, read_judgements, read_ranking, write_negatives


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m papers.dupmae.negatives", description=(__doc__ or "").splitlines()[0]
    )
    for name, what in (("ranking", "written by `test`"), ("judged", "judgements"), ("output", "file to write")):
        parser.add_argument(f"--{name}", required=True, help=what)
    given = parser.parse_args(arguments)
    try:
        negatives = mine_negatives(read_ranking(given.ranking), read_judgements(given.judged))
        write_negatives(given.output, negatives)
    except EncoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
