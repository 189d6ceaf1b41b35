"""The cases of an evaluation: what is asked for, of which scene, in which words."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from PIL import Image

from arimage.data.assets import Assets
from arimage.data.records import Record
from arimage.data.scenes import Scenes, edit_mask, truth
from arimage.data.scenes.draw import draw
from arimage.data.scenes.settings import PICTURE_TASKS
from arimage.data.scenes.spec import scene_spec
from arimage.errors import DataError
from arimage.evaluation.config import EvaluateConfig, GroupConfig
from arimage.evaluation.phrasings import fits, own_words

TRIES = 100


@dataclass(frozen=True)
class Second:
    """An edit that is made on the result of another.

    Attributes:
        prompt: its instruction.
        source: the true picture between the two.
    """

    prompt: str
    source: Image.Image


@dataclass(frozen=True)
class Case:
    """One picture that is asked for.

    Attributes:
        record: the scene; with a second edit from the first one's source to the second one's target.
        own_words: the kind of phrasings that the prompt is one of.
        second: what is asked for after that.
    """

    group: str
    index: int
    language: str
    prompt: str
    record: Record
    own_words: str | None = None
    second: Second | None = None

    @property
    def scene(self) -> dict[str, Any]:
        """The description of the scene, as data."""
        return self.record.truth["spec"]

    @property
    def prompts(self) -> str:
        """All that is asked for, for people to read."""
        return self.prompt if self.second is None else f"{self.prompt} → {self.second.prompt}"


def cases(config: EvaluateConfig, assets: Assets, group: str) -> list[Case]:
    """The cases of a group: each scene in each language.

    Raises:
        DataError: too few scenes of the group can be asked for in its own words.
    """
    settings = config.groups[group]
    scenes = Scenes(assets, settings.scenes)
    made = []
    for number, (index, record) in enumerate(_records(settings, scenes, settings.cases or config.cases, group)):
        kind = settings.own_words
        if settings.masked:
            record = replace(record, mask=edit_mask(record.truth["changed"], record.image.size))
        between, firsts = record, record.captions
        if settings.second:
            record, firsts = _after_another(scenes, record, index)
        for language in config.languages:
            prompt = firsts[f"{language}/sentence" if record.task in PICTURE_TASKS else language]
            if kind is not None:
                prompt = own_words(kind, number, record, assets, language, config.seed + index)
            second = Second(between.captions[language], between.sources[-1]) if settings.second else None
            made.append(Case(group, index, language, prompt, record, kind, second))
    return made


def _records(settings: GroupConfig, scenes: Scenes, count: int, group: str) -> Iterator[tuple[int, Record]]:
    """The first scenes that can be asked for, with their indices."""
    found = 0
    for index in range(TRIES * count):
        record = scenes[index]
        if settings.own_words is None or fits(settings.own_words, record):
            yield index, record
            found += 1
        if found == count:
            return
    raise DataError(f"groups.{group}: only {found} of {TRIES * count} scenes can be asked for in its own words")


def _after_another(scenes: Scenes, record: Record, index: int) -> tuple[Record, dict[str, str]]:
    """An edit with another before it that brings the background of its source: both as one, and the first's words."""
    random = Random(f"before/{scenes.settings.seed}/{index}")
    between = scene_spec(record.truth["sources"][-1]["spec"])
    start = replace(between, background=scenes.composer.background(random, between.background.first.name))
    drawn = draw(start, scenes.assets)
    facts = {**record.truth, "sources": [truth(start, drawn)], "changed": None}
    both = replace(record, sources=(drawn.image,), truth=facts)
    return both, scenes.editor.repainting(random, between.background)
