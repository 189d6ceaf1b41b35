"""Aspect-ratio buckets: every picture in the one nearest to its shape, every batch from one bucket.

Sides are multiples of 32.

A pair has one placement: sources of the target's shape, and the mask, are scaled and cropped as the target is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from arimage.data.records import Record
from tokenizer.image_size import PIXELS_PER_TOKEN

Size = tuple[int, int]
MOSTLY_CUT = 0.25
SAME_SHAPE = 0.02
ASPECTS = (1 / 3, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 3.0)


def bucket_sizes(side: int, aspects: Sequence[float] = ASPECTS) -> tuple[Size, ...]:
    """Sizes (width, height) of about ``side`` squared pixels, one for each aspect ratio (width / height).

    Raises:
        ValueError: the side is not a multiple of 32 or an aspect ratio is not positive.
    """
    if side < PIXELS_PER_TOKEN or side % PIXELS_PER_TOKEN:
        raise ValueError(f"a bucket's side must be a positive multiple of {PIXELS_PER_TOKEN}, not {side}")
    sizes: dict[Size, None] = {}
    for aspect in aspects:
        if not aspect > 0:
            raise ValueError(f"an aspect ratio must be positive, not {aspect}")
        width = max(PIXELS_PER_TOKEN, round(side * math.sqrt(aspect) / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN)
        height = max(PIXELS_PER_TOKEN, round(side / math.sqrt(aspect) / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN)
        sizes[width, height] = None
    return tuple(sizes)


def nearest_buckets(widths: np.ndarray, heights: np.ndarray, buckets: Sequence[Size]) -> np.ndarray:
    """Number of the bucket of each picture: the nearest in shape, and of those the largest that needs no enlarging.

    Args:
        widths, heights: (n,) in pixels, 1 at least.

    Returns:
        (n,) integers.
    """
    wide, high = (np.array(sides, np.float64) for sides in zip(*buckets))
    shape = np.abs(np.log(widths / heights)[:, None] - np.log(wide / high)).round(6)
    enlarged = np.maximum(wide / widths[:, None], high / heights[:, None])
    cost = np.where(enlarged > 1, enlarged, 1 / enlarged - 1)
    cost[shape > shape.min(1, keepdims=True)] = np.inf
    return cost.argmin(1)


@dataclass(frozen=True)
class Placed:
    """How a picture goes into a bucket: scaled to ``scaled``, then cropped to ``size`` at (left, top).

    Attributes:
        size, scaled: (width, height) in pixels.
        left, top: of the crop in the scaled picture.
        kept: share of the picture's area that is still to be seen.
    """

    size: Size
    scaled: Size
    left: int
    top: int
    kept: float

    def apply(self, image: Image.Image, resampling: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
        """A picture in its bucket, in its own mode. One of another size is placed as if it had this one's."""
        right, bottom = self.left + self.size[0], self.top + self.size[1]
        if self.kept < MOSTLY_CUT:  # of a strip, scaling the whole could take more memory than there is
            x, y = image.width / self.scaled[0], image.height / self.scaled[1]
            box = (self.left * x, self.top * y, min(right * x, image.width), min(bottom * y, image.height))
            return image.resize(self.size, resampling, box=box)
        return image.resize(self.scaled, resampling).crop((self.left, self.top, right, bottom))


def place(width: int, height: int, buckets: Sequence[Size], offset: tuple[float, float] = (0.5, 0.5)) -> Placed:
    """The bucket of a picture: the nearest in shape, and of those the largest that needs no enlarging.

    Args:
        offset: where the crop lies in what is left over, 0.5 being the middle.

    Raises:
        ValueError: there is no bucket, or the picture has no pixels.
    """
    if not buckets:
        raise ValueError("there is no bucket")
    if width < 1 or height < 1:
        raise ValueError(f"a picture has at least one pixel a side, not {width}x{height}")

    size = buckets[0]
    if len(buckets) > 1:
        size = buckets[int(nearest_buckets(np.array([width]), np.array([height]), buckets)[0])]
    scale = max(size[0] / width, size[1] / height)
    scaled = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    left, top = (round((big - small) * part) for big, small, part in zip(scaled, size, offset))
    return Placed(size, scaled, left, top, size[0] * size[1] / (scaled[0] * scaled[1]))


def same_shape(first: Size, second: Size) -> bool:
    """Whether two pictures (width, height) have one aspect ratio, within 2 %: then one can lie exactly on the other."""
    return abs(math.log(first[0] * second[1] / (first[1] * second[0]))) <= SAME_SHAPE


def in_bucket(record: Record, buckets: Sequence[Size]) -> Record:
    """A record in its target's bucket, with one placement for everything that shows the same place.

    Sources of the target's shape, at whatever size, and the mask get the target's scale and crop. A source of another
    shape, such as the person of an identity reference, cannot lie on the target and stays whole.
    """
    size = record.image.size
    placed = place(*size, buckets)
    return replace(
        record,
        image=placed.apply(record.image),
        sources=tuple(placed.apply(source) if same_shape(source.size, size) else source for source in record.sources),
        mask=None if record.mask is None else placed.apply(record.mask, Image.Resampling.NEAREST),
        rejected=None
        if record.rejected is None
        else place(*record.rejected.size, (placed.size,)).apply(record.rejected),
    )
