"""Contact sheets: records with their captions in one picture."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from arimage.data.fonts import FontPack
from arimage.data.records import Record

GAP = 6
LINE = 15
BLACK = (0, 0, 0)


def contact_sheet(
    records: Sequence[Record],
    columns: int = 4,
    side: int = 160,
    fonts: FontPack | None = None,
    captions: Sequence[str] | None = None,
    inks: Sequence[tuple[int, int, int]] | None = None,
) -> Image.Image:
    """Records in rows: sources, then the target, then the caption below.

    Args:
        columns: records a row.
        side: of each picture, in pixels.
        fonts: to write Chinese captions with.
        captions: what to write below each record; by default the first caption of each language.
        inks: a colour for each caption, RGB in 0 to 255; by default all are black.
    """
    most = max((len(record.sources) for record in records), default=0)
    width = (most + 1) * side + GAP
    font = _font(fonts)
    blocks = []
    for i, record in enumerate(records):
        block = Image.new("RGB", (width, side), "white")
        for place, picture in enumerate((*record.sources, record.image)):
            small = picture.copy()
            small.thumbnail((side - 4, side - 4), Image.Resampling.LANCZOS)
            block.paste(small, (place * side + (side - small.width) // 2, (side - small.height) // 2))
            if place == len(record.sources) and record.sources:
                pen = ImageDraw.Draw(block)
                pen.line((place * side, 4, place * side, side - 4), fill="gray")
        text = captions[i] if captions is not None else " / ".join(_shown(record))
        blocks.append((block, _wrapped(text, font, width - GAP), inks[i] if inks is not None else BLACK))
    rows = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    heights = [side + LINE * max(len(lines) for _, lines, _ in row) + GAP for row in rows]
    sheet = Image.new("RGB", (columns * (width + GAP), max(1, sum(heights))), "white")
    pen = ImageDraw.Draw(sheet)
    top = 0
    for row, height in zip(rows, heights):
        for place, (block, lines, ink) in enumerate(row):
            left = place * (width + GAP)
            sheet.paste(block, (left, top))
            for number, line in enumerate(lines):
                pen.text((left + 2, top + side + number * LINE), line, fill=ink, font=font)
        top += height
    return sheet


def _font(fonts: FontPack | None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    faces = [font for font in (fonts.fonts if fonts is not None else []) if font.script == "chinese"]
    if fonts is None or not faces:
        return ImageFont.load_default(12)
    plain = [font for font in faces if "NotoSans" in font.name]
    return fonts.load((plain or faces)[0].name, 12)


def _shown(record: Record) -> list[str]:
    shown: dict[str, str] = {}
    for kind, caption in record.captions.items():
        shown.setdefault(kind.partition("/")[0], caption)
    return list(shown.values())[:2]


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines: list[str] = []
    for piece in textwrap.wrap(text, 400) or [""]:
        line = ""
        for character in piece:
            if font.getlength(line + character) > width and line:
                cut = line.rfind(" ") if character.isascii() and " " in line[len(line) // 2 :] else len(line)
                lines.append(line[:cut].rstrip())
                line = line[cut:].lstrip()
            line += character
        lines.append(line)
    return lines[:6]
