"""What a picture file says about where it comes from: its recipe, and the mark of a model's work.

Recipes are kept where each format keeps text (PNG: an ``iTXt`` chunk; JPEG and WebP: XMP), and beside them what other
programs read of them (:mod:`arimage.images.parameters`; PNG: a ``parameters`` chunk; JPEG and WebP: EXIF
``UserComment``). Pictures are marked as made by a model in XMP, with IPTC's digital source type.
"""

import io
import os
import re
from dataclasses import dataclass
from html import unescape
from xml.sax.saxutils import escape

from PIL import ExifTags, Image

from arimage.errors import ArimageError, UsageError
from arimage.images.inputs import RawPicture, shown, taken
from arimage.images.opening import DECODING_ERRORS, Picture
from arimage.images.parameters import Parameters, parameters_text, parse_parameters
from arimage.images.recipe import Recipe

RECIPE_KEY = "arimage"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
PARAMETERS_KEY = "parameters"
ASCII_COMMENT, UNICODE_COMMENT = b"ASCII\0\0\0", b"UNICODE\0"
LONGEST_COMMENT, LONGEST_DESCRIPTION = 60_000, 2_000  # bytes: JPEG holds 64 KiB of EXIF
RECIPE_XMP = re.compile(rb"<arimage:Recipe>(.*?)</arimage:Recipe>", re.DOTALL)
CREATOR = 'xmp:CreatorTool="arimage"'
EDITED, GENERATED = "compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia"


@dataclass(frozen=True)
class Origin:
    """What a picture says about how it was made: a recipe of ours, or parameters of another program, or nothing."""

    recipe: Recipe | None = None
    parameters: Parameters | None = None


def read_recipe(path: str | os.PathLike[str]) -> Recipe | None:
    """The recipe that a picture carries, or None when it has none.

    Raises:
        ArimageError: the file is no picture, or its recipe is damaged.
    """
    return read_origin(path).recipe


def read_origin(source: RawPicture, called: str = "") -> Origin:
    """What a picture, anything that stands for one, says about how it was made.

    Args:
        source: what stands for a picture.
        called: what messages call it; by default a file's name.

    Raises:
        UsageError: it is nothing that stands for a picture.
        ArimageError: it is no picture, or its recipe is damaged.
    """
    opened = taken(source, "the picture")
    name = called or ("the picture" if isinstance(opened, (Image.Image, io.BytesIO)) else shown(opened))
    try:
        if isinstance(opened, Image.Image):
            return _origin(opened, name)
        with Image.open(opened) as image:
            return _origin(image, name)
    except FileNotFoundError:
        raise ArimageError(f"{name} does not exist") from None
    except DECODING_ERRORS as error:
        if isinstance(error, ArimageError):
            raise
        reason = getattr(error, "strerror", None) or shown(error)
        raise ArimageError(f"{name} is not a readable picture: {reason}") from None


def described_by(source: RawPicture | Picture | Recipe, option: str = "prompt") -> str:
    """What a picture shows, as its recipe or another program's parameters have it.

    Args:
        option: where a prompt is given instead, for messages.

    Raises:
        UsageError: it does not say.
        ArimageError: it is no picture, or its recipe is damaged.
    """
    if isinstance(source, Recipe):
        origin, name = Origin(source), "the picture"
    else:
        origin = Origin() if isinstance(source, Picture) else read_origin(source)
        name = shown(source) if isinstance(source, (str, os.PathLike)) else "the picture"
    if origin.recipe is not None and origin.recipe.task == "edit":
        raise UsageError(f"{name} was edited, and its instruction does not say what it shows: give {option}")
    prompt = origin.recipe.prompt if origin.recipe is not None else None
    if origin.parameters is not None:
        prompt = origin.parameters.prompt
    if prompt is None:
        raise UsageError(f"{name} carries no recipe that would say what it shows: give {option}")
    return prompt


def _origin(image: Image.Image, name: str) -> Origin:
    if image.format == "PNG" or RECIPE_KEY in image.info:
        if RECIPE_KEY not in image.info:
            image.load()  # other programs write texts after the pixels
        text, parameters = image.info.get(RECIPE_KEY), image.info.get(PARAMETERS_KEY)
    else:
        comment = _comment_text(image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b""))
        once = comment if comment.startswith("{") and '"weights_sha256"' in comment else None
        match = RECIPE_XMP.search(_xmp(image))
        text, parameters = unescape(match[1].decode("utf-8", "replace")) if match else once, comment
    recipe = None if text is None else Recipe.from_json(text, name)
    return Origin(recipe, parse_parameters(parameters) if recipe is None and isinstance(parameters, str) else None)


def _xmp(image: Image.Image) -> bytes:
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return xmp if isinstance(xmp, bytes) else str(xmp).encode()


def is_edited(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the result of an edit by this package: its recipe says so, or its mark."""
    try:
        recipe = read_recipe(path)
        with Image.open(path) as image:
            text = _xmp(image)
    except (ArimageError, *DECODING_ERRORS):
        return False
    if recipe is not None:
        return recipe.task == "edit"
    return CREATOR.encode() in text and (SOURCE_TYPE + EDITED).encode() in text


def _comment_text(comment: object) -> str:
    """An EXIF comment; of Unicode ones some programs write either order of bytes."""
    raw = comment if isinstance(comment, bytes) else str(comment).encode("ascii", "replace")
    if raw.startswith(ASCII_COMMENT):
        return raw.removeprefix(ASCII_COMMENT).decode("ascii", "replace")
    if not raw.startswith(UNICODE_COMMENT):
        return ""
    raw = raw.removeprefix(UNICODE_COMMENT)
    little = raw[1::2].count(0) > raw[::2].count(0)
    return raw.decode("utf-16-le" if little else "utf-16-be", "replace").removeprefix("\ufeff")


def recipe_exif(recipe: Recipe) -> Image.Exif:
    """EXIF data of a recipe for other programs, for JPEG and WebP."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = f"arimage {recipe.arimage}"
    exif[ExifTags.Base.ImageDescription] = recipe.prompt[:LONGEST_DESCRIPTION].encode("ascii", "replace").decode()
    comment = parameters_text(recipe).encode("utf-16-be")
    if len(comment) < LONGEST_COMMENT:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = UNICODE_COMMENT + comment
    return exif


def xmp_packet(source_type: str | None = None, recipe: Recipe | None = None) -> str | None:
    """An XMP packet, or None where there is nothing to say.

    Args:
        source_type: how the picture came about, an IPTC digital source type such as ``GENERATED``.
        recipe: for formats that have no other place for it.
    """
    if source_type is None and recipe is None:
        return None
    mark = "" if source_type is None else f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}{source_type}"'
    carried = "" if recipe is None else f"<arimage:Recipe>{escape(recipe.to_json())}</arimage:Recipe>"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:arimage="urn:arimage:" {CREATOR}{mark}>'
        f'{carried}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
