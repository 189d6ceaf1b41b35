"""What the engine is asked for, what it gives back, and what it tells on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

from arimage.autoregressive.layout import target_grid
from arimage.images.masks import EditMask


@dataclass(frozen=True)
class ImageRequest:
    """One picture to make.

    Attributes:
        prompt: the text; its quoted parts are also rendered as glyphs.
        size: (height, width) at which the networks work, multiples of 32.
        seed: of this picture, 0 <= seed < 2**63.
        references: RGB pictures that the prompt refers to, any sizes.
        canvas: RGB picture whose protected parts are kept, or that ``strength`` starts from; any size.
        mask: where the canvas may change, at the canvas's own size.
        output_size: (height, width) of the finished picture; ``size`` when None.
        codes: (height / 32, width / 32) codes to render; generated when None.
        preview_codes: those of the preview grid: generated before ``codes``, or given so that a target follows them.
        layout: RGB picture that the preview grid is made of, any size; its sides are brought to the grid's.
        fixed: (height / 32, width / 32) codes that the target keeps, ``UNCONSTRAINED`` (-1) where it is generated.
        draft: the same picture at a smaller size, with this seed. It is made first and enlarged; ``codes`` are read off
            it, and diffusion starts from it (``Settings.draft_strength``). Without effect where they are given. Or an
            RGB picture that stands for it, any size.
    """

    prompt: str
    size: tuple[int, int]
    seed: int
    references: tuple[Image.Image, ...] = ()
    canvas: Image.Image | None = None
    mask: EditMask | None = None
    output_size: tuple[int, int] | None = None
    codes: Tensor | None = None
    preview_codes: Tensor | None = None
    layout: Image.Image | None = None
    fixed: Tensor | None = None
    draft: "ImageRequest | Image.Image | None" = None

    def __post_init__(self) -> None:
        grid = target_grid(*self.size)
        for codes in (self.codes, self.fixed):
            if codes is not None and tuple(codes.shape) != tuple(grid):
                raise ValueError(f"codes have shape {tuple(codes.shape)}, a picture of {self.size} needs {grid}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0..2**63-1, got {self.seed}")
        if self.mask is not None and self.canvas is None:
            raise ValueError("a mask needs the canvas that it protects")
        if self.mask is not None and self.canvas is not None:
            mask_size = self.mask.editable.shape[::-1]
            if mask_size != self.canvas.size:
                raise ValueError(f"the mask is {mask_size} pixels, its canvas {self.canvas.size}")


@dataclass(frozen=True)
class EngineImage:
    """A finished picture and the grids behind it.

    Attributes:
        image: RGB.
        codes: (h, w) codes that were rendered.
        preview_codes: those of the preview grid, or None when there was none.
    """

    image: Image.Image
    codes: Tensor
    preview_codes: Tensor | None


@dataclass(frozen=True)
class Progress:
    """Where a call stands: ``done`` of ``total`` tokens, or diffusion steps, over all its pictures."""

    stage: Literal["tokens", "diffusion"]
    done: int
    total: int


@dataclass(frozen=True)
class Preview:
    """A cheap look at a picture under way.

    Attributes:
        picture: index of the request.
        kind: ``grid`` for the preview grid, ``estimate`` for the decoder's current clean estimate.
        image: RGB, smaller than the finished picture.
    """

    picture: int
    kind: Literal["grid", "estimate"]
    image: Image.Image


ProgressCallback = Callable[[Progress], None]
PreviewCallback = Callable[[Preview], None]
ImageCallback = Callable[[EngineImage], None]
