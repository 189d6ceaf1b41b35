"""Answers to requests under way: all at once or as Server-Sent Events, and an end when the client goes away."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from arimage.inference.results import GeneratedImage
from arimage.server.answers import Answer
from arimage.server.errors import ApiError, fault
from arimage.server.logs import LOG
from arimage.server.worker import Advanced, Ended, Event, Finished, Job, Partial, Worker

HEARTBEAT = b": still at it\n\n"


class ClientGone(Exception):
    """Nobody is there to answer."""


class Events:
    """Events of a job, from the worker's thread to a coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def emit(self, event: Event) -> None:
        """To be called in any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def until_ended(self, receive: Receive, heartbeat: float) -> AsyncIterator[Event | None]:
        """Events up to the last; None where nothing has happened for ``heartbeat`` seconds.

        Raises:
            ClientGone: the connection was closed.
        """
        gone = asyncio.create_task(_gone(receive))
        following = asyncio.create_task(self._queue.get())
        try:
            while True:
                await asyncio.wait({gone, following}, timeout=heartbeat, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    event = following.result()
                    following = asyncio.create_task(self._queue.get())
                    yield event
                    if isinstance(event, Ended):
                        return
                elif gone.done():
                    raise ClientGone
                else:
                    yield None
        finally:
            gone.cancel()
            following.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer_whole(
    worker: Worker, job: Job, events: Events, answer: Answer, receive: Receive, heartbeat: float
) -> dict[str, Any]:
    """The response once all pictures are finished.

    Raises:
        ApiError: they could not be made.
        ClientGone: nobody waits for them.
    """
    data: list[dict[str, Any]] = []
    images: list[GeneratedImage] = []
    ended = False
    try:
        async for event in events.until_ended(receive, heartbeat):
            if isinstance(event, Finished):
                data.append(await run_in_threadpool(answer.datum, event.image, len(data)))
                images.append(event.image)
            elif isinstance(event, Ended):
                ended = True
                if event.error is not None:
                    raise event.error
    finally:
        if not ended:
            worker.cancel(job)
    return answer.whole(data, images)


class EventStream(Response):
    """The events of a job as Server-Sent Events."""

    media_type = "text/event-stream"

    def __init__(self, worker: Worker, job: Job, events: Events, answer: Answer, heartbeat: float) -> None:
        self.worker, self.job, self.events, self.answer, self.heartbeat = worker, job, events, answer, heartbeat
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._finished, self._previews = 0, Counter[int]()
        self._log: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(part: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": more})

        self._log = scope["state"]["log"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        ended = False
        try:
            async for event in self.events.until_ended(receive, self.heartbeat):
                ended = isinstance(event, Ended)
                if part := HEARTBEAT if event is None else await self._part(event):
                    await write(part)
            await write(b"", more=False)
        except ClientGone:
            self._log["error"] = "cancelled"
        except Exception as error:
            LOG.exception("failed", extra={"fields": {"request_id": self.job.id}})
            await write(self._error(fault(error)), more=False)
        finally:
            if not ended:
                self.worker.cancel(self.job)

    async def _part(self, event: Event) -> bytes:
        if isinstance(event, Partial):
            index = self._previews[event.picture]
            self._previews[event.picture] += 1
            if index >= self.job.partials:
                return b""
            told = await run_in_threadpool(self.answer.partial, event.image, index, event.picture)
            return server_sent(told["type"], told)
        if isinstance(event, Advanced):
            told = self.answer.progress(event.progress)
            return server_sent(told["type"], told)
        if isinstance(event, Finished):
            number, self._finished = self._finished, self._finished + 1
            datum = await run_in_threadpool(self.answer.datum, event.image, number)
            told = self.answer.completed(datum, event.image, number)
            return server_sent(told["type"], told)
        return b"" if event.error is None else self._error(event.error)

    def _error(self, error: ApiError) -> bytes:
        self.worker.metrics.errors.labels(error.code).inc()
        self._log["error"] = error.code
        return server_sent("error", error.body)


def server_sent(name: str, data: Any) -> bytes:
    """One event."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
