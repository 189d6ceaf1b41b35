"""How far a run is: pictures through each stage, rates, and the time left."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from arimage.scale.stages import STAGES, Stage

WINDOW = 120.0
SECONDS_BETWEEN_LINES = 5.0


@dataclass
class StageTime:
    """Pictures and seconds of a stage; those of the first call, which warms up, are apart.

    Attributes:
        pictures: that are through.
        seconds: that they took, all workers together.
        first: pictures and seconds of the first call.
    """

    pictures: int = 0
    seconds: float = 0.0
    first: tuple[int, float] = (0, 0.0)

    def add(self, pictures: int, seconds: float) -> None:
        """A call took so long."""
        if not self.pictures:
            self.first = pictures, seconds
        self.pictures += pictures
        self.seconds += seconds

    @property
    def of_one(self) -> float:
        """Seconds of a picture, without the first call if there are others."""
        pictures, seconds = self.pictures - self.first[0], self.seconds - self.first[1]
        return seconds / pictures if pictures else self.seconds / max(1, self.pictures)


class Progress:
    """Counts what executors report, and says so now and then.

    Args:
        total: jobs of the table.
        say: takes a line.

    Attributes:
        workers: of each stage, where there are several.
        gpus: of all workers.
    """

    def __init__(self, total: int, say: Callable[[str], None] = lambda line: None) -> None:
        self.total, self.say = total, say
        self.stages = {stage: StageTime() for stage in STAGES}
        self.there = self.made = self.failed = 0
        self.started = self._spoke = time.monotonic()
        self._recent: deque[float] = deque()
        self.workers: dict[Stage, int] = {}
        self.gpus = 0.0

    def stage(self, stage: Stage, pictures: int, seconds: float) -> None:
        """So many pictures are through a stage, in one call that took so long."""
        self.stages[stage].add(pictures, seconds)

    def finished(self) -> None:
        """A picture is there."""
        now = time.monotonic()
        self.made += 1
        self._recent.append(now)
        while now - self._recent[0] > WINDOW:
            self._recent.popleft()
        if now - self._spoke >= SECONDS_BETWEEN_LINES:
            self._spoke = now
            self.say(self.line())

    @property
    def rate(self) -> float:
        """Pictures a second over the last minutes."""
        now = time.monotonic()
        since = max(self.started, now - WINDOW)
        return len(self._recent) / max(now - since, 1e-6)

    @property
    def left(self) -> int:
        """Jobs that nothing is known of yet."""
        return max(0, self.total - self.there - self.made - self.failed)

    def as_json(self) -> dict[str, Any]:
        """Times, as :meth:`StageSeconds.read` takes them."""
        seconds = {name: stage.of_one for name, stage in self.stages.items()}
        return {"seconds": seconds, "elapsed": time.monotonic() - self.started}

    def line(self) -> str:
        """Where the run stands."""
        stages = ", ".join(f"{name} {stage.pictures}" for name, stage in self.stages.items())
        rate = self.rate
        left = duration(self.left / rate) if rate else "unknown"
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.there + self.made}/{self.total} pictures ({stages}{failed}), {rate:.2f}/s, {left} left"


def duration(seconds: float) -> str:
    """A time in words of two units at most: ``41 s``, ``12 min``, ``3 h 20 min``, ``5 d 4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
