"""The bodies of requests as they arrive: JSON or a form, and the pictures in them. Nothing of them touches the disk."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from arimage.errors import ArimageError
from arimage.images.opening import Picture, open_picture
from arimage.images.provenance import Origin, read_origin
from arimage.server.errors import from_library, invalid
from arimage.server.schemas import MAX_PICTURES

MOST_FIELDS = 100
IMAGE_FIELDS = ("image", "image[]", "images", "images[]")
LISTS = ("outpaint",)


@dataclass
class Upload:
    """A request's body.

    Attributes:
        fields: all but the pictures.
        images, mask: contents of files (bytes), or data URLs (text).
        strict: whether numbers are numbers.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    images: list[bytes | str] = field(default_factory=list)
    mask: bytes | str | None = None
    strict: bool = True


class _InMemory(MultiPartParser):
    spool_max_size = 0  # never to a file: the body's size is limited already


async def read_upload(request: Request) -> Upload:
    """A request's body, taken apart.

    Raises:
        ApiError: it cannot be read, or a picture is named by an address.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _from_json(await request.body())
    if kind == "multipart/form-data":
        return await _from_form(request)
    raise invalid(None, "the body must be application/json or multipart/form-data", "unsupported_content_type")


def _from_json(body: bytes) -> Upload:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(None, f"the body is no JSON: {error}", "invalid_json") from None
    if not isinstance(fields, dict):
        raise invalid(None, "the body must be a JSON object", "invalid_json")
    upload = Upload(fields)
    for name in IMAGE_FIELDS:
        given = fields.pop(name, None)
        for source in given if isinstance(given, list) else [given]:
            if source is not None:
                upload.images.append(_data_url(source, "image"))
    mask = fields.pop("mask", None)
    upload.mask = None if mask is None else _data_url(mask, "mask")
    _check_count(upload)
    return upload


async def _from_form(request: Request) -> Upload:
    parser = _InMemory(
        request.headers,
        request.stream(),
        max_files=MAX_PICTURES + 2,
        max_fields=MOST_FIELDS,
        max_part_size=2**40,  # limited with the body
    )
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError) as error:  # the latter of a charset such as idna
        raise invalid(None, f"the form cannot be read: {error}", "invalid_form") from None
    upload = Upload(strict=False)
    for name, value in form.multi_items():
        content = await value.read() if isinstance(value, UploadFile) else value
        if name in IMAGE_FIELDS:
            upload.images.append(_picture(content, "image"))
        elif name == "mask":
            if upload.mask is not None:
                raise invalid("mask", "mask is given twice")
            upload.mask = _picture(content, "mask")
        elif isinstance(content, bytes):
            raise invalid(name, f"{name!r:.80} is no field for a file")
        elif name.removesuffix("[]") in LISTS:
            upload.fields.setdefault(name.removesuffix("[]"), []).extend(content.strip("[]").split(","))
        elif name in upload.fields:
            raise invalid(name, f"{name!r:.80} is given twice")
        else:
            upload.fields[name] = content
    _check_count(upload)
    return upload


def _check_count(upload: Upload) -> None:
    if len(upload.images) > MAX_PICTURES:
        raise invalid("image", f"{len(upload.images)} pictures, at most {MAX_PICTURES} go together")


def _data_url(source: Any, param: str) -> bytes | str:
    if isinstance(source, dict):
        source = source.get("image_url", source)
    if not isinstance(source, str):
        raise invalid(param, f'{param} must be a data URL, or {{"image_url": "data:..."}}')
    return _picture(source, param)


def _picture(content: bytes | str, param: str) -> bytes | str:
    if isinstance(content, str) and content[:5].lower() != "data:":
        raise invalid(param, f"{param} must be a file or a data URL: addresses are not fetched")
    return content


def open_uploads(sources: Sequence[bytes | str], param: str, max_pixels: int, deep: bool) -> list[Picture]:
    """Pictures that together have at most ``max_pixels``, read from each one's header before it is decoded.

    Args:
        deep: read all 16 bits of the first, see :func:`arimage.images.opening.open_picture`.

    Raises:
        ApiError: one is no picture (400), or there are too many pixels (413).
    """
    pictures: list[Picture] = []
    left = max_pixels
    for number, source in enumerate(sources):
        called = param if len(sources) == 1 else f"{param} {number + 1}"
        try:
            pictures.append(open_picture(source, left, deep=deep and number == 0, called=called))
        except ArimageError as error:
            raise from_library(error, (), param) from None
        height, width = pictures[-1].size
        left -= height * width
    return pictures


def origin_of(source: bytes | str, max_pixels: int) -> Origin:
    """What a picture says about how it was made.

    Raises:
        ApiError: see :func:`open_uploads`; or the recipe is damaged (400).
    """
    open_uploads([source], "image", max_pixels, deep=False)
    try:
        return read_origin(source, "image")
    except ArimageError as error:
        raise invalid("image", str(error), "invalid_image") from None
