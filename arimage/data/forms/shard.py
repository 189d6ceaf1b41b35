"""A shard: a file with samples, or a part of one, and where a sample lies in it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from arimage.data.records import Record
from arimage.data.rows import Facts, Size
from arimage.data.storage import Storage


@dataclass(frozen=True)
class Shard:
    """A part of a data set that is looked through in one go.

    Attributes:
        form: the module of :mod:`arimage.data.forms` that reads it.
        path: of the file, below the data's root; of a folder of pictures, the first one's.
        stamp: another one when the contents are.
        size: bytes.
        start, stop: the stretch of a table in which its lines begin; None is its end.
        names: of a folder of pictures, the pictures of this part, and whether each has a caption file; not kept.
        about: what its form found in it and needs for reading.
    """

    form: str
    path: str
    stamp: str
    size: int
    start: int = 0
    stop: int | None = None
    names: tuple[tuple[str, bool], ...] = field(default=(), compare=False, repr=False)
    about: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What says that two shards are the same, contents included."""
        return self.form, self.path, self.stamp, self.start, self.stop

    def as_json(self) -> dict[str, Any]:
        """Plain data, without the names."""
        return {key: value for key, value in asdict(self).items() if key != "names"}


@dataclass(frozen=True)
class Place:
    """Where a sample lies in its shard.

    Attributes:
        number: of its row, from 0.
        key: the key, path or line number that names it; empty where the number does.
        parts: of a tar, the members' extensions, with commas.
        offsets, lengths: of the members, or of the line, in bytes.
    """

    number: int
    key: str = ""
    parts: str = ""
    offsets: Sequence[int] = ()
    lengths: Sequence[int] = ()


@dataclass(frozen=True)
class Found:
    """A sample of a shard that is looked through.

    Attributes:
        facts: looks at it, with ``verify`` at its pixels; whatever it raises is wrong with this sample, and no other.
    """

    place: Place
    facts: Callable[[bool], Facts]


class Reader(Protocol):
    """Reads the samples of one form; it keeps what neighbours share."""

    def record(self, shard: Shard, place: Place, least: Size | None) -> Record: ...


class Form(Protocol):
    """A module of this room: ``scan`` gives the samples of a shard in order, and leaves in ``about`` what is needed.

    Raises:
        Broken: the shard cannot be opened at all.
        Unreachable: storage does not answer.
    """

    def scan(self, storage: Storage, shard: Shard) -> Iterator[Found]: ...

    def reader(self, storage: Storage) -> Reader: ...


class Broken(Exception):
    """A shard cannot be opened at all; its one argument says why."""
