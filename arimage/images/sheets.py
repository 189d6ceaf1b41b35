"""Contact sheets: pictures side by side in one."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

LABEL = 16


def contact_sheet(
    images: Sequence[Image.Image],
    columns: int | None = None,
    gap: int = 8,
    margin: int | None = None,
    labels: Sequence[str] = (),
) -> Image.Image:
    """Pictures side by side on white.

    Args:
        columns: pictures of a row; by default rows are as square as possible.
        gap: pixels right of and below each picture.
        margin: pixels left of the first column and above the first row; as wide as the gap by default.
        labels: what to write below each picture, as large as its width lets it be.
    """
    columns = math.ceil(math.sqrt(len(images))) if columns is None else min(columns, len(images))
    margin = gap if margin is None else margin
    rows = math.ceil(len(images) / columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    row = height + gap + (LABEL if labels else 0)
    sheet = Image.new("RGB", (columns * (width + gap) + margin, rows * row + margin), "white")
    for i, image in enumerate(images):
        place = (margin + i % columns * (width + gap), margin + i // columns * row)
        sheet.paste(image, place, image.getchannel("A") if image.mode == "RGBA" else None)
    pen = ImageDraw.Draw(sheet)
    for i, label in enumerate(labels):
        font = ImageFont.load_default(_font_size(label, width))
        left, top = margin + i % columns * (width + gap), margin + i // columns * row + height
        pen.text((left + width / 2, top + (LABEL + gap) / 2), label, fill="black", font=font, anchor="mm")
    return sheet


def _font_size(label: str, width: int) -> int:
    length = ImageFont.load_default(LABEL).getlength(label)
    return max(6, min(LABEL - 2, int(LABEL * width / max(length, 1))))


def beside(first: Image.Image, second: Image.Image) -> Image.Image:
    """Two pictures of any sizes in one, without a gap, at their top edges."""
    both = Image.new("RGB", (first.width + second.width, max(first.height, second.height)), "white")
    both.paste(first, (0, 0))
    both.paste(second, (first.width, 0))
    return both
