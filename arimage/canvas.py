"""What an edit works on: the picture, or the picture on a larger canvas, and where it may change."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from arimage.errors import UsageError
from arimage.images import Picture, PictureInput, open_mask
from arimage.masks import EditMask

Margins = tuple[int, int, int, int]


@dataclass(frozen=True)
class Canvas:
    """The ground of an edit.

    Attributes:
        networks: RGB, what the networks see.
        colours, alpha: what protected pixels are copied back from.
        mask: where it may change, None for everywhere.
    """

    networks: Image.Image
    colours: Image.Image
    alpha: Image.Image | None
    mask: EditMask | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.networks.height, self.networks.width

    def finish(self, generated: Image.Image) -> Image.Image:
        """The edited picture: protected pixels exactly as they were, transparency where it still belongs."""
        if self.mask is not None:
            protected = Image.fromarray(~self.mask.editable)
            generated = generated.copy()
            generated.paste(self.colours, mask=protected)
        if self.alpha is None:
            return generated
        alpha = self.alpha.resize(generated.size, Image.Resampling.LANCZOS)
        if self.mask is not None:
            alpha = Image.fromarray(np.where(self.mask.editable, np.uint8(255), np.asarray(alpha)))
        generated.putalpha(alpha)
        return generated


def make_canvas(picture: Picture, mask: PictureInput | None, mask_polarity: str, outpaint: Margins | None) -> Canvas:
    """The canvas of an edit.

    Args:
        mask: where the picture may change.
        mask_polarity: ``white`` or ``black``, the colour that may change.
        outpaint: pixels to add at the left, top, right and bottom; all of them may change.

    Raises:
        UsageError: a value is wrong, or nothing may change.
        InputImageError: the mask cannot be opened.
    """
    if mask_polarity not in ("white", "black"):
        raise UsageError(f"mask_polarity must be 'white' or 'black', got {mask_polarity!r}")
    editable = None if mask is None else np.asarray(open_mask(mask, picture.size, mask_polarity)) > 127
    networks, colours, alpha = picture.flattened(), picture.rgb, picture.alpha
    if outpaint is not None:
        margins = _checked(outpaint)
        editable = np.zeros(picture.size, dtype=bool) if editable is None else editable
        editable = np.pad(editable, _numpy_margins(margins), constant_values=True)
        networks, colours = _extend(networks, margins), _extend(colours, margins)
        if alpha is not None:
            alpha = Image.fromarray(np.pad(np.asarray(alpha), _numpy_margins(margins), constant_values=255))
    if editable is None:
        return Canvas(networks, colours, alpha, None)
    try:
        return Canvas(networks, colours, alpha, EditMask(Image.fromarray(editable)))
    except ValueError as error:
        raise UsageError(f"{error}; is mask_polarity={mask_polarity!r} meant?") from None


def _checked(margins: Margins) -> Margins:
    whole = all(isinstance(margin, int) and margin >= 0 for margin in margins)
    if len(margins) != 4 or not whole or not any(margins):
        raise UsageError(
            f"outpaint is (left, top, right, bottom) in pixels, at least 0 and not all 0; got {tuple(margins)!r}"
        )
    return margins


def _numpy_margins(margins: Margins) -> tuple[tuple[int, int], tuple[int, int]]:
    left, top, right, bottom = margins
    return (top, bottom), (left, right)


def _extend(picture: Image.Image, margins: Margins) -> Image.Image:
    """The picture on a larger ground that continues its border, softly."""
    rows, columns = _numpy_margins(margins)
    extended = Image.fromarray(np.pad(np.asarray(picture), (rows, columns, (0, 0)), mode="edge"))
    soft = extended.filter(ImageFilter.GaussianBlur(max(margins) / 8))
    soft.paste(picture, (margins[0], margins[1]))
    return soft
