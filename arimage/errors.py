"""Errors that name the cause and the way out.

The command line prints their text as one line and exits with ``exit_code``; a traceback is shown only with
``--debug``. Library users catch :class:`ArimageError` for everything this package raises on purpose.
"""

import difflib
from collections.abc import Iterable


class ArimageError(Exception):
    """Something failed for a reason that is known: the message names it and what to do."""

    exit_code = 1


class UsageError(ArimageError, ValueError):
    """An argument or setting is wrong: the message names it and the allowed values."""

    exit_code = 2


class CheckpointError(ArimageError):
    """A checkpoint folder cannot be used: the message names the file, and the tensor or key in it."""


class InputImageError(ArimageError):
    """A picture cannot be read: the message names the file and the reason."""


class TooManyPixelsError(InputImageError):
    """A picture has more pixels than may be opened; none of them was decoded."""


class DataError(ArimageError):
    """A data set cannot be used: the message names the file or record and the reason."""


class ForkedError(ArimageError):
    """Networks cannot run in this process, because it was forked after they had run in its parent."""


class Cancelled(ArimageError):
    """The caller asked a running generation to stop."""

    exit_code = 130


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint ``; did you mean 'x'?`` for the entry of ``allowed`` most like ``word``, or an empty string."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
