"""Batches as a pure function of the step.

Which source a step draws from, which of its samples, and which caption of each follows from the seed and the step
alone. A run that is stopped goes on with exactly the batches that were due, whatever the number of workers, and
several processes share the very batch that one would have had.
"""

import signal
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

from arimage.data.captions import language, length_class
from arimage.data.records import EncodedRecord, Record, SampleError
from arimage.errors import ArimageError, DataError
from arimage.training.bad_samples import BadSample
from arimage.training.cache import Encoders
from arimage.training.config import CaptionConfig, SourceConfig
from arimage.training.examples import Batch, Collate, Example
from arimage.training.sources import Source, open_source

RETRIES = 8


@dataclass(frozen=True)
class RolloutPlace:
    """Where a micro-batch stands among those that learn from a rollout.

    Attributes:
        rollout: which one, from 0.
        update: which of its optimiser steps.
        batch: which of the rollout's batches of prompts.
        part, parts: which part of that batch's pictures, and how many there are.
    """

    rollout: int
    update: int
    batch: int
    part: int
    parts: int


@dataclass(frozen=True)
class Rollouts:
    """How the micro-batches of a run come from rollouts: all of an update's, then the same ones again."""

    updates: int
    parts: int
    accumulation: int

    def place(self, number: int) -> RolloutPlace:
        """Of the micro-batch of that number in the run."""
        step, micro = divmod(number, self.accumulation)
        rollout, update = divmod(step, self.updates)
        batch, part = divmod(micro, self.parts)
        return RolloutPlace(rollout, update, batch, part, self.parts)

    def prompts(self, number: int) -> int:
        """Which batch of prompts a micro-batch has, counted over the run."""
        place = self.place(number)
        return place.rollout * (self.accumulation // self.parts) + place.batch


@dataclass(frozen=True)
class Replays:
    """Which batches are learnt from again: after each fresh one ``count`` of the last ``window``, drawn at random.

    Attributes:
        first: the micro-batch at which the schedule begins; none from before it comes again.
    """

    count: int
    window: int
    seed: int
    first: int = 0

    def fresh(self, number: int) -> int:
        """Which fresh batch a micro-batch is, counted over the run, or which it has again."""
        newest, replay = divmod(number, self.count + 1)
        if replay == 0:
            return newest
        oldest = max(-(-self.first // (self.count + 1)), newest - self.window + 1)
        return Random(f"replay/{self.seed}/{number}").randint(min(oldest, newest), newest)

    def again(self, number: int) -> bool:
        """Whether a micro-batch is no fresh one."""
        return number % (self.count + 1) != 0


class StepBatches:
    """The batches of a process, by step.

    Args:
        batch_size: samples of a process.
        collate: examples to tensors.
        encoders: gives the hash of the encoders that prepared caches must have been made with, see
            :class:`arimage.training.cache.CacheSource`.
        rollouts: where several micro-batches learn from the same prompts; each is then told its ``place``.
        accumulation: batches of an optimiser step.
        replays: which of them are there again; such a one says so (``again``), and its samples have other seeds.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        batch_size: int,
        collate: Collate,
        captions: CaptionConfig,
        *,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        encoders: Encoders | None = None,
        rollouts: Rollouts | None = None,
        accumulation: int = 1,
        replays: Replays | None = None,
    ) -> None:
        self.rollouts, self.replays = rollouts, replays
        self.batch_size, self.collate, self.captions = batch_size, collate, captions
        self.seed, self.process, self.processes = seed, process, processes
        self.configs, self.drawn_a_step = tuple(sources), float(accumulation)
        if rollouts is not None:
            self.drawn_a_step = rollouts.accumulation / rollouts.parts / rollouts.updates
        if replays is not None:
            self.drawn_a_step /= replays.count + 1
        self.sources: list[Source] = [open_source(source, seed, batch_size * processes, encoders) for source in sources]
        self._order, self._draws = array("H"), array("Q")  # a few bytes a step, however long a run is
        self._drawn = [0] * len(sources)
        self._random = Random(f"sources/{seed}")

    @property
    def unreadable(self) -> list[BadSample]:
        """Samples that were set aside at the start."""
        return [bad for source in self.sources for bad in source.unreadable]

    @property
    def sizes(self) -> dict[str, int]:
        """How many samples each data set has that is not endless."""
        return {source.name: source.size for source in self.sources if source.size is not None}

    def digests(self) -> dict[str, str]:
        """What says of each data set that has an order whether it is still the same."""
        return {source.name: source.order.digest() for source in self.sources if source.order is not None}

    def turn(self, step: int) -> tuple[int, int]:
        """(source, which of its batches) of a step.

        Raises:
            DataError: all sources have had their epochs by then.
        """
        return self._turn(self._number(step))

    def _number(self, step: int) -> int:
        """Which of the batches that are drawn a step has."""
        if self.rollouts is not None:
            return self.rollouts.prompts(step)
        return step if self.replays is None else self.replays.fresh(step)

    def _turn(self, step: int) -> tuple[int, int]:
        while len(self._order) <= step:
            weights = [self._weight_of(number, len(self._order)) for number in range(len(self.sources))]
            if not any(weights):
                steps = int(len(self._order) / self.drawn_a_step)
                raise DataError(
                    f"the data is used up after {steps} steps: every source has had its epochs; take fewer steps, or "
                    "raise epochs"
                )
            source = self._random.choices(range(len(self.sources)), weights)[0]
            self._order.append(source)
            self._draws.append(self._drawn[source])
            self._drawn[source] += 1
        return self._order[step], self._draws[step]

    def _weight_of(self, number: int, step: int) -> float:
        limit = self.sources[number].batches
        if limit is not None and self._drawn[number] >= limit:
            return 0.0
        return self.configs[number].weight_at(int(step / self.drawn_a_step))

    def examples(self, step: int) -> tuple[list[Example], list[BadSample]]:
        """This process's examples of a step, and what could not be read."""
        step = self._number(step)
        number, draw = self._turn(step)
        source = self.sources[number]
        count = self.batch_size * self.processes
        readers = source.records(draw, count)
        mine = range(self.process * self.batch_size, (self.process + 1) * self.batch_size)
        threads = min(source.threads, len(mine))
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                read = list(pool.map(lambda place: _read(source, readers[place]), mine))
        else:
            read = [_read(source, readers[place]) for place in mine]
        examples = []
        for place_in_batch, (record, _) in zip(mine, read):
            random = Random(f"example/{self.seed}/{step}/{place_in_batch}")
            examples.append(Example(record, self._caption(record, random), random.getrandbits(62)))
        return examples, [one for _, bad in read for one in bad]

    def __getitem__(self, step: int) -> Batch:
        if self.replays is not None and self.replays.again(step):
            random = Random(f"again/{self.seed}/{step}/{self.process}")
            seeds = [random.getrandbits(62) for _ in range(self.batch_size)]
            return Batch({"again": self.replays.fresh(step), "seeds": seeds}, [])
        examples, bad = self.examples(step)
        told: dict[str, Any] = {}
        if self.rollouts is not None:
            told["place"] = self.rollouts.place(step)
        if self.replays is not None:
            told["number"] = self.replays.fresh(step)
        return Batch(self.collate(examples) | told, bad)

    def fresh(self, number: int) -> dict[str, Any]:
        """A batch that a replay asks for, made anew."""
        assert self.replays is not None
        return self[number * (self.replays.count + 1)].tensors

    def _caption(self, record: Record | EncodedRecord, random: Random) -> str:
        if random.random() < self.captions.dropout:
            return ""
        kinds = list(record.captions)
        weights = [self._weight(kind, record.captions[kind]) for kind in kinds]
        if not any(weights):
            weights = [1.0] * len(kinds)
        return record.captions[random.choices(kinds, weights)[0]]

    def _weight(self, kind: str, text: str) -> float:
        wanted = self.captions.kinds
        if not wanted:
            return 1.0
        return max(wanted.get(name, 0.0) for name in (kind, *kind.split("/"), language(text), length_class(text)))


def _read(source: Source, reader: Callable[[int], Any]) -> tuple[Record | EncodedRecord, list[BadSample]]:
    """A record of a source, and those that could not be read before it was.

    Raises:
        DataError: ``RETRIES`` samples in a row cannot.
    """
    bad: list[BadSample] = []
    for attempt in range(RETRIES):
        try:
            return reader(attempt), bad
        except SampleError as error:
            bad.append(BadSample(source.name, error.name, str(error)))
    raise DataError(f"{RETRIES} samples in a row cannot be read; the last: {bad[-1].reason}")


def loader(batches: StepBatches, first: int, steps: int, workers: int) -> Iterator[Batch]:
    """Batches ``first`` to ``steps - 1`` in order, made by worker processes or here."""
    if workers == 0:
        return (batches[step] for step in range(first, steps))
    from torch.utils.data import DataLoader

    replays = batches.replays
    every = 1 if replays is None else replays.count + 1

    made: DataLoader[Any] = DataLoader(
        _Guarded(batches),  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(-(-first // every) * every, steps, every),  # replays take no work
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        prefetch_factor=4,
        worker_init_fn=_leave_interrupts_to_main,
    )
    fresh = map(_or_raise, iter(made))
    if replays is None:
        return fresh
    return (batches[step] if replays.again(step) else next(fresh) for step in range(first, steps))


@dataclass(frozen=True)
class _Guarded:
    """Batches of a worker process; our own errors come as values, or torch would put a traceback into their text."""

    batches: StepBatches

    def __getitem__(self, step: int) -> Batch | ArimageError:
        try:
            return self.batches[step]
        except ArimageError as error:
            return error


def _leave_interrupts_to_main(worker: int) -> None:
    """A terminal's Ctrl-C reaches workers too; the main process still needs them to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _or_raise(made: Batch | ArimageError) -> Batch:
    if isinstance(made, ArimageError):
        raise made
    return made


def _as_it_is(batch: Batch) -> Batch:
    return batch
