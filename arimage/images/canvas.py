"""What an edit works on: the picture, or the picture on a larger canvas, and where it may change."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from arimage.errors import UsageError
from arimage.images.masks import EditMask
from arimage.images.opening import Picture, PictureInput, mask_values, open_mask

Margins = tuple[int, int, int, int]


@dataclass(frozen=True)
class Canvas:
    """The ground of an edit.

    Attributes:
        networks: RGB, what the networks see.
        colours, alpha: what protected pixels are copied back from.
        mask: where it may change, None for everywhere.
        deep: protected pixels in 16 bits, (H, W, 3 or 4) uint16, where the picture has them.
        notices: what should be known about it.
    """

    networks: Image.Image
    colours: Image.Image
    alpha: Image.Image | None
    mask: EditMask | None
    deep: np.ndarray | None = None
    notices: tuple[str, ...] = ()

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

    def finish_deep(self, finished: Image.Image) -> np.ndarray | None:
        """A finished picture with all 16 bits of what is protected, or None where 8 hold it all."""
        if self.deep is None or self.mask is None:
            return None
        return np.where(self.mask.editable[..., None], np.asarray(finished, np.uint16) * 257, self.deep)


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
    networks, colours, alpha, deep = picture.flattened(), picture.rgb, picture.alpha, picture.deep
    if outpaint is not None:
        margins = _checked(outpaint)
        editable = np.zeros(picture.size, dtype=bool) if editable is None else editable
        editable = np.pad(editable, _numpy_margins(margins), constant_values=True)
        networks, colours = _extend(networks, margins), _extend(colours, margins)
        if alpha is not None:
            alpha = Image.fromarray(np.pad(np.asarray(alpha), _numpy_margins(margins), constant_values=255))
        if deep is not None:
            deep = np.pad(deep, (*_numpy_margins(margins), (0, 0)))
    notices = _lost_bits(picture, editable is not None)
    if editable is None:
        return Canvas(networks, colours, alpha, None, notices=notices)
    if not editable.any():
        assert mask is not None
        raise UsageError(_nothing_may_change(mask, mask_polarity))
    return Canvas(networks, colours, alpha, EditMask(Image.fromarray(editable)), deep, notices)


def _lost_bits(picture: Picture, protected: bool) -> tuple[str, ...]:
    if picture.bits == 8 or (protected and picture.deep is not None):
        return ()
    name = picture.path or "the picture"
    if protected:
        return (
            f"{name} has {picture.bits} bits a channel, and 8 are kept of what the mask protects; all are kept of a "
            "PNG or TIFF of 16 bits, grey or RGB, that is given as a file",
        )
    return (f"{name} has {picture.bits} bits a channel, the edited picture 8, which is what the networks make",)


def _nothing_may_change(mask: PictureInput, polarity: str) -> str:
    values, transparent = mask_values(mask)
    kind = "opacity" if transparent else "brightness"
    below = transparent == (polarity == "white")
    return (
        f"the mask protects the whole picture: its {kind} lies in {values.min():.3g}..{values.max():.3g} of 255, and "
        f"only {'below 128' if below else 'above 127'} a pixel may change; paint what may change "
        f"{('transparent' if transparent else 'black') if below else ('opaque' if transparent else 'white')}, or leave "
        "the mask out to edit everything"
    )


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
