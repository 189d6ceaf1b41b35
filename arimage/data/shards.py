"""What data is at a place, by what is there, and into which shards it is cut.

    a folder with metadata.jsonl or metadata.csv     one row a picture (``file_name`` and columns)
    *.tar, *.parquet, *.jsonl, or a folder of them   WebDataset; embedded pictures; tables
    a folder that ``datasets`` saved                 Arrow files
    a folder with pictures and .txt files            a.png beside a.txt

Names that begin with a dot are passed over. Nothing is read here but the listing: a shard's stamp says when it was
changed, so that an index knows what it must look at anew.
"""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from types import ModuleType

from arimage.data.forms import arrow, parquet, pictures, tables, tars
from arimage.data.forms.shard import Shard
from arimage.data.storage import Listed, ShardCache, Storage, file_name
from arimage.errors import DataError
from arimage.images.opening import SUFFIXES

FORMS: dict[str, ModuleType] = {
    "arrow": arrow, "parquet": parquet, "pictures": pictures, "table": tables, "tar": tars,
}  # fmt: skip
BY_SUFFIX = {".tar": "tar", ".parquet": "parquet", ".jsonl": "table", ".csv": "table"}
TABLES = ("metadata.jsonl", "metadata.csv")
PICTURES_OF_A_SHARD = 2048


def open_place(path: str, cache: ShardCache | None = None) -> tuple[Storage, str]:
    """The storage of a place, and the file in it that is meant alone, or an empty name.

    Raises:
        DataError: nothing is there.
    """
    storage = Storage(path, cache)
    if not storage.exists():
        raise DataError(f"{path} does not exist")
    if not storage.single(tuple(BY_SUFFIX)):
        return storage, ""
    name = file_name(storage.root)
    parent = storage.root.removesuffix(name) if storage.local else storage.url.rstrip("/").removesuffix(name)
    return Storage(parent, cache), name


def find_shards(storage: Storage, alone: str = "") -> list[Shard]:
    """The shards of a place, in order.

    Args:
        alone: the one file that is meant; by default all.

    Raises:
        DataError: there is none, or the form is not known.
    """
    if alone:
        form = BY_SUFFIX.get(PurePosixPath(alone).suffix)
        if form is None:
            raise DataError(f"{storage.full(alone)}: data is read from folders, .tar, .parquet, .jsonl and .csv files")
        if form != "table":
            return _shards(form, storage.one(alone), ())
        listed = storage.listed()  # its pictures lie beside it
        return [shard for one in listed if one.name == alone for shard in _shards(form, one, listed)]
    listed = storage.listed()
    for name in TABLES:
        found = [one for one in listed if file_name(one.name) == name]
        if found:
            return [shard for one in found for shard in _shards("table", one, listed)]
    packed = [one for one in listed if one.name.endswith((".tar", ".parquet", ".jsonl"))]
    if packed:
        return [shard for one in packed for shard in _shards(BY_SUFFIX[one.name[one.name.rindex(".") :]], one, listed)]
    if any(file_name(one.name) in (arrow.STATE, arrow.SPLITS) for one in listed):
        return [Shard("arrow", one.name, one.stamp, one.size) for one in arrow.files_of(storage, listed)]
    return _picture_shards(listed)


def _shards(form: str, file: Listed, listed: Sequence[Listed]) -> list[Shard]:
    if form != "table":
        return [Shard(form, file.name, f"{file.size} {file.stamp}", file.size)]
    folder = file.name.rpartition("/")[0]
    stamp = _stamp([one for one in listed if one is file or one.name.startswith(f"{folder}/" if folder else "")])
    if file.name.endswith(".csv") or file.size <= tables.PART:
        return [Shard(form, file.name, stamp, file.size)]
    starts = range(0, file.size, tables.PART)
    stops = [*starts[1:], None]
    return [Shard(form, file.name, stamp, tables.PART, start, stop) for start, stop in zip(starts, stops)]


def _picture_shards(listed: Sequence[Listed]) -> list[Shard]:
    """Pictures in runs that begin where their names say, so that a new picture changes its own run alone."""
    by_name = {one.name: one for one in listed}
    runs: list[list[Listed]] = [[]]
    for one in listed:
        if not one.name.lower().endswith(SUFFIXES):
            continue
        begins = zlib.crc32(one.name.encode("utf-8", "surrogateescape")) % PICTURES_OF_A_SHARD == 0
        if runs[-1] and (begins or len(runs[-1]) >= 4 * PICTURES_OF_A_SHARD):
            runs.append([])
        runs[-1].append(one)
    shards = []
    for run in runs:
        texts = [by_name.get(pictures.text_beside(one.name)) for one in run]
        names = tuple((one.name, text is not None) for one, text in zip(run, texts))
        if run:
            stamp = _stamp([*run, *(text for text in texts if text is not None)])
            shards.append(Shard("pictures", run[0].name, stamp, sum(one.size for one in run), names=names))
    return shards


def _stamp(files: Sequence[Listed]) -> str:
    digest = hashlib.sha256()
    for one in files:
        digest.update(f"{one.name}\0{one.size}\0{one.stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]
