"""A run over a table of jobs: what is missing is made, parts are finished one by one, and the manifest comes last."""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass

from arimage.errors import ArimageError, Cancelled
from arimage.scale.jobs import Job, Table
from arimage.scale.progress import Progress
from arimage.scale.shards import Row
from arimage.scale.stages import Outcome, Work
from arimage.scale.stores import StoreError
from arimage.scale.target import FAILURES, Part, Target

COUNTED_FROM = 100
PACKING = 2
SECONDS_BETWEEN_FAILURES = 60.0
Execute = Callable[[Iterator[Work]], Iterator[Outcome]]


@dataclass(frozen=True)
class Summary:
    """Pictures that were made, that were there before, jobs that failed, and how many pictures the manifest lists."""

    made: int
    there: int
    failed: int
    listed: int


class Batch:
    """A run.

    Args:
        table: of jobs.
        target: where pictures go.
        progress: is told what becomes of jobs.
        shard: rows of a part.
        max_failures: share of jobs that may fail, of those that were looked at but of at least 100 or all.
    """

    def __init__(self, table: Table, target: Target, progress: Progress, shard: int, max_failures: float) -> None:
        self.table, self.target, self.progress = table, target, progress
        self.shard, self.max_failures = shard, max_failures
        self.failures: list[Row] = []
        self._rows_of: dict[bytes, int] = {}
        self._open: dict[int, tuple[Part, set[str]]] = {}
        self._packing: list[tuple[Future[None], Part, dict[str, Row]]] = []
        self._packer = ThreadPoolExecutor(PACKING, thread_name_prefix="arimage-pack")
        self._changing = False
        self._listed = time.monotonic()

    def run(self, execute: Execute) -> Summary:
        """Make what is missing.

        Args:
            execute: does the work that it takes, and gives what came of it in any order.

        Raises:
            StoreError: the target cannot be written or read.
            ArimageError: too many jobs failed.
            Cancelled: in place of KeyboardInterrupt.
        """
        self._finished = self.target.finished()
        try:
            with closing(execute(self.works())) as outcomes:  # type: ignore[type-var]
                for outcome in outcomes:
                    self._take(outcome)
            self._settle(0)
        except KeyboardInterrupt:
            raise Cancelled(
                f"interrupted: {self.progress.made} pictures were made; the same command goes on from here"
            ) from None
        finally:
            self._packer.shutdown(cancel_futures=True)
            with suppress(StoreError):
                self.target.write_failures(self.failures)
        listed = self.target.write_manifest(self._rows_of)
        progress = self.progress
        return Summary(progress.made, progress.there, progress.failed, listed)

    def works(self) -> Iterator[Work]:
        """The work that is left, part by part."""
        jobs = iter(self.table)
        for number in itertools.count():
            rows = list(itertools.islice(jobs, self.shard))
            if not rows:
                return
            wanted = [job for job in rows if self._is_wanted(job)]
            while wanted:
                part = self.target.open_part(number, wanted)
                self.progress.there += len(part.rows)
                left = [job for job in wanted if job.identity not in part.rows]
                if part.closed:  # by another run; what it lacks is a part of its own
                    self._close(part)
                    wanted = left
                    continue
                self._open[number] = part, {job.identity for job in left}
                if not left:
                    self._close(self._open.pop(number)[0])
                yield from (Work(job, part.place, number) for job in left)
                break

    def _is_wanted(self, job: Job) -> bool:
        if job.problem is not None:
            self._fail(job, job.problem)
            return False
        key = bytes.fromhex(job.identity)
        known = key in self._finished or key in self._rows_of  # the same row twice is one picture
        self._rows_of.setdefault(key, job.row)
        if known:
            self.progress.there += 1
            return False
        if not self._changing:
            self._changing = True
            self.target.clear_manifest()
        return True

    def _take(self, outcome: Outcome) -> None:
        part, left = self._open[outcome.work.part]
        job = outcome.work.job
        left.discard(job.identity)
        if outcome.row is not None:
            part.rows[job.identity] = outcome.row
            self.progress.finished()
        else:
            self._fail(job, outcome.problem)
        if not left:
            del self._open[outcome.work.part]
            self._close(part)

    def _close(self, part: Part) -> None:
        self._packing.append((self._packer.submit(self.target.close, part), part, dict(part.rows)))
        self._settle(PACKING)

    def _settle(self, most: int) -> None:
        """Wait until no more than so many parts are being packed."""
        while len(self._packing) > most or (self._packing and self._packing[0][0].done()):
            future, part, made = self._packing.pop(0)
            future.result()
            for job in part.jobs:
                if job.identity in made and job.identity not in part.rows:
                    self.progress.made -= 1
                    self._fail(job, "another run on this target has written its shard without it: start once more")

    def _fail(self, job: Job, problem: str) -> None:
        self.failures.append({"row": job.row, "id": job.id, "job": job.identity, "reason": problem})
        progress = self.progress
        progress.failed += 1
        looked_at = progress.there + progress.made + progress.failed
        counted = max(looked_at, min(progress.total, COUNTED_FROM))
        if progress.failed > self.max_failures * counted:
            raise ArimageError(
                f"{progress.failed} of {looked_at} jobs failed, more than {self.max_failures:.0%}: see {FAILURES} in "
                f"{self.target.store.place} (the last: row {job.row}: {problem})"
            )
        if time.monotonic() - self._listed > SECONDS_BETWEEN_FAILURES:
            self._listed = time.monotonic()
            self.target.write_failures(self.failures)
