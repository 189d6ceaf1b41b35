"""Stages that make no pictures but take their time and hand on as much data, to measure what is around them."""

import hashlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arimage.scale.shards import Row
from arimage.scale.stages import Output, Stage, Work
from arimage.scale.target import write_picture

# Bytes of a picture of 1024 px of the released model: references' latents, codes, latents, PNG.
SIZES: Mapping[str, int] = {"encoded": 600_000, "codes": 10_240, "latents": 1_048_576, "picture": 1_500_000}


@dataclass
class StubStages:
    """Stages of given times.

    Args:
        output: where "pictures" go.
        seconds: of a call of each stage, however many pictures a batch of tokens has.
        sizes: bytes of what is handed on.
        bad: jobs whose prompts contain this text fail in diffusion.
        fatal: those whose prompts contain this one end the process.
    """

    output: Output = field(default_factory=lambda: Output(None))
    seconds: Mapping[Stage, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=lambda: SIZES)
    bad: str = "\0"
    fatal: str = "\0"

    @contextmanager
    def holding(self, stage: Stage) -> Iterator[None]:
        yield

    def encode(self, work: Work) -> Any:
        self._wait("encode")
        return str(work.job.arguments["prompt"]), work.job.identity, self._data(work.job.identity, "encoded")

    def tokens(self, encoded: Sequence[Any]) -> list[Any]:
        self._wait("tokens")
        return [self._data(identity, "codes") for _, identity, _ in encoded]

    def diffusion(self, encoded: Any, drawn: Any) -> Any:
        self._wait("diffusion")
        prompt, identity, _ = encoded
        if self.fatal in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.bad in prompt:
            raise ValueError(f"{prompt!r} cannot be diffused")
        return self._data(identity, "latents")

    def pixels(self, work: Work, drawn: Any, latents: Any) -> Row:
        self._wait("pixels")
        job = work.job
        recipe = {"prompt": job.arguments["prompt"], "seed": job.arguments["seed"], "output_size": [32, 32]}
        picture = hashlib.sha256(drawn.tobytes() + latents.tobytes()).digest() * (self.sizes["picture"] // 32)
        if self.output.store is None:
            return {"id": job.id, "job": job.identity, "row": job.row, "recipe": recipe}
        return write_picture(self.output.store, work.place, job, self.output.kind, picture, recipe)

    def _wait(self, stage: Stage) -> None:
        time.sleep(self.seconds.get(stage, 0.0))

    def _data(self, identity: str, what: str) -> np.ndarray:
        return np.full(self.sizes[what], int(identity[:2], 16), np.uint8)
