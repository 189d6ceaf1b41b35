"""What stands for a picture in a call: paths, bytes, files, data URLs, Pillow's pictures and NumPy's arrays."""

import base64
import binascii
import inspect
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, PngImagePlugin

from arimage.errors import InputImageError, UsageError
from arimage.images.sixteen_bits import encode_png

RawPicture = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray
KINDS = "a path, bytes, an open file, a data URL, a Pillow picture or a NumPy array"
SHOWN = 255
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def taken(source: object, called: str) -> Image.Image | io.BytesIO | Path:
    """An input as a Pillow picture, the contents of a file, or a path.

    Args:
        source: text that begins with ``data:`` is a data URL, other text a path. Of an open file everything is read,
            from its start where it can be turned back. Arrays are (height, width), or with 1 to 4 channels last
            (grey, grey and alpha, RGB, RGBA): uint8, uint16, bool, or floats in 0 to 1.
        called: what messages call it.

    Raises:
        UsageError: it is something else.
        InputImageError: it is one of these, but cannot be read.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, called)
    if isinstance(source, str):
        return _from_text(source, called)
    if isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    if hasattr(source, "read"):
        return io.BytesIO(_contents(source, called))
    raise UsageError(f"{called} must be {KINDS}; got {_kind(source)}")


def several(sources: object) -> list[Any]:
    """Inputs one by one, where one alone may stand for a list of one."""
    alone = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, np.ndarray)
    if isinstance(sources, alone) or hasattr(sources, "read") or not isinstance(sources, Iterable):
        return [sources]
    return list(sources)


def shown(text: object) -> str:
    """A name for a message: on one line, and no longer than a name is."""
    name = str(text)
    if not name.isprintable():
        name = repr(name)[1:-1]
    return name if len(name) <= SHOWN else f"{name[:40]}... ({len(name)} characters)"


def is_address(text: str) -> bool:
    """Whether it looks like ``https://…``, of which a path keeps one slash."""
    return _ADDRESS.match(text) is not None


def _kind(source: object) -> str:
    return "None" if source is None else type(source).__name__


def _from_text(text: str, called: str) -> io.BytesIO | Path:
    if text[:5].lower() == "data:":
        return io.BytesIO(_from_data_url(text, called))
    if not text.strip():
        raise UsageError(f"{called} must be {KINDS}; got an empty text")
    return Path(text)


def _from_data_url(url: str, called: str) -> bytes:
    """The contents of a data URL (RFC 2397)."""
    head, comma, data = url.partition(",")
    if not comma:
        raise InputImageError(f"{called} is a data URL without a comma ({shown(url[:24])}...)")
    raw = unquote_to_bytes(data)
    if not head.lower().rstrip().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error as error:
        raise InputImageError(f"{called} is a data URL ({shown(url[:24])}...) with broken base64: {error}") from None


def _contents(file: Any, called: str) -> bytes:
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
        data = file.read()
    except (OSError, ValueError, TypeError) as error:
        raise InputImageError(f"{called} cannot be read: {shown(error)}") from None
    if inspect.isawaitable(data):
        if hasattr(data, "close"):
            data.close()
        raise UsageError(f"{called} is a {_kind(file)} that reads asynchronously: await its read() and give the bytes")
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise UsageError(f"{called} is a file whose read() gives {_kind(data)}, not bytes: open it with mode 'rb'")
    return bytes(data)


def _from_array(array: np.ndarray, called: str) -> Image.Image | io.BytesIO:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)) or not array.size:
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; transpose(1, 2, 0) puts channels last"
        elif array.ndim == 4:
            hint = "; give the pictures of a batch one by one"
        raise UsageError(
            f"{called} is an array of shape {array.shape}: (height, width), or (height, width, channels) with "
            f"1 to 4 of them, is a picture{hint}"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:
            raise InputImageError(
                f"{called} is an array of {array.dtype} between {low:.4g} and {high:.4g}; floats must lie in 0 to 1"
            )
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = array.astype(np.uint16)
        if array.ndim == 3:
            if array.shape[2] == 2:
                array = array[..., [0, 0, 0, 1]]
            return io.BytesIO(encode_png(array, PngImagePlugin.PngInfo()))
    elif array.dtype != np.uint8:
        raise UsageError(
            f"{called} is an array of {array.dtype}; use uint8 (0 to 255), uint16, bool, or floats in 0 to 1"
        )
    return Image.fromarray(np.ascontiguousarray(array))
