"""People's own data: pictures with captions, and edits, from folders, tars, parquet and Arrow files, local or remote.

What is recognised stands in :mod:`arimage.data.shards`, the columns in :mod:`arimage.data.rows`. Paths may be anything
that fsspec opens (``s3://…``, ``https://…``, ``hf://datasets/…``). Samples are found through the index
(:mod:`arimage.data.index`), which is made where there is none; a row is parsed and a picture decoded when the sample is
asked for, so that what is wrong with one sample concerns that sample alone.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from arimage.data.forms.shard import Reader
from arimage.data.indexing import OnShard, build_index
from arimage.data.records import Record, Sample
from arimage.data.rows import Size
from arimage.data.shards import FORMS, open_place
from arimage.data.storage import ShardCache
from arimage.errors import DataError


class OwnData(Sequence[Sample]):
    """The samples of a place, in a fixed order.

    Args:
        index: file of the index; by default beside the data, or in the user's cache.
        verify, processes, on_shard, every_file: see :func:`arimage.data.indexing.build_index`.
        cache: keeps copies of remote shards.

    Attributes:
        entries: the index.
        storage: where the files lie.

    Raises:
        DataError: nothing is there, it is in no known form, or none of its files can be opened.
    """

    def __init__(
        self,
        path: str,
        index: str | Path | None = None,
        *,
        verify: bool = False,
        processes: int | None = None,
        on_shard: OnShard | None = None,
        every_file: bool = True,
        cache: ShardCache | None = None,
    ) -> None:
        self.path = str(path)
        self.index_file = None if index is None else Path(index)
        self.entries = build_index(
            self.path, self.index_file, verify=verify, processes=processes, on_shard=on_shard, every_file=every_file
        )
        self.storage, _ = open_place(self.path, cache)
        if all(shard.about.get("broken") for shard in self.entries.shards):
            row, fault, key = self.entries.faulty(1)[0]
            raise DataError(f"{self.entries.name(row, self.storage, key)} {fault}")
        if not len(self.entries):
            raise DataError(f"{path} holds no pictures with captions; the forms that are read are in docs/data.md")
        self._readers: dict[str, Reader] = {}
        self._guard = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_guard")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_readers": {}, "_guard": threading.Lock()}

    def verified(self) -> "OwnData":
        """The same with an index for which all pixels were decoded."""
        if all(self.entries.verified):
            return self
        return OwnData(self.path, self.index_file, verify=True, cache=self.storage.cache)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._sample(index % len(self), lambda width, height: None)

    def read(self, row: int, least: Callable[[int, int], Size | None]) -> Record:
        """A sample's record.

        Args:
            least: of the picture's width and height: the size that is enough, see
                :func:`arimage.images.opening.open_picture`.

        Raises:
            SampleError: something is wrong with it.
        """
        return self._sample(row, least).read()

    def ahead(self, first: int, end: int) -> None:
        """Let the system read the samples of a block in one go, where they lie together in a local tar."""
        shard = self.entries.shards[self.entries.shard_of(first)]
        if shard.form != "tar" or not self.storage.local:
            return
        with self._guard:
            begins, ends = self.entries.row(first)["offsets"], self.entries.row(end - 1)
        if begins and ends["offsets"]:
            start = min(begins)
            stop = max(offset + length for offset, length in zip(ends["offsets"], ends["lengths"]))
            self.storage.ahead(shard.path, start, max(0, stop - start))

    def _sample(self, row: int, least: Callable[[int, int], Size | None]) -> Sample:
        with self._guard:
            values = self.entries.row(row)
            name = self.entries.name(row, self.storage, values["key"])
        return Sample(name, partial(self._record, row, values, least))

    def _record(self, row: int, values: dict[str, Any], least: Callable[[int, int], Size | None]) -> Record:
        if values["fault"] is not None:
            raise DataError(values["fault"])
        shard = self.entries.shards[self.entries.shard_of(row)]
        with self._guard:
            if shard.form not in self._readers:
                self._readers[shard.form] = FORMS[shard.form].reader(self.storage)
        place = self.entries.place(row, values)
        return self._readers[shard.form].record(shard, place, least(values["width"], values["height"]))


def readable(data: Iterable[Sample], on_bad: Callable[[str, str], None]) -> Iterator[Record]:
    """Records that can be read; the others go to ``on_bad`` with name and reason."""
    for sample in data:
        try:
            yield sample.read()
        except DataError as error:
            on_bad(sample.name, str(error))
