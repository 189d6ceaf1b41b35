"""Files and folders that are written whole or not at all, and files that are not there yet."""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from arimage.errors import ArimageError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
NAME_IN_TEMPORARY = 32


@contextmanager
def replaced_when_whole(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
    part.mkdir()
    try:
        yield part
        if path.exists():
            path.rename(old)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def is_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in place of large files until git-lfs fetches them."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
        ArimageError: it cannot be written; the message names it.
    """
    name: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name[:NAME_IN_TEMPORARY]}.{secrets.token_hex(6)}.part")
        with part.open("xb") as file:
            name = part
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
        name = None
    except OSError as error:
        raise ArimageError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if name is not None:
            name.unlink(missing_ok=True)


def check_writable(paths: Iterable[Path]) -> None:
    """Refuse outputs that cannot be written, before the work that makes them. Nothing is left behind.

    Raises:
        ArimageError: one is a folder, lies below a file, has too long a name, or its folder cannot be written.
    """
    tried: set[Path] = set()
    for path in paths:
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            folder = next((parent for parent in path.parents if parent.exists()), None)
            if folder is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            for part in (path, *(folder / name for name in path.relative_to(folder).parts)):
                with suppress(FileNotFoundError):
                    part.stat()
            if folder not in tried:
                tempfile.TemporaryFile(dir=folder).close()
                tried.add(folder)
        except OSError as error:
            raise ArimageError(f"cannot write {path}: {error.strerror or error}") from None
