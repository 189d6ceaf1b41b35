"""Writing pictures: recipe and provenance in the file, and never half a file.

Recipes are kept where each format keeps text (PNG: an ``iTXt`` chunk; JPEG and WebP: EXIF ``UserComment``). Pictures
are marked as made by a model in XMP, with IPTC's digital source type.
"""

import errno
import io
import math
import os
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from arimage.errors import ArimageError, UsageError, nearest
from arimage.images import DECODING_ERRORS
from arimage.inputs import shown
from arimage.recipe import Recipe
from arimage.sixteen_bits import encode_png

RECIPE_KEY = "arimage"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
USER_COMMENT_HEADER = b"ASCII\0\0\0"
CREATOR = 'xmp:CreatorTool="arimage"'
EDITED, GENERATED = "compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia"
NAME_IN_TEMPORARY = 32


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
    quality: int = 95,
    lossless: bool = False,
    deep: np.ndarray | None = None,
) -> Path:
    """Write a picture whole or not at all; what was there before stays until then.

    Args:
        path: ``.png``, ``.jpg``, ``.jpeg`` or ``.webp``. JPEG has no transparency: it is put on white.
        recipe: to carry in the file.
        ai_mark: IPTC digital source type, or None for no mark.
        quality: of JPEG and WebP, 1 to 100.
        lossless: keep every pixel where the format can: PNG does always, JPEG never.
        deep: the picture in 16 bits a channel, (H, W, 3 or 4) uint16, which PNG writes instead.

    Raises:
        UsageError: the suffix cannot be written.
        ArimageError: the file cannot be written, or its format cannot hold the picture.
    """
    path = Path(path)
    try:
        contents = encode_picture(
            image, output_format(path), recipe,
            ai_mark=ai_mark, icc_profile=icc_profile, quality=quality, lossless=lossless, deep=deep,
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
    quality: int = 95,
    lossless: bool = False,
    deep: np.ndarray | None = None,
) -> bytes:
    """The contents of a file of a kind that :func:`output_format` gives; the arguments are :func:`save_picture`'s.

    Raises:
        ArimageError: the format cannot hold the picture.
    """
    options: dict[str, object] = {"format": kind}
    if icc_profile:
        options["icc_profile"] = icc_profile
    xmp = _xmp(ai_mark) if ai_mark else None
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        if recipe is not None:
            text.add_itxt(RECIPE_KEY, recipe.to_json())
        if xmp is not None:
            text.add_itxt("XML:com.adobe.xmp", xmp)
        options["pnginfo"] = text
        if deep is not None:
            return encode_png(deep, text, icc_profile)
    else:
        options.update(quality=quality)
        if lossless and kind == "WEBP":
            options.update(lossless=True, exact=True, quality=80)
        if recipe is not None:
            options["exif"] = _exif(recipe)
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
    return buffer.getvalue()


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


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
        ArimageError: it cannot be written; the message names it.
    """
    name: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name[:NAME_IN_TEMPORARY]}.{secrets.token_hex(6)}.part")
        with part.open("xb") as file:
            name = part
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
        name = None
    except OSError as error:
        raise ArimageError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if name is not None:
            name.unlink(missing_ok=True)


def check_writable(paths: Iterable[Path]) -> None:
    """Refuse outputs that cannot be written, before the work that makes them. Nothing is left behind.

    Raises:
        ArimageError: one is a folder, lies below a file, has too long a name, or its folder cannot be written.
    """
    tried: set[Path] = set()
    for path in paths:
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            folder = next((parent for parent in path.parents if parent.exists()), None)
            if folder is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            for part in (path, *(folder / name for name in path.relative_to(folder).parts)):
                with suppress(FileNotFoundError):
                    part.stat()
            if folder not in tried:
                tempfile.TemporaryFile(dir=folder).close()
                tried.add(folder)
        except OSError as error:
            raise ArimageError(f"cannot write {path}: {error.strerror or error}") from None


def contact_sheet(images: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Pictures side by side, in rows as square as possible, on white."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, image in enumerate(images):
        place = (gap + i % columns * (width + gap), gap + i // columns * (height + gap))
        sheet.paste(image, place, image.getchannel("A") if image.mode == "RGBA" else None)
    return sheet


def read_recipe(path: str | os.PathLike[str]) -> Recipe | None:
    """The recipe that a picture carries, or None when it has none.

    Raises:
        ArimageError: the file is no picture, or its recipe is damaged.
    """
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                text = image.info.get(RECIPE_KEY)
                if text is None:  # other programs write it after the pixels
                    image.load()
                    text = image.info.get(RECIPE_KEY)
            else:
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
                text = _comment_text(comment)
    except FileNotFoundError:
        raise ArimageError(f"{path} does not exist") from None
    except DECODING_ERRORS as error:
        reason = getattr(error, "strerror", None) or shown(error)
        raise ArimageError(f"{shown(path)} is not a readable picture: {reason}") from None
    return None if text is None else Recipe.from_json(text, str(path))


def is_edited(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the result of an edit by this package: its recipe says so, or its mark."""
    try:
        recipe = read_recipe(path)
        with Image.open(path) as image:
            xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    except (ArimageError, *DECODING_ERRORS):
        return False
    if recipe is not None:
        return recipe.task == "edit"
    text = xmp if isinstance(xmp, bytes) else str(xmp).encode()
    return CREATOR.encode() in text and (SOURCE_TYPE + EDITED).encode() in text


def _comment_text(comment: object) -> str | None:
    raw = comment if isinstance(comment, bytes) else str(comment).encode("ascii", "replace")
    if not raw.startswith(USER_COMMENT_HEADER):
        return None
    text = raw.removeprefix(USER_COMMENT_HEADER).decode("ascii", "replace")
    return text if text.startswith("{") and '"weights_sha256"' in text else None


def _exif(recipe: Recipe) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = f"arimage {recipe.arimage}"
    exif[ExifTags.Base.ImageDescription] = recipe.prompt.encode("ascii", "replace").decode()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = USER_COMMENT_HEADER + recipe.to_json().encode()
    return exif


def _xmp(source_type: str) -> str:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'xmlns:xmp="http://ns.adobe.com/xap/1.0/" {CREATOR} '
        f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}{source_type}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
