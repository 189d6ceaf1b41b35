"""What a scene consists of: everything that decides its pixels, as plain frozen data.

Lengths are relative to the picture: places to its width and height, sizes to its short side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from arimage.data.colors import RGB

Pattern = Literal["plain", "gradient", "stripes", "dots", "checks"]
Holder = Literal["none", "sign", "banner"]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shade:
    """A named colour, and the exact tone of it that is drawn."""

    name: str
    rgb: RGB


@dataclass(frozen=True)
class Background:
    """A plain colour, or a pattern of two. A gradient runs from ``first`` at the top (or left) to ``second``."""

    pattern: Pattern
    first: Shade
    second: Shade | None = None
    vertical: bool = True


@dataclass(frozen=True)
class Subject:
    """A sprite in the picture.

    Attributes:
        concept, style: which sprite.
        x, y: centre, in [0, 1] of width and height.
        size: side of the sprite, relative to the picture's short side.
        place: the word for where it is (``left``, ``top right`` …), empty when captions should not say.
        scale: the word for how large it is (``small``, ``large``), empty likewise.
        tint: the colour that it was painted in, or None for its own.
        flipped: mirrored.
    """

    concept: str
    style: str
    x: float
    y: float
    size: float
    place: str = ""
    scale: str = ""
    tint: Shade | None = None
    flipped: bool = False


@dataclass(frozen=True)
class Lettering:
    """A text in the picture.

    Attributes:
        text: one line, or several with ``\n`` between them.
        language: ``en`` or ``zh`` (digits count as either).
        x, y: centre; ``place`` is the word for it.
        height: of a letter, relative to the short side.
        pitch: from the middle of a character to that of the next and from line to line, relative to the short side; 0
            is the font's own.
        holder: what it stands on; ``holder_color`` is that one's colour.
    """

    text: str
    language: Literal["en", "zh"]
    font: str
    color: Shade
    x: float
    y: float
    height: float
    place: str = ""
    holder: Holder = "none"
    holder_color: Shade | None = None
    pitch: float = 0.0

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    @property
    def columns(self) -> int:
        """Characters of the longest line."""
        return max(map(len, self.lines))

    def indent(self, line: str) -> int:
        """How many cells of a text that stands in cells lie before one of its lines: lines are centred."""
        return (self.columns - len(line)) // 2


@dataclass(frozen=True)
class SceneSpec:
    """A whole picture. ``alike`` says that its subjects are one concept several times over."""

    width: int
    height: int
    background: Background
    subjects: tuple[Subject, ...] = ()
    lettering: Lettering | None = None
    alike: bool = False

    @property
    def short(self) -> int:
        return min(self.width, self.height)

    @property
    def concepts(self) -> tuple[str, ...]:
        """The different concepts, in order."""
        return tuple(dict.fromkeys(subject.concept for subject in self.subjects))


def scene_spec(facts: Mapping[str, Any]) -> SceneSpec:
    """A scene from its plain form, which a record's truth holds under ``spec`` (``dataclasses.asdict``)."""

    def shade(value: Mapping[str, Any] | None) -> Shade | None:
        return None if value is None else Shade(value["name"], tuple(value["rgb"]))

    background, lettering = facts["background"], facts["lettering"]
    subjects = tuple(Subject(**{**subject, "tint": shade(subject["tint"])}) for subject in facts["subjects"])
    if lettering is not None:
        colors = {name: shade(lettering[name]) for name in ("color", "holder_color")}
        lettering = Lettering(**{**lettering, **colors})
    shades = {name: shade(background[name]) for name in ("first", "second")}
    return SceneSpec(
        **{**facts, "background": Background(**{**background, **shades}), "subjects": subjects, "lettering": lettering}
    )
