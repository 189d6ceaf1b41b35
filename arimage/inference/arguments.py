"""The arguments of a call, checked and opened."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from arimage.errors import Cancelled, UsageError
from arimage.images.opening import Picture, PictureInput, open_picture
from arimage.images.recipe import Source, is_text
from arimage.inference.requests import Progress
from arimage.inference.results import GeneratedImage
from arimage.inference.settings import Options

MAX_SEED = 2**63
NOTICED_SHARE = 0.9
MAX_PROMPT_TOKENS = 4096
Input = PictureInput | GeneratedImage


def watching(options: Options) -> Callable[[Progress], None]:
    """What is called as a call goes on: the caller's ``on_progress``, and its end where ``cancel`` is set.

    Raises:
        UsageError: an option is nothing that can be called, or no event.
        Cancelled: ``cancel`` is set already.
    """
    on_progress, cancel = options.get("on_progress"), options.get("cancel")
    for name in ("on_progress", "on_preview", "on_image"):
        if options.get(name) is not None and not callable(options.get(name)):
            raise UsageError(f"{name} must be a function, got {type(options.get(name)).__name__}")
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise UsageError(f"cancel must be an event such as threading.Event, got {type(cancel).__name__}")
    if cancel is not None and cancel.is_set():
        raise Cancelled("cancelled before it began")

    def watched(progress: Progress) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled(f"cancelled at {progress.stage} {progress.done} of {progress.total}")
        if on_progress is not None:
            on_progress(progress)

    return watched


def open_all(sources: Sequence[Any], called: str, deep: bool = False) -> list[Picture]:
    """Inputs, results of earlier calls among them, as pictures; with ``deep`` the first has all of its 16 bits."""
    pictures = []
    for number, source in enumerate(sources):
        name = f"the {called}" if len(sources) == 1 else f"{called} {number + 1}"
        whole = deep and number == 0
        if isinstance(source, GeneratedImage):
            picture = replace(open_picture(source.image, called=name), icc_profile=source.icc_profile)
            if whole and source.deep is not None:
                picture = replace(picture, bits=16, deep=source.deep)
        else:
            picture = open_picture(source, deep=whole, called=name)
        pictures.append(picture)
    return pictures


def layout_notices(layout: Picture, followed: Image.Image, references: bool) -> list[str]:
    """What should be known about a layout of which a part is followed."""
    notices = []
    (height, width), name = layout.size, layout.path or "the layout"
    if min(followed.width / width, followed.height / height) < NOTICED_SHARE:
        notices.append(
            f"{name}: the middle of {followed.width}x{followed.height} of its {width}x{height} pixels is followed, "
            "in the aspect of size"
        )
    if references:
        notices.append("a layout beside references: the format trains no such pictures, so they may follow neither")
    return notices


def checked_prompts(prompt: str | Sequence[str]) -> list[str]:
    """One or several prompts as a list.

    Raises:
        UsageError: there is none, or one is no text.
    """
    prompts = [prompt] if isinstance(prompt, str) or not isinstance(prompt, Iterable) else list(prompt)
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise UsageError("prompt must be a text or a list of texts, at least one")
    return prompts


def numbered(prompts: Sequence[str], images_per_prompt: int, seed: int | None) -> list[tuple[str, int]]:
    """Each picture's prompt and seed."""
    if not isinstance(images_per_prompt, int) or images_per_prompt < 1:
        raise UsageError(f"images_per_prompt must be a whole number of at least 1, got {images_per_prompt!r}")
    seed = secrets.randbelow(2**32) if seed is None else seed
    texts = [text for text in prompts for _ in range(images_per_prompt)]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED - len(texts):
        raise UsageError(f"seed must be a whole number in 0..2**63-1, room for every picture included; got {seed!r}")
    return [(text, seed + i) for i, text in enumerate(texts)]


def refuse_broken(name: str, text: str) -> None:
    """Raise UsageError where a text cannot be written as UTF-8."""
    if not is_text(text):
        raise UsageError(f"{name} {text!a} is not valid text: write it in UTF-8")


def source_of(picture: Picture) -> Source:
    """A picture as a recipe names it."""
    path = None if picture.path is None else str(Path(picture.path).resolve())
    return Source(path=path, sha256=picture.sha256())
