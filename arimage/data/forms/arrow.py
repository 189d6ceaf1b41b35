"""Folders that ``datasets`` wrote with ``save_to_disk``: Arrow files, mapped into memory and read without a copy.

Samples are named by their row in the whole data set, from 0.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from arimage.data.forms.parquet import row_of
from arimage.data.forms.shard import Broken, Found, Place, Shard
from arimage.data.records import Record, Unreachable, naming, reason
from arimage.data.rows import COLUMNS, Size, facts, record
from arimage.data.storage import Listed, Storage
from arimage.errors import DataError

KEPT = 64
SPLITS, STATE = "dataset_dict.json", "state.json"


def files_of(storage: Storage, listed: Sequence[Listed]) -> list[Listed]:
    """The Arrow files of a saved data set in order; of several splits those of ``train``, or of the first.

    Raises:
        DataError: the folder does not hold what it says.
    """
    names = {one.name: one for one in listed}
    with naming(f"{storage.url} is no readable data set"):
        folder = ""
        if SPLITS in names:
            splits = json.loads(storage.read(SPLITS))["splits"]
            folder = f"{'train' if 'train' in splits else splits[0]}/"
        if f"{folder}{STATE}" not in names:
            folder = next(one.name for one in listed if one.name.endswith(STATE)).removesuffix(STATE)
        state = json.loads(storage.read(f"{folder}{STATE}"))
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise DataError("its rows have an order of their own: save it again after flatten_indices()")
        return [names[f"{folder}{one['filename']}"] for one in state["_data_files"]]


def scan(storage: Storage, shard: Shard) -> Iterator[Found]:
    """A sample for each row."""
    try:
        table = _table(storage, shard)
    except Unreachable:
        raise
    except Exception as error:
        raise Broken(f"is no readable Arrow file: {reason(error)}") from None
    for number in range(len(table)):
        yield Found(Place(number), lambda verify, number=number: facts(row_of(table, number), verify=verify))  # type: ignore[misc]


def _table(storage: Storage, shard: Shard) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DataError("reading this data set needs pyarrow: pip install 'arimage[data]'") from None
    if storage.local:
        source = pyarrow.memory_map(storage.full(shard.path))
    elif storage.cache is not None and storage.cache.holds(shard.size):
        source = pyarrow.memory_map(storage.copy(shard.path, shard.stamp, shard.size))
    else:
        source = pyarrow.BufferReader(storage.read(shard.path))
    table = pyarrow.ipc.open_stream(source).read_all()
    return table.select([name for name in table.column_names if name in COLUMNS])


class _Reader:
    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.tables: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self.guard = threading.Lock()

    def record(self, shard: Shard, place: Place, least: Size | None) -> Record:
        """A row of an Arrow file."""
        with self.guard:
            table = self._kept(shard)
        return record(row_of(table, place.number), least=least)

    def _kept(self, shard: Shard) -> Any:
        key = shard.path, shard.stamp
        if key not in self.tables:
            while len(self.tables) >= KEPT:
                self.tables.popitem(last=False)
            self.tables[key] = _table(self.storage, shard)
        self.tables.move_to_end(key)
        return self.tables[key]


def reader(storage: Storage) -> _Reader:
    """Reads rows of Arrow files."""
    return _Reader(storage)
