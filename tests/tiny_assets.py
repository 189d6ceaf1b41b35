"""A handful of sprites made for the tests: shapes in two styles, with names in both languages."""

from pathlib import Path

from PIL import Image, ImageDraw

from arimage.data.assets import SPRITES, WORDS, Assets
from arimage.data.sprites import Concept, Sprite, write_pack
from arimage.data.words import FALLBACK
from arimage.files import write_whole

SHAPES = {
    "a1": ("circle", "圆形"), "a2": ("square", "方块"), "a3": ("triangle", "三角形"), "a4": ("diamond", "菱形"),
    "a5": ("cross", "十字"), "a6": ("ring", "圆环"), "a7": ("bar", "长条"), "a8": ("arch", "拱门"),
    "a9": ("kite", "风筝"), "aa": ("wedge", "楔子"), "ab": ("drop", "水滴"), "ac": ("moon", "月牙"),
}  # fmt: skip
STYLES = {"bold": (190, 40, 60), "soft": (60, 120, 200)}
SIZE = 64


def shape(number: int, color: tuple[int, int, int]) -> Image.Image:
    """A polygon with ``number + 3`` corners, or a round thing."""
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    if number % 3 == 0:
        pen.ellipse((6, 6 + number, SIZE - 7, SIZE - 7 - number), fill=(*color, 255))
    else:
        pen.regular_polygon((SIZE // 2, SIZE // 2, 26), 3 + number % 6, rotation=7 * number, fill=(*color, 255))
    pen.rectangle((28, 28, 36, 36), fill=(255, 255, 255, 255))
    return image


def write_assets(folder: Path, styles: tuple[str, ...] = tuple(STYLES)) -> Path:
    """A folder of assets without fonts: Pillow's own serves."""
    concepts = [
        Concept(code, {"en": en, "zh": zh}, {"en": (en,), "zh": (zh,)}, "objects") for code, (en, zh) in SHAPES.items()
    ]
    pictures = [
        (
            Sprite(concept.code, concept.code, style, "CC0-1.0", "the tests", f"{style}/{concept.code}.webp"),
            shape(number, STYLES.get(style, (30, 140, 60))),
        )
        for style in styles
        for number, concept in enumerate(concepts)
    ]
    write_pack(folder / SPRITES, concepts, pictures, SIZE)
    import json

    words = {language: text.split() for language, text in FALLBACK.items()}
    write_whole(folder / WORDS, json.dumps(words, ensure_ascii=False).encode())
    return folder


def tiny_assets(folder: Path) -> Assets:
    return Assets.open(write_assets(folder))
