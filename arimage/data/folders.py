"""People's own data: pictures with captions, and edits, from folders, tars and parquet files, local or remote.

What is recognised, by what is there:

    a folder with metadata.jsonl or metadata.csv     one row a picture (``file_name`` and columns as below)
    a folder with pictures and .txt files            a.png beside a.txt, which holds one caption a line
    *.tar, or a folder of them                       WebDataset: a.png, a.txt / a.json with one key
    *.parquet, or a folder of them                   embedded pictures (HF style: {bytes, path}) or bytes
    a Hub-style data set folder                      anything else that ``datasets`` opens (``load_from_disk``)

Columns: ``image`` (or ``file_name``, ``target``), ``caption`` (or ``text``, ``instruction``; a string, a list, or an
object by kind), ``sources`` (or ``source``: pictures that an edit starts from), ``mask``, ``rating``.

Paths may be anything that fsspec opens (``s3://…``, ``https://…``). Pictures are decoded when they are asked for.
"""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from arimage.data.records import MAX_RATING, Record
from arimage.errors import DataError, InputImageError
from arimage.images import open_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
IMAGE_COLUMNS = ("image", "target", "file_name", "jpg", "png", "webp", "jpeg")
CAPTION_COLUMNS = ("captions", "caption", "instruction", "text", "txt", "prompt")
SOURCE_COLUMNS = ("sources", "source", "input_image", "reference", "references")
DEFAULT_RATING = 3


@dataclass(frozen=True)
class Sample:
    """A record that is not read yet.

    Attributes:
        name: for messages: the file, and the row or key in it.
        read: gives the record.
    """

    name: str
    read: Callable[[], Record]


class OwnData(Sequence[Sample]):
    """The samples of a place, in a fixed order.

    Raises:
        DataError: nothing is there, or it is none of the forms above.
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
    try:
        return url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise DataError(f"{path} cannot be opened: {error}") from None


def _discover(path: str) -> list[Sample]:
    files, root = _filesystem(path)
    if not files.exists(root):
        raise DataError(f"{path} does not exist")
    if files.isfile(root):
        return _file_samples(files, root)
    names = sorted(files.find(root))
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


def _table_samples(files: Any, name: str) -> list[Sample]:
    folder = str(PurePosixPath(name).parent)
    try:
        text = files.cat_file(name).decode("utf-8-sig")
        if name.endswith(".csv"):
            rows: list[Any] = list(csv.DictReader(io.StringIO(text)))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{name} cannot be read: {error}") from None
    return [_row_sample(files, folder, f"{name}:{number}", row) for number, row in enumerate(rows, 1)]


def _row_sample(files: Any, folder: str, name: str, row: Any) -> Sample:
    def picture(value: Any) -> Image.Image:
        return _decode(value, name, lambda place: files.cat_file(_inside(folder, place, name)))

    return Sample(name, lambda: _record(row, name, picture))


def _inside(folder: str, place: str, name: str) -> str:
    """A path of a row; absolute ones and ways out of the folder are refused."""
    path = PurePosixPath(place.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{name}: the picture {place!r} lies outside the data's folder")
    return f"{folder}/{path}"


def _sidecar_samples(files: Any, names: Sequence[str]) -> list[Sample]:
    known = set(names)
    samples = []
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() in PICTURES:
            text = str(path.with_suffix(".txt"))
            samples.append(_sidecar(files, name, text if text in known else None))
    return samples


def _sidecar(files: Any, name: str, text: str | None) -> Sample:
    def read() -> Record:
        if text is None:
            raise DataError(f"{name}: there is no caption file {PurePosixPath(name).with_suffix('.txt').name}")
        try:
            caption = files.cat_file(text).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise DataError(f"{text} is not UTF-8") from None
        row = {"image": name, "caption": [line for line in caption.splitlines() if line.strip()]}
        return _record(row, name, lambda place: _decode(place, name, files.cat_file))

    return Sample(name, read)


def _tar_samples(files: Any, name: str) -> list[Sample]:
    members: dict[str, dict[str, str]] = {}
    try:
        with files.open(name, "rb") as handle, tarfile.open(fileobj=handle) as archive:
            for member in archive:
                if member.isfile():
                    key, _, extension = PurePosixPath(member.name).name.partition(".")
                    folder = str(PurePosixPath(member.name).parent)
                    members.setdefault(f"{folder}/{key}", {})[extension.lower()] = member.name
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{name} is no readable tar: {error}") from None
    return [_tar_sample(files, name, key, parts) for key, parts in members.items()]


def _tar_sample(files: Any, name: str, key: str, parts: Mapping[str, str]) -> Sample:
    label = f"{name}:{PurePosixPath(key).name}"

    def read() -> Record:
        with files.open(name, "rb") as handle, tarfile.open(fileobj=handle) as archive:

            def content(part: str) -> bytes:
                file = archive.extractfile(parts[part])
                assert file is not None
                return file.read()

            row: dict[str, Any] = json.loads(content("json")) if "json" in parts else {}
            if "txt" in parts:
                row["caption"] = [line for line in content("txt").decode("utf-8-sig").splitlines() if line.strip()]
            kinds = [extension.lstrip(".") for extension in PICTURES]
            pictures = {part: content(part) for part in parts if part.rpartition(".")[2] in kinds}
            plain = [part for part in pictures if part in kinds or part.startswith("target.")]
            if plain:
                row["image"] = pictures[plain[0]]
            sources = sorted(part for part in pictures if part.startswith(("source", "input")))
            if sources:
                row["sources"] = [pictures[part] for part in sources]
            masks = [part for part in pictures if part.startswith("mask.")]
            if masks:
                row["mask"] = pictures[masks[0]]
        return _record(row, label, lambda value: _decode(value, label, None))

    return Sample(label, read)


def _parquet_samples(files: Any, name: str) -> list[Sample]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("reading parquet needs pyarrow: pip install 'arimage[data]'") from None
    try:
        with files.open(name, "rb") as handle:
            file = pyarrow.parquet.ParquetFile(handle)
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{name} is no readable parquet file: {error}") from None
    kept: dict[int, Any] = {}

    def row(group: int, place: int) -> dict[str, Any]:
        if group not in kept:
            kept.clear()
            with files.open(name, "rb") as handle:
                kept[group] = pyarrow.parquet.ParquetFile(handle).read_row_group(group)
        return kept[group].slice(place, 1).to_pylist()[0]

    samples: list[Sample] = []
    for group, rows in enumerate(groups):
        for place in range(rows):
            label = f"{name}:{len(samples)}"

            def read(group: int = group, place: int = place, label: str = label) -> Record:
                return _record(row(group, place), label, lambda value: _decode(value, label, None))

            samples.append(Sample(label, read))
    return samples


def _dataset_samples(path: str) -> list[Sample]:
    try:
        import datasets
    except ImportError:
        raise DataError("reading this data set needs datasets: pip install 'arimage[train]'") from None
    opened = datasets.load_from_disk(path)
    if isinstance(opened, datasets.DatasetDict):
        opened = opened["train"] if "train" in opened else next(iter(opened.values()))

    def sample(index: int) -> Sample:
        label = f"{path}:{index}"
        return Sample(label, lambda: _record(opened[index], label, lambda value: _decode(value, label, None)))

    return [sample(index) for index in range(len(opened))]


def _record(row: Any, name: str, picture: Callable[[Any], Image.Image]) -> Record:
    """A record of a row; every fault is named with its place."""
    if not isinstance(row, Mapping):
        raise DataError(f"{name}: a row must be an object, not a {type(row).__name__}")
    image = _first(row, IMAGE_COLUMNS)
    if image is None:
        raise DataError(f"{name}: there is no picture; it belongs into one of the columns {', '.join(IMAGE_COLUMNS)}")
    captions = _captions(_first(row, CAPTION_COLUMNS), name)
    sources = _first(row, SOURCE_COLUMNS)
    sources = [] if sources is None else sources if isinstance(sources, list) else [sources]
    mask = row.get("mask") or None
    rating = row.get("rating")
    try:
        grade = DEFAULT_RATING if rating in (None, "") else round(float(rating))
    except (TypeError, ValueError):
        raise DataError(f"{name}: rating {rating!r} is no number") from None
    if not 1 <= grade <= MAX_RATING:
        raise DataError(f"{name}: rating {rating} does not lie in 1..{MAX_RATING}")
    return Record(
        picture(image),
        captions,
        tuple(picture(source) for source in sources),
        None if mask is None else picture(mask).convert("L"),
        "edit" if sources else "picture",
        grade,
        name,
    )


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    return next((row[column] for column in columns if row.get(column) not in (None, "", [])), None)


def _captions(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, str):
        value = {"caption": value}
    elif isinstance(value, list):
        value = {f"caption {number}" if number > 1 else "caption": text for number, text in enumerate(value, 1)}
    if not isinstance(value, Mapping):
        raise DataError(f"{name}: there is no caption; it belongs into one of the columns {', '.join(CAPTION_COLUMNS)}")
    captions = {str(kind): " ".join(str(text).split()) for kind, text in value.items() if text is not None}
    captions = {kind: text for kind, text in captions.items() if text}
    if not captions:
        raise DataError(f"{name}: the caption is empty")
    return captions


def _decode(value: Any, name: str, read: Callable[[str], bytes] | None) -> Image.Image:
    """A picture from bytes, an HF-style {bytes, path}, a PIL picture, or a path that ``read`` opens."""
    if isinstance(value, Image.Image):
        return open_picture(value).flattened()
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        if read is None:
            raise DataError(f"{name}: the picture {value!r} is a path, but this file must hold pictures themselves")
        try:
            value = read(value)
        except (OSError, FileNotFoundError) as error:
            raise DataError(f"{name}: the picture {value!r} cannot be read: {error}") from None
    if not isinstance(value, (bytes, bytearray)):
        raise DataError(f"{name}: a picture must be bytes or a path, not a {type(value).__name__}")
    try:
        return open_picture(bytes(value)).flattened()
    except InputImageError as error:
        raise DataError(f"{name}: {error}") from None


def readable(data: OwnData, on_bad: Callable[[str, str], None]) -> Iterator[Record]:
    """Records that can be read; the others go to ``on_bad`` with name and reason."""
    for sample in data:
        try:
            yield sample.read()
        except DataError as error:
            on_bad(sample.name, str(error))
