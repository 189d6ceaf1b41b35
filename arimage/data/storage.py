"""Where the files of a data set lie: a local disk, or anything that fsspec opens, read whole or in ranges.

Remote reads are tried again, with a pause that doubles and a line that says so, since a server that is busy for a
while (503) is no fault of a sample. With a :class:`ShardCache` remote shards are copied once to a local disk, shared by
all processes of a machine, and the longest unused go when it is full.
"""

import hashlib
import io
import os
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from arimage.data.records import Unreachable, naming, reason
from arimage.errors import DataError
from arimage.images.opening import hidden

TRIES = 7
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STILL_WAITING = 60.0
OPEN_FILES = 64
FAILED_FOR = 60.0
SETTLED = 2.0  # seconds, see settled()
ASKED_AT_ONCE = 16
STAMPS = (
    "ETag", "etag", "blob_id", "oid", "checksum", "md5", "Content-MD5", "Digest", "LastModified", "Last-Modified",
    "last_modified", "mtime", "created",
)  # fmt: skip


class Listed(NamedTuple):
    """A file: its name below the root, its size in bytes, and what changes when its contents do."""

    name: str
    size: int
    stamp: str


def file_name(path: str) -> str:
    """The last part of a path; ``pathlib`` takes ten times as long, and a folder may have millions of files."""
    return path[path.rfind("/") + 1 :]


@dataclass(frozen=True)
class Span:
    """A stretch of a file, or all of it, that is not read yet."""

    storage: "Storage"
    name: str
    start: int = 0
    length: int | None = None

    def bytes(self) -> bytes:
        """Its contents."""
        return self.storage.read(self.name, self.start, self.length)

    def open(self) -> BinaryIO:
        """Its contents as a file, of which no more is read than is asked for where it lies on a local disk."""
        if not self.storage.local:
            return io.BytesIO(self.bytes())
        if self.length is None:
            return open(self.storage.full(self.name), "rb")
        return io.BufferedReader(_Window(self.storage.full(self.name), self.start, self.length))


class _Window(io.RawIOBase):
    """A stretch of a local file as a file."""

    def __init__(self, path: str, start: int, length: int) -> None:
        self.handle, self.start, self.length, self.at = os.open(path, os.O_RDONLY), start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + (0, self.at, self.length)[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        content = os.pread(self.handle, max(0, min(len(buffer), self.length - self.at)), self.start + self.at)
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            os.close(self.handle)
        super().close()


class Storage:
    """The files of a place, by their names below it; the empty name is the place itself.

    Args:
        url: a local path, or an address that fsspec knows.
        cache: keeps copies of remote shards.

    Attributes:
        root: the path without its protocol.
        local: whether it lies on a local disk.
        folders: of a local place, the folders that were listed last and their times (``st_mtime_ns``) before that; 0
            for a folder that had just been changed, so that its time would not tell whether it was again.

    Raises:
        DataError: fsspec is missing or does not know the protocol.
    """

    def __init__(self, url: str, cache: "ShardCache | None" = None) -> None:
        self.url, self.cache = str(url), cache
        self._files: tuple[int, Any] | None = None
        self._handles: OrderedDict[str, int] = OrderedDict()
        self._failed: dict[str, tuple[float, Unreachable]] = {}
        self._guard = threading.Lock()
        self.folders: dict[str, int] = {}
        from_files, self.root = self._opened()
        self.local = type(from_files).__name__ == "LocalFileSystem"
        self.root = self.root.rstrip("/") or "/"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _opened(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise DataError("reading data needs fsspec: pip install 'arimage[data]'") from None
        with naming(f"{self.url} cannot be opened"):
            return url_to_fs(self.url)

    @property
    def files(self) -> Any:
        """The file system of fsspec, one for each process, since their connections do not survive a fork."""
        if self._files is None or self._files[0] != os.getpid():
            self._files = os.getpid(), self._opened()[0]
        return self._files[1]

    def full(self, name: str) -> str:
        """A file's whole path, which is also how messages name it."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def exists(self) -> bool:
        """Whether anything is there."""
        return bool(patiently(lambda: self.files.exists(self.root), self.url))

    def single(self, suffixes: tuple[str, ...]) -> bool:
        """Whether the place is one file. A web server says so of a folder too, unless it is asked for what lies in it,
        which is not done where the name has a suffix of files."""
        if not patiently(lambda: self.files.isfile(self.root), self.url):
            return False
        return (
            self.local or self.root.endswith(suffixes) or not patiently(lambda: self.files.isdir(self.root), self.url)
        )

    def listed(self) -> list[Listed]:
        """All files in the order of their names, without hidden ones."""
        if self.local:
            self.folders = {}
            found = list(_local_files(self.root, "", (), self.folders))
        else:
            inside = patiently(lambda: self.files.find(self.root, detail=True), self.url)
            names = {path: path.removeprefix(self.root).lstrip("/") for path in inside}
            kept = [path for path in inside if not hidden(names[path])]
            with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
                abouts = pool.map(lambda path: self._about(path, inside[path]), kept)
                found = [_listed(names[path], about) for path, about in zip(kept, abouts)]
        return sorted(found, key=lambda one: one.name)

    def one(self, name: str) -> Listed:
        """What :meth:`listed` says of one file."""
        if not self.local:
            return _listed(name, patiently(lambda: self.files.info(self.full(name)), self.full(name)))
        about = os.stat(self.full(name))
        return Listed(name, about.st_size, str(about.st_mtime_ns))

    def _about(self, path: str, listed: dict[str, Any]) -> dict[str, Any]:
        """What is known of a remote file; web servers list names alone."""
        if listed.get("size") is not None:
            return listed
        found: dict[str, Any] = patiently(lambda: self.files.info(path), path)
        return found

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """A file's contents, or a stretch of them.

        Raises:
            OSError: it cannot be read, or is no longer as long.
            Unreachable: storage does not answer.
        """
        if self.local:
            content = self._pread(self.full(name), start, length)
        else:
            end = None if length is None else start + length
            content = self._asked(name, lambda: self.files.cat_file(self.full(name), start, end))
        if length is not None and len(content) < length:
            raise OSError(f"{self.full(name)} ends before its part at {start} does")
        return content

    def read_shard(self, name: str, stamp: str, size: int, start: int, length: int) -> bytes:
        """A stretch of a shard; of a remote one from its local copy, where there is a cache that can hold it."""
        if self.local or self.cache is None or not self.cache.holds(size):
            return self.read(name, start, length)
        for _ in range(3):  # another process may drop the copy before it is opened
            with suppress(FileNotFoundError), open(self.copy(name, stamp, size), "rb", buffering=0) as handle:
                return os.pread(handle.fileno(), length, start)
        return self.read(name, start, length)

    def copy(self, name: str, stamp: str, size: int) -> str:
        """The path of a local file with a shard's contents."""
        if self.local:
            return self.full(name)
        assert self.cache is not None
        identity = f"{self.url}\0{name}\0{stamp}"
        return self.cache.path(
            identity, size, lambda part: self._asked(name, lambda: self.files.get_file(self.full(name), part))
        )

    @contextmanager
    def fetched(self, name: str, stamp: str, size: int) -> Iterator["tuple[Storage, str]"]:
        """A file that is read from end to end as a local one: its storage and its name there, for as long as the block.

        Raises:
            Unreachable: storage does not answer.
        """
        if self.local:
            yield self, name
        elif self.cache is not None and self.cache.holds(size):
            path = Path(self.copy(name, stamp, size))
            yield Storage(str(path.parent)), path.name
        else:
            with tempfile.TemporaryDirectory(prefix="arimage-shard-") as folder:
                copy = f"{folder}/shard"
                self._asked(name, lambda: self.files.get_file(self.full(name), copy))
                yield Storage(folder), "shard"

    def open(self, name: str) -> BinaryIO:
        """A file for reading from its beginning on, in large pieces where it is remote."""
        if self.local:
            return open(self.full(name), "rb")
        found: BinaryIO = self._asked(name, lambda: self.files.open(self.full(name), "rb"))
        return found

    def ahead(self, name: str, start: int, length: int) -> None:
        """Let the system read a stretch of a local file in one go, before it is asked for piece by piece."""
        if self.local and hasattr(os, "posix_fadvise"):
            with suppress(OSError), self._guard:
                os.posix_fadvise(self._handle(self.full(name)), start, length, os.POSIX_FADV_WILLNEED)

    def _asked(self, name: str, call: Callable[[], Any]) -> Any:
        """What storage answers; a shard that did not is not asked for again at once, for each of its samples."""
        since, error = self._failed.get(name, (0.0, None))
        if error is not None and time.monotonic() - since < FAILED_FOR:
            raise error
        try:
            return patiently(call, self.full(name))
        except Unreachable as failure:
            self._failed[name] = time.monotonic(), failure
            raise

    def _pread(self, path: str, start: int, length: int | None) -> bytes:
        if length is None:
            with open(path, "rb") as file:
                file.seek(start)
                return file.read()
        with self._guard:
            handle = self._handle(path)
            if os.fstat(handle).st_nlink == 0:  # replaced or deleted since it was opened
                os.close(self._handles.pop(path))
                handle = self._handle(path)
            return os.pread(handle, length, start)

    def _handle(self, path: str) -> int:
        handle = self._handles.pop(path, None)
        if handle is None:
            handle = os.open(path, os.O_RDONLY)
            while len(self._handles) >= OPEN_FILES:
                os.close(self._handles.popitem(last=False)[1])
        self._handles[path] = handle
        return handle


def settled(changed: int) -> bool:
    """Whether a time (``st_mtime_ns``) is so long ago that a change now would give another one, also where file
    systems count in whole seconds."""
    return time.time_ns() - changed > SETTLED * 1e9


def _local_files(root: str, folder: str, above: tuple[tuple[int, int], ...], times: dict[str, int]) -> Iterator[Listed]:
    """Files below a local folder, through links to folders too, unless they lead in a circle.

    Args:
        times: is given each folder's, as it was before the folder was listed.
    """
    place = f"{root.rstrip('/')}/{folder}" if folder else root
    try:
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in above:
            return
        times[folder] = here.st_mtime_ns if settled(here.st_mtime_ns) else 0
        entries = list(os.scandir(place))
    except OSError as error:
        raise DataError(f"{place} cannot be opened: {reason(error)}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = f"{folder}/{entry.name}" if folder else entry.name
        with suppress(FileNotFoundError):  # a link to nothing
            if entry.is_dir():
                yield from _local_files(root, name, (*above, (here.st_dev, here.st_ino)), times)
            else:
                about = entry.stat()
                yield Listed(name, about.st_size, str(about.st_mtime_ns))


def _listed(name: str, about: dict[str, Any]) -> Listed:
    stamp = next((about[key] for key in STAMPS if about.get(key)), "")
    return Listed(name, int(about.get("size") or 0), str(stamp))


def patiently(call: Callable[[], Any], what: str) -> Any:
    """What a call to storage gives; it is made again where it fails for a reason that may pass.

    Raises:
        OSError: the file is not there or must not be read.
        Unreachable: it failed ``TRIES`` times.
    """
    for attempt in range(1, TRIES + 1):
        try:
            with _watched(what):
                return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:
            if attempt == TRIES:
                raise Unreachable(f"{what} cannot be reached after {TRIES} tries: {reason(error)}") from None
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1))
            _say(f"{what}: {reason(error)}; trying again in {pause:g} s ({attempt} of {TRIES})")
            time.sleep(pause)
    raise AssertionError


@contextmanager
def _watched(what: str) -> Iterator[None]:
    """Say every minute that storage has not answered yet."""
    done = threading.Event()

    def watch() -> None:
        since = time.monotonic()
        while not done.wait(STILL_WAITING):
            _say(f"{what}: no answer for {time.monotonic() - since:.0f} s")

    watcher: threading.Timer = threading.Timer(STILL_WAITING, watch)
    watcher.daemon = True
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.cancel()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class ShardCache:
    """Copies of remote shards on a local disk, shared by the processes of a machine.

    Args:
        folder: where they lie.
        limit: bytes that they may take; the longest unused go first.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit

    def holds(self, size: int) -> bool:
        """Whether a shard of so many bytes has a place."""
        return 0 < size <= self.limit

    def path(self, identity: str, size: int, fetch: Callable[[str], Any]) -> str:
        """The copy of a shard; one process fetches it while the others wait.

        Args:
            identity: of the shard and its contents.
            fetch: writes the contents to a path.
        """
        name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        path = self.folder / f"{name}.shard"
        if not self._used(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / f"{name}.lock"):
                if not self._used(path):
                    with _locked(self.folder / "room.lock"):
                        self._make_room(size)
                    part = self.folder / f"{name}.{os.getpid()}.part"
                    try:
                        fetch(str(part))
                        os.replace(part, path)
                    finally:
                        part.unlink(missing_ok=True)
        return str(path)

    @staticmethod
    def _used(path: Path) -> bool:
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, size: int) -> None:
        kept = []
        for path in self.folder.glob("*.shard"):
            with suppress(FileNotFoundError):
                about = path.stat()
                kept.append((about.st_mtime_ns, about.st_size, path))
        total = sum(one[1] for one in kept) + size
        for _, taken, path in sorted(kept):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= taken


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with open(path, "wb") as handle, _watched(str(path)):
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
