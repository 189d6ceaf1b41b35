"""Which scenes a data set is made of."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from arimage.data.colors import BY_NAME
from arimage.data.split import HELD_OUT_STYLES, Split

PICTURE_TASKS = ("subject", "subjects", "count", "text", "typography")
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
        concepts: how many of them, or all; which ones depends on their names alone.
        colors: names of colours; all when empty.
        patterns: share of backgrounds that are no plain colour.
        english_words, chinese_words: how many of the most frequent ones are written.
        english_letters, chinese_characters: at most so many in a word.
        chinese_text: share of texts that are Chinese; digits take a tenth of the rest.
        phrases: share of English texts that have several words.
        styles_named: share of captions that say the style.
        jitter: how far a drawn tone may be from the named colour, in sRGB steps.
        fonts: how many faces a script, or all.
        flips: share of animals that are mirrored.
        cells: subjects fill squares of 2, 4 or 6 cells of a grid of so many along the short side, and letters are so
            many halves of a cell high; None places everything freely.
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
    chinese_text: float = Field(0.4, ge=0, le=1)
    phrases: float = Field(0.2, ge=0, le=1)
    styles_named: float = Field(0.6, ge=0, le=1)
    jitter: int = Field(6, ge=0, le=20)
    fonts: int | None = Field(None, ge=1)
    flips: float = Field(0.2, ge=0, le=1)
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
        for color in self.colors:
            if color not in BY_NAME:
                raise ValueError(f"there is no colour {color!r}; known are {', '.join(BY_NAME)}")
        if self.colors and len(self.colors) < 4:
            raise ValueError("colors: name at least 4, or none for all")
        for width, height in self.sizes:
            if width < 64 or height < 64 or width % 32 or height % 32:
                raise ValueError(f"sizes: sides must be multiples of 32 and at least 64, not {width}x{height}")
        if not self.sizes:
            raise ValueError("sizes: at least one is needed")
        if self.split == "train" and (HELD_OUT_STYLES & set(self.styles)):
            raise ValueError(f"the style {', '.join(HELD_OUT_STYLES)} is kept for evaluation")
        if self.split == "train" and self.held is not None:
            raise ValueError("held is for split: evaluation")
        return self
