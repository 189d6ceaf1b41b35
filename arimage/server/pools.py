"""The worker of a server whose stages are pools of actors on a Ray cluster."""

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from arimage.inference.calls import Call
from arimage.inference.pipeline import ImagePipeline
from arimage.inference.requests import EngineImage
from arimage.inference.results import GeneratedImage
from arimage.scale.cluster import Cluster
from arimage.scale.pools import Pools
from arimage.scale.progress import Progress
from arimage.scale.stages import ModelStages, Outcome, Output
from arimage.server.errors import ApiError
from arimage.server.logs import LOG
from arimage.server.worker import Ended, Finished, Job, Worker, made_tokens

TURN = 0.05  # seconds after which the pools look for new requests


@dataclass(frozen=True)
class PictureWork:
    """A picture of a call."""

    id: int
    call: Call
    picture: int


class ServingStages(ModelStages):
    """The stages on calls that are opened, whose pictures come back in place of rows."""

    def __init__(self, model: Mapping[str, Any], threads: int | None = None) -> None:
        super().__init__(Output(None), model, threads)

    def encode(self, work: Any) -> Any:
        call: Call = work.call
        encoded = self.pipeline.engine.encode([call.requests[work.picture]], call.settings)[0]
        return call.settings, encoded.to("cpu")

    def pixels(self, work: Any, drawn: Any, latents: Any) -> Any:
        request = work.call.requests[work.picture]
        image = self.pipeline.engine.render(request, latents, work.call.settings.feather)
        made = EngineImage(image, drawn[-1], drawn[0] if len(drawn) > 1 else None)
        return self.pipeline.result(work.call, request, made)


@dataclass(eq=False)
class _Running:
    """A request in the pools: its pictures by number, of which the next one is to be told."""

    job: Job
    made: dict[int, GeneratedImage] = field(default_factory=dict)
    told: int = 0


class PoolWorker(Worker):
    """Makes the pictures of requests on pools of actors; many requests run at once.

    Requests start in the order in which they came and end when they are made. One that is cancelled leaves the stages
    that it waits for; a stage that it is in ends it afterwards. There are no previews.

    Args:
        pipeline: an opened model, to prepare calls with; no network of it is read.
        capacity: requests that may be unfinished beside one.
        ray: connected.
        stages, cluster: of the pools.
    """

    def __init__(
        self, pipeline: ImagePipeline, capacity: int, ray: Any, stages: ServingStages, cluster: Cluster
    ) -> None:
        super().__init__(pipeline, capacity)
        self._pools = Pools(ray, stages, cluster, Progress(0), wait=TURN, on_turn=self._drop_cancelled)
        self._numbers = itertools.count()
        self._pictures: dict[int, tuple[_Running, int]] = {}
        self._requests: dict[Job, _Running] = {}

    def waiting(self) -> int:
        return len(self._queue)

    def _running(self) -> list[Job]:
        return list(self._taken)

    def _load(self) -> None:
        self.pipeline.networks.weights_hash()

    def _serve(self) -> None:
        with closing(self._pools.run(self._works())) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                self._finish(outcome)

    def _works(self) -> Iterator[Any]:
        """The pictures of requests as they come; None where there is none at the moment."""
        while True:
            with self._changed:
                job = self._queue.popleft() if self._queue else None
                if job is None and self.state == "closing" and not self._taken:
                    return
                if job is not None:
                    self._taken.append(job)
            if job is None:
                yield None
                continue
            job.started = time.monotonic()
            self.metrics.stages.labels("queue").inc(job.started - job.submitted)
            running = self._requests[job] = _Running(job)
            for picture in range(len(job.call.requests)):
                number = next(self._numbers)
                self._pictures[number] = running, picture
                yield PictureWork(number, job.call, picture)

    def _finish(self, outcome: Outcome) -> None:
        """A picture is made, or its request has failed."""
        known = self._pictures.pop(outcome.work.id, None)  # type: ignore[attr-defined]
        if known is None or known[0].job not in self._requests:
            return
        running, picture = known
        job = running.job
        if outcome.row is None:
            LOG.error("failed", extra={"fields": {"request_id": job.id, "reason": outcome.problem}})
            self._end(job, ApiError(500, "server_error", "the picture could not be made; the log says why"))
            return
        image: Any = outcome.row
        running.made[picture] = image
        self.metrics.pictures.inc()
        self.metrics.tokens.inc(made_tokens(image))
        while running.told in running.made:
            job.emit(Finished(running.made.pop(running.told)))
            running.told += 1
        if running.told == len(job.call.requests):
            self._seconds += (time.monotonic() - job.started - self._seconds) / 4
            self._end(job, None)

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._requests if job.cancel.is_set()]:
            self._end(job, job.refusal or ApiError(499, "cancelled", "the request was cancelled"))

    def _end(self, job: Job, error: ApiError | None) -> None:
        running = self._requests.pop(job)
        gone = [number for number, (of, _) in self._pictures.items() if of is running]
        for number in gone:
            del self._pictures[number]
        self._pools.drop(lambda work: work.id in gone)
        with self._changed:
            if job in self._taken:
                self._taken.remove(job)
        job.emit(Ended(error))
