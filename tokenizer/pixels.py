"""Pictures to tensors in [-1, 1] and back."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pixels(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    return from_bytes(pixel_bytes(image))


def pixel_bytes(image: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def from_bytes(values: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return values.float() / 127.5 - 1


def picture(values: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] to RGB."""
    array = ((values.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())
