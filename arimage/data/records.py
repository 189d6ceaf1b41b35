"""One sample of a data set, whatever it comes from, and what happens when something is wrong with it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from arimage.errors import ArimageError, DataError

MAX_RATING = 5
PROMPT_ONLY = "prompt"


class SampleError(DataError):
    """One sample cannot be used: the message is its name and the reason, on one line.

    Attributes:
        name, reason: its two parts.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> Any:
        return SampleError, (self.name, self.reason)


class Unreachable(DataError):
    """Storage did not answer, however often it was asked: no fault of what was to be read."""


@dataclass(frozen=True)
class Record:
    """A picture and how it is asked for.

    Attributes:
        image: the picture that the model should make, RGB.
        captions: the text that asks for it, by kind (``en/sentence``, ``zh/long`` …; ``caption`` of people's data).
            With sources these are instructions.
        sources: the pictures that an edit starts from, RGB, in the order in which the text counts them.
        mask: L, white where an edit may change its (last) source; None where the instruction alone decides.
        task: what kind of sample it is; ``PROMPT_ONLY`` where there is a prompt alone, and ``image`` is blank.
        rating: 1 (poor) to 5 (very good).
        name: where it comes from, for messages.
        truth: what is known about the picture (what is where); empty for people's data.
        rejected: a picture that people liked less than ``image`` for the same caption, for learning from pairs.
    """

    image: Image.Image
    captions: dict[str, str]
    sources: tuple[Image.Image, ...] = ()
    mask: Image.Image | None = None
    task: str = "picture"
    rating: int = 3
    name: str = ""
    truth: dict[str, Any] = field(default_factory=dict)
    rejected: Image.Image | None = None


@dataclass(frozen=True, eq=False)
class EncodedReference:
    """A reference picture after the frozen encoders.

    Attributes:
        codes: (h, w) visual tokens.
        latents: (C, 4h, 4w), normalised, or None where they were left out.
    """

    codes: Any
    latents: Any

    def to(self, device: Any) -> "EncodedReference":
        """The reference on a device."""
        return EncodedReference(self.codes.to(device), None if self.latents is None else self.latents.to(device))


@dataclass(frozen=True)
class EncodedRecord:
    """A record whose pictures went through the frozen encoders already (``arimage prepare``).

    Attributes:
        size: (height, width) of the picture in pixels.
        codes: (h, w) visual tokens of the target; ``preview`` those of its preview, None for edits.
        latents: (C, H/8, W/8) normalised latents of the target, or None where they were left out.
        references: each source after the encoders.
        captions, task, rating, name: as in :class:`Record`.
    """

    size: tuple[int, int]
    codes: Any
    preview: Any
    latents: Any
    references: tuple[EncodedReference, ...]
    captions: dict[str, str]
    task: str = "picture"
    rating: int = 3
    name: str = ""


class Sample:
    """A record that is not read yet.

    Args:
        name: for messages: the file, and the line, row or key in it; no two samples of a data set share one.
        load: gives the record. Whatever it raises makes this sample bad, and no other.
    """

    def __init__(self, name: str, load: Callable[[], Record]) -> None:
        self.name, self.load = printable(name), load

    def read(self) -> Record:
        """The record.

        Raises:
            SampleError: something is wrong with it.
        """
        try:
            return replace(self.load(), name=self.name)
        except Exception as error:  # what decoders raise on people's files has no common class
            raise SampleError(self.name, reason(error)) from None


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Let whatever is raised inside say what it is about.

    Raises:
        DataError: ``what: reason``, on one line.
    """
    try:
        yield
    except Unreachable:
        raise
    except Exception as error:
        raise DataError(f"{what}: {reason(error)}") from None


def reason(error: Exception) -> str:
    """Why something cannot be read, on one line that can be printed anywhere."""
    if isinstance(error, UnicodeDecodeError):
        text = f"byte {error.start + 1} is not UTF-8"
    elif isinstance(error, json.JSONDecodeError):
        text = f"no valid JSON: {error.msg} (character {error.pos + 1})"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = next((line.rstrip(" :") for line in str(error).splitlines() if line.strip()), "")
        if not isinstance(error, (ArimageError, OSError, ValueError)) or not text:
            text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return printable(text)


def printable(text: str) -> str:
    """Bytes of a file's name that are no UTF-8 become escapes, so that the name can be printed and written."""
    return text.encode("utf-8", "backslashreplace").decode()
