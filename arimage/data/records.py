"""One sample of a data set, whatever it comes from."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

MAX_RATING = 5


@dataclass(frozen=True)
class Record:
    """A picture and how it is asked for.

    Attributes:
        image: the picture that the model should make, RGB.
        captions: the text that asks for it, by kind (``en/sentence``, ``zh/long`` …; ``caption`` of people's data).
            With sources these are instructions.
        sources: the pictures that an edit starts from, RGB, in the order in which the text counts them.
        mask: L, white where an edit may change its (last) source; None where the instruction alone decides.
        task: what kind of sample it is.
        rating: 1 (poor) to 5 (very good).
        name: where it comes from, for messages.
        truth: what is known about the picture (what is where); empty for people's data.
    """

    image: Image.Image
    captions: dict[str, str]
    sources: tuple[Image.Image, ...] = ()
    mask: Image.Image | None = None
    task: str = "picture"
    rating: int = 3
    name: str = ""
    truth: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedRecord:
    """A record whose pictures went through the frozen encoders already (``arimage prepare``).

    Attributes:
        size: (height, width) of the picture in pixels.
        codes: (h, w) visual tokens of the target; ``preview`` those of its preview, None for edits.
        latents: (C, H/8, W/8) normalised latents of the target.
        references: (codes, latents) of each source.
        captions, task, rating, name: as in :class:`Record`.
    """

    size: tuple[int, int]
    codes: Any
    preview: Any
    latents: Any
    references: tuple[tuple[Any, Any], ...]
    captions: dict[str, str]
    task: str = "picture"
    rating: int = 3
    name: str = ""
