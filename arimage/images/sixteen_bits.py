"""Sixteen bits a channel, which Pillow holds for grey pictures only.

Of colours Pillow decodes the high byte of each value. Told that the other byte comes first, it decodes the low one,
and the two are put together here. It writes 8 bits a channel, so PNGs of 16 are written here too.
"""

import struct
import sys
import zlib
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from arimage.errors import InputImageError

OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
READABLE = ("RGB;16", "RGBA;16", "RGBX;16")
PLANAR, BITS_PER_SAMPLE = 284, 258
FORMATS = ("PNG", "TIFF")
FULL = 65535
SUB_FILTER = 1


def bits_of(image: Image.Image) -> int:
    """Bits of a channel in an image that has just been opened: 8, 16 or 32; fewer count as 8.

    Raises:
        InputImageError: Pillow would misread it.
    """
    if image.mode.startswith("I;16"):
        return 16
    if image.mode in ("I", "F"):
        return 32
    if _is_planar(image) and 16 in image.tag_v2.get(BITS_PER_SAMPLE, ()) and not any(map(_is_16, _raw_modes(image))):  # type: ignore[attr-defined]
        raise InputImageError("a TIFF of 16 bits with its channels apart, uncompressed: save it as PNG")
    return 16 if any(map(_is_16, _raw_modes(image))) else 8


def read_values(image: Image.Image, file: BinaryIO | None) -> np.ndarray | None:
    """All 16 bits of a picture: (H, W, 3) uint16, with alpha as a fourth channel where it has one.

    Args:
        image: as Pillow decoded and turned it upright.
        file: that it came from; without it, of a Pillow image, only grey ones have them.

    Returns:
        None where Pillow does not give them (premultiplied alpha, CMYK, a TIFF with its channels apart).
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image)
        whole = grey.min() >= 0 and grey.max() <= FULL
        return np.repeat(grey.astype(np.uint16)[..., None], 3, axis=-1) if whole else None
    if file is None:
        return None
    again = Image.open(file, formats=FORMATS)
    modes = set(_raw_modes(again))
    if modes == {"LA;16B"}:
        again.tile = [tile._replace(args="RGBA") for tile in again.tile]
        grey_high, grey_low, alpha_high, alpha_low = np.moveaxis(_upright(again), -1, 0)
        grey, alpha = _joined(grey_high, grey_low), _joined(alpha_high, alpha_low)
        return np.stack([grey, grey, grey, alpha], axis=-1)
    if not modes or _is_planar(again) or any(mode[:-1] not in READABLE for mode in modes):
        return None
    again.tile = [tile._replace(args=_other_byte(tile.args)) for tile in again.tile]
    return _joined(np.asarray(image), _upright(again))


def encode_png(values: np.ndarray, text: PngImagePlugin.PngInfo, icc_profile: bytes | None = None) -> bytes:
    """A PNG of (H, W, 3 or 4) uint16 with these text chunks."""
    height, width, channels = values.shape
    rows = np.ascontiguousarray(values.astype(">u2")).view(np.uint8).reshape(height, -1)
    filtered = rows.copy()
    filtered[:, 2 * channels :] -= rows[:, : -2 * channels]
    lines = np.concatenate([np.full((height, 1), SUB_FILTER, np.uint8), filtered], axis=1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0))]
    if icc_profile:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile)))
    chunks += [(kind, data) for kind, data, *_ in text.chunks]
    chunks += [(b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _raw_modes(image: Image.Image) -> list[str]:
    """How the file holds values, tile by tile; none of an image that is decoded already."""
    arguments = [tile.args for tile in getattr(image, "tile", [])]
    return [args if isinstance(args, str) else args[0] for args in arguments if args and isinstance(args, (str, tuple))]


def _is_16(mode: object) -> bool:
    return isinstance(mode, str) and ";16" in mode


def _is_planar(image: Image.Image) -> bool:
    return image.format == "TIFF" and image.tag_v2.get(PLANAR) == 2  # type: ignore[attr-defined]


def _other_byte(args: Any) -> Any:
    if isinstance(args, str):
        return args[:-1] + OTHER_BYTE[args[-1]]
    return (_other_byte(args[0]), *args[1:])


def _upright(image: Image.Image) -> np.ndarray:
    image.load()
    return np.asarray(ImageOps.exif_transpose(image))


def _joined(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return high.astype(np.uint16) << 8 | low
