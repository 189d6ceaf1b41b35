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
from arimage.data.buckets import BucketBatches, bucket_sizes, place
from arimage.data.folders import OwnData
from arimage.data.records import EncodedRecord, Record
from arimage.data.scenes import Scenes
from arimage.errors import DataError
from arimage.training.config import CaptionConfig, SourceConfig

RETRIES = 8
Collate = Callable[[list["Example"]], dict[str, Any]]


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
    bad: list[tuple[str, str]]
    read: int
    source: int


class _Source(Protocol):
    def records(self, draw: int, count: int) -> Sequence[Callable[[int], Any]]:
        """Readers of the ``draw``-th batch of ``count`` samples; a reader takes the number of the attempt."""


class _SceneSource:
    def __init__(self, config: SourceConfig, seed: int, batch: int) -> None:
        assert config.scenes is not None
        assert config.assets is not None
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
        self.data = OwnData(config.path)
        self.buckets = tuple(size for side in config.sides for size in bucket_sizes(side))
        sizes: list[tuple[int, int]] = []
        self.usable: list[int] = []
        self.unreadable: list[tuple[str, str]] = []
        for index, sample in enumerate(self.data):
            try:
                record = sample.read()
            except DataError as error:
                self.unreadable.append((sample.name, str(error)))
                continue
            if record.rating >= config.minimum_rating:
                self.usable.append(index)
                sizes.append(place(*record.image.size, self.buckets).size)
        if not self.usable:
            raise DataError(f"{config.path} holds no sample that can be used (rating >= {config.minimum_rating})")
        self.batches = BucketBatches(sizes, batch, seed)
        self._epochs: dict[int, list[list[int]]] = {}

    def records(self, draw: int, count: int) -> list[Callable[[int], Record]]:
        per_epoch = len(self._epoch(0))
        batch = self._epoch(draw // per_epoch)[draw % per_epoch]

        def reader(place_in_batch: int) -> Callable[[int], Record]:
            return lambda attempt: self._read(batch[(place_in_batch + attempt) % len(batch)])

        return [reader(number) for number in range(min(count, len(batch)))]

    def _epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self._epochs:
            self._epochs = {key: value for key, value in self._epochs.items() if key == 0}
            self._epochs[epoch] = self.batches.epoch_batches(epoch)
        return self._epochs[epoch]

    def _read(self, index: int) -> Record:
        record: Record = self.data[self.usable[index]].read()
        bucket = place(record.image.width, record.image.height, self.buckets)
        mask = None if record.mask is None else bucket.apply(record.mask).convert("L")
        return Record(
            bucket.apply(record.image), record.captions, record.sources, mask, record.task, record.rating, record.name
        )


class StepBatches:
    """The batches of a process, by step.

    Args:
        batch_size: samples of a process.
        collate: examples to tensors.
        encoders: gives the hash of the encoders that prepared caches must have been made with.
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
        encoders: Callable[[], str] | None = None,
    ) -> None:
        self.batch_size, self.collate, self.captions = batch_size, collate, captions
        self.seed, self.process, self.processes = seed, process, processes
        self.weights = [source.weight for source in sources]
        self.sources: list[_Source] = [_open(source, seed, batch_size * processes, encoders) for source in sources]
        self._order: list[tuple[int, int]] = []
        self._drawn = [0] * len(sources)
        self._random = Random(f"sources/{seed}")

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """Samples that were set aside at the start, with the reason."""
        return [bad for source in self.sources for bad in getattr(source, "unreadable", [])]

    def turn(self, step: int) -> tuple[int, int]:
        """(source, which of its batches) of a step."""
        while len(self._order) <= step:
            source = self._random.choices(range(len(self.sources)), self.weights)[0]
            self._order.append((source, self._drawn[source]))
            self._drawn[source] += 1
        return self._order[step]

    def examples(self, step: int) -> tuple[list[Example], list[tuple[str, str]]]:
        """This process's examples of a step, and what could not be read."""
        source, draw = self.turn(step)
        count = self.batch_size * self.processes
        readers = self.sources[source].records(draw, count)
        mine = range(self.process * self.batch_size, (self.process + 1) * self.batch_size)
        examples, bad = [], []
        for place_in_batch in mine:
            record = None
            for attempt in range(RETRIES):
                try:
                    record = readers[place_in_batch](attempt)
                    break
                except DataError as error:
                    bad.append((getattr(error, "name", "sample"), str(error)))
            if record is None:
                raise DataError(f"{RETRIES} samples in a row cannot be read; the last: {bad[-1][1]}")
            random = Random(f"example/{self.seed}/{step}/{place_in_batch}")
            examples.append(Example(record, self._caption(record, random), random.getrandbits(62)))
        return examples, bad

    def __getitem__(self, step: int) -> Batch:
        examples, bad = self.examples(step)
        return Batch(self.collate(examples), bad, len(examples) + len(bad), self.turn(step)[0])

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


def _open(config: SourceConfig, seed: int, batch: int, encoders: Callable[[], str] | None) -> _Source:
    if config.scenes is not None:
        return _SceneSource(config, seed, batch)
    if config.path is not None:
        return _OwnSource(config, seed, batch)
    from arimage.training.prepare import CacheSource

    assert config.cache is not None
    return CacheSource(Path(config.cache), seed, batch, None if encoders is None else encoders())


def loader(batches: StepBatches, first: int, steps: int, workers: int) -> Iterator[Batch]:
    """Batches ``first`` to ``steps - 1`` in order, made by worker processes or here."""
    if workers == 0:
        return (batches[step] for step in range(first, steps))
    from torch.utils.data import DataLoader

    return iter(
        DataLoader(
            batches,  # type: ignore[arg-type]
            batch_size=None,
            sampler=range(first, steps),
            num_workers=workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            prefetch_factor=4,
        )
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch
