"""What a run says: on a terminal one living line, elsewhere a plain line every few seconds."""

import sys
import time
from collections.abc import Mapping

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows steps, losses, rate and time left."""

    def __init__(self, total: int, first: int, quiet: bool = False) -> None:
        self.total, self.first, self.quiet = total, first, quiet
        self.started = time.monotonic()
        self.spoke = -SECONDS_BETWEEN_LINES
        self.live = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.status import Status

            self.live = Status("training", console=Console(stderr=True))
            self.live.start()

    def show(self, step: int, figures: Mapping[str, float], kind: str) -> None:
        """Figures of a step; evaluations are always said."""
        now = time.monotonic()
        if self.quiet or (kind == "train" and self.live is None and now - self.spoke < SECONDS_BETWEEN_LINES):
            return
        rate = (step - self.first) / max(now - self.started, 1e-9)
        left = (self.total - step) / max(rate, 1e-9)
        told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        line = f"{kind} {step}/{self.total}: {told}"
        if step > self.first:  # before, there is no rate
            line += f", {rate:.2f} steps/s, {_time(left)} left"
        if self.live is None:
            self.spoke = now if kind == "train" else self.spoke
            print(line, file=sys.stderr, flush=True)
            return
        self.live.update(line)
        if kind != "train":
            self.live.console.print(line)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.live is not None:
            self.live.stop()


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
