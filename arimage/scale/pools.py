"""The stages as pools of actors on a Ray cluster.

Ray places and starts the actors and carries what they hand on, from one to the next without the driver. What is decided
here is which free actor takes what waits: tokens in batches, everything else one by one, and nothing so far ahead that
it piles up. A job whose worker is lost begins again; its picture depends on nothing but the job.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from arimage.errors import ArimageError
from arimage.scale.cluster import Cluster
from arimage.scale.progress import Progress
from arimage.scale.stages import STAGES, Outcome, Stage, Stages, Work, reason
from arimage.scale.stores import StoreError

DEPTH = 2  # calls of an actor under way, so that it does not wait for the driver
AHEAD = 2  # batches that wait for an actor
STARTS = 5
TOLD_AFTER = 30.0
WAIT = 1.0
_END: Any = object()


@dataclass(frozen=True)
class Report:
    """What the driver hears of a call: its seconds, why it failed, whether the run ends, and the rows of pictures."""

    seconds: float = 0.0
    problem: str = ""
    fatal: bool = False
    row: Any = None


class StageActor:
    """A worker of one stage. Its methods give a report and, apart from it, what the next stage takes."""

    def __init__(self, stages: Stages, stage: Stage) -> None:
        self.stages, self.stage = stages, stage
        self._held = ExitStack()

    def ready(self) -> Report:
        """Have everything read."""
        began = time.perf_counter()
        try:
            self._held.enter_context(self.stages.holding(self.stage))
        except Exception as error:
            return Report(problem=_said(error), fatal=True)
        return Report(time.perf_counter() - began)

    def encode(self, work: Work) -> tuple[Report, Any]:
        return self._reported(lambda: self.stages.encode(work))

    def tokens(self, *encoded: Any) -> tuple[Any, ...]:
        report, drawn = self._reported(lambda: self.stages.tokens(encoded))
        return (report, *([None] * len(encoded) if drawn is None else drawn))

    def diffusion(self, encoded: Any, drawn: Any) -> tuple[Report, Any]:
        return self._reported(lambda: self.stages.diffusion(encoded, drawn))

    def pixels(self, work: Work, drawn: Any, latents: Any) -> Report:
        report, row = self._reported(lambda: self.stages.pixels(work, drawn, latents))
        return Report(report.seconds, report.problem, report.fatal, row)

    def _reported(self, call: Callable[[], Any]) -> tuple[Report, Any]:
        began = time.perf_counter()
        try:
            made = call()
        except Exception as error:
            return Report(problem=_said(error), fatal=isinstance(error, StoreError)), None
        return Report(time.perf_counter() - began), made


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, StoreError) else reason(error)


@dataclass(eq=False)
class _Item:
    """A job on its way; ``alone`` since a call that it was in failed or was lost."""

    work: Work
    encoded: Any = None
    drawn: Any = None
    latents: Any = None
    losses: int = 0
    alone: bool = False

    def begin_again(self) -> None:
        self.encoded = self.drawn = self.latents = None
        self.alone = True


@dataclass(eq=False)
class _Worker:
    stage: Stage
    handle: Any
    starting: bool = True
    calls: dict[Any, list[_Item]] = field(default_factory=dict)
    idle_since: float = field(default_factory=time.monotonic)

    @property
    def exclusive(self) -> bool:
        return any(item.alone for items in self.calls.values() for item in items)


class Pools:
    """Actors of every stage.

    Args:
        ray: the library, connected: see :func:`connect`.
        stages: are copied to every actor.
        cluster: how many actors there are, and what they need.
        progress: is told what is through.
        say: takes what should be known.
        wait: seconds after which work is looked for though no call has ended.
        on_turn: is called whenever it is looked for.
    """

    def __init__(
        self,
        ray: Any,
        stages: Stages,
        cluster: Cluster,
        progress: Progress,
        say: Callable[[str], None] = lambda line: None,
        wait: float = WAIT,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self.wait, self.on_turn = wait, on_turn
        self.ray, self.cluster, self.progress, self.say = ray, cluster, progress, say
        self._stages = ray.put(stages)
        self._actor = ray.remote(StageActor)
        self._workers: dict[Stage, list[_Worker]] = {stage: [] for stage in STAGES}
        self._waiting: dict[Stage, deque[_Item]] = {stage: deque() for stage in STAGES}
        self._pending: dict[Any, _Worker] = {}
        self._starts = dict.fromkeys(STAGES, 0)
        self._told, self._together = time.monotonic(), cluster.together
        self.lost = 0

    def run(self, works: Iterator[Work | None]) -> Iterator[Outcome]:
        """Do the work, taking it as it can be done; None says that there is none at the moment.

        Raises:
            StoreError: the target cannot be written.
            ArimageError: actors cannot be started.
        """
        more = True
        try:
            while True:
                self.on_turn()
                while more and len(self._waiting["encode"]) < self._room("encode"):
                    work = next(works, _END)
                    more = work is not _END
                    if work is None or not more:
                        break
                    self._waiting["encode"].append(_Item(work))
                if not more and not any(self._waiting.values()) and not any(w.calls for w in self._all()):
                    return
                self._adjust()
                self._assign()
                yield from self._collect()
        finally:
            self.close()

    def drop(self, unwanted: Callable[[Any], bool]) -> None:
        """Forget work that waits; what a worker is at comes all the same."""
        for stage, waiting in self._waiting.items():
            self._waiting[stage] = deque(item for item in waiting if not unwanted(item.work))

    def close(self) -> None:
        """End all actors."""
        for worker in self._all():
            with suppress(Exception):
                self.ray.kill(worker.handle)
        for workers in self._workers.values():
            workers.clear()
        self._pending.clear()

    def _all(self) -> Iterator[_Worker]:
        for workers in self._workers.values():
            yield from workers

    def _batch(self, stage: Stage) -> int:
        return self._together if stage == "tokens" else 1

    def _room(self, stage: Stage) -> int:
        """How many jobs may wait for a stage."""
        return AHEAD * self._batch(stage) * max(1, len(self._workers[stage]))

    def _may_go_on(self, stage: Stage) -> bool:
        """Whether there is room for what a further call of a stage hands on, so many for each of its workers apart."""
        if stage == "pixels":
            return True
        following = STAGES[STAGES.index(stage) + 1]
        coming = sum(len(items) for worker in self._workers[stage] for items in worker.calls.values())
        under_way = self._batch(stage) * DEPTH * len(self._workers[stage])
        return len(self._waiting[following]) + coming < self._room(following) + under_way

    def _assign(self) -> None:
        """Give what waits to free workers, the later stages first."""
        for stage in reversed(STAGES):
            waiting = self._waiting[stage]
            workers = [one for one in self._workers[stage] if not one.starting]
            while waiting and workers and self._may_go_on(stage):
                worker = min(workers, key=lambda one: (one.exclusive, len(one.calls)))
                busy = len(worker.calls)
                if busy >= DEPTH or worker.exclusive or (busy and waiting[0].alone):
                    break
                size = 1 if waiting[0].alone else self._batch(stage)
                if busy and len(waiting) < size:
                    break  # it will be a fuller batch when the worker is free
                items = [waiting.popleft()]
                while waiting and len(items) < size and not waiting[0].alone:
                    items.append(waiting.popleft())
                self._call(worker, items)

    def _call(self, worker: _Worker, items: list[_Item]) -> None:
        first, handle = items[0], worker.handle
        if worker.stage == "encode":
            report, first.encoded = handle.encode.options(num_returns=2).remote(first.work)
        elif worker.stage == "tokens":
            report, *drawn = handle.tokens.options(num_returns=1 + len(items)).remote(*(one.encoded for one in items))
            for item, one in zip(items, drawn):
                item.drawn = one
        elif worker.stage == "diffusion":
            report, first.latents = handle.diffusion.options(num_returns=2).remote(first.encoded, first.drawn)
        else:
            report = handle.pixels.remote(first.work, first.drawn, first.latents)
        worker.calls[report] = items
        self._pending[report] = worker

    def _collect(self) -> Iterator[Outcome]:
        """Wait for calls to end, and pass their jobs on."""
        pending = list(self._pending)
        if not pending:
            time.sleep(min(self.wait, 0.1))
            return
        done, rest = self.ray.wait(pending, num_returns=1, timeout=self.wait)
        if done and rest:
            done += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for ref in done:
            worker = self._pending.pop(ref, None)
            if worker is None:  # of a worker that was lost with an earlier one of these
                continue
            items = worker.calls.pop(ref, None)
            worker.idle_since = time.monotonic()
            try:
                report: Report = self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                yield from self._lose(worker, items or [], error)
                continue
            if report.fatal:
                raise (ArimageError if items is None else StoreError)(report.problem)
            if items is None:
                worker.starting = False
                self._starts[worker.stage] = 0
            else:
                yield from self._passed(worker.stage, items, report)

    def _passed(self, stage: Stage, items: Sequence[_Item], report: Report) -> Iterator[Outcome]:
        if report.problem and len(items) > 1:
            for item in reversed(items):
                item.alone = True
                self._waiting[stage].appendleft(item)
            return
        if report.problem:
            yield Outcome(items[0].work, problem=report.problem)
            return
        self.progress.stage(stage, len(items), report.seconds)
        for item in items:
            if stage == "pixels":
                yield Outcome(item.work, report.row)
                continue
            if stage == "diffusion":
                item.encoded = None
            self._waiting[STAGES[STAGES.index(stage) + 1]].append(item)

    def _lose(self, worker: _Worker, items: list[_Item], error: Exception) -> Iterator[Outcome]:
        """A call ended with no answer: begin its jobs again, and replace the worker if it is gone."""
        lost = list(items)
        if isinstance(error, self.ray.exceptions.RayActorError):
            self._workers[worker.stage].remove(worker)
            for ref, others in worker.calls.items():
                self._pending.pop(ref, None)
                lost += others
            with suppress(Exception):
                self.ray.kill(worker.handle)
            self.lost += 1
            self._starts[worker.stage] += 1
            self.say(f"a worker of {worker.stage} was lost; {len(lost)} jobs begin again")
            if self._starts[worker.stage] > STARTS and worker.starting:
                raise ArimageError(f"workers of {worker.stage} end while they start: {_first_line(error)}")
        elif worker.starting:
            raise ArimageError(f"a worker of {worker.stage} cannot start: {_first_line(error)}")
        for item in lost:
            item.losses += 1
            if item.losses >= self.cluster.losses:
                told = f"{item.losses} workers were lost with it, the last in {worker.stage}: {_first_line(error)}"
                yield Outcome(item.work, problem=told)
            else:
                item.begin_again()
                self._waiting["encode"].appendleft(item)

    def _adjust(self) -> None:
        """As many workers as there should be: more where work waits, fewer where none does."""
        now = time.monotonic()
        for stage, workers in self._workers.items():
            pool = self.cluster.pool(stage)
            starting = any(worker.starting for worker in workers)
            backlog = len(self._waiting[stage]) >= self._room(stage)
            while len(workers) < pool.least or (backlog and not starting and len(workers) < pool.most):
                starting = True
                self._start(stage)
            if len(workers) > pool.least:
                idle = [one for one in workers if not one.calls and not one.starting]
                if idle and now - idle[0].idle_since > self.cluster.idle:
                    workers.remove(idle[0])
                    self.ray.kill(idle[0].handle)
            if all(worker.starting for worker in workers) and now - self._told > TOLD_AFTER:
                self._told = now
                self.say(f"waiting for a worker of {stage} ({pool.options()})")

    def _start(self, stage: Stage) -> None:
        handle = self._actor.options(**self.cluster.pool(stage).options()).remote(self._stages, stage)
        worker = _Worker(stage, handle)
        self._workers[stage].append(worker)
        self._pending[handle.ready.remote()] = worker


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def import_ray() -> Any:
    """The library.

    Raises:
        ArimageError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise ArimageError("--ray needs Ray, which is not installed: pip install 'arimage[ray]'") from None
    return ray


def connect(address: str = "auto", **options: Any) -> Any:
    """Ray, connected to a cluster.

    Args:
        address: ``HOST:PORT`` or ``ray://HOST:PORT``; ``local`` starts a cluster of this machine alone, ``auto`` does
            so where none runs.
        **options: of ``ray.init`` for a cluster that is started.

    Raises:
        ArimageError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = import_ray()
    if ray.is_initialized():
        return ray
    quiet = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if address == "auto":
        with suppress(ConnectionError):
            ray.init(address="auto", **quiet)
            return ray
    try:
        if address in ("auto", "local"):
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address="local", include_dashboard=False, **quiet, **options)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ArimageError(f"no Ray cluster at {address}: {_first_line(error)}") from None
    return ray
