"""The one rule for the size of a reference picture.

Both encoders of the hybrid model see a reference: the semantic tokenizer (one code per 32x32 pixels) and the
autoencoder (one latent per 8x8). They must agree on its size, so the picture is resized once, to the size that
:func:`reference_size` decides, before either sees it.
"""

import math
from dataclasses import dataclass

PIXELS_PER_TOKEN = 32
MAX_ASPECT = 4


@dataclass(frozen=True)
class SizeLimits:
    """What the checkpoint's image processor allows, in pixels.

    ``min_side`` bounds the short side from below, ``max_side`` the long side from above; the format's defaults are
    512 and 2048. Both are brought to multiples of 32 (up and down respectively).
    """

    min_side: int = 512
    max_side: int = 2048

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.low > self.high:
            raise ValueError(
                f"size limits {self.min_side}..{self.max_side} hold no multiple of {PIXELS_PER_TOKEN}; "
                "min_side must be positive and not above max_side"
            )

    @property
    def low(self) -> int:
        return math.ceil(self.min_side / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN

    @property
    def high(self) -> int:
        return self.max_side // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN


def reference_size(height: int, width: int, limits: SizeLimits | None = None) -> tuple[int, int]:
    """The size at which both encoders see a picture of ``height`` x ``width`` pixels.

    Sides are multiples of 32, the short one at least ``limits.min_side``, the long one at most ``limits.max_side``.
    The aspect ratio is kept up to rounding while the limits permit it; a picture longer than ``max_side / min_side``
    to 1, or than the format's 4 to 1, is brought to that ratio. The result is a fixed point: given back, it is
    returned.

    Raises:
        ValueError: a side is not positive.
    """
    limits = limits or SizeLimits()
    if height < 1 or width < 1:
        raise ValueError(f"a picture has at least one pixel a side, not {height}x{width}")
    scale = max(1.0, limits.low / min(height, width))
    scale = min(scale, limits.high / max(height, width))

    def side(length: int, low: int) -> int:
        return min(max(round(length * scale / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN, low), limits.high)

    longest = side(max(height, width), limits.low)
    low = max(limits.low, math.ceil(longest / MAX_ASPECT / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN)
    return side(height, low), side(width, low)
