"""Whether a folder of very many pictures is as it was when its index was made, told by its folders alone.

To look at a million pictures and their texts takes most of a minute. The time of a folder says whether files in it
came, went or were renamed, so for large data that is all that a start of training looks at. A file that was written
over in place it does not show: ``arimage data index`` looks at every file.

What folders looked like is kept in the user's cache, since writing beside the data changes the times that it is about.
"""

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from arimage.data.forms.pictures import text_beside
from arimage.data.forms.shard import Shard
from arimage.data.index import Index
from arimage.data.storage import Storage, settled
from arimage.files import write_whole
from arimage.images.opening import SUFFIXES, hidden

FROM = 50_000  # samples; with fewer, all files are looked at in about a second
TRIES, WAIT = 30, 0.1  # seconds until the root, into which the index was written, has settled


def unchanged(storage: Storage, index: Index, record: Path) -> bool:
    """Whether no file came or went below the data's root since :func:`remember` wrote the record."""
    if not storage.local:
        return False
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        known = json.loads(record.read_text())
        same = known["root"] == storage.root and known["index"] == _stamp(index.file)
        return same and all(_time(storage, folder) == then for folder, then in known["folders"].items())
    return False


def remember(storage: Storage, shards: Iterable[Shard], index: Index, record: Path) -> None:
    """Keep what the folders look like that were just listed, where the data is such that it helps."""
    if not storage.local or len(index) < FROM or any(shard.form != "pictures" for shard in index.shards):
        return
    with suppress(OSError):
        folders = _still(storage, shards)
        if folders is not None:
            kept = {"root": storage.root, "index": _stamp(index.file), "folders": folders}
            write_whole(record, json.dumps(kept).encode())


def _still(storage: Storage, shards: Iterable[Shard]) -> dict[str, int] | None:
    """The times of all folders, or None where something changed since they were listed."""
    folders = dict(storage.folders)
    moved = [folder for folder, then in folders.items() if _time(storage, folder) != then]
    if moved not in ([], [""]):  # the index itself may have been written into the root
        return None
    folders[""] = _time(storage, "")
    if moved:
        for _ in range(TRIES):
            if settled(folders[""]):
                break
            time.sleep(WAIT)
        else:  # a clock that is ahead, or somebody who writes all the time
            return None
        listed = {(name, captioned) for shard in shards for name, captioned in shard.names if "/" not in name}
        inner = {name for name in folders if name and "/" not in name}
        if _in_root(storage) != (listed, inner):
            return None
    return folders


def _in_root(storage: Storage) -> tuple[set[tuple[str, bool]], set[str]]:
    """The root's pictures, whether each has a caption file, and its folders, by their names alone."""
    files: set[str] = set()
    folders: set[str] = set()
    with os.scandir(storage.root) as entries:
        for entry in entries:
            if not hidden(entry.name):
                (folders if entry.is_dir() else files).add(entry.name)
    return {(name, text_beside(name) in files) for name in files if name.lower().endswith(SUFFIXES)}, folders


def _time(storage: Storage, folder: str) -> int:
    return os.stat(storage.full(folder)).st_mtime_ns


def _stamp(file: Path) -> list[Any]:
    about = file.stat()
    return [str(file), about.st_size, about.st_mtime_ns]
