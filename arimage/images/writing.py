"""Writing pictures: recipe and provenance in the file (:mod:`arimage.images.provenance`), and never half a file."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from arimage.errors import ArimageError, UsageError, nearest
from arimage.files import write_whole
from arimage.images.parameters import parameters_text
from arimage.images.provenance import GENERATED, PARAMETERS_KEY, RECIPE_KEY, recipe_exif, xmp_packet
from arimage.images.recipe import Recipe
from arimage.images.sixteen_bits import encode_png

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
QUALITY = 95
Sign = Callable[[bytes, str], bytes]
LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}  # pixels, of what their libraries write


def output_format(path: Path) -> str:
    """The format that a file name asks for.

    Raises:
        UsageError: the suffix is not one of those that can be written.
    """
    if path.suffix.lower() not in FORMATS:
        hint = nearest(path.suffix.lower(), FORMATS)
        raise UsageError(f"cannot write {path.name}: the suffix must be one of {', '.join(FORMATS)}{hint}")
    return FORMATS[path.suffix.lower()]


def format_named(name: str) -> str:
    """The format of a name such as ``png`` or ``jpeg``.

    Raises:
        UsageError: it is not one of those that can be written.
    """
    names = [suffix.removeprefix(".") for suffix in FORMATS]
    if not isinstance(name, str) or name.lower().removeprefix(".") not in names:
        raise UsageError(f"format must be one of {', '.join(names)}, got {name!r:.80}")
    return FORMATS["." + name.lower().removeprefix(".")]


def save_picture(
    image: Image.Image,
    path: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    ai_mark: str | None = GENERATED,
    icc_profile: bytes | None = None,
    quality: int = QUALITY,
    lossless: bool = False,
    deep: np.ndarray | None = None,
    sign: Sign | None = None,
) -> Path:
    """Write a picture whole or not at all; what was there before stays until then.

    Args:
        path: ``.png``, ``.jpg``, ``.jpeg`` or ``.webp``. JPEG has no transparency: it is put on white.
        recipe: to carry in the file.
        ai_mark: IPTC digital source type, or None for no mark.
        quality: of JPEG and WebP, 1 to 100.
        lossless: keep every pixel where the format can: PNG does always, JPEG never.
        deep: the picture in 16 bits a channel, (H, W, 3 or 4) uint16, which PNG writes instead.
        sign: is given the contents of the file and its format, and gives back what is written.

    Raises:
        UsageError: the suffix cannot be written.
        ArimageError: the file cannot be written, or its format cannot hold the picture.
    """
    path = Path(path)
    try:
        contents = encode_picture(
            image, output_format(path), recipe,
            ai_mark=ai_mark, icc_profile=icc_profile, quality=quality, lossless=lossless, deep=deep, sign=sign,
        )  # fmt: skip
    except UsageError:
        raise
    except ArimageError as error:
        raise ArimageError(f"cannot write {path}: {error}") from None
    write_whole(path, contents)
    return path


def encode_picture(
    image: Image.Image,
    kind: str,
    recipe: Recipe | None = None,
    *,
    ai_mark: str | None = GENERATED,
    icc_profile: bytes | None = None,
    quality: int = QUALITY,
    lossless: bool = False,
    deep: np.ndarray | None = None,
    sign: Sign | None = None,
) -> bytes:
    """The contents of a file of a kind that :func:`output_format` gives; the arguments are :func:`save_picture`'s.

    Raises:
        ArimageError: the format cannot hold the picture.
    """
    options: dict[str, object] = {"format": kind}
    if icc_profile:
        options["icc_profile"] = icc_profile
    xmp = xmp_packet(ai_mark or None, None if kind == "PNG" else recipe)
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        if recipe is not None:
            text.add_itxt(RECIPE_KEY, recipe.to_json())
            text.add_text(PARAMETERS_KEY, parameters_text(recipe))  # Latin-1 where it can be, as readers expect
        if xmp is not None:
            text.add_itxt("XML:com.adobe.xmp", xmp)
        options["pnginfo"] = text
        if deep is not None:
            contents = encode_png(deep, text, icc_profile)
            return contents if sign is None else sign(contents, kind)
    else:
        options.update(quality=quality)
        if lossless and kind == "WEBP":
            options.update(lossless=True, exact=True, quality=80)
        if recipe is not None:
            options["exif"] = recipe_exif(recipe)
        if xmp is not None:
            options["xmp"] = xmp.encode()
    if kind == "JPEG" and image.mode != "RGB":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    buffer = io.BytesIO()
    try:
        image.save(buffer, **options)  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        raise ArimageError(f"{kind} does not take this picture ({error}); use .png") from None
    return buffer.getvalue() if sign is None else sign(buffer.getvalue(), kind)


def check_holds(path: Path, size: tuple[int, int]) -> None:
    """Refuse a picture of (width, height) that the format of its file cannot hold, before it is made.

    Raises:
        ArimageError: a side is too long.
    """
    most = LONGEST_SIDE.get(output_format(path), max(size))
    if max(size) > most:
        raise ArimageError(
            f"cannot write {path}: {size[0]}x{size[1]} pixels, and {output_format(path)} holds {most} a side; use .png"
        )


def keeps_pixels(path: Path, protected: bool) -> bool:
    """Whether a written picture has every pixel that was made; WebP does where a part of it was protected."""
    kind = FORMATS.get(path.suffix.lower())
    return kind == "PNG" or (kind == "WEBP" and protected)


def lossy_notice(path: Path, protected: bool, deep: bool = False) -> str | None:
    """What a picture loses in a file of this name of the part that was protected in it."""
    if protected and not keeps_pixels(path, protected):
        keeps = ".png keeps" if deep else ".png and .webp keep"
        return f"{path} is JPEG, which changes every pixel: {keeps} bit for bit what was protected"
    if deep and output_format(path) != "PNG":
        return f"{path} has 8 bits a channel: .png keeps the 16 of what was protected"
    return None
