"""A row of people's data, whatever file it comes from: its columns, what is wrong with it, and the record it makes.

Columns: ``image`` (or ``file_name``, ``target``), ``caption`` (or ``text``, ``instruction``; a string, a list, or an
object by kind), ``sources`` (or ``source``: pictures that an edit starts from), ``mask``, ``rating``, ``category``;
``rejected`` beside ``chosen`` (or ``image``), of a pair between which people chose.

A picture stands in a row as bytes, an HF-style {bytes, path}, a path, or a stretch of a file (:class:`Span`).
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from arimage.data.buckets import same_shape
from arimage.data.duplicates import difference_hash, pixel_hash
from arimage.data.records import MAX_RATING, Record, naming
from arimage.data.storage import Span
from arimage.errors import DataError, InputImageError
from arimage.images.opening import open_picture, picture_size

IMAGE_COLUMNS = ("image", "target", "chosen", "file_name", "jpg", "png", "webp", "jpeg")
CAPTION_COLUMNS = ("captions", "caption", "instruction", "text", "txt", "prompt")
SOURCE_COLUMNS = ("sources", "source", "input_image", "reference", "references")
COLUMNS = (*IMAGE_COLUMNS, *CAPTION_COLUMNS, *SOURCE_COLUMNS, "mask", "rejected", "rating", "category")
DEFAULT_RATING = 3
REJECTED = "the rejected picture"
ReadPath = Callable[[str], Span]
Size = tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """What the index keeps of a row.

    Attributes:
        size, sources: (width, height) of its picture, and of each source.
        captions: by kind.
        masked: whether it has a mask.
        category: what it belongs to, or None.
        pixel_hash, look_hash: 64 bits each, of its pixels and of how they look; None where nothing was decoded.
    """

    size: Size
    sources: tuple[Size, ...]
    captions: dict[str, str]
    masked: bool
    rating: int
    category: str | None
    pixel_hash: int | None = None
    look_hash: int | None = None


@dataclass(frozen=True)
class _Pictures:
    """The pictures of a row as they stand in it, each with what messages call it."""

    target: Any
    sources: tuple[tuple[Any, str], ...]
    mask: Any
    rejected: Any


def record(row: Any, read: ReadPath | None = None, least: Size | None = None) -> Record:
    """A record of a row; ``read`` opens paths, without it a row must hold its pictures themselves.

    Args:
        least: (width, height) that are enough of the picture, and of sources of its shape, see
            :func:`arimage.images.opening.open_picture`.

    Raises:
        DataError: something is missing, of the wrong type, or does not fit the rest.
    """
    row = _object(row)
    pictures, captions, rating = _pictures(row), _captions(_first(row, CAPTION_COLUMNS)), _rating(row)
    target = _contents(pictures.target, "the picture", read)
    sources = [(_contents(value, what, read), what) for value, what in pictures.sources]
    mask = None if pictures.mask is None else _decode(_contents(pictures.mask, "the mask", read), "the mask")
    size = None
    if mask is not None or (sources and least is not None):
        size = _measured(io.BytesIO(target), "the picture")
    image = _decode(target, "the picture", least)
    opened = []
    for content, what in sources:
        alike = least is not None and size is not None and same_shape(_measured(io.BytesIO(content), what), size)
        opened.append(_decode(content, what, least if alike else None))
    if mask is not None:
        assert size is not None
        _check_mask(mask.size, size, _measured(io.BytesIO(sources[-1][0]), "the source") if sources else size)
        mask = mask.convert("L")
    rejected = None
    if pictures.rejected is not None:
        rejected = _decode(_contents(pictures.rejected, REJECTED, read), REJECTED, least)
    return Record(image, captions, tuple(opened), mask, "edit" if opened else "picture", rating, rejected=rejected)


def facts(row: Any, read: ReadPath | None = None, verify: bool = False) -> Facts:
    """What the index keeps of a row: from the headers of its pictures, or with ``verify`` from all pixels.

    Raises:
        DataError: as :func:`record` would, as far as it was looked at.
    """
    row = _object(row)
    category = row.get("category")
    category = None if category in (None, "") else str(category)
    if verify:
        made = record(row, read)
        return Facts(
            made.image.size, tuple(source.size for source in made.sources), made.captions, made.mask is not None,
            made.rating, category, pixel_hash(made), difference_hash(made.image),
        )  # fmt: skip
    pictures, captions, rating = _pictures(row), _captions(_first(row, CAPTION_COLUMNS)), _rating(row)
    size = _size(pictures.target, "the picture", read)
    sources = tuple(_size(value, what, read) for value, what in pictures.sources)
    if pictures.rejected is not None:
        _size(pictures.rejected, REJECTED, read)
    if pictures.mask is not None:
        _check_mask(_size(pictures.mask, "the mask", read), size, sources[-1] if sources else size)
    return Facts(size, sources, captions, pictures.mask is not None, rating, category)


def json_row(content: bytes) -> Any:
    """A row of JSON."""
    return json.loads(content.decode("utf-8-sig"))


def caption_lines(content: bytes) -> list[str]:
    """The captions of a text file, one a line."""
    return [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]


def _object(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"a row must be an object, not a {type(row).__name__}")
    return row


def _pictures(row: Mapping[str, Any]) -> _Pictures:
    target = _first(row, IMAGE_COLUMNS)
    if target is None:
        raise DataError(f"there is no picture; it belongs into one of the columns {', '.join(IMAGE_COLUMNS)}")
    given = _first(row, SOURCE_COLUMNS)
    given = [] if given is None else given if isinstance(given, list) else [given]
    called = ["the source"] if len(given) == 1 else [f"source {number + 1}" for number in range(len(given))]
    return _Pictures(target, tuple(zip(given, called)), _first(row, ("mask",)), _first(row, ("rejected",)))


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


def _check_mask(mask: Size, target: Size, last: Size) -> None:
    """A mask has the pixels of the picture or of the last source, and these two show the same place."""
    if mask not in (target, last):
        raise DataError(f"the mask has {_pixels(mask)} pixels, its picture {_pixels(target)}")
    if not same_shape(last, target):
        raise DataError(f"with a mask the last source ({_pixels(last)}) needs the picture's shape ({_pixels(target)})")


def _pixels(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _found(value: Any, what: str, read: ReadPath | None) -> bytes | Span:
    """A picture's bytes, or where they are."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        if read is None:
            raise DataError(f"{what} {value!r} is a path, but this file must hold pictures themselves")
        with naming(f"{what} {value!r} cannot be read"):
            return read(value)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if not isinstance(value, Span):
        raise DataError(f"{what} must be bytes or a path, not a {type(value).__name__}")
    return value


def _called(value: Any, what: str) -> str:
    """How a picture that cannot be read is spoken of: by its path, where the row names one."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return f"{what} {value!r} cannot be read" if isinstance(value, str) else what


def _contents(value: Any, what: str, read: ReadPath | None) -> bytes:
    found = _found(value, what, read)
    if isinstance(found, bytes):
        return found
    with naming(_called(value, what)):
        return found.bytes()


def _size(value: Any, what: str, read: ReadPath | None) -> Size:
    found = _found(value, what, read)
    if isinstance(found, bytes):
        return _measured(io.BytesIO(found), what)
    with naming(_called(value, what)):
        file = found.open()
    with file:
        return _measured(file, what)


def _measured(file: Any, what: str) -> Size:
    try:
        return picture_size(file)
    except InputImageError as error:
        raise DataError(f"{what} {str(error).removeprefix('the picture ')}") from None


def _decode(content: bytes, what: str, least: Size | None = None) -> Image.Image:
    try:
        return open_picture(content, least=least).flattened()
    except InputImageError as error:
        raise DataError(f"{what} {str(error).removeprefix('the picture ')}") from None
