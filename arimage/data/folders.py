"""People's own data: pictures with captions, and edits, from folders, tars and parquet files, local or remote.

What is recognised, by what is there:

    a folder with metadata.jsonl or metadata.csv     one row a picture (``file_name`` and columns as below)
    a folder with pictures and .txt files            a.png beside a.txt, which holds one caption a line
    *.tar, or a folder of them                       WebDataset: a.png, a.txt / a.json with one key
    *.parquet, or a folder of them                   embedded pictures (HF style: {bytes, path}) or bytes
    a Hub-style data set folder                      anything else that ``datasets`` opens (``load_from_disk``)

Columns: ``image`` (or ``file_name``, ``target``), ``caption`` (or ``text``, ``instruction``; a string, a list, or an
object by kind), ``sources`` (or ``source``: pictures that an edit starts from), ``mask``, ``rating``; ``rejected``
beside ``chosen`` (or ``image``), of a pair between which people chose.

Paths may be anything that fsspec opens (``s3://…``, ``https://…``). Names that begin with a dot are passed over.
Finding samples reads no more than it must; a row is parsed and a picture decoded when the sample is asked for, so that
what is wrong with one sample concerns that sample alone.
"""

import codecs
import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from arimage.data.buckets import same_shape
from arimage.data.records import MAX_RATING, Record, Sample, naming
from arimage.errors import DataError, InputImageError
from arimage.images.opening import hidden, open_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
IMAGE_COLUMNS = ("image", "target", "chosen", "file_name", "jpg", "png", "webp", "jpeg")
CAPTION_COLUMNS = ("captions", "caption", "instruction", "text", "txt", "prompt")
SOURCE_COLUMNS = ("sources", "source", "input_image", "reference", "references")
DEFAULT_RATING = 3
ReadPath = Callable[[str], bytes]


class OwnData(Sequence[Sample]):
    """The samples of a place, in a fixed order.

    Raises:
        DataError: nothing is there, it is none of the forms above, or a file of it cannot be opened at all.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)
        self.samples = _discover(self.path)
        if not self.samples:
            raise DataError(f"{path} holds no pictures with captions; the forms that are read are in docs/data.md")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]


def _filesystem(path: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise DataError("reading data needs fsspec: pip install 'arimage[data]'") from None
    with naming(f"{path} cannot be opened"):
        return url_to_fs(path)


def _discover(path: str) -> list[Sample]:
    files, root = _filesystem(path)
    with naming(f"{path} cannot be opened"):
        there, single = files.exists(root), files.isfile(root)
        names = [] if single or not there else sorted(files.find(root))
    if not there:
        raise DataError(f"{path} does not exist")
    if single:
        return _file_samples(files, root)
    names = [name for name in names if not hidden(name.removeprefix(root).lstrip("/"))]
    for table in ("metadata.jsonl", "metadata.csv"):
        tables = [name for name in names if PurePosixPath(name).name == table]
        if tables:
            return [sample for name in tables for sample in _table_samples(files, name)]
    packed = [name for name in names if name.endswith((".tar", ".parquet", ".jsonl"))]
    if packed:
        return [sample for name in packed for sample in _file_samples(files, name)]
    if any(PurePosixPath(name).name in ("state.json", "dataset_dict.json") for name in names):
        return _dataset_samples(root)
    return _sidecar_samples(files, names)


def _file_samples(files: Any, name: str) -> list[Sample]:
    if name.endswith(".tar"):
        return _tar_samples(files, name)
    if name.endswith(".parquet"):
        return _parquet_samples(files, name)
    if name.endswith((".jsonl", ".csv")):
        return _table_samples(files, name)
    raise DataError(f"{name}: data is read from folders, .tar, .parquet, .jsonl and .csv files")


# Tables: samples are named by the line on which their row begins, as an editor counts them.


def _table_samples(files: Any, name: str) -> list[Sample]:
    folder = str(PurePosixPath(name).parent)
    with naming(f"{name} cannot be read"):
        content = files.cat_file(name).removeprefix(codecs.BOM_UTF8)
        rows = list(_csv_rows(content) if name.endswith(".csv") else _json_rows(content))

    def sample(number: int, row: Callable[[], Any]) -> Sample:
        return Sample(f"{name}:{number}", lambda: _record(row(), lambda place: files.cat_file(_inside(folder, place))))

    return [sample(number, row) for number, row in rows]


def _json_rows(content: bytes) -> Iterator[tuple[int, Callable[[], Any]]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, partial(_json, line)


def _json(content: bytes) -> Any:
    return json.loads(content.decode("utf-8-sig"))


def _csv_rows(content: bytes) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Rows below the header. After one that cannot be parsed, reading goes on with the line below its first."""
    lines = list(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""))
    header: list[str] | None = None
    start = 0
    while start < len(lines):
        reader = csv.reader((lines[i] for i in range(start, len(lines))), strict=True)
        begin = start
        try:
            for fields in reader:
                if header is None:
                    header = fields or None
                elif fields:
                    yield begin + 1, partial(_csv_row, header, fields)
                begin = start + reader.line_num
            start = len(lines)
        except csv.Error as error:
            if header is None:
                raise
            yield begin + 1, partial(_raise, DataError(f"no valid CSV: {error}"))
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


def _inside(folder: str, place: str) -> str:
    """A path of a row; absolute ones and ways out of the folder are refused."""
    path = PurePosixPath(place.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError("it lies outside the data's folder")
    return f"{folder}/{path}"


# Pictures beside texts


def _sidecar_samples(files: Any, names: Sequence[str]) -> list[Sample]:
    known = set(names)

    def sample(name: str) -> Sample:
        return Sample(name, lambda: _sidecar(files, name, str(PurePosixPath(name).with_suffix(".txt")), known))

    return [sample(name) for name in names if PurePosixPath(name).suffix.lower() in PICTURES]


def _sidecar(files: Any, name: str, text: str, known: set[str]) -> Record:
    short = PurePosixPath(text).name
    if text not in known:
        raise DataError(f"there is no caption file {short}")
    with naming(f"the caption file {short}"):
        lines = _lines(files.cat_file(text))
    with naming("the picture"):
        picture = files.cat_file(name)
    return _record({"image": picture, "caption": lines})


def _lines(content: bytes) -> list[str]:
    return [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]


# Archives


def _tar_samples(files: Any, name: str) -> list[Sample]:
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    with (
        naming(f"{name} is no readable tar"),
        files.open(name, "rb") as handle,
        tarfile.open(fileobj=handle) as archive,
    ):
        broken = _collect(archive, members)
    samples = [Sample(f"{name}:{key}", partial(_tar_record, files, name, parts)) for key, parts in members.items()]
    if broken is not None:
        samples.append(Sample(f"{name}:after {broken}", partial(_raise, DataError("the archive is damaged from here"))))
    return samples


def _collect(archive: tarfile.TarFile, members: dict[str, dict[str, tarfile.TarInfo]]) -> str | None:
    """Members by key and extension; the name of the last one where the archive does not end as one does."""
    last = "its beginning"
    try:
        for member in archive:
            last = member.name
            if member.isfile() and not hidden(member.name):
                path = PurePosixPath(member.name)
                key, _, extension = path.name.partition(".")
                members.setdefault(str(path.with_name(key)), {})[extension.lower()] = member
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        whole = not archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0")
    except Exception:
        return last
    return None if whole else last


def _tar_record(files: Any, name: str, parts: Mapping[str, tarfile.TarInfo]) -> Record:
    with files.open(name, "rb") as handle, tarfile.open(fileobj=handle) as archive:

        def content(part: str) -> bytes:
            file = archive.extractfile(parts[part])
            assert file is not None
            return file.read()

        def named(part: str) -> AbstractContextManager[None]:
            return naming(PurePosixPath(parts[part].name).name)

        row: dict[str, Any] = {}
        if "json" in parts:
            with named("json"):
                row = _json(content("json"))
                if not isinstance(row, dict):
                    raise DataError(f"it must hold an object, not a {type(row).__name__}")
        if "txt" in parts:
            with named("txt"):
                row["caption"] = _lines(content("txt"))
        kinds = [extension.lstrip(".") for extension in PICTURES]
        pictures: dict[str, bytes] = {}
        for part in parts:
            if part.rpartition(".")[2] in kinds:
                with named(part):
                    pictures[part] = content(part)
        plain = [part for part in pictures if part in kinds or part.startswith("target.")]
        if plain:
            row["image"] = pictures[plain[0]]
        sources = sorted(part for part in pictures if part.startswith(("source", "input")))
        if sources:
            row["sources"] = [pictures[part] for part in sources]
        for column in ("mask", "chosen", "rejected"):
            named_so = [part for part in pictures if part.startswith(f"{column}.")]
            if named_so:
                row[column] = pictures[named_so[0]]
    return _record(row)


# Columns: samples are named by their row, from 0.


def _parquet_samples(files: Any, name: str) -> list[Sample]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError("reading parquet needs pyarrow: pip install 'arimage[data]'") from None
    with naming(f"{name} is no readable parquet file"), files.open(name, "rb") as handle:
        file = pyarrow.parquet.ParquetFile(handle)
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    kept: dict[int, Any] = {}

    def group_of_rows(group: int) -> Any:
        if group not in kept:
            kept.clear()
            try:
                with files.open(name, "rb") as handle:
                    kept[group] = pyarrow.parquet.ParquetFile(handle).read_row_group(group)
            except Exception as error:  # kept too, or each of its rows would read the whole group again
                kept[group] = error
        if isinstance(kept[group], Exception):
            raise kept[group]
        return kept[group]

    def sample(number: int, group: int, place: int) -> Sample:
        return Sample(f"{name}:{number}", lambda: _record(group_of_rows(group).slice(place, 1).to_pylist()[0]))

    places = [(group, place) for group, rows in enumerate(groups) for place in range(rows)]
    return [sample(number, group, place) for number, (group, place) in enumerate(places)]


def _dataset_samples(path: str) -> list[Sample]:
    try:
        import datasets
    except ImportError:
        raise DataError("reading this data set needs datasets: pip install 'arimage[train]'") from None
    with naming(f"{path} is no readable data set"):
        opened = datasets.load_from_disk(path)
        if isinstance(opened, datasets.DatasetDict):
            opened = opened["train"] if "train" in opened else next(iter(opened.values()))
        rows = opened.with_format("arrow")  # pictures as the bytes that they are: decoding is ours

    def sample(index: int) -> Sample:
        return Sample(f"{path}:{index}", lambda: _record(rows[index].to_pylist()[0]))

    return [sample(index) for index in range(len(rows))]


# Rows


def _record(row: Any, read: ReadPath | None = None) -> Record:
    """A record of a row; ``read`` opens paths, without it a row must hold its pictures themselves.

    Raises:
        DataError: something is missing, of the wrong type, or does not fit the rest.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"a row must be an object, not a {type(row).__name__}")
    target = _first(row, IMAGE_COLUMNS)
    if target is None:
        raise DataError(f"there is no picture; it belongs into one of the columns {', '.join(IMAGE_COLUMNS)}")
    captions = _captions(_first(row, CAPTION_COLUMNS))
    given = _first(row, SOURCE_COLUMNS)
    given = [] if given is None else given if isinstance(given, list) else [given]
    image = _decode(target, "the picture", read)
    sources = tuple(
        _decode(value, "the source" if len(given) == 1 else f"source {number}", read)
        for number, value in enumerate(given, 1)
    )
    mask = _first(row, ("mask",))
    task = "edit" if sources else "picture"
    rejected = _first(row, ("rejected",))
    return Record(
        image, captions, sources, None if mask is None else _mask(mask, read, image, sources), task, _rating(row),
        rejected=None if rejected is None else _decode(rejected, "the rejected picture", read),
    )  # fmt: skip


def _first(row: Mapping[str, Any], columns: Iterable[str]) -> Any:
    """What stands in the first column that is not empty; an object of nothing but nulls is a column's null."""
    for column in columns:
        value = row.get(column)
        empty = isinstance(value, Mapping) and all(part is None for part in value.values())
        if not empty and value not in (None, "", []):
            return value
    return None


def _rating(row: Mapping[str, Any]) -> int:
    rating = row.get("rating")
    try:
        grade = DEFAULT_RATING if rating in (None, "") else round(float(rating))
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"rating {rating!r} is no number") from None
    if not 1 <= grade <= MAX_RATING:
        raise DataError(f"rating {rating} does not lie in 1..{MAX_RATING}")
    return grade


def _captions(value: Any) -> dict[str, str]:
    if value is None:
        raise DataError(f"there is no caption; it belongs into one of the columns {', '.join(CAPTION_COLUMNS)}")
    if isinstance(value, str):
        value = {"caption": value}
    elif isinstance(value, list):
        value = {f"caption {number}" if number > 1 else "caption": text for number, text in enumerate(value, 1)}
    if not isinstance(value, Mapping):
        raise DataError(f"a caption must be a text, not a {type(value).__name__}")
    captions = {}
    for kind, text in value.items():
        if text is None:
            continue
        if not isinstance(text, str):
            raise DataError(f"a caption must be a text, not a {type(text).__name__}")
        try:
            f"{kind}{text}".encode()
        except UnicodeEncodeError:
            raise DataError("the caption holds half a character (a lone surrogate)") from None
        captions[str(kind)] = " ".join(text.split())
    captions = {kind: text for kind, text in captions.items() if text}
    if not captions:
        raise DataError("the caption is empty")
    return captions


def _mask(value: Any, read: ReadPath | None, image: Image.Image, sources: Sequence[Image.Image]) -> Image.Image:
    """A mask; it has the pixels of the picture or of the last source, and these two show the same place."""
    mask = _decode(value, "the mask", read).convert("L")
    last = sources[-1] if sources else image
    if mask.size not in (image.size, last.size):
        raise DataError(f"the mask has {_pixels(mask)} pixels, its picture {_pixels(image)}")
    if not same_shape(last.size, image.size):
        raise DataError(f"with a mask the last source ({_pixels(last)}) needs the picture's shape ({_pixels(image)})")
    return mask


def _pixels(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def _decode(value: Any, what: str, read: ReadPath | None) -> Image.Image:
    """A picture from bytes, an HF-style {bytes, path}, or a path that ``read`` opens."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        if read is None:
            raise DataError(f"{what} {value!r} is a path, but this file must hold pictures themselves")
        with naming(f"{what} {value!r} cannot be read"):
            value = read(value)
    if not isinstance(value, (bytes, bytearray)):
        raise DataError(f"{what} must be bytes or a path, not a {type(value).__name__}")
    try:
        return open_picture(bytes(value)).flattened()
    except InputImageError as error:
        raise DataError(f"{what} {str(error).removeprefix('the picture ')}") from None


def readable(data: Iterable[Sample], on_bad: Callable[[str, str], None]) -> Iterator[Record]:
    """Records that can be read; the others go to ``on_bad`` with name and reason."""
    for sample in data:
        try:
            yield sample.read()
        except DataError as error:
            on_bad(sample.name, str(error))
