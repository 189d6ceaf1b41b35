"""Pictures beside texts: a.png beside a.txt, which holds one caption a line."""

from collections.abc import Iterator
from typing import Any

from arimage.data.forms.shard import Found, Place, Shard
from arimage.data.records import Record, naming
from arimage.data.rows import Facts, Size, caption_lines, facts, record
from arimage.data.storage import Span, Storage, file_name
from arimage.errors import DataError


def scan(storage: Storage, shard: Shard) -> Iterator[Found]:
    """A sample for each picture, also where there is no text."""
    for number, (name, captioned) in enumerate(shard.names):

        def look(verify: bool, name: str = name, captioned: bool = captioned) -> Facts:
            if not captioned:
                raise DataError(f"there is no caption file {file_name(text_beside(name))}")
            return facts(_row(storage, name), verify=verify)

        yield Found(Place(number, name), look)


def text_beside(name: str) -> str:
    """The path of a picture's captions."""
    return f"{name[: name.rindex('.')]}.txt"


def _row(storage: Storage, name: str) -> dict[str, Any]:
    text = text_beside(name)
    with naming(f"the caption file {file_name(text)}"):
        lines = caption_lines(storage.read(text))
    return {"image": Span(storage, name), "caption": lines}


class _Reader:
    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def record(self, shard: Shard, place: Place, least: Size | None) -> Record:
        """A picture and its text."""
        return record(_row(self.storage, place.key), least=least)


def reader(storage: Storage) -> _Reader:
    """Reads pictures beside texts."""
    return _Reader(storage)
