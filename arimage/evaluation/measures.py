"""Measures on pixels: the colour at the border, what stands out from it, and where."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from arimage.data.colors import RGB
from arimage.data.scenes.spec import Box

RING = 4
STANDS_OUT = 12.0
SPECK = 40


def color_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """CIEDE2000 between sRGB colours (..., 3) in 0..255, broadcast against each other."""
    from skimage.color import deltaE_ciede2000, rgb2lab

    one, other = (rgb2lab(np.asarray(part, np.float64) / 255) for part in (first, second))
    return deltaE_ciede2000(*np.broadcast_arrays(one, other))


def border_color(picture: Image.Image) -> RGB:
    """The median colour of the outermost four pixels."""
    pixels = np.asarray(picture.convert("RGB"))
    inside = np.zeros(pixels.shape[:2], bool)
    inside[RING:-RING, RING:-RING] = True
    r, g, b = (int(value) for value in np.median(pixels[~inside], axis=0))
    return r, g, b


def named_color_found(picture: Image.Image, color: RGB) -> bool:
    """Whether the border is of a colour, to within a CIEDE2000 of 12."""
    return float(color_difference(np.array(border_color(picture)), np.array(color))) < STANDS_OUT


@dataclass(frozen=True)
class Foreground:
    """What differs from the border's colour: its box in pixels, its centre of mass in [0, 1], and its area."""

    box: Box
    x: float
    y: float
    area: int


def foreground(picture: Image.Image, within: Box | None = None, without: Sequence[Box] = ()) -> Foreground | None:
    """The part of a picture (or of a box of it, less other boxes) that stands out; None when there is none."""
    from skimage.morphology import remove_small_objects

    pixels = np.asarray(picture.convert("RGB"))
    out = color_difference(pixels, np.array(border_color(picture))) > STANDS_OUT
    if within is not None:
        inside = np.zeros_like(out)
        inside[within[1] : within[3], within[0] : within[2]] = True
        out &= inside
    for left, top, right, bottom in without:
        out[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = False
    out = remove_small_objects(out, max_size=SPECK)
    rows, columns = np.nonzero(out)
    if not len(rows):
        return None
    box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    height, width = out.shape
    return Foreground(box, float(columns.mean() + 0.5) / width, float(rows.mean() + 0.5) / height, len(rows))


def square_crop(picture: Image.Image, box: Box, margin: float = 0.08) -> Image.Image:
    """A box with a margin, made square with the border's colour around it."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top, 2)
    grown = round(side * (1 + 2 * margin))
    square = Image.new("RGB", (grown, grown), border_color(picture))
    inner = picture.convert("RGB").crop(box)
    square.paste(inner, ((grown - inner.width) // 2, (grown - inner.height) // 2))
    return square


def region_psnr(first: Image.Image, second: Image.Image, region: np.ndarray) -> float:
    """PSNR in dB over the pixels of a region (H, W) bool of two pictures of one size."""
    a, b = (np.asarray(picture.convert("RGB"), np.float64)[region] for picture in (first, second))
    error = float(((a - b) ** 2).mean()) if len(a) else 0.0
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))
