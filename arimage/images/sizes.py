"""Picture sizes: as people name them, and pictures brought to them."""

import math
import re
from collections.abc import Sequence

from PIL import Image

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


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RGB at (height, width)."""
    picture = picture.convert("RGB")
    if picture.size == size[::-1]:
        return picture
    return picture.resize(size[::-1], Image.Resampling.LANCZOS)


def parse_size(size: Size, limits: SizeLimits) -> tuple[int, int]:
    """(height, width) of what a user asked for.

    Args:
        size: a side in pixels for a square, (width, height), ``"640x480"``, an aspect (``"landscape"``, ``"16:9"``)
            at the model's usual area, or None for the model's usual square.
        limits: of the model.

    Raises:
        UsageError: it cannot be understood, is no multiple of 32, or lies outside the limits.
    """
    default = max(limits.low, limits.high // 2 // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN)
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
    if not wide or not high or max(wide, high) > MAX_ASPECT * min(wide, high):
        raise UsageError(f"the aspect {size!r} is beyond {MAX_ASPECT}:1, the most that the format allows")

    def snapped(length: float) -> int:
        return min(max(round(length / PIXELS_PER_TOKEN), 1) * PIXELS_PER_TOKEN, limits.high)

    root = math.sqrt(wide / high)
    return snapped(side * root), snapped(side / root)
