"""What may change and what must not: a mask at every resolution that an edit passes through.

A mask is a picture of the canvas's own size, non-zero where the canvas may change. Each coarser view protects a
cell only when nothing in it may change, and the final composite copies protected pixels back, so that they are
identical bit for bit; the blend from old to new lies wholly inside the part that may change.
"""

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

FEATHER = 8
MOST_FEATHER = 256


class EditMask:
    """Where a canvas may change.

    Args:
        mask: mode L at the canvas's own size; a pixel above 127 may change.

    Raises:
        ValueError: nothing may change.
    """

    def __init__(self, mask: Image.Image) -> None:
        self.editable = np.asarray(mask.convert("L")) > 127
        if not self.editable.any():
            raise ValueError("the mask protects the whole picture: nothing may change")

    def protected_cells(self, height: int, width: int) -> Tensor:
        """Cells of a (height, width) division of the canvas in which nothing may change: bool."""
        counts = np.zeros(np.add(self.editable.shape, 1), dtype=np.int64)
        counts[1:, 1:] = self.editable.cumsum(0, dtype=np.int64).cumsum(1)
        top, bottom = _edges(self.editable.shape[0], height)
        left, right = _edges(self.editable.shape[1], width)
        inside = counts[bottom][:, right] - counts[top][:, right] - counts[bottom][:, left] + counts[top][:, left]
        return torch.from_numpy(inside == 0)

    def composite(self, canvas: Image.Image, generated: Image.Image, feather: int = FEATHER) -> Image.Image:
        """The generated RGB picture where the canvas may change, the canvas itself elsewhere.

        Just inside the border the new fades in over up to ``feather`` pixels, fewer where the editable part is thinner.
        """
        old, new = np.asarray(canvas.convert("RGB")), np.asarray(generated)
        weight = self._fade(feather)[..., None]
        blended = np.rint(old + (new.astype(np.float32) - old) * weight).astype(np.uint8)
        return Image.fromarray(np.where(self.editable[..., None], blended, old))

    def _fade(self, feather: int) -> np.ndarray:
        """How much of the new each pixel takes, 0 to 1: (H, W) fp32."""
        layers = [self.editable]
        shrinking = Image.fromarray(self.editable).convert("L")
        for _ in range(feather - 1):
            shrinking = shrinking.filter(ImageFilter.MinFilter(3))
            layer = np.asarray(shrinking) > 0
            if not layer.any():
                break
            layers.append(layer)
        return np.stack(layers).mean(axis=0, dtype=np.float32)


def _edges(pixels: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and end of each cell; a pixel that straddles two cells belongs to both."""
    starts = np.arange(cells) * pixels
    return starts // cells, -(-(starts + pixels) // cells)
