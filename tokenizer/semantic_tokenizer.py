"""Pictures to code grids: vision encoder, then quantiser.

    grids = tokenizer.encode([picture])      # [(h/32, w/32) codes]

The state dict is the tokenizer's part of the checkpoint folder ``vision_language_encoder`` under its own names.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from PIL import Image
from torch import Tensor, nn

from tokenizer.config import QuantizerConfig, VisionEncoderConfig
from tokenizer.image_size import PIXELS_PER_TOKEN
from tokenizer.pixels import pixels
from tokenizer.quantizer import VectorQuantizer
from tokenizer.vision_encoder import VisionEncoder


def half_size(picture: Image.Image) -> Image.Image:
    """The view that the vision encoder takes of a picture: bicubic at half size.

    Raises:
        ValueError: the sides are not multiples of 32 (see :func:`tokenizer.image_size.reference_size`).
    """
    width, height = picture.size
    if height % PIXELS_PER_TOKEN or width % PIXELS_PER_TOKEN:
        raise ValueError(f"a picture's sides must be multiples of {PIXELS_PER_TOKEN}, not {height}x{width}")
    return picture.convert("RGB").resize((width // 2, height // 2), Image.Resampling.BICUBIC)


def half_size_pixels(picture: Image.Image) -> Tensor:
    """The view of a picture as :func:`half_size` makes it, (3, H/2, W/2) in [-1, 1]."""
    return pixels(half_size(picture))


class EncoderAndQuantizer(nn.Module):
    """The names under which the checkpoint keeps the two parts."""

    def __init__(self, vision: VisionEncoderConfig, quantizer: QuantizerConfig) -> None:
        super().__init__()
        self.visual = VisionEncoder(vision)
        self.vqmodel = VectorQuantizer(quantizer)


class SemanticTokenizer(nn.Module):
    """The vision encoder and the quantiser of a checkpoint."""

    def __init__(self, vision: VisionEncoderConfig, quantizer: QuantizerConfig) -> None:
        super().__init__()
        self.model = EncoderAndQuantizer(vision, quantizer)

    def forward(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Codes of half-size pictures, packed in one call.

        Args:
            pixels: each (3, 16*h, 16*w) in [-1, 1].

        Returns:
            For each picture its code grid, (h, w), int64.
        """
        runs = groupby(self.model.visual(pixels), key=lambda features: features.shape)
        return [codes for _, alike in runs for codes in self.model.vqmodel(torch.stack(list(alike)))]

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image.Image]) -> list[Tensor]:
        """Code grids (H/32, W/32) on the CPU of pictures whose sides are multiples of 32."""
        device = self.model.vqmodel.quantize.embedding.weight.device
        return [codes.cpu() for codes in self([half_size_pixels(picture).to(device) for picture in pictures])]
