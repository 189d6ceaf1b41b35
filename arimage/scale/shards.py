"""Shards: many pictures in one file, as WebDataset's tars or as parquet. The same pictures give the same bytes."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from arimage.errors import ArimageError

Form = Literal["pictures", "webdataset", "parquet"]
SUFFIXES: dict[Form, str] = {"pictures": "", "webdataset": ".tar", "parquet": ".parquet"}
Row = dict[str, Any]
ROWS_IN_GROUP = 64


def write_tar(path: Path, rows: Iterable[Row], contents: Callable[[Row], bytes]) -> None:
    """A tar with each picture, its prompt as ``.txt`` and its row, recipe included, as ``.json``."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for row in rows:
            _, _, suffix = row["name"].rpartition(".")
            for ending, data in (
                (suffix, contents(row)),
                ("txt", row["recipe"]["prompt"].encode()),
                ("json", to_json(row)),
            ):
                member = tarfile.TarInfo(f"{row['id']}.{ending}")  # time, owner and mode are the same for all
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def tar_rows(path: Path) -> Iterator[Row]:
    """The rows of a tar."""
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".json"):
                file = tar.extractfile(member)
                assert file is not None
                yield json.loads(file.read())


def write_parquet(path: Path, rows: Iterable[Row], contents: Callable[[Row], bytes]) -> None:
    """Columns ``id``, ``prompt``, ``image`` ({bytes, path}, as Hugging Face has it), ``row``: JSON with the recipe."""
    pyarrow = needs_pyarrow()
    text = pyarrow.string()
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", text)])
    schema = pyarrow.schema([("id", text), ("prompt", text), ("image", picture), ("row", text)])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(rows):
            table = [
                {
                    "id": row["id"],
                    "prompt": row["recipe"]["prompt"],
                    "image": {"bytes": contents(row), "path": row["name"]},
                    "row": to_json(row).decode(),
                }
                for row in group
            ]
            writer.write_table(pyarrow.Table.from_pylist(table, schema))


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a parquet file."""
    pyarrow = needs_pyarrow()
    for text in pyarrow.parquet.read_table(path, columns=["row"])["row"].to_pylist():
        yield json.loads(text)


def needs_pyarrow() -> Any:
    """The library.

    Raises:
        ArimageError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ArimageError("parquet shards need pyarrow: pip install 'arimage[data]'") from None
    return pyarrow


def to_json(row: Row) -> bytes:
    """A row as a line without its end."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS_IN_GROUP:
            yield group
            group = []
    if group:
        yield group


WRITERS = {"webdataset": write_tar, "parquet": write_parquet}
READERS = {"webdataset": tar_rows, "parquet": parquet_rows}
