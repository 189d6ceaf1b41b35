"""Where the samples of a stage come from: drawn scenes, people's own data, prepared caches, prompts alone."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from arimage.data.assets import Assets
from arimage.data.buckets import BucketBatches, bucket_sizes, in_bucket, place
from arimage.data.folders import OwnData
from arimage.data.records import PROMPT_ONLY, Record, SampleError, naming
from arimage.data.scenes import Scenes
from arimage.errors import DataError
from arimage.training.bad_samples import BadSample
from arimage.training.cache import CacheSource, Encoders
from arimage.training.config import SourceConfig


class Source(Protocol):
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


class _PromptSource:
    """Prompts alone, for stages that make the pictures themselves; a record's own is blank, and says its size."""

    def __init__(self, config: SourceConfig, seed: int, batch: int) -> None:
        assert config.prompts is not None
        self.name, self.prompts = config.prompts, read_prompts(Path(config.prompts))
        self.size, self.unreadable = len(self.prompts), list[BadSample]()
        self.sides = [config.sides[number % len(config.sides)] for number in range(len(self.prompts))]
        batches = BucketBatches(list(zip(self.sides, self.sides)), batch, seed)
        self.epoch_batches = lru_cache(maxsize=2)(batches.epoch_batches)

    def records(self, draw: int, count: int) -> list[Callable[[int], Record]]:
        per_epoch = len(self.epoch_batches(0))
        batch = self.epoch_batches(draw // per_epoch)[draw % per_epoch]
        return [lambda attempt, index=index: self._record(index) for index in batch[:count]]  # type: ignore[misc]

    def _record(self, index: int) -> Record:
        blank = Image.new("RGB", (self.sides[index], self.sides[index]), "white")
        return Record(
            blank, {"caption": self.prompts[index]}, task=PROMPT_ONLY, name=f"{self.name}: prompt {index + 1}"
        )


def read_prompts(file: Path) -> list[str]:
    """The prompts of a .txt file, one a line, or of a .jsonl file, whose rows have ``prompt``.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    with naming(f"{file} cannot be read"):
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        prompt: Any = line
        if file.suffix == ".jsonl":
            with naming(f"{file}:{number}"):
                row = json.loads(line)
            prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"{file}:{number}: there is no text under 'prompt'")
        found.append(" ".join(prompt.split()))
    if not found:
        raise DataError(f"{file} holds no prompts; write one a line")
    return found


def open_source(config: SourceConfig, seed: int, batch: int, encoders: Encoders | None) -> Source:
    """The data set of a source.

    Args:
        batch: samples of a batch over all processes.
        encoders: gives the hash of the encoders that a prepared cache must have been made with.

    Raises:
        DataError: it cannot be used.
    """
    if config.scenes is not None:
        return _SceneSource(config, seed, batch)
    if config.path is not None:
        return _OwnSource(config, seed, batch)
    if config.prompts is not None:
        return _PromptSource(config, seed, batch)
    assert config.cache is not None
    return CacheSource(Path(config.cache), seed, batch, encoders)
