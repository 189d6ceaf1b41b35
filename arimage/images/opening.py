"""Opening pictures that people have: any common format, mode and orientation, and files that are not what they say."""

import hashlib
import io
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from arimage.errors import InputImageError, TooManyPixelsError
from arimage.files import LFS_POINTER
from arimage.images.inputs import RawPicture, is_address, shown, taken
from arimage.images.sixteen_bits import FULL, bits_of, read_values

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 178_956_970
ORIENTATION = 0x0112
DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError, NotImplementedError,
    Warning,  # where an application has made errors of Pillow's
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """An opened picture, upright.

    Attributes:
        rgb: its colours, mode RGB; transparent pixels keep the colours that they have.
        alpha: mode L, or None when it is opaque.
        icc_profile: the profile that its colours are in, or None.
        path: where it came from, or None.
        notices: what a user should know (a first frame was taken, a profile was dropped).
        bits: of a channel in what it was opened from: 8, 16 or 32.
        deep: its colours in 16 bits, and its alpha where it has one: (H, W, 3 or 4) uint16; None where 8 bits were
            asked for, hold it all or are all that can be read.
    """

    rgb: Image.Image
    alpha: Image.Image | None = None
    icc_profile: bytes | None = None
    path: str | None = None
    notices: tuple[str, ...] = ()
    bits: int = 8
    deep: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rgb.height, self.rgb.width

    def flattened(self) -> Image.Image:
        """RGB over white, as the networks see it."""
        if self.alpha is None:
            return self.rgb
        white = Image.new("RGB", self.rgb.size, "white")
        white.paste(self.rgb, mask=self.alpha)
        return white

    def sha256(self) -> str:
        """Hash of size, colours and alpha (hex)."""
        digest = hashlib.sha256(f"{self.rgb.size}".encode())
        digest.update(self.rgb.tobytes())
        if self.alpha is not None:
            digest.update(self.alpha.tobytes())
        return digest.hexdigest()


PictureInput = RawPicture | Picture


def hidden(path: str | os.PathLike[str]) -> bool:
    """Whether a file, or a folder on the way to it, has a name that begins with a dot: no picture of a person's."""
    return any(part.startswith(".") and part not in (".", "..") for part in Path(path).parts)


def open_picture(
    source: PictureInput,
    max_pixels: int = MAX_PIXELS,
    *,
    deep: bool = False,
    called: str = "the picture",
    least: tuple[int, int] | None = None,
) -> Picture:
    """Open a picture, whatever it is given as: see :func:`arimage.images.inputs.taken`. One that is open is given back.

    Args:
        deep: read all 16 bits of a channel too, see :attr:`Picture.deep`.
        called: what messages call it where it has no name of its own.
        least: (width, height) that are enough: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where both sides stay
            as large, in a fraction of the time.

    Raises:
        UsageError: it is nothing that stands for a picture.
        InputImageError: it cannot be used; the message names the file and the reason.
    """
    if isinstance(source, Picture):
        return source
    source = taken(source, called)
    if isinstance(source, Image.Image):
        return _prepare(source, None, called, max_pixels, deep)
    if isinstance(source, io.BytesIO):
        return _decode(source, None, called, max_pixels, deep, least)
    path, name = source, shown(source)
    try:
        with path.open("rb") as file:
            return _decode(file, str(path), name, max_pixels, deep, least)
    except IsADirectoryError:
        raise InputImageError(f"{name} is a folder, not a picture") from None
    except FileNotFoundError:
        if is_address(str(path)):
            raise InputImageError(f"{name} is an address, and nothing is downloaded: give the file") from None
        raise InputImageError(f"{name} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputImageError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def picture_size(file: BinaryIO, called: str = "the picture", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of a picture, upright, from its header: no pixel is decoded.

    Raises:
        InputImageError: it is no picture, or one that :func:`open_picture` refuses for its size.
    """
    image = _opened(file, called)
    _check_size(image.size, called, max_pixels)
    try:
        turned = _turned(image)
    except DECODING_ERRORS as error:
        raise InputImageError(f"{called} is damaged: {_reason(error)}") from None
    return image.size[::-1] if turned else image.size


def _turned(image: Image.Image) -> bool:
    """Whether upright it has its sides the other way round. A PNG may say so behind its pixels, which is not read."""
    if image.format == "PNG" and "exif" not in image.info:
        return False
    return image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)


def _decode(
    file: BinaryIO, path: str | None, name: str, max_pixels: int, deep: bool, least: tuple[int, int] | None = None
) -> Picture:
    image = _opened(file, name)
    if least is not None and image.format == "JPEG":
        _check_size(image.size, name, max_pixels)
        with suppress(*DECODING_ERRORS):  # decoding says what is wrong
            image.draft(None, least[::-1] if _turned(image) else least)
    return _prepare(image, path, name, max_pixels, deep, file)


def _opened(file: BinaryIO, name: str) -> Image.Image:
    """A picture of which the header alone is read."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputImageError(f"{name} is a git-lfs pointer, not the picture; run 'git lfs pull'") from None
        raise InputImageError(f"{name} is not a picture in a known format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixelsError(f"{name} has too many pixels to be opened safely: {_reason(error)}") from None
    except DECODING_ERRORS as error:
        raise InputImageError(f"{name} is damaged: {_reason(error)}") from None


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputImageError(f"{name} has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise TooManyPixelsError(
            f"{name} has {width}x{height} pixels, the limit is {max_pixels}; make it smaller or raise the limit"
        )


def _prepare(
    image: Image.Image, path: str | None, name: str, max_pixels: int, deep: bool, file: BinaryIO | None = None
) -> Picture:
    _check_size(image.size, name, max_pixels)
    notices = []
    try:
        if getattr(image, "is_animated", False):
            notices.append(f"{name} has several frames: the first is used")
            image.seek(0)
        bits = bits_of(image)
        image.load()
        profile = image.info.get("icc_profile")
        image = ImageOps.exif_transpose(image)
        alpha = _alpha(image)
        rgb, profile, notice = _rgb(image, profile, name)
        values = read_values(image, file) if deep and bits > 8 else None
        if values is not None:
            alpha, values = _deep(values, alpha)
    except InputImageError as error:
        raise InputImageError(f"{name} cannot be read: {error}") from None
    except DECODING_ERRORS as error:
        raise InputImageError(f"{name} is damaged: {_reason(error)}") from None
    return Picture(rgb, alpha, profile, path, (*notices, *([notice] if notice else [])), bits, values)


def _deep(values: np.ndarray, alpha: Image.Image | None) -> tuple[Image.Image | None, np.ndarray]:
    """Alpha in 8 bits, and colours in 16 with alpha where there is some."""
    colours, opacity = values[..., :3], values[..., 3:]
    if alpha is None and (opacity < FULL).any():
        alpha = Image.new("L", values.shape[1::-1], 255)
    if alpha is None:
        return None, colours
    if not opacity.size:
        opacity = np.asarray(alpha, np.uint16)[..., None] * 257
    return alpha, np.concatenate([colours, opacity], axis=-1)


def _alpha(image: Image.Image) -> Image.Image | None:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        return None if alpha.getextrema() == (255, 255) else alpha
    return None


def _rgb(image: Image.Image, profile: bytes | None, name: str) -> tuple[Image.Image, bytes | None, str | None]:
    """Colours as RGB, the profile that they are in, and what was lost."""
    lost = f"{name}: its {image.mode} colour profile is dropped, the colours are read as sRGB" if profile else None
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        return _grey(np.asarray(image).astype(np.float64) / 257), None, lost
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        return _grey(values * 255 if values.max(initial=0) <= 1 else values), None, lost
    if image.mode == "CMYK" and profile:
        converted = _from_cmyk(image, profile)
        if converted is not None:
            return converted, None, None
    if image.mode in ("P", "PA", "LA", "La", "RGBa", "RGBA"):
        return image.convert("RGBA").convert("RGB"), profile, None
    if image.mode in ("RGB",):
        return image.copy(), profile, None
    return image.convert("RGB"), None, lost


def _grey(values: np.ndarray) -> Image.Image:
    """RGB from brightness, 0 to 255."""
    return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8)).convert("RGB")


def _from_cmyk(image: Image.Image, profile: bytes) -> Image.Image | None:
    try:
        return ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError):
        return None


def open_mask(source: PictureInput, size: tuple[int, int], polarity: str = "white") -> Image.Image:
    """A mask for a picture of (height, width) pixels: mode L, 255 where it may change.

    A mask with transparent pixels is read as OpenAI's API reads it: transparent may change. Otherwise white may
    change. ``polarity="black"`` turns either round. Any size is scaled to the picture's, without grey levels.

    White is brighter than 127 of 255; of a mask that holds 0 and one other value, such as 0 and 1, it is the other.
    """
    values, transparent = mask_values(source)
    may_change = Image.fromarray(_white(values) ^ (transparent != (polarity == "black"))).convert("L")
    height, width = size
    return may_change.resize((width, height), Image.Resampling.NEAREST)


def mask_values(source: PictureInput) -> tuple[np.ndarray, bool]:
    """What decides a mask, (H, W) in 0 to 255, and whether that is how opaque it is, not how bright."""
    picture = open_picture(source, deep=True)
    if picture.alpha is not None:
        return np.asarray(picture.alpha), True
    if picture.deep is not None:
        return picture.deep[..., :3] @ np.array([299, 587, 114]) / 257_000, False
    return np.asarray(picture.rgb.convert("L")), False


def _white(values: np.ndarray) -> np.ndarray:
    high = values.max()
    if values.min() == 0 < high and ((values == 0) | (values == high)).all():
        return values == high
    return values > 127


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
