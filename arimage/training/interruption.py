"""A run that is asked to stop saves its state first: Ctrl-C, and the SIGTERM of a scheduler or of torchrun."""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from arimage.errors import ArimageError

SIGNALS = signal.SIGINT, signal.SIGTERM


class Interrupted(ArimageError):
    """A run was asked to stop and has saved its state; the same command goes on from there."""

    exit_code = 130


class Interruption:
    """Within it the first signal is noted in ``asked``; the second ends the process as it would have anyway.

    Outside the main thread, where signals cannot be caught, it notes none.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._put_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._put_back()
        print("arimage: stopping after this step; once more stops at once, unsaved", file=sys.stderr, flush=True)

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
