"""Tables that name pictures: metadata.jsonl and metadata.csv, a row a picture.

Samples are named by the line on which their row begins, as an editor counts them. A large table of JSON lines is looked
through in parts; a line belongs to the part in which it begins.
"""

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from arimage.data.forms.shard import Broken, Found, Place, Shard
from arimage.data.records import Record, Unreachable, naming, reason
from arimage.data.rows import Size, facts, json_row, record
from arimage.data.storage import Span, Storage
from arimage.errors import DataError

PART = 4 << 20


def scan(storage: Storage, shard: Shard) -> Iterator[Found]:
    """A sample for each row."""
    read = partial(_picture, storage, shard.path)
    try:
        rows = _csv_rows(storage, shard) if shard.path.endswith(".csv") else _json_rows(storage, shard)
        for number, (line, offset, length, row) in enumerate(rows):
            place = Place(number, str(line), "", (offset,), (length,))
            yield Found(place, lambda verify, row=row: facts(row(), read, verify))  # type: ignore[misc]
    except Unreachable:
        raise
    except (OSError, ValueError, csv.Error, DataError) as error:
        raise Broken(f"cannot be read: {reason(error)}") from None


_Row = tuple[int, int, int, Callable[[], Any]]


def _json_rows(storage: Storage, shard: Shard) -> Iterator[_Row]:
    """(line, offset, bytes, row) of the lines that begin in a part of a table; lines are counted from the part's."""
    begin = max(0, shard.start - 1)
    content = storage.read(shard.path, begin, None if shard.stop is None else shard.stop - begin)
    if shard.start:  # the line across the beginning belongs to the part before
        skip = content.find(b"\n") + 1
        content, begin = content[skip:] if skip else b"", begin + skip
    if shard.stop is not None and not content.endswith(b"\n"):
        content += _rest_of_line(storage, shard.path, shard.stop) if content else b""
    lines = content.split(b"\n")
    shard.about["lines"] = len(lines) - 1
    offset = begin
    for number, line in enumerate(lines, 1):
        if line.strip().removeprefix(codecs.BOM_UTF8):
            yield number, offset, len(line), partial(json_row, line)
        offset += len(line) + 1


def _rest_of_line(storage: Storage, path: str, start: int) -> bytes:
    """What follows up to the end of the line, with a line end also where the file ends without one."""
    found, size = b"", 1 << 16
    while True:
        try:
            piece = storage.read(path, start + len(found), size)
        except OSError:  # fewer bytes are left
            piece = storage.read(path, start + len(found)) + b"\n"
        found += piece
        if b"\n" in piece:
            return found[: found.index(b"\n") + 1]


def _csv_rows(storage: Storage, shard: Shard) -> Iterator[_Row]:
    """Rows below the header. After one that cannot be parsed, reading goes on with the line below its first."""
    content = storage.read(shard.path)
    offset = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    lines = list(io.StringIO(content[offset:].decode("utf-8", "surrogateescape"), newline=""))
    offsets = [offset]
    for line in lines:
        offsets.append(offsets[-1] + len(line.encode("utf-8", "surrogateescape")))
    header: list[str] | None = None
    start = 0
    while start < len(lines):
        reader = csv.reader((lines[i] for i in range(start, len(lines))), strict=True)
        begin = start
        try:
            for fields in reader:
                end = start + reader.line_num
                if header is None:
                    header = fields or None
                    shard.about["header"] = header
                elif fields:
                    yield begin + 1, offsets[begin], offsets[end] - offsets[begin], partial(_csv_row, header, fields)
                begin = end
            start = len(lines)
        except csv.Error as error:
            if header is None:
                raise
            yield begin + 1, offsets[begin], 0, partial(_raise, DataError(f"no valid CSV: {error}"))
            start = begin + 1


def _csv_row(header: Sequence[str], fields: Sequence[str]) -> dict[str, str]:
    if any(field.strip() for field in fields[len(header) :]):
        raise DataError(
            f"the row has {len(fields)} fields, the header {len(header)}; a text with a comma belongs into quotes"
        )
    row = {}
    for name, field in zip(header, fields):
        with naming(f"the column {name!r}"):
            row[name] = field.encode("utf-8", "surrogateescape").decode()
    return row


def _raise(error: Exception) -> Any:
    raise error


def _picture(storage: Storage, table: str, place: str) -> Span:
    """A path of a row; absolute ones and ways out of the folder are refused."""
    path = PurePosixPath(place.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError("it lies outside the data's folder")
    return Span(storage, str(PurePosixPath(table).parent / path))


class _Reader:
    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def record(self, shard: Shard, place: Place, least: Size | None) -> Record:
        """A row of the table, and its pictures."""
        content = self.storage.read(shard.path, place.offsets[0], place.lengths[0])
        if shard.path.endswith(".csv"):
            text = io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")
            row: Any = _csv_row(shard.about["header"], next(csv.reader(text, strict=True)))
        else:
            row = json_row(content)
        return record(row, partial(_picture, self.storage, shard.path), least)


def reader(storage: Storage) -> _Reader:
    """Reads rows of tables."""
    return _Reader(storage)
