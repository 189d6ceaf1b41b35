"""A scene's rating: 1 (poor) to 5 (very good), by rules that mean something.

A rating starts at 5 and loses
    2  when a text is hard to read (WCAG contrast below 3), 1 when it is below 4.5
    2  when a text lies over a subject, or runs off the picture
    1  when letters are under 8 % of the short side
    1  when two subjects overlap by more than a tenth of the smaller
    1  when subjects and text fill more than seven tenths of the picture
    1  when a subject hardly stands out from the background
    1  when a subject is cut off
"""

from functools import lru_cache

import numpy as np

from arimage.data.assets import Assets
from arimage.data.colors import RGB, contrast, distance
from arimage.data.scenes.draw import Drawn, letter_pixels
from arimage.data.scenes.spec import Box, SceneSpec


def area(box: Box) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def overlap(first: Box, second: Box) -> int:
    """Pixels that two boxes share."""
    left, top, right, bottom = zip(first, second)
    return area((max(left), max(top), min(right), min(bottom)))


@lru_cache(maxsize=16384)
def _mean_color(assets: Assets, file: str) -> RGB:
    pixels = np.asarray(assets.sprites.picture(assets.sprites.by_file[file])).reshape(-1, 4)
    solid = pixels[pixels[:, 3] > 127][:, :3]
    r, g, b = (int(value) for value in (solid.mean(axis=0) if len(solid) else (128, 128, 128)))
    return r, g, b


def rating(spec: SceneSpec, drawn: Drawn, assets: Assets) -> int:
    """The rating of a scene and its drawing."""
    lost = 0
    boxes = list(drawn.subjects)
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    lost += any(overlap(a, b) > 0.1 * max(1, min(area(a), area(b))) for a, b in pairs)
    under: list[RGB] = [spec.background.first.rgb]
    if spec.background.second is not None:
        under.append(spec.background.second.rgb)
    for subject in spec.subjects:
        sprite = assets.sprites.by_concept[subject.concept][subject.style]
        color = subject.tint.rgb if subject.tint is not None else _mean_color(assets, sprite.file)
        if min(distance(color, rgb) for rgb in under) < 14:
            lost += 1
            break
    for subject in spec.subjects:
        reach = subject.size * spec.short / 2
        left, top = subject.x * spec.width - reach, subject.y * spec.height - reach
        outside = min(left, top, spec.width - left - 2 * reach, spec.height - top - 2 * reach)
        if outside < -0.02 * spec.short:
            lost += 1
            break
    text = spec.lettering
    if text is not None and drawn.text is not None:
        behind = [text.holder_color.rgb] if text.holder_color is not None else under
        ratio = min(contrast(text.color.rgb, rgb) for rgb in behind)
        lost += 2 if ratio < 3 else 1 if ratio < 4.5 else 0
        over = any(overlap(drawn.holder or drawn.text, box) > 0.02 * area(box) for box in boxes)
        cut = drawn.text[0] <= 0 or drawn.text[1] <= 0 or drawn.text[2] >= spec.width or drawn.text[3] >= spec.height
        lost += 2 if over or cut else 0
        lost += letter_pixels(text, spec) < 0.08 * spec.short
        boxes.append(drawn.holder or drawn.text)
    lost += sum(area(box) for box in boxes) > 0.7 * spec.width * spec.height
    return max(1, 5 - lost)
