"""The index of a data set: a parquet file that says of each sample where it is, what it is, and what is wrong.

    key, parts, offsets, lengths     where it lies in its shard, see :class:`arimage.data.forms.shard.Place`
    width, height, sources, masked   of its picture, upright, and of its sources (width and height in turn)
    rating, category                 as its row says
    kinds, characters, languages     of its captions: kind, length and language of each
    pixel_hash, look_hash            of decoded pixels (``--verify``)
    same_as, looks_like              the earlier sample whose picture is the same, or almost looks the same
    fault                            why it cannot be used; null where it can

The shards, in the order of their rows, stand in the file's metadata. Nothing of the file is held in memory but what is
asked for: the order of an epoch takes a few columns once, reading takes the row groups that it comes to.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arimage.data.forms.shard import Place, Shard
from arimage.data.records import printable
from arimage.data.storage import Storage
from arimage.errors import DataError

VERSION = 1
METADATA = b"arimage"
ROWS_OF_A_GROUP = 1 << 15
GROUPS_KEPT = 48
PLACE = ("key", "parts", "offsets", "lengths", "width", "height", "fault")


def schema() -> Any:
    """The columns, as Arrow has them."""
    pa = arrow()
    return pa.schema([
        ("key", pa.binary()), ("parts", pa.string()), ("offsets", pa.list_(pa.int64())),
        ("lengths", pa.list_(pa.int64())), ("width", pa.int32()), ("height", pa.int32()),
        ("sources", pa.list_(pa.int32())), ("masked", pa.bool_()), ("rating", pa.int8()), ("category", pa.string()),
        ("kinds", pa.list_(pa.string())), ("characters", pa.list_(pa.int32())), ("languages", pa.list_(pa.string())),
        ("pixel_hash", pa.uint64()), ("look_hash", pa.uint64()), ("same_as", pa.int64()), ("looks_like", pa.int64()),
        ("fault", pa.string()),
    ])  # fmt: skip


def arrow() -> Any:
    """The module ``pyarrow`` with its parquet part.

    Raises:
        DataError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("an index of data needs pyarrow: pip install 'arimage[data]'") from None
    return pyarrow


class Index:
    """An index that was written, opened for reading.

    Args:
        file: of the index.

    Attributes:
        shards: in order; ``rows`` is how many samples each has, ``starts`` the number of its first one.
        verified: for each shard, whether its pixels were decoded.
        faults: samples that cannot be used.

    Raises:
        DataError: the file is no index, or one of another release.
    """

    def __init__(self, file: Path) -> None:
        self.file = Path(file)
        try:
            self.parquet = arrow().parquet.ParquetFile(self.file, memory_map=True)
            about = json.loads(self.parquet.schema_arrow.metadata[METADATA])
            if about["version"] != VERSION:
                raise ValueError(f"version {about['version']}")
            self.shards = [Shard(**one) for one in about["shards"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is no index of this release ({error}); delete it, it is made anew") from None
        self.rows: list[int] = about["rows"]
        self.verified: list[bool] = about["verified"]
        self.faults: int = about["faults"]
        self.ratings: dict[int, int] = {int(rating): count for rating, count in about["ratings"].items()}
        self.starts = np.concatenate([[0], np.cumsum(self.rows, dtype=np.int64)]).astype(np.int64)
        groups = [self.parquet.metadata.row_group(i).num_rows for i in range(self.parquet.num_row_groups)]
        self._groups = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)]).astype(np.int64)
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lines = _first_lines(self.shards)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def shard_of(self, row: int) -> int:
        """The number of a sample's shard."""
        return int(np.searchsorted(self.starts, row, "right")) - 1

    def row(self, row: int, columns: Sequence[str] = PLACE) -> dict[str, Any]:
        """Some columns of a sample."""
        group = int(np.searchsorted(self._groups, row, "right")) - 1
        if columns is not PLACE:
            table = self.parquet.read_row_group(group, columns=list(columns), use_threads=False)
        else:
            if group not in self._kept:
                while len(self._kept) >= GROUPS_KEPT:
                    self._kept.popitem(last=False)
                table = self.parquet.read_row_group(group, columns=list(PLACE), use_threads=False)
                self._kept[group] = table.combine_chunks()
            self._kept.move_to_end(group)
            table = self._kept[group]
        place = row - int(self._groups[group])
        return {name: table.column(name)[place].as_py() for name in table.column_names}

    def place(self, row: int, values: dict[str, Any]) -> Place:
        """Where a sample lies in its shard, of the columns of :data:`PLACE`."""
        number = row - int(self.starts[self.shard_of(row)])
        key = values["key"].decode("utf-8", "surrogateescape")
        return Place(number, key, values["parts"] or "", values["offsets"] or (), values["lengths"] or ())

    def name(self, row: int, storage: Storage, key: bytes | None = None) -> str:
        """How messages call a sample."""
        number = self.shard_of(row)
        shard = self.shards[number]
        text = (self.row(row)["key"] if key is None else key).decode("utf-8", "surrogateescape")
        if shard.form == "table" and text:
            text = str(int(text) + self._lines[number])
        if shard.form == "pictures":
            name = storage.full(text)
        elif shard.about.get("broken"):
            name = storage.full(shard.path)
        elif shard.form == "arrow":
            name = f"{storage.root}:{row}"
        else:
            name = f"{storage.full(shard.path)}:{text or row - int(self.starts[number])}"
        return printable(name)

    def slices(self, columns: Sequence[str], rows: int = 1 << 20) -> Iterator[tuple[int, Any]]:
        """(first row, Arrow table) of some columns, piece by piece."""
        first = 0
        step = max(1, rows // ROWS_OF_A_GROUP)
        for group in range(0, self.parquet.num_row_groups, step):
            groups = list(range(group, min(group + step, self.parquet.num_row_groups)))
            table = self.parquet.read_row_groups(groups, columns=list(columns)).combine_chunks()
            yield first, table
            first += len(table)

    def rows_of(self, shard: int, columns: Sequence[str]) -> Iterator[Any]:
        """Arrow tables with the rows of a shard."""
        first, end = int(self.starts[shard]), int(self.starts[shard + 1])
        group = int(np.searchsorted(self._groups, first, "right")) - 1
        while first < end:
            table = self.parquet.read_row_group(group, columns=list(columns))
            begin, rows = first - int(self._groups[group]), min(end, int(self._groups[group + 1])) - first
            yield table.slice(begin, rows)
            first, group = first + rows, group + 1

    def faulty(self, most: int) -> list[tuple[int, str, bytes]]:
        """(row, fault, key) of the first samples that cannot be used."""
        found: list[tuple[int, str, bytes]] = []
        if not self.faults:
            return found
        for first, table in self.slices(("fault", "key"), ROWS_OF_A_GROUP):
            for place in np.flatnonzero(table.column("fault").is_valid().to_numpy()):
                found.append(
                    (first + int(place), table.column("fault")[place].as_py(), table.column("key")[place].as_py())
                )
                if len(found) == most:
                    return found
        return found


def _first_lines(shards: Sequence[Shard]) -> list[int]:
    """Lines of each shard's table before the shard."""
    lines, path, before = [], None, 0
    for shard in shards:
        before = before if shard.path == path else 0
        lines.append(before)
        path, before = shard.path, before + int(shard.about.get("lines", 0))
    return lines
