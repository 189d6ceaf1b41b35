"""Picture sizes: as people name them, and pictures brought to them."""

import math
import re
from collections.abc import Sequence

from PIL import Image, ImageFilter

from arimage.errors import UsageError, nearest
from tokenizer.image_size import MAX_ASPECT, PIXELS_PER_TOKEN, SizeLimits

ASPECTS = {
    "square": (1, 1),
    "portrait": (3, 4),
    "landscape": (4, 3),
    "tall": (9, 16),
    "wide": (16, 9),
}
Size = int | str | Sequence[int] | None
SHARPEN_RADIUS, SHARPEN_PERCENT = 1.25, 120


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RGB at (height, width)."""
    picture = picture.convert("RGB")
    if picture.size == size[::-1]:
        return picture
    return picture.resize(size[::-1], Image.Resampling.LANCZOS)


def enlarged(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RGB at (height, width), its edges made steeper by as much as it grows: enlarged alone they are soft, and a
    diffusion that starts from there keeps them so. A picture that does not grow is what :func:`resized` makes of it."""
    factor = max(size[1] / picture.width, size[0] / picture.height)
    made = resized(picture, size)
    return made.filter(ImageFilter.UnsharpMask(SHARPEN_RADIUS * factor, SHARPEN_PERCENT, 2)) if factor > 1 else made


def parse_size(size: Size, limits: SizeLimits) -> tuple[int, int]:
    """(height, width) of what a user asked for.

    Args:
        size: a side in pixels for a square, (width, height), ``"640x480"``, an aspect (``"landscape"``, ``"16:9"``)
            at the model's usual area, or None for the model's usual square.
        limits: of the model.

    Raises:
        UsageError: it cannot be understood, is no multiple of 32, or lies outside the limits.
    """
    default = _usual_side(limits)
    if size is None:
        return default, default
    if isinstance(size, str):
        size = _parse_text(size, default, limits)
    elif isinstance(size, int):
        size = (size, size)
    if len(size) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in size):
        raise UsageError(f"size must be a side, (width, height), WIDTHxHEIGHT or an aspect name, got {size!r}")
    width, height = size
    for name, side in (("width", width), ("height", height)):
        if side % PIXELS_PER_TOKEN or not PIXELS_PER_TOKEN <= side <= limits.high:
            rounded = min(max(round(side / PIXELS_PER_TOKEN), 1) * PIXELS_PER_TOKEN, limits.high)
            raise UsageError(
                f"{name} {side} must be a multiple of {PIXELS_PER_TOKEN} between {PIXELS_PER_TOKEN} and {limits.high} "
                f"for this model; the nearest is {rounded}"
            )
    return height, width


def size_like(picture: tuple[int, int], limits: SizeLimits) -> tuple[int, int]:
    """(height, width) of the model's usual area in the aspect of a picture of (height, width).

    Raises:
        UsageError: the aspect is beyond what the format allows.
    """
    high, wide = picture
    _check_aspect(wide, high, f"of {wide}x{high} pixels")
    width, height = _of_aspect(wide, high, _usual_side(limits), limits)
    return height, width


def enlarged_size(
    picture: tuple[int, int], longest: int | None, limits: SizeLimits
) -> tuple[tuple[int, int], tuple[int, int]]:
    """How large a picture of (height, width) becomes: (height, width) of the networks, multiples of 32, and its own.

    Args:
        longest: the longer side of the result; twice the picture's, as far as the model goes, when None.

    Raises:
        UsageError: that is not larger than the picture, or beyond the model, or the aspect is beyond the format.
    """
    high, wide = picture
    now = max(picture)
    _check_aspect(wide, high, f"of {wide}x{high} pixels")
    if now >= limits.high:
        raise UsageError(f"the picture has {wide}x{high} pixels, and {limits.high} a side is the most of this model")
    longest = min(2 * now, limits.high) if longest is None else longest
    if not isinstance(longest, int) or isinstance(longest, bool) or not now < longest <= limits.high:
        raise UsageError(
            f"size must be the longer side in pixels, above the {now} of the picture and at most the {limits.high} of "
            f"this model; got {longest!r}"
        )
    height, width = (max(1, round(side * longest / now)) for side in picture)
    return (_snapped(height, limits), _snapped(width, limits)), (height, width)


def middle_of(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As much of a picture's middle as has the aspect of (height, width)."""
    height, width = size
    wide = min(picture.width, max(1, round(picture.height * width / height)))
    high = min(picture.height, max(1, round(picture.width * height / width)))
    left, top = (picture.width - wide) // 2, (picture.height - high) // 2
    return picture.crop((left, top, left + wide, top + high))


def _usual_side(limits: SizeLimits) -> int:
    return max(limits.low, limits.high // 2 // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN)


def _parse_text(size: str, side: int, limits: SizeLimits) -> tuple[int, int]:
    text = size.strip().lower()
    if pixels := re.fullmatch(r"(\d{1,6})(?:\s*[x×,]\s*(\d{1,6}))?", text):
        return int(pixels[1]), int(pixels[2] or pixels[1])
    if ratio := re.fullmatch(r"(\d{1,3}):(\d{1,3})", text):
        wide, high = int(ratio[1]), int(ratio[2])
    elif text in ASPECTS:
        wide, high = ASPECTS[text]
    else:
        names = ", ".join(ASPECTS)
        raise UsageError(
            f"size {size!r} is not known: use 512, 640x480, 16:9 or one of {names}{nearest(text, ASPECTS)}"
        )
    _check_aspect(wide, high, repr(size))
    return _of_aspect(wide, high, side, limits)


def _check_aspect(wide: int, high: int, called: str) -> None:
    if not wide or not high or max(wide, high) > MAX_ASPECT * min(wide, high):
        raise UsageError(f"the aspect {called} is beyond {MAX_ASPECT}:1, the most that the format allows")


def _of_aspect(wide: int, high: int, side: int, limits: SizeLimits) -> tuple[int, int]:
    """(width, height) of the area of a square of this side."""
    root = math.sqrt(wide / high)
    return _snapped(side * root, limits), _snapped(side / root, limits)


def _snapped(length: float, limits: SizeLimits) -> int:
    return min(max(round(length / PIXELS_PER_TOKEN), 1) * PIXELS_PER_TOKEN, limits.high)
