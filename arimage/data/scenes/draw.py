"""A scene's pixels, layer by layer: background, subjects, text.

A layer depends on its own part of the scene only, so two scenes that differ in one part differ in that part's
pixels only.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from arimage.data.assets import Assets
from arimage.data.scenes.spec import Background, Box, Lettering, SceneSpec, Shade, Subject

PADDING = 0.45
FONT_SIZES = 4


@dataclass(frozen=True)
class Drawn:
    """A picture and where its parts are.

    Attributes:
        image: RGB.
        subjects: the box (left, top, right, bottom) of each subject's visible pixels, clipped to the picture.
        reach: the box of every pixel that each subject touches at all.
        text: the box of the letters, or None; ``holder`` that of the sign or banner.
    """

    image: Image.Image
    subjects: tuple[Box, ...]
    reach: tuple[Box, ...]
    text: Box | None
    holder: Box | None


def draw(spec: SceneSpec, assets: Assets) -> Drawn:
    """Draw a scene."""
    image = background(spec.background, spec.width, spec.height)
    boxes = [_paste(image, subject, spec, assets) for subject in spec.subjects]
    text = holder = None
    if spec.lettering is not None:
        text, holder = _write(image, spec.lettering, spec, assets)
    return Drawn(image, tuple(box for box, _ in boxes), tuple(reach for _, reach in boxes), text, holder)


def background(part: Background, width: int, height: int) -> Image.Image:
    """The background alone."""
    if part.pattern == "plain" or part.second is None:
        return Image.new("RGB", (width, height), part.first.rgb)
    if part.pattern == "gradient":
        return _gradient(part, width, height)
    first, second = np.array(part.first.rgb, np.uint8), np.array(part.second.rgb, np.uint8)
    step = max(8, min(width, height) // 8)
    rows, columns = np.ogrid[:height, :width]
    if part.pattern == "stripes":
        chosen = ((rows if part.vertical else columns) // step) % 2 == 1
        chosen = np.broadcast_to(chosen, (height, width))
    elif part.pattern == "checks":
        chosen = (rows // step + columns // step) % 2 == 1
    else:
        radius = step * 0.3
        distance = (rows % step - step / 2 + 0.5) ** 2 + (columns % step - step / 2 + 0.5) ** 2
        chosen = distance <= radius**2
    return Image.fromarray(np.where(chosen[..., None], second, first))


def _gradient(part: Background, width: int, height: int) -> Image.Image:
    assert part.second is not None
    length = height if part.vertical else width
    ramp = np.linspace(0, 1, length)[:, None]
    colors = np.array(part.first.rgb) * (1 - ramp) + np.array(part.second.rgb) * ramp
    line = np.round(colors).astype(np.uint8)
    shaped = line[:, None] if part.vertical else line[None]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(shaped, (height, width, 3))))


@lru_cache(maxsize=2048)
def _prepared(pack: object, file: str, side: int, flipped: bool, tint: tuple[int, int, int] | None) -> Image.Image:
    from arimage.data.sprites import SpritePack

    assert isinstance(pack, SpritePack)
    sprite = pack.by_file[file]
    picture = pack.picture(sprite)
    if tint is not None:
        picture = painted(picture, tint)
    if flipped:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if picture.width != side:
        premultiplied = picture.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
        picture = premultiplied.convert("RGBA")
    return picture


def painted(picture: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """A sprite in another colour: light and shade are kept, hue is the new one's."""
    pixels = np.asarray(picture).astype(np.float32)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    solid = pixels[..., 3] > 127
    middle = float(np.median(light[solid])) if solid.any() else 128.0
    relative = (light - middle)[..., None] / 255
    base = np.array(color, np.float32)
    shaded = np.where(relative < 0, base * (1 + relative * 1.1), base + (255 - base) * relative * 0.9)
    result = np.concatenate([np.clip(shaded, 0, 255), pixels[..., 3:]], axis=-1)
    return Image.fromarray(result.round().astype(np.uint8))


def sprite_side(subject: Subject, spec: SceneSpec) -> int:
    """Side of a subject's sprite in pixels."""
    return max(8, round(subject.size * spec.short))


def _paste(image: Image.Image, subject: Subject, spec: SceneSpec, assets: Assets) -> tuple[Box, Box]:
    """Put a subject in; the boxes of what is seen of it, and of all that it touches."""
    side = sprite_side(subject, spec)
    sprite = assets.sprites.by_concept[subject.concept][subject.style]
    tint = None if subject.tint is None else subject.tint.rgb
    picture = _prepared(assets.sprites, sprite.file, side, subject.flipped, tint)
    left, top = round(subject.x * spec.width - side / 2), round(subject.y * spec.height - side / 2)
    image.paste(picture, (left, top), picture)
    alpha = picture.getchannel("A")
    whole = alpha.getbbox() or (0, 0, side, side)
    seen = alpha.point(lambda value: 255 if value > 16 else 0).getbbox() or whole

    def placed(box: Box) -> Box:
        return _clipped((left + box[0], top + box[1], left + box[2], top + box[3]), spec)

    return placed(seen), placed(whole)


def letter_pixels(lettering: Lettering, spec: SceneSpec) -> int:
    """The font's size in pixels, in steps that keep few faces in memory."""
    return max(12, round(lettering.height * spec.short / FONT_SIZES) * FONT_SIZES)


def text_size(lettering: Lettering, spec: SceneSpec, assets: Assets) -> tuple[int, int]:
    """Width and height of the letters in pixels."""
    if lettering.pitch:
        side = lettering.pitch * spec.short
        return round(lettering.columns * side), round(len(lettering.lines) * side)
    left, top, right, bottom = _letters_box(lettering, spec, assets)
    return round(right - left), round(bottom - top)


def _letters_box(lettering: Lettering, spec: SceneSpec, assets: Assets) -> tuple[float, float, float, float]:
    font = assets.fonts.load(lettering.font, letter_pixels(lettering, spec))
    return ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), lettering.text, font, align="center")


def _write(image: Image.Image, lettering: Lettering, spec: SceneSpec, assets: Assets) -> tuple[Box, Box | None]:
    font = assets.fonts.load(lettering.font, letter_pixels(lettering, spec))
    left, top, right, bottom = _letters_box(lettering, spec, assets)
    width, height = right - left, bottom - top
    if lettering.pitch:
        left, top, (width, height) = 0, 0, text_size(lettering, spec, assets)
    x, y = round(lettering.x * spec.width - width / 2), round(lettering.y * spec.height - height / 2)
    pen = ImageDraw.Draw(image)
    holder = None
    if lettering.holder != "none" and lettering.holder_color is not None:
        pitch = lettering.pitch * spec.short
        margin = round(pitch / 2 if pitch else PADDING * letter_pixels(lettering, spec))
        holder = (x - margin, y - margin, x + round(width) + margin, y + round(height) + margin)
        if lettering.holder == "banner":
            holder = (0, holder[1], spec.width, holder[3])
        _hold(pen, lettering, holder, margin)
        holder = _clipped(holder, spec)
    if lettering.pitch:
        side = lettering.pitch * spec.short
        for number, line in enumerate(lettering.lines):
            start = x + lettering.indent(line) * side
            for place, character in enumerate(line):
                middle = start + (place + 0.5) * side, y + (number + 0.5) * side
                pen.text(middle, character, font=font, fill=lettering.color.rgb, anchor="mm")
    else:
        pen.text((x - left, y - top), lettering.text, lettering.color.rgb, font, align="center")
    return _clipped((x, y, x + round(width), y + round(height)), spec), holder


def _hold(pen: ImageDraw.ImageDraw, lettering: Lettering, box: Box, margin: int) -> None:
    assert lettering.holder_color is not None
    fill = lettering.holder_color.rgb
    if lettering.holder == "banner":
        pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=fill)
        return
    edge = _darker(lettering.holder_color)
    corners = (box[0], box[1], box[2] - 1, box[3] - 1)
    pen.rounded_rectangle(corners, radius=max(2, margin // 2), fill=fill, outline=edge, width=max(1, margin // 6))


def _darker(shade: Shade) -> tuple[int, int, int]:
    r, g, b = (round(value * 0.7) for value in shade.rgb)
    return r, g, b


def _clipped(box: Box, spec: SceneSpec) -> Box:
    left, top, right, bottom = box
    return max(0, left), max(0, top), min(spec.width, right), min(spec.height, bottom)
