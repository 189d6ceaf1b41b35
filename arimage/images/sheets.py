"""Contact sheets: pictures side by side in one."""

import math
from collections.abc import Sequence

from PIL import Image


def contact_sheet(images: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Pictures side by side, in rows as square as possible, on white."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, image in enumerate(images):
        place = (gap + i % columns * (width + gap), gap + i // columns * (height + gap))
        sheet.paste(image, place, image.getchannel("A") if image.mode == "RGBA" else None)
    return sheet
