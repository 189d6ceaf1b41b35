"""Which scenes a data set is made of."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from arimage.data.colors import BY_NAME
from arimage.data.split import HELD_OUT_STYLES, Split

PICTURE_TASKS = ("subject", "subjects", "corners", "count", "text", "typography", "lines")
EDIT_TASKS = (
    "background", "replace", "add", "remove", "move", "recolor", "add text", "change text", "remove text", "style",
    "insert", "combine", "identity", "inpaint",
)  # fmt: skip
TASKS = PICTURE_TASKS + EDIT_TASKS
Held = Literal["combination", "word", "reference concept"]


class SceneSettings(BaseModel):
    """What is drawn, how often and how large.

    Attributes:
        seed: of the whole data set.
        sizes: (width, height) of the pictures, each a multiple of 32; runs of indices share one.
        tasks: how often each comes, relative to the others.
        styles: of the sprites; all that the pack has when empty.
        groups: of concepts; all when empty.
        concepts: how many of them, those with the most common English names first, or all.
        colors: names of colours; all when empty.
        patterns: share of backgrounds that are no plain colour.
        english_words, chinese_words: how many of the most frequent ones are written.
        english_letters, chinese_characters: at most so many in a word.
        common_characters: Chinese words are made of so many of the most frequent characters only.
        chinese_text: share of texts that are Chinese.
        random_letters: share of words that are random letters or Chinese characters, so that all are seen alike often.
        digits: share of the other texts that are numbers.
        capitals: English is written in capital letters only.
        zipf: share of words that are drawn by their frequency, the others evenly.
        phrases: share of English texts that have several words.
        styles_named: share of captions that say the style.
        free_wordings: so many sentences more of a picture, and instructions of an edit, in each language, in the free
            words of :mod:`arimage.data.scenes.wordings`.
        jitter: how far a drawn tone may be from the named colour, in sRGB steps.
        fonts: how many faces a script, or the names of some; all when None.
        flips: share of animals that are mirrored.
        scales: how often subjects are small, of middle size and large.
        threes: share of rows of subjects that hold three, not two.
        crowded: share of the scenes that edits begin with that hold four subjects, one in each corner, or several
            lines of text.
        grounds: colours that text stands on; all when empty.
        plain_ink: text is black or white, whichever is read better on its ground.
        cells: subjects fill squares of 2, 4 or 6 cells of a grid of so many along the short side, and each character
            of a text fills one cell; None places everything freely.
        minimum_rating: scenes below are drawn again.
        split: ``train`` leaves out what is held out; ``evaluation`` shows it.
        held: what every evaluation scene must have that training never saw; None mixes freely.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    sizes: tuple[tuple[int, int], ...] = ((256, 256),)
    tasks: dict[str, float] = Field(default_factory=lambda: {"subject": 1.0})
    styles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    concepts: int | None = Field(None, ge=2)
    colors: tuple[str, ...] = ()
    patterns: float = Field(0.25, ge=0, le=1)
    english_words: int = Field(25_000, ge=1)
    chinese_words: int = Field(25_000, ge=1)
    english_letters: int = Field(10, ge=1)
    chinese_characters: int = Field(4, ge=1)
    common_characters: int | None = Field(None, ge=10)
    chinese_text: float = Field(0.4, ge=0, le=1)
    zipf: float = Field(0.5, ge=0, le=1)
    random_letters: float = Field(0.0, ge=0, le=1)
    digits: float = Field(0.1, ge=0, le=1)
    capitals: bool = False
    phrases: float = Field(0.2, ge=0, le=1)
    styles_named: float = Field(0.6, ge=0, le=1)
    free_wordings: int = Field(0, ge=0, le=16)
    jitter: int = Field(6, ge=0, le=20)
    fonts: PositiveInt | tuple[str, ...] | None = None
    flips: float = Field(0.2, ge=0, le=1)
    scales: tuple[float, float, float] = (0.15, 0.6, 0.25)
    threes: float = Field(0.25, ge=0, le=1)
    crowded: float = Field(0.0, ge=0, le=1)
    grounds: tuple[str, ...] = ()
    plain_ink: bool = False
    cells: int | None = Field(None, ge=8, le=32)
    minimum_rating: int = Field(1, ge=1, le=5)
    split: Split = "train"
    held: Held | None = None

    @model_validator(mode="after")
    def _known(self) -> "SceneSettings":
        for task, share in self.tasks.items():
            if task not in TASKS:
                raise ValueError(f"there is no task {task!r}; known are {', '.join(TASKS)}")
            if share < 0:
                raise ValueError(f"tasks.{task} must not be negative")
        if not sum(self.tasks.values()):
            raise ValueError("tasks: at least one must have a share above 0")
        for color in (*self.colors, *self.grounds):
            if color not in BY_NAME:
                raise ValueError(f"there is no colour {color!r}; known are {', '.join(BY_NAME)}")
        if self.colors and len(self.colors) < 4:
            raise ValueError("colors: name at least 4, or none for all")
        for width, height in self.sizes:
            if width < 64 or height < 64 or width % 32 or height % 32:
                raise ValueError(f"sizes: sides must be multiples of 32 and at least 64, not {width}x{height}")
        if self.cells is not None and max(self.english_letters, self.chinese_characters) > self.cells:
            raise ValueError("cells: a text has a cell for each character, so words may not be longer than the grid")
        if self.cells is not None and self.phrases:
            raise ValueError("cells: texts on a grid are single words; set phrases to 0")
        if not self.sizes:
            raise ValueError("sizes: at least one is needed")
        if self.split == "train" and (HELD_OUT_STYLES & set(self.styles)):
            raise ValueError(f"the style {', '.join(HELD_OUT_STYLES)} is kept for evaluation")
        if self.split == "train" and self.held is not None:
            raise ValueError("held is for split: evaluation")
        return self
