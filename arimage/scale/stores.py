"""Where jobs come from and results go: a folder, or anything that fsspec opens (``s3://…``, ``gs://…``).

What is written appears whole or not at all. A store that fails for a while is waited for; one that is full or refuses
is not.
"""

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from arimage.errors import ArimageError

PATIENCE = 300.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
ABANDONED = 3600.0
# What waiting does not mend.
FINAL = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR,
    errno.EISDIR, errno.EFBIG,
}  # fmt: skip
# Stores in which an object appears when all of it is there; elsewhere it is written beside and renamed.
ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "memory"}
Result = TypeVar("Result")


class StoreError(ArimageError):
    """A store cannot be written or read, and will not be soon: it ends a run."""


def is_url(place: str) -> bool:
    """Whether a place is named by a URL, not by a path on this machine."""
    return "://" in place and not place.startswith("file://")


def join(folder: str, name: str) -> str:
    """A name below a folder or URL; absolute paths and URLs stay as they are."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if folder else name


class Store:
    """A folder or URL prefix.

    Args:
        place: a path, or a URL.
        patience: seconds for which a failing operation is tried again.
    """

    def __init__(self, place: str, patience: float = PATIENCE) -> None:
        self.place, self.patience = place.removeprefix("file://"), patience
        self.local = not is_url(place)
        if self.local:
            self._folder = Path(os.path.abspath(self.place))
        else:
            self._files, self._root = filesystem(place)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (str(self._folder) if self.local else self.place, self.patience)

    def check(self) -> None:
        """Refuse a store that cannot be written, before the work.

        Raises:
            StoreError: it cannot.
        """
        self.write(".arimage/writable", b"")
        self.remove(".arimage/writable")

    def write(self, name: str, contents: bytes, *, new: bool = False) -> bool:
        """Write a file whole; with ``new`` only where there is none, and whether it was written.

        Raises:
            StoreError: it cannot be written.
        """
        return self._patiently("write", name, lambda: self._write(name, contents, new))

    def put(self, name: str, file: Path, *, new: bool = False) -> bool:
        """The same with the contents of a local file, however large."""
        return self._patiently("write", name, lambda: self._put(name, file, new))

    def read(self, name: str) -> bytes:
        """The contents of a file.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read.
        """
        if self.local:
            return self._patiently("read", name, lambda: self._path(name).read_bytes())
        return self._patiently("read", name, lambda: bytes(self._files.cat_file(self._key(name))))

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """A file of the store on this machine, for as long as the block lasts."""
        if self.local:
            yield self._path(name)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name.rpartition("/")[2])
            self._patiently("read", name, lambda: self._files.get_file(self._key(name), str(path)))
            yield path

    def names(self, folder: str) -> set[str]:
        """The names of the files in a folder, which need not be there."""

        def listed() -> set[str]:
            try:
                if self.local:
                    return {entry.name for entry in os.scandir(self._path(folder)) if entry.is_file()}
                found = self._files.ls(self._key(folder), detail=True, refresh=True)
            except FileNotFoundError:
                return set()
            return {one["name"].rstrip("/").rpartition("/")[2] for one in found if one["type"] == "file"}

        return {name for name in self._patiently("list", folder, listed) if not name.endswith(".part")}

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        if self.local:
            return self._path(name).exists()
        return self._patiently("look for", name, lambda: bool(self._files.exists(self._key(name))))

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it, where it is there."""

        def removed() -> None:
            with suppress(FileNotFoundError):
                if not self.local:
                    self._files.rm(self._key(name), recursive=True)
                elif self._path(name).is_dir():
                    shutil.rmtree(self._path(name))
                else:
                    self._path(name).unlink()

        self._patiently("remove", name, removed)

    def sweep(self, folder: str) -> None:
        """Remove what killed runs were writing to a local folder, an hour after the last of it."""
        if self.local:
            for part in self._path(folder).glob(".*.part"):
                with suppress(OSError):
                    if time.time() - part.stat().st_mtime > ABANDONED:
                        part.unlink()

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _key(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _write(self, name: str, contents: bytes, new: bool) -> bool:
        if self.local:
            return self._place(name, lambda part: _write_through(part, contents), new)
        key = self._key(name)
        if self._protocol in ATOMIC:
            return self._created(new, lambda mode: self._files.pipe_file(key, contents, **mode))
        return self._beside(key, new, lambda part: self._files.pipe_file(part, contents))

    def _put(self, name: str, file: Path, new: bool) -> bool:
        if self.local:
            return self._place(name, lambda part: _copy_through(file, part), new)
        key = self._key(name)
        if self._protocol in ATOMIC:
            return self._created(new, lambda mode: self._files.put_file(str(file), key, **mode))
        return self._beside(key, new, lambda part: self._files.put_file(str(file), part))

    @property
    def _protocol(self) -> str:
        protocol = self._files.protocol
        return protocol if isinstance(protocol, str) else protocol[0]

    def _place(self, name: str, fill: Callable[[Path], None], new: bool) -> bool:
        """Fill a file beside a local one and move it there."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            fill(part)
            if not new:
                os.replace(part, path)
                return True
            try:
                os.link(part, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                if path.exists():
                    return False
                os.replace(part, path)
            return True
        finally:
            part.unlink(missing_ok=True)

    def _created(self, new: bool, write: Callable[[dict[str, str]], None]) -> bool:
        """A conditional put, where the store knows one."""
        try:
            write({"mode": "create"} if new else {})
        except FileExistsError:
            return False
        return True

    def _beside(self, key: str, new: bool, write: Callable[[str], None]) -> bool:
        if new and self._files.exists(key):
            return False
        folder = key.rpartition("/")[0]
        self._files.makedirs(folder, exist_ok=True)
        part = f"{folder}/.{secrets.token_hex(8)}.part"
        try:
            write(part)
            self._files.mv(part, key)
        except BaseException:
            with suppress(Exception):
                self._files.rm_file(part)
            raise
        return True

    def _patiently(self, what: str, name: str, operation: Callable[[], Result]) -> Result:
        return patiently(what, join(self.place, name), operation, self.patience)


def patiently(what: str, place: str, operation: Callable[[], Result], patience: float = PATIENCE) -> Result:
    """Try an operation again while it fails for a reason that may pass.

    Raises:
        FileNotFoundError: there is nothing to read.
        StoreError: it fails for a reason that does not pass, or still does after ``patience`` seconds.
    """
    wait, end = FIRST_WAIT, time.monotonic() + patience
    while True:
        try:
            return operation()
        except Exception as error:
            if isinstance(error, FileNotFoundError) and what == "read":
                raise
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            message = f"cannot {what} {place}: {reason}"
            if getattr(error, "errno", None) in FINAL:
                raise StoreError(message) from None
            if time.monotonic() + wait > end:
                raise StoreError(f"{message} (tried for {patience:g} s)") from None
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)


def _write_through(path: Path, contents: bytes) -> None:
    with path.open("xb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


def _copy_through(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        StoreError: what it needs is not installed, or there is no such kind of store.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise StoreError(f"{url}: URLs need fsspec: pip install 'arimage[data]'") from None
    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise StoreError(f"{url} cannot be opened: {error}") from None


def read_place(place: str) -> bytes:
    """The contents of a file that is named by a path or URL.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be read.
    """
    if not is_url(place):
        return patiently("read", place, lambda: Path(place.removeprefix("file://")).read_bytes())
    files, path = filesystem(place)
    return patiently("read", place, lambda: bytes(files.cat_file(path)))


def version_of(place: str) -> str:
    """What changes with the contents of a file: a hash of them, or for URLs what the store says of them.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be read.
    """
    if not is_url(place):
        return patiently("read", place, lambda: _file_hash(place.removeprefix("file://")))
    files, path = filesystem(place)
    about = patiently("read", place, lambda: files.info(path))
    kept = [str(about.get(key)) for key in ("ETag", "etag", "md5Hash", "crc32c", "mtime", "created", "size")]
    return hashlib.sha256(repr(kept).encode()).hexdigest()


def _file_hash(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lines_of(place: str) -> Iterator[bytes]:
    """The lines of a file, read as they are needed."""
    import fsspec

    with fsspec.open(place, "rb") as file:
        yield from file
