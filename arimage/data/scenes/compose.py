"""Random scenes: which subjects, colours, places and texts come together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from random import Random
from string import ascii_uppercase
from typing import Literal, TypeVar

from arimage.data.assets import Assets
from arimage.data.colors import BY_NAME, COLORS, contrast, distinct_from
from arimage.data.fonts import Font
from arimage.data.scenes.draw import PADDING, letter_pixels, text_size
from arimage.data.scenes.settings import SceneSettings
from arimage.data.scenes.spec import Background, Holder, Lettering, Pattern, SceneSpec, Shade, Subject
from arimage.data.split import (
    HELD_OUT_STYLES,
    combination_held_out,
    concept_held_out,
    fraction,
    held_out,
    text_held_out,
)
from arimage.data.sprites import Concept
from arimage.data.words import common_characters, draw_word
from arimage.errors import DataError

PLACES = {
    "center": (0.5, 0.5), "left": (0.28, 0.5), "right": (0.72, 0.5), "top": (0.5, 0.28), "bottom": (0.5, 0.72),
    "top left": (0.28, 0.28), "top right": (0.72, 0.28), "bottom left": (0.28, 0.72), "bottom right": (0.72, 0.72),
}  # fmt: skip
PAIRS = (("left", "right"), ("top", "bottom"))
THREE = ("left", "center", "right")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
PATTERNS: tuple[Pattern, ...] = ("gradient", "stripes", "dots", "checks")
SCALES = {"small": (0.24, 0.32), "": (0.42, 0.54), "large": (0.62, 0.74)}
MAX_TEXT_WIDTH = 0.86
LATIN_CELL, CHINESE_CELL = 1.125, 0.875
LINES = (2, 3, 4, 5)
ATTEMPTS = 2000
Item = TypeVar("Item")


class Composer:
    """Draws the parts of scenes from one random stream, under the settings of a data set.

    Raises:
        DataError: the assets hold too little for the settings.
    """

    def __init__(self, assets: Assets, settings: SceneSettings) -> None:
        self.assets, self.settings = assets, settings
        pack = assets.sprites
        self.styles = settings.styles or tuple(style for style in pack.styles if style not in HELD_OUT_STYLES)
        for style in self.styles:
            if style not in pack.styles:
                raise DataError(f"the sprites hold no style {style!r}; they hold {', '.join(pack.styles)}")
        usable = [
            code
            for code, concept in pack.concepts.items()
            if (not settings.groups or concept.group in settings.groups)
            and all(style in pack.by_concept.get(code, {}) for style in self.styles)
            and nameable(concept)
        ]
        common = {word: rank for rank, word in enumerate(assets.words["en"])}

        def rarity(code: str) -> tuple[int, float]:
            words = pack.concepts[code].names["en"].lower().split()
            return max(common.get(word, len(common)) for word in words), fraction("order", code)

        usable.sort(key=rarity)
        self.concepts = tuple(usable[: settings.concepts])
        self.colors = tuple(settings.colors) or tuple(BY_NAME)
        if isinstance(settings.fonts, tuple):
            unknown = set(settings.fonts) - {font.name for font in assets.fonts.fonts}
            if unknown:
                raise DataError(f"the font pack holds no {', '.join(sorted(unknown))}")
        if len(self.concepts) < 4:
            raise DataError(f"only {len(self.concepts)} concepts fit the settings; scenes need at least 4")

    @cached_property
    def train_concepts(self) -> tuple[str, ...]:
        """Concepts that training may see."""
        return tuple(code for code in self.concepts if not concept_held_out(code))

    def allowed(self, spec: SceneSpec) -> bool:
        """Whether a scene may be shown under the split, and has what ``held`` asks for."""
        combinations = [
            combination_held_out(subject.concept, subject.style, spec.background.first.name)
            for subject in spec.subjects
        ]
        text = spec.lettering is not None and any(text_held_out(line) for line in spec.lettering.lines)
        concepts = any(concept_held_out(subject.concept) for subject in spec.subjects)
        held = self.settings.held
        if self.settings.split == "train":
            return not (any(combinations) or text or concepts)
        if held == "combination":
            return any(combinations) and not concepts and not text
        if held == "word":
            return text and not concepts
        if held == "reference concept":
            return concepts and not text
        return True

    def until(self, random: Random, make: Callable[[Random], Item], good: Callable[[Item], bool]) -> Item:
        """Draw until it is good.

        Raises:
            DataError: nothing good comes.
        """
        for _ in range(ATTEMPTS):
            item = make(random)
            if good(item):
                return item
        raise DataError(
            f"no scene fits the settings (split {self.settings.split!r}, held {self.settings.held!r}, "
            f"{len(self.concepts)} concepts): widen them"
        )

    # Parts

    def shade(self, random: Random, name: str) -> Shade:
        jitter = self.settings.jitter
        r, g, b = (min(255, max(0, value + random.randint(-jitter, jitter))) for value in BY_NAME[name].rgb)
        return Shade(name, (r, g, b))

    def color(self, random: Random, unlike: str | None = None) -> Shade:
        """A colour that nobody mistakes for another."""
        names: Sequence[str] = self.colors
        if unlike is not None:
            names = [name for name in names if name in distinct_from(unlike)] or [n for n in names if n != unlike]
        return self.shade(random, random.choice(list(names)))

    def background(self, random: Random, unlike: str | None = None) -> Background:
        first = self.color(random, unlike)
        if random.random() >= self.settings.patterns:
            return Background("plain", first)
        pattern = random.choice(PATTERNS)
        return Background(pattern, first, self.color(random, first.name), random.random() < 0.6)

    def concept(self, random: Random, among: Sequence[str] | None = None) -> str:
        if among is None:
            among = self.concepts if self.settings.held == "reference concept" else self.train_concepts
        return random.choice(list(among))

    def scale(self, random: Random) -> tuple[str, float]:
        word = random.choices(list(SCALES), self.settings.scales)[0]
        return word, random.uniform(*SCALES[word])

    def subject(self, random: Random, place: str = "center", most: float = 1.0, style: str | None = None) -> Subject:
        """A subject at a place, at most ``most`` of the short side large."""
        word, size = self.scale(random)
        if size > most:
            word, size = "", most * random.uniform(0.88, 1.0)
        x, y = PLACES[place]
        if "left" in place or "right" in place:
            x += random.uniform(-0.03, 0.03)
        concept = self.concept(random)
        animal = self.assets.sprites.concepts[concept].group == "animals and nature"
        return Subject(
            concept,
            style or random.choice(self.styles),
            x,
            y,
            size,
            place,
            word,
            flipped=random.random() < self.settings.flips and animal,
        )

    def words(self, language: str) -> tuple[str, ...]:
        """The words that may be written, most frequent first."""
        return self._words[language]

    @cached_property
    def _words(self) -> dict[str, tuple[str, ...]]:
        settings, words = self.settings, self.assets.words
        known = self.assets.fonts.chinese
        english = [word for word in words["en"] if 2 <= len(word) <= settings.english_letters]
        if settings.common_characters is not None:
            known = known & frozenset(common_characters(words["zh"], settings.common_characters))
        chinese = [
            word for word in words["zh"] if len(word) <= settings.chinese_characters and all(c in known for c in word)
        ]
        return {"en": tuple(english[: settings.english_words]), "zh": tuple(chinese[: settings.chinese_words])}

    def text(self, random: Random, language: Literal["en", "zh"] | None = None) -> tuple[str, Literal["en", "zh"]]:
        """A text of one line and its language."""
        if language is None:
            language = "zh" if self._words["zh"] and random.random() < self.settings.chinese_text else "en"
        if self.settings.random_letters and random.random() < self.settings.random_letters:
            return self._random_letters(random, language), language
        if language == "zh":
            return draw_word(random, self._words["zh"], self.settings.zipf), "zh"
        if self.settings.held != "word" and random.random() < self.settings.digits:
            return _digits(random), "en"
        word = draw_word(random, self._words["en"], self.settings.zipf)
        if random.random() < self.settings.phrases:
            more = [draw_word(random, self._words["en"], self.settings.zipf) for _ in range(random.choice((1, 1, 2)))]
            phrase = " ".join([word, *more])
            word = phrase if len(phrase) <= 2 * self.settings.english_letters else word
        if self.settings.capitals:
            return word.upper(), "en"
        return random.choices((word.upper(), word.capitalize(), word), (0.5, 0.3, 0.2))[0], "en"

    def _random_letters(self, random: Random, language: str) -> str:
        if language == "zh":
            return "".join(random.choices(self._characters, k=random.randint(1, self.settings.chinese_characters)))
        most = self.settings.english_letters
        return "".join(random.choices(ascii_uppercase, k=random.randint(min(2, most), most)))

    @cached_property
    def _characters(self) -> str:
        """The Chinese characters that words are made of, but for held-out ones."""
        return "".join(c for c in sorted(set("".join(self._words["zh"]))) if not held_out("character", c))

    def block(self, random: Random, count: int) -> tuple[str, Literal["en", "zh"]]:
        """A text of so many different lines, all in one language."""
        first, language = self.text(random)
        lines = [first]
        while len(lines) < count:
            line = self.until(random, lambda random: self.text(random, language)[0], lambda line: line not in lines)
            lines.append(line)
        return "\n".join(lines), language

    def faces(self, text: str) -> list[Font]:
        """Faces that can write a text."""
        faces = self.assets.fonts.can_write(text.replace("\n", ""))
        wanted = self.settings.fonts
        if isinstance(wanted, tuple):
            return [font for font in faces if font.name in wanted]
        return faces if wanted is None else sorted(faces, key=lambda font: fraction("font", font.name))[:wanted]

    def lettering(
        self,
        random: Random,
        spec: SceneSpec,
        places: Sequence[str] = ("center",),
        heights: tuple[float, float] = (0.12, 0.2),
        lines: int = 1,
    ) -> Lettering:
        """A text that can be read where it stands, and fits the picture; on a busy pattern it stands on something."""
        text, language = self.block(random, lines)
        faces = self.faces(text)
        while not faces:
            text, language = self.block(random, lines)
            faces = self.faces(text)
        busy = spec.background.pattern not in ("plain", "gradient")
        signs = 0.35 if self.settings.cells is None else 0.0
        holder: Holder = random.choices(("none", "sign", "banner"), (0.0 if busy else 0.5, signs, 0.15))[0]
        under = spec.background.first.name
        if self.settings.grounds and under not in self.settings.grounds:
            holder = "banner"
        holder_color = None
        if holder != "none":
            holder_color = self._ground(random, under)
            under = holder_color.name
        others = [spec.background.second.rgb] if holder == "none" and spec.background.second else []
        names = [
            color.name
            for color in COLORS
            if all(contrast(color.rgb, rgb) >= 3.0 for rgb in [BY_NAME[under].rgb, *others])
        ]
        if not names and holder == "none":
            holder, holder_color = "sign", self.color(random, spec.background.first.name)
            names = [c.name for c in COLORS if contrast(c.rgb, BY_NAME[holder_color.name].rgb) >= 3.0]
        place = random.choice(list(places))
        x, y = {"center": (0.5, 0.5), "top": (0.5, 0.17), "bottom": (0.5, 0.83)}[place]
        height = random.uniform(*heights) * (0.8 if language == "en" and len(text) > 8 else 1.0)
        if self.settings.plain_ink:
            names = [max(("black", "white"), key=lambda name: contrast(BY_NAME[name].rgb, BY_NAME[under].rgb))]
        color = self.shade(random, random.choice(names or ["black"]))
        lettering = Lettering(
            text, language, random.choice(faces).name, color, x, y, height, place, holder, holder_color
        )
        return self.fitted(lettering, spec)

    def _ground(self, random: Random, unlike: str) -> Shade:
        """The colour of a sign or banner."""
        names = [name for name in self.settings.grounds if name in distinct_from(unlike)]
        return self.shade(random, random.choice(names)) if names else self.color(random, unlike)

    def fitted(self, lettering: Lettering, spec: SceneSpec) -> Lettering:
        """The lettering made small enough for the picture's width."""
        if self.settings.cells is not None:
            return lettering
        width, tall = text_size(lettering, spec, self.assets)
        margins = 0.9 * lettering.height * spec.short
        room = MAX_TEXT_WIDTH * spec.width - (margins if lettering.holder == "sign" else 0)
        above = MAX_TEXT_WIDTH * spec.height - (margins if lettering.holder != "none" else 0)
        if width > room or (tall > above and len(lettering.lines) > 1):
            lettering = replace(lettering, height=max(0.02, lettering.height * min(room / width, above / tall) * 0.97))
        letters = letter_pixels(lettering, spec)
        _, height = text_size(lettering, spec, self.assets)
        reach = (height / 2 + (PADDING if lettering.holder != "none" else 0.1) * letters + 2) / spec.height
        return replace(lettering, y=min(max(lettering.y, min(0.5, reach)), max(0.5, 1 - reach)))

    def aligned(self, spec: SceneSpec) -> SceneSpec:
        """The scene with its parts on the settings' grid, so that like parts make like visual tokens."""
        cells = self.settings.cells
        if cells is None:
            return spec
        subjects = tuple(_on_grid(subject, spec, cells) for subject in spec.subjects)
        lettering = spec.lettering
        if lettering is not None:
            lettering = _in_cells(lettering, spec, cells)
        return replace(spec, subjects=subjects, lettering=lettering)

    # Whole pictures

    def picture(self, random: Random, task: str, size: tuple[int, int]) -> SceneSpec:
        """A scene of one of the text-to-image tasks; held-out rules are not looked at here."""
        width, height = size
        spec = SceneSpec(width, height, self.background(random))
        if task == "subject":
            place = random.choice(list(PLACES)) if random.random() < 0.6 else "center"
            most = 1.0 if place == "center" else 0.52
            return replace(spec, subjects=(self.subject(random, place, most),))
        if task == "subjects":
            three = random.random() < self.settings.threes
            return replace(spec, subjects=self.row(random, THREE) if three else self.pair(random))
        if task == "corners":
            return replace(spec, subjects=self.row(random, CORNERS))
        if task == "count":
            return replace(spec, subjects=self.several(random), alike=True)
        if task == "typography":
            return replace(spec, lettering=self.lettering(random, spec, ("center", "top", "bottom"), (0.16, 0.3)))
        if task == "lines":
            count = random.choice(LINES)
            return replace(spec, lettering=self.lettering(random, spec, heights=(0.12, 0.16), lines=count))
        place = random.choice(("top", "bottom"))
        if random.random() < 0.3:
            return replace(spec, lettering=self.lettering(random, spec))
        subject = replace(self.subject(random, "center", 0.5), y=0.64 if place == "top" else 0.36, place="")
        return replace(spec, subjects=(subject,), lettering=self.lettering(random, spec, (place,)))

    def pair(self, random: Random) -> tuple[Subject, ...]:
        """Two different subjects beside or above each other, in one style."""
        return self.row(random, random.choice(PAIRS))

    def row(self, random: Random, places: Sequence[str]) -> tuple[Subject, ...]:
        """Different subjects, one at each place, in one style."""
        style = random.choice(self.styles)
        most = 0.3 if len(places) == 3 else 0.44
        subjects: list[Subject] = []
        for place in places:
            taken = {subject.concept for subject in subjects}
            subject = self.until(
                random,
                lambda random, place=place: self.subject(random, place, most, style),  # type: ignore[misc]
                lambda subject, taken=taken: subject.concept not in taken,  # type: ignore[misc]
            )
            if len(places) == 3:
                subject = replace(subject, x={"left": 0.19, "center": 0.5, "right": 0.81}[place])
            subjects.append(replace(subject, scale=""))
        return tuple(subjects)

    def several(self, random: Random) -> tuple[Subject, ...]:
        """Two to four of one concept."""
        count = random.choice((2, 3, 4))
        one = replace(self.subject(random), place="", scale="", flipped=False)
        size = {2: 0.42, 3: 0.29, 4: 0.4}[count] * random.uniform(0.85, 1.0)
        spots = {
            2: ((0.27, 0.5), (0.73, 0.5)),
            3: ((0.19, 0.5), (0.5, 0.5), (0.81, 0.5)),
            4: ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),
        }[count]
        return tuple(replace(one, x=x, y=y, size=size) for x, y in spots)


def _on_grid(subject: Subject, spec: SceneSpec, cells: int) -> Subject:
    side = 6 if subject.scale == "large" else min(6, max(2, 2 * round(subject.size * cells / 2)))
    places = []
    for centre, length in ((subject.x, spec.width), (subject.y, spec.height)):
        along = cells * length / spec.short
        first = min(max(0, round(centre * along - side / 2)), math.floor(along) - side)
        places.append((first + side / 2) / along)
    return replace(subject, x=places[0], y=places[1], size=side / cells)


def _in_cells(lettering: Lettering, spec: SceneSpec, cells: int) -> Lettering:
    """A cell for each character, a row of cells for each line, as near to the middle of the row as cells allow."""
    columns, rows = cells * spec.width / spec.short, cells * spec.height / spec.short
    across, down = lettering.columns, len(lettering.lines)
    left = math.floor((columns - across) / 2)
    row = min(max(0, round(lettering.y * rows - down / 2 - 1e-6)), math.floor(rows) - down)
    height = (LATIN_CELL if lettering.language == "en" else CHINESE_CELL) / cells
    x, y = (left + across / 2) / columns, (row + down / 2) / rows
    return replace(lettering, x=x, y=y, height=height, pitch=1 / cells)


def nameable(concept: Concept) -> bool:
    """Whether the English name is a plain noun that says what is to be seen."""
    name = concept.names["en"]
    if any(mark in name for mark in ":(,“”") or "o’clock" in name or "thirty" in name or " without " in name:
        return False
    return concept.group != "faces" or name.endswith(" face") or " " not in name


def _digits(random: Random) -> str:
    kind = random.randrange(4)
    if kind == 0:
        return str(random.randint(0, 99))
    if kind == 1:
        return str(random.randint(1900, 2099))
    if kind == 2:
        return f"{random.randint(1, 99)}%"
    return str(random.randint(100, 99999))
