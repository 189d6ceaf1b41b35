"""The stages one after another in this process: tokens of several pictures in one batch, diffusion one by one."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

from arimage.scale.progress import Progress
from arimage.scale.stages import STAGES, Outcome, Stage, Stages, Work, reason


def run_here(
    stages: Stages, works: Iterator[Work], progress: Progress, batch: int, together: bool = False
) -> Iterator[Outcome]:
    """Do the work, taking it as it can be done.

    Args:
        batch: pictures whose tokens are drawn in one batch.
        together: each stage for all of a batch before the next one, so that networks of one stage are held at a time.
    """
    here = Here(stages, progress)
    with ExitStack() as held:
        for first in itertools.islice(works, 1):
            if not together:
                for stage in STAGES:
                    held.enter_context(stages.holding(stage))
            works = itertools.chain([first], works)
        while group := list(itertools.islice(works, batch)):
            yield from here.group(group, together)


class Here:
    """Runs stages and takes their times; failures are given back in place of what a stage makes."""

    def __init__(self, stages: Stages, progress: Progress) -> None:
        self.stages, self.progress = stages, progress

    def group(self, group: Sequence[Work], together: bool) -> Iterator[Outcome]:
        """What comes of some work."""

        def holding(stage: Stage) -> Any:
            return self.stages.holding(stage) if together else nullcontext()

        with holding("encode"):
            encoded = [(work, self._one("encode", lambda work=work: self.stages.encode(work))) for work in group]  # type: ignore[misc]
        yield from (Outcome(work, problem=one.reason) for work, one in encoded if isinstance(one, _Failed))
        good = [(work, one) for work, one in encoded if not isinstance(one, _Failed)]
        with holding("tokens"):
            drawn = self._tokens([one for _, one in good])
        through = self._diffused(good, drawn)
        if together:
            with holding("diffusion"):
                through = iter(list(through))
        with holding("pixels"):
            for work, codes, latents in through:
                row = latents
                if not isinstance(latents, _Failed):
                    row = self._one(
                        "pixels",
                        lambda work=work, codes=codes, latents=latents: self.stages.pixels(work, codes, latents),  # type: ignore[misc]
                    )
                yield Outcome(work, problem=row.reason) if isinstance(row, _Failed) else Outcome(work, row)

    def _diffused(self, good: Sequence[tuple[Work, Any]], drawn: Sequence[Any]) -> Iterator[tuple[Work, Any, Any]]:
        for (work, one), codes in zip(good, drawn):
            latents = codes
            if not isinstance(codes, _Failed):
                latents = self._one(
                    "diffusion",
                    lambda one=one, codes=codes: self.stages.diffusion(one, codes),  # type: ignore[misc]
                )
            yield work, codes, latents

    def _tokens(self, encoded: Sequence[Any]) -> list[Any]:
        """Where a batch fails its pictures are tried alone, so that one does not cost the others."""
        if not encoded:
            return []
        drawn = self._one("tokens", lambda: self.stages.tokens(encoded), len(encoded))
        if not isinstance(drawn, _Failed):
            return list(drawn)
        return [drawn] if len(encoded) == 1 else [made for one in encoded for made in self._tokens([one])]

    def _one(self, stage: Stage, call: Callable[[], Any], pictures: int = 1) -> Any:
        began = time.perf_counter()
        try:
            made = call()
        except Exception as error:
            return _Failed(reason(error))
        self.progress.stage(stage, pictures, time.perf_counter() - began)
        return made


class _Failed:
    def __init__(self, reason: str) -> None:
        self.reason = reason
