"""Finished pictures, with everything that a file of them holds."""

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from arimage.images.credentials import Credentials
from arimage.images.provenance import EDITED, GENERATED
from arimage.images.recipe import Recipe
from arimage.images.writing import QUALITY, encode_picture, format_named, save_picture


@dataclass(frozen=True)
class GeneratedImage:
    """A picture and how it was made.

    Attributes:
        image: RGB, or RGBA where an edited picture keeps its transparency.
        recipe: everything needed to make it again; it is written into the file.
        codes: (h, w) codes of the visual tokens.
        preview_codes: those of the preview grid, None where there is none, as for edits.
        icc_profile: of the edited or upscaled picture, kept.
        notices: what should be known about the inputs.
        deep: the picture in 16 bits a channel, (H, W, 3 or 4) uint16, where a mask protects some; PNGs hold them.
    """

    image: Image.Image
    recipe: Recipe
    codes: Tensor
    preview_codes: Tensor | None = None
    icc_profile: bytes | None = field(default=None, repr=False)
    notices: tuple[str, ...] = ()
    deep: np.ndarray | None = field(default=None, repr=False)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.to_bytes()

    def to_bytes(
        self,
        format: str = "png",
        *,
        recipe: bool = True,
        ai_mark: bool = True,
        credentials: Credentials | None = None,
        quality: int = QUALITY,
    ) -> bytes:
        """The contents of the file that :meth:`save` would write, recipe and mark included.

        Args:
            format: ``png``, ``jpeg`` or ``webp``.
            credentials: certificate and key to sign the file with (C2PA).
            quality: of JPEG and WebP, 1 to 100; of no effect on a WebP of which a part is protected.

        Raises:
            UsageError: the format is another one.
            ArimageError: the format cannot hold the picture.
        """
        return encode_picture(
            self.image, format_named(format), quality=quality, **self._file(recipe, ai_mark, credentials)
        )

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        recipe: bool = True,
        ai_mark: bool = True,
        credentials: Credentials | None = None,
    ) -> Path:
        """Write it as PNG, JPEG or WebP, whole or not at all; see :func:`arimage.images.writing.save_picture`.

        What was protected by a mask or by outpainting is kept bit for bit by PNG and WebP, not by JPEG.
        """
        return save_picture(self.image, path, **self._file(recipe, ai_mark, credentials))

    def _file(self, recipe: bool, ai_mark: bool, credentials: Credentials | None) -> dict[str, Any]:
        """What a file holds besides the picture itself."""
        kind = GENERATED if self.recipe.task == "generate" else EDITED
        return {
            "recipe": self.recipe if recipe else None,
            "ai_mark": kind if ai_mark else None,
            "icc_profile": self.icc_profile,
            "lossless": self.recipe.protects,
            "deep": self.deep,
            "sign": None if credentials is None else partial(credentials.sign, source_type=kind),
        }
