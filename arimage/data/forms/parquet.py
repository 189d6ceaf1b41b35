"""Parquet files with embedded pictures (HF style: {bytes, path}, or bytes). Samples are named by their row, from 0.

A row group is read once for neighbouring samples: those that were read last are kept, within ``KEPT`` bytes. The order
of an epoch sees to it that no more are in use at a time.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from arimage.data.forms.shard import Broken, Found, Place, Shard
from arimage.data.records import Record, Unreachable, reason
from arimage.data.rows import COLUMNS, Facts, Size, facts, record
from arimage.data.storage import Storage
from arimage.errors import DataError

KEPT = 256 << 20


def scan(storage: Storage, shard: Shard) -> Iterator[Found]:
    """A sample for each row; in ``about`` how many rows each group has."""
    try:
        with storage.open(shard.path) as handle:
            file = _opened(handle)
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            columns = [name for name in file.schema_arrow.names if name in COLUMNS]
    except Unreachable:
        raise
    except Exception as error:
        raise Broken(f"is no readable parquet file: {reason(error)}") from None
    shard.about["groups"] = groups
    number = 0
    with storage.open(shard.path) as handle:
        file = _opened(handle)
        for group, rows in enumerate(groups):
            try:
                table: Any = file.read_row_group(group, columns=columns)
            except Unreachable:
                raise
            except Exception as error:
                table = error
            for place in range(rows):

                def look(verify: bool, place: int = place, table: Any = table) -> Facts:
                    if isinstance(table, Exception):
                        raise table
                    return facts(row_of(table, place), verify=verify)

                yield Found(Place(number), look)
                number += 1


def row_of(table: Any, place: int) -> dict[str, Any]:
    """A row of an Arrow table as Python values."""
    return {name: table.column(name)[place].as_py() for name in table.column_names}


def _opened(handle: Any) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError("reading parquet needs pyarrow: pip install 'arimage[data]'") from None
    return pyarrow.parquet.ParquetFile(handle, pre_buffer=True)


class _Reader:
    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.kept: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self.files: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self.guard = threading.Lock()

    def record(self, shard: Shard, place: Place, least: Size | None) -> Record:
        """A row, from its group."""
        ends = shard.about.setdefault("ends", list(accumulate(shard.about["groups"])))
        group = bisect_right(ends, place.number)
        with self.guard:
            table = self._group(shard, group)
        return record(row_of(table, place.number - (ends[group - 1] if group else 0)), least=least)

    def _group(self, shard: Shard, group: int) -> Any:
        key = shard.path, shard.stamp, group
        if key in self.kept:
            self.kept.move_to_end(key)
        else:
            try:
                file = self._file(shard)
                columns = [name for name in file.schema_arrow.names if name in COLUMNS]
                self.kept[key] = file.read_row_group(group, columns=columns)
            except Unreachable:
                raise
            except Exception as error:  # kept too, or each of its rows would read the whole group again
                self.kept[key] = error
            while len(self.kept) > 1 and sum(getattr(one, "nbytes", 0) for one in self.kept.values()) > KEPT:
                self.kept.popitem(last=False)
        if isinstance(self.kept[key], Exception):
            raise self.kept[key]
        return self.kept[key]

    def _file(self, shard: Shard) -> Any:
        key = shard.path, shard.stamp
        if key not in self.files:
            cache = self.storage.cache
            if self.storage.local or cache is None or not cache.holds(shard.size):
                handle = self.storage.open(shard.path)
            else:
                handle = open(self.storage.copy(shard.path, shard.stamp, shard.size), "rb")  # noqa: SIM115
            while len(self.files) >= 16:
                self.files.popitem(last=False)
            self.files[key] = _opened(handle)
        self.files.move_to_end(key)
        return self.files[key]


def reader(storage: Storage) -> _Reader:
    """Reads rows of parquet files."""
    return _Reader(storage)
