"""What a picture file says about where it comes from: its recipe, and the mark of a model's work.

Recipes are kept where each format keeps text (PNG: an ``iTXt`` chunk; JPEG and WebP: EXIF ``UserComment``). Pictures
are marked as made by a model in XMP, with IPTC's digital source type.
"""

import os
from typing import BinaryIO

from PIL import ExifTags, Image

from arimage.errors import ArimageError
from arimage.images.inputs import shown
from arimage.images.opening import DECODING_ERRORS
from arimage.images.recipe import Recipe

RECIPE_KEY = "arimage"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
USER_COMMENT_HEADER = b"ASCII\0\0\0"
CREATOR = 'xmp:CreatorTool="arimage"'
EDITED, GENERATED = "compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia"


def read_recipe(path: str | os.PathLike[str] | BinaryIO, called: str = "") -> Recipe | None:
    """The recipe that a picture carries, or None when it has none.

    Args:
        path: a file, or an open one.
        called: what messages call an open one.

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
        raise ArimageError(f"{called or shown(path)} is not a readable picture: {reason}") from None
    return None if text is None else Recipe.from_json(text, called or str(path))


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


def recipe_exif(recipe: Recipe) -> Image.Exif:
    """EXIF data that carry a recipe, for JPEG and WebP."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = f"arimage {recipe.arimage}"
    exif[ExifTags.Base.ImageDescription] = recipe.prompt.encode("ascii", "replace").decode()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = USER_COMMENT_HEADER + recipe.to_json().encode()
    return exif


def mark_xmp(source_type: str) -> str:
    """An XMP packet that says how a picture came about: an IPTC digital source type such as ``GENERATED``."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'xmlns:xmp="http://ns.adobe.com/xap/1.0/" {CREATOR} '
        f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}{source_type}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
