"""WebDataset tars: a.png, a.txt / a.json with one key. A sample is read by its members' offsets alone."""

import tarfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import PurePosixPath
from typing import Any

from arimage.data.forms.shard import Broken, Found, Place, Shard
from arimage.data.records import Record, Unreachable, naming, reason
from arimage.data.rows import Facts, Size, caption_lines, facts, json_row, record
from arimage.data.storage import Span, Storage
from arimage.errors import DataError
from arimage.images.opening import SUFFIXES, hidden

KINDS = tuple(suffix.lstrip(".") for suffix in SUFFIXES)
SPREAD = 4  # members that lie apart by no more than so many times their bytes are read in one go


def scan(storage: Storage, shard: Shard) -> Iterator[Found]:
    """The samples of a tar, and what is left of one that breaks off. A remote one is fetched as a whole, once."""
    with storage.fetched(shard.path, shard.stamp, shard.size) as (place, name):
        yield from _scanned(place, name)


def _scanned(storage: Storage, name: str) -> Iterator[Found]:
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with storage.open(name) as handle, tarfile.open(fileobj=handle) as archive:
            broken = _collect(archive, members)
    except Unreachable:
        raise
    except Exception as error:
        raise Broken(f"is no readable tar: {reason(error)}") from None
    for number, (key, parts) in enumerate(members.items()):
        offsets, lengths = [one.offset_data for one in parts.values()], [one.size for one in parts.values()]
        place = Place(number, key, ",".join(parts), offsets, lengths)
        spans = {part: Span(storage, name, one.offset_data, one.size) for part, one in parts.items()}
        yield Found(place, lambda verify, key=key, spans=spans: facts(_row(key, spans), verify=verify))  # type: ignore[misc]
    if broken is not None:
        yield Found(Place(len(members), f"after {broken}"), _damaged)


def _damaged(verify: bool) -> Facts:
    raise DataError("the archive is damaged from here")


def _collect(archive: tarfile.TarFile, members: dict[str, dict[str, tarfile.TarInfo]]) -> str | None:
    """Members by key and extension; the name of the last one where the archive does not end as one does."""
    last = "its beginning"
    try:
        for member in archive:
            last = member.name
            if member.isfile() and not hidden(member.name):
                path = PurePosixPath(member.name)
                key, _, extension = path.name.partition(".")
                members.setdefault(str(path.with_name(key)), {})[extension.lower().replace(",", "")] = member
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        whole = not archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0")
    except Unreachable:
        raise
    except Exception:
        return last
    return None if whole else last


def _row(key: str, parts: Mapping[str, "bytes | Span"]) -> dict[str, Any]:
    """A row of a sample's members; pictures stay unread."""

    def content(part: str) -> bytes:
        value = parts[part]
        return value if isinstance(value, bytes) else value.bytes()

    def named(part: str) -> AbstractContextManager[None]:
        return naming(f"{PurePosixPath(key).name}.{part}")

    row: dict[str, Any] = {}
    if "json" in parts:
        with named("json"):
            row = json_row(content("json"))
            if not isinstance(row, dict):
                raise DataError(f"it must hold an object, not a {type(row).__name__}")
    if "txt" in parts:
        with named("txt"):
            row["caption"] = caption_lines(content("txt"))
    pictures = {part: value for part, value in parts.items() if part.rpartition(".")[2] in KINDS}
    plain = [part for part in pictures if part in KINDS or part.startswith("target.")]
    if plain:
        row["image"] = pictures[plain[0]]
    sources = sorted(part for part in pictures if part.startswith(("source", "input")))
    if sources:
        row["sources"] = [pictures[part] for part in sources]
    for column in ("mask", "chosen", "rejected"):
        named_so = [part for part in pictures if part.startswith(f"{column}.")]
        if named_so:
            row[column] = pictures[named_so[0]]
    return row


class _Reader:
    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def record(self, shard: Shard, place: Place, least: Size | None) -> Record:
        """A sample by its members' offsets, in one read where they lie together."""

        def content(start: int, length: int) -> bytes:
            return self.storage.read_shard(shard.path, shard.stamp, shard.size, start, length)

        first = min(place.offsets)
        end = max(offset + length for offset, length in zip(place.offsets, place.lengths))
        if end - first <= SPREAD * (sum(place.lengths) + tarfile.BLOCKSIZE * 2 * len(place.offsets)):
            whole = content(first, end - first)
            found = [
                whole[offset - first : offset - first + size] for offset, size in zip(place.offsets, place.lengths)
            ]
        else:
            found = [content(offset, size) for offset, size in zip(place.offsets, place.lengths)]
        return record(_row(place.key, dict(zip(place.parts.split(","), found))), least=least)


def reader(storage: Storage) -> _Reader:
    """Reads samples of tars."""
    return _Reader(storage)
