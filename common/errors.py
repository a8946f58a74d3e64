"""The one exception for bad input."""

import sys
from collections.abc import Callable


class EncoreError(Exception):
    """Bad input. The message says what is wrong, where (file or field), and what to do about it.

    The command lines print it as one line and end with exit code 2; no result is written.
    """


def one_line(function: Callable[..., object], *arguments: object) -> None:
    """function(*arguments) for a command line: bad input becomes one line on stderr and exit code 2."""
    try:
        function(*arguments)
    except EncoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
