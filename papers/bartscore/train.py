"""Tunes a scorer, then compares it with people.

    python -m papers.bartscore.train fit --config papers/bartscore/configs/smoke.yaml

`fit` is followed by `test` where the config names judged sets; with trainer.max_steps 0 nothing is tuned before.
"""

import sys

from common.errors import EncoreError
from common.training.cli import run


def main(args: list[str] | None = None) -> None:
    """`run` for a terminal, with `test` after `fit`: bad input is one line on stderr and exit code 2."""
    try:
        cli = run(args)
        if cli.subcommand == "fit" and cli.datamodule.sets and not cli.trainer.interrupted:
            cli.trainer.test(cli.model, cli.datamodule)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, EncoreError):  # the parser wraps what a constructor raises
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        print(f"error: {cause}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
