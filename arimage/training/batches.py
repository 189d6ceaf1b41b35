"""Batches as a pure function of the step.

Which source a step draws from, which of its samples, and which caption of each follows from the seed and the step
alone. A run that is stopped goes on with exactly the batches that were due, whatever the number of workers, and
several processes share the very batch that one would have had.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from arimage.data.assets import Assets
from arimage.data.buckets import BucketBatches, bucket_sizes, in_bucket, place
from arimage.data.folders import OwnData
from arimage.data.records import EncodedRecord, Record, SampleError
from arimage.data.scenes import Scenes
from arimage.errors import ArimageError, DataError
from arimage.training.bad_samples import BadSample
from arimage.training.config import CaptionConfig, SourceConfig

RETRIES = 8
Collate = Callable[[list["Example"]], dict[str, Any]]
Encoders = Callable[[bool], str | None]


@dataclass(frozen=True)
class Example:
    """A record, the caption that was chosen for it, and the seed of its noise and dropouts."""

    record: Record | EncodedRecord
    caption: str
    seed: int

    @property
    def pictured(self) -> Record:
        """The record with its pictures.

        Raises:
            DataError: it comes from a prepared cache, which holds none.
        """
        if isinstance(self.record, EncodedRecord):
            raise DataError("this needs pictures, and a prepared cache holds none; name the data itself")
        return self.record


@dataclass
class Batch:
    """What :class:`StepBatches` gives: the objective's tensors, and the samples that could not be read."""

    tensors: dict[str, Any]
    bad: list[BadSample]


class _Source(Protocol):
    """A data set: its name, how many samples it has (None: endless), and those that were bad from the start."""

    name: str
    unreadable: list[BadSample]

    @property
    def size(self) -> int | None: ...

    def records(self, draw: int, count: int) -> Sequence[Callable[[int], Any]]:
        """Readers of the ``draw``-th batch of ``count`` samples; a reader takes the number of the attempt."""


class _SceneSource:
    def __init__(self, config: SourceConfig, seed: int, batch: int) -> None:
        assert config.scenes is not None
        assert config.assets is not None
        self.name, self.size = f"the scenes of {config.assets}", None
        self.unreadable: list[BadSample] = []
        settings = config.scenes.model_copy(update={"seed": config.scenes.seed + seed})
        self.scenes = Scenes(Assets.open(config.assets), settings, run=batch)

    def records(self, draw: int, count: int) -> list[Callable[[int], Record]]:
        def reader(index: int) -> Callable[[int], Record]:
            return lambda attempt: self.scenes[index]

        return [reader(draw * count + i) for i in range(count)]


class _OwnSource:
    """People's data in buckets. Sizes are read once, at the start; what cannot be read is set aside and named."""

    def __init__(self, config: SourceConfig, seed: int, batch: int) -> None:
        assert config.path is not None
        self.data, self.name = OwnData(config.path), config.path
        self.size = len(self.data)
        self.buckets = tuple(size for side in config.sides for size in bucket_sizes(side))
        self.places: list[tuple[int, int]] = []
        self.usable: list[int] = []
        self.unreadable: list[BadSample] = []
        for index, sample in enumerate(self.data):
            try:
                record = sample.read()
            except SampleError as error:
                self.unreadable.append(BadSample(self.name, sample.name, str(error)))
                continue
            if record.rating >= config.minimum_rating:
                self.usable.append(index)
                self.places.append(place(*record.image.size, self.buckets).size)
        if not self.usable:
            first = f"; the first that cannot be read: {self.unreadable[0].reason}" if self.unreadable else ""
            raise DataError(
                f"{config.path} holds no sample that can be used (rating >= {config.minimum_rating}){first}"
            )
        self.batches = BucketBatches(self.places, batch, seed)
        self._epochs: dict[int, list[list[int]]] = {}

    def records(self, draw: int, count: int) -> list[Callable[[int], Record]]:
        per_epoch = len(self._epoch(0))
        batch = self._epoch(draw // per_epoch)[draw % per_epoch]

        def reader(index: int) -> Callable[[int], Record]:
            return lambda attempt: self._read(self._neighbour(index, attempt))

        return [reader(index) for index in batch[:count]]

    def _neighbour(self, index: int, steps: int) -> int:
        """A sample, or another one of its bucket in its place."""
        if not steps:
            return index
        members = self.batches.members[self.places[index]]
        return members[(members.index(index) + steps) % len(members)]

    def _epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self._epochs:
            self._epochs = {key: value for key, value in self._epochs.items() if key == 0}
            self._epochs[epoch] = self.batches.epoch_batches(epoch)
        return self._epochs[epoch]

    def _read(self, index: int) -> Record:
        return in_bucket(self.data[self.usable[index]].read(), self.buckets)


class StepBatches:
    """The batches of a process, by step.

    Args:
        batch_size: samples of a process.
        collate: examples to tensors.
        encoders: gives the hash of the encoders that prepared caches must have been made with, see
            :class:`arimage.training.prepare.CacheSource`.
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
    ) -> None:
        self.batch_size, self.collate, self.captions = batch_size, collate, captions
        self.seed, self.process, self.processes = seed, process, processes
        self.weights = [source.weight for source in sources]
        self.sources: list[_Source] = [_open(source, seed, batch_size * processes, encoders) for source in sources]
        self._order: list[tuple[int, int]] = []
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

    def turn(self, step: int) -> tuple[int, int]:
        """(source, which of its batches) of a step."""
        while len(self._order) <= step:
            source = self._random.choices(range(len(self.sources)), self.weights)[0]
            self._order.append((source, self._drawn[source]))
            self._drawn[source] += 1
        return self._order[step]

    def examples(self, step: int) -> tuple[list[Example], list[BadSample]]:
        """This process's examples of a step, and what could not be read."""
        number, draw = self.turn(step)
        source = self.sources[number]
        count = self.batch_size * self.processes
        readers = source.records(draw, count)
        mine = range(self.process * self.batch_size, (self.process + 1) * self.batch_size)
        examples, bad = [], []
        for place_in_batch in mine:
            record = None
            for attempt in range(RETRIES):
                try:
                    record = readers[place_in_batch](attempt)
                    break
                except SampleError as error:
                    bad.append(BadSample(source.name, error.name, str(error)))
            if record is None:
                raise DataError(f"{RETRIES} samples in a row cannot be read; the last: {bad[-1].reason}")
            random = Random(f"example/{self.seed}/{step}/{place_in_batch}")
            examples.append(Example(record, self._caption(record, random), random.getrandbits(62)))
        return examples, bad

    def __getitem__(self, step: int) -> Batch:
        examples, bad = self.examples(step)
        return Batch(self.collate(examples), bad)

    def _caption(self, record: Record | EncodedRecord, random: Random) -> str:
        if random.random() < self.captions.dropout:
            return ""
        kinds = list(record.captions)
        weights = [self._weight(kind) for kind in kinds]
        if not any(weights):
            weights = [1.0] * len(kinds)
        return record.captions[random.choices(kinds, weights)[0]]

    def _weight(self, kind: str) -> float:
        wanted = self.captions.kinds
        if not wanted:
            return 1.0
        return max(wanted.get(name, 0.0) for name in (kind, *kind.split("/")))


def _open(config: SourceConfig, seed: int, batch: int, encoders: Encoders | None) -> _Source:
    if config.scenes is not None:
        return _SceneSource(config, seed, batch)
    if config.path is not None:
        return _OwnSource(config, seed, batch)
    from arimage.training.prepare import CacheSource

    assert config.cache is not None
    return CacheSource(Path(config.cache), seed, batch, encoders)


def loader(batches: StepBatches, first: int, steps: int, workers: int) -> Iterator[Batch]:
    """Batches ``first`` to ``steps - 1`` in order, made by worker processes or here."""
    if workers == 0:
        return (batches[step] for step in range(first, steps))
    from torch.utils.data import DataLoader

    made: DataLoader[Any] = DataLoader(
        _Guarded(batches),  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(first, steps),
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        prefetch_factor=4,
    )
    return map(_or_raise, iter(made))


@dataclass(frozen=True)
class _Guarded:
    """Batches of a worker process; our own errors come as values, or torch would put a traceback into their text."""

    batches: StepBatches

    def __getitem__(self, step: int) -> Batch | ArimageError:
        try:
            return self.batches[step]
        except ArimageError as error:
            return error


def _or_raise(made: Batch | ArimageError) -> Batch:
    if isinstance(made, ArimageError):
        raise made
    return made


def _as_it_is(batch: Batch) -> Batch:
    return batch
