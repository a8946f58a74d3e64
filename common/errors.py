"""The one exception for bad input."""


class EncoreError(Exception):
    """Bad input. The message says what is wrong, where (file or field), and what to do about it.

    The command lines print it as one line and end with exit code 2; no result is written.
    """
