"""Where the samples of a stage come from: drawn scenes, people's own data, prepared caches, prompts alone."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from arimage.data.assets import Assets
from arimage.data.buckets import bucket_sizes, in_bucket, place
from arimage.data.folders import OwnData
from arimage.data.indexing import build_index
from arimage.data.order import EpochOrder, cut
from arimage.data.records import PROMPT_ONLY, Record, naming
from arimage.data.scenes import Scenes
from arimage.data.storage import ShardCache
from arimage.errors import DataError
from arimage.training.bad_samples import BadSample
from arimage.training.cache import CacheSource, Encoders
from arimage.training.config import SourceConfig
from arimage.training.selection import choose, filters_of, shard_blocks, shuffle_window, wanted_captions

ANNOUNCED = 256
REMOTE_THREADS = 16
NAMED = 1000


class Source(Protocol):
    """A data set.

    Attributes:
        name: of it.
        unreadable: samples that were bad from the start.
        threads: that read a batch at the same time, where reading is waiting.
    """

    name: str
    unreadable: list[BadSample]
    threads: int

    @property
    def size(self) -> int | None:
        """How many samples it has; None is without end."""

    @property
    def batches(self) -> int | None:
        """How many it gives; None is without end."""

    @property
    def order(self) -> EpochOrder | None:
        """Of its samples; None where they have none but their numbers."""

    def records(self, draw: int, count: int) -> Sequence[Callable[[int], Any]]:
        """Readers of the ``draw``-th batch of ``count`` samples; a reader takes the number of the attempt."""


class _SceneSource:
    def __init__(self, config: SourceConfig, seed: int, batch: int) -> None:
        assert config.scenes is not None
        assert config.assets is not None
        self.name, self.size = f"the scenes of {config.assets}", None
        self.unreadable: list[BadSample] = []
        self.threads = 1
        settings = config.scenes.model_copy(update={"seed": config.scenes.seed + seed})
        self.scenes = Scenes(Assets.open(config.assets), settings, run=batch)

    @property
    def batches(self) -> None:
        return None

    @property
    def order(self) -> None:
        return None

    def records(self, draw: int, count: int) -> list[Callable[[int], Record]]:
        def reader(index: int) -> Callable[[int], Record]:
            return lambda attempt: self.scenes[index]

        return [reader(draw * count + i) for i in range(count)]


class _OwnSource:
    """People's data in buckets, by its index: what that says cannot be used is set aside and named at the start."""

    def __init__(self, config: SourceConfig, seed: int, batch: int) -> None:
        assert config.path is not None
        cache = None
        if config.shard_cache is not None:
            cache = ShardCache(Path(config.shard_cache), int(config.shard_cache_gb * 1e9))
        self.config, self.name = config, config.path
        self.data = OwnData(config.path, config.index, every_file=False, cache=cache)
        self.size, index = len(self.data), self.data.entries
        self.threads = 1 if self.data.storage.local else REMOTE_THREADS
        self.buckets = tuple(dict.fromkeys(size for side in config.sides for size in bucket_sizes(side)))
        self.unreadable = self._unreadable()
        kinds, repeats = choose(index, self.buckets, config)
        blocks = shard_blocks(index)
        try:
            self.order = EpochOrder(
                kinds, [rows for shard in blocks for rows in shard], batch, seed,
                shards=[len(shard) for shard in blocks], repeats=repeats, window=shuffle_window(index),
            )  # fmt: skip
        except ValueError:
            first = f"; the first that cannot be read: {self.unreadable[0].reason}" if self.unreadable else ""
            raise DataError(f"{config.path} holds no sample that can be used ({filters_of(config)}){first}") from None
        self.batches = None if config.epochs is None else config.epochs * self.order.batches_per_epoch
        self._announced: dict[int, None] = {}

    def _unreadable(self) -> list[BadSample]:
        """Samples with a fault, the first ones by name."""
        index, storage = self.data.entries, self.data.storage
        rows = index.faulty(NAMED)
        names = [(index.name(row, storage, key), fault) for row, fault, key in rows]
        found = [BadSample(self.name, name, f"{name}: {fault}") for name, fault in names]
        if index.faults > len(found):
            count = index.faults - len(found)
            found.append(BadSample(self.name, "others", f"{self.name}: {count} more that its index names", count))
        return found

    def records(self, draw: int, count: int) -> list[Callable[[int], Record]]:
        def reader(row: int) -> Callable[[int], Record]:
            return lambda attempt: self._read(self.order.another(row, attempt))

        return [reader(int(row)) for row in self.order.batch(draw)[:count]]

    def _read(self, row: int) -> Record:
        self._announce(row)
        bucket = self.buckets[int(self.order.kinds[row])]
        record = self.data.read(row, lambda width, height: place(width, height, (bucket,)).scaled)
        return in_bucket(replace(record, captions=wanted_captions(record.captions, self.config)), (bucket,))

    def _announce(self, row: int) -> None:
        """Have a block read in one go when its first sample is asked for."""
        first, end = self.order.block_of(row)
        if first not in self._announced:
            if len(self._announced) >= ANNOUNCED:
                del self._announced[next(iter(self._announced))]
            self._announced[first] = None
            self.data.ahead(first, end)


class _PromptSource:
    """Prompts alone, for stages that make the pictures themselves; a record's own is blank, and says its size."""

    def __init__(self, config: SourceConfig, seed: int, batch: int) -> None:
        assert config.prompts is not None
        self.name, self.prompts = config.prompts, read_prompts(Path(config.prompts))
        self.size, self.unreadable = len(self.prompts), list[BadSample]()
        self.sides = [config.sides[number % len(config.sides)] for number in range(len(self.prompts))]
        kinds = np.arange(len(self.prompts)) % len(config.sides)
        self.order = EpochOrder(kinds.astype(np.uint16), cut(len(self.prompts)), batch, seed)
        self.batches = None if config.epochs is None else config.epochs * self.order.batches_per_epoch
        self.threads = 1

    def records(self, draw: int, count: int) -> list[Callable[[int], Record]]:
        def reader(index: int) -> Callable[[int], Record]:
            return lambda attempt: self._record(index)

        return [reader(int(index)) for index in self.order.batch(draw)[:count]]

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
    return CacheSource(Path(config.cache), seed, batch, encoders, config.epochs)


def make_indexes(sources: Iterable[SourceConfig]) -> None:
    """Bring the indexes of people's data up to date.

    Raises:
        DataError: a data set cannot be used.
    """
    for source in sources:
        if source.path is not None:
            build_index(source.path, None if source.index is None else Path(source.index), every_file=False)
