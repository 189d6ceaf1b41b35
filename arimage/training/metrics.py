"""Figures of a run: a line each in ``metrics.jsonl``, in the trackers, and on the terminal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arimage.errors import DataError
from arimage.training.config import TrainConfig
from arimage.training.processes import Processes
from arimage.training.progress import Progress

FILE = "metrics.jsonl"


class Metrics:
    """Where figures go; only the main process writes any."""

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        self.file, self.processes = Path(config.output) / FILE, processes

    def log(self, step: int, figures: Mapping[str, float], progress: Progress, kind: str = "train") -> None:
        """Figures of a step.

        Raises:
            DataError: one is not a number.
        """
        if not self.processes.main:
            return
        for name, value in figures.items():
            if not isinstance(value, float):
                raise DataError(f"the figure {name!r} is a {type(value).__name__}, not a number")
        self.processes.accelerator.log({f"{kind}/{name}": value for name, value in figures.items()}, step=step)
        self.write({"step": step, "kind": kind, **figures})
        progress.show(step, figures, kind)

    def write(self, row: Mapping[str, Any]) -> None:
        """A line of the file."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
