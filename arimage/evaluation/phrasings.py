"""Prompts in words of one's own: handwritten phrasings that the grammar of the captions never produces.

``phrasings.yaml`` beside this module holds them, by kind and language, with slots for names, colours, places, texts
and styles.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import yaml

from arimage.data.assets import Assets
from arimage.data.records import Record
from arimage.data.scenes import vocabulary as words
from arimage.data.scenes.spec import SceneSpec, Subject, scene_spec

FILE = Path(__file__).with_name("phrasings.yaml")
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Kind:
    """What some phrasings ask for.

    Attributes:
        task: of the scenes that they can ask for.
        ability: the judgement that they are measured by; those whose names begin with it.
        slots: what each phrasing must say; ``a_subject`` and ``a_color`` say what ``subject`` and ``color`` do.
        optional: what it may say besides.
    """

    task: str
    ability: str
    slots: frozenset[str]
    optional: frozenset[str] = frozenset()


KINDS = {
    "subject": Kind("subject", "subject", frozenset({"subject", "color"})),
    "background colour": Kind("subject", "background colour", frozenset({"subject", "color"})),
    "placement": Kind("subject", "placement", frozenset({"subject", "color", "place"})),
    "English text": Kind("typography", "English text", frozenset({"text", "color"})),
    "Chinese text": Kind("typography", "Chinese text", frozenset({"text", "color"})),
    "edit background": Kind("background", "edit: background", frozenset({"color"})),
    "edit replace": Kind("replace", "edit: replace subject", frozenset({"old", "subject"})),
    "edit remove": Kind("remove", "edit: remove subject", frozenset({"old"})),
    "edit add": Kind("add", "edit: add subject", frozenset({"subject", "place"})),
    "edit text": Kind("change text", "edit: text", frozenset({"text"}), frozenset({"old"})),
    "edit style": Kind("style", "edit: style", frozenset({"style"})),
}


@cache
def phrasings() -> dict[str, dict[str, list[str]]]:
    """The phrasings by kind and language, as they stand in the file."""
    return {kind: found for kind, found in _file().items() if kind != "places"}


@cache
def _file() -> dict[str, dict[str, list[str]]]:
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def own_places() -> Mapping[str, Mapping[str, list[str]]]:
    """Words for places, by language and place."""
    return _file()["places"]  # type: ignore[return-value]


def said(phrasing: str) -> frozenset[str]:
    """The slots of a phrasing, without articles."""
    return frozenset(name.removeprefix("a_") for name in SLOT.findall(phrasing))


def fits(kind: str, record: Record) -> bool:
    """Whether the phrasings of a kind say all that a picture from text needs; an edit always has its instruction.

    A subject away from the middle needs a phrasing of its place and the others one in the middle; a text stands on the
    background itself, not on a banner.
    """
    if record.sources:
        return True
    spec = scene_spec(record.truth["spec"])
    if spec.lettering is not None:
        return spec.lettering.holder == "none"
    return all((subject.place != "center") == ("place" in KINDS[kind].slots) for subject in spec.subjects)


def own_words(kind: str, number: int, record: Record, assets: Assets, language: str, seed: int) -> str:
    """A prompt for a record: the kind's phrasing of a number (modulo their count) with its slots filled.

    Args:
        seed: decides synonyms, places' words and quotes.
    """
    choices = phrasings()[kind][language]
    phrasing = choices[number % len(choices)]
    values = _values(record, assets, language, Random(f"own words/{seed}"))
    prompt = SLOT.sub(lambda slot: values[slot[1]], phrasing)
    return prompt[0].upper() + prompt[1:]


def _values(record: Record, assets: Assets, language: str, random: Random) -> dict[str, str]:
    after = scene_spec(record.truth["spec"])
    before = scene_spec(record.truth["sources"][-1]["spec"]) if record.sources else None
    new = after.subjects if before is None else _only_in(after, before)
    gone = () if before is None else _only_in(before, after)
    values = {"color": words.colour(random, after.background.first, language)}
    if language == "en":
        values["a_color"] = words.with_article(values["color"])
    if new:
        concept = assets.sprites.concepts[new[0].concept]
        values |= {
            "subject": concept.names[language],
            "a_subject": words.thing(random, new[0], concept, language),
            "style": words.style(random, new[0].style, language),
        }
        if places := own_places()[language].get(new[0].place):
            values["place"] = random.choice(places)
    if gone:
        values["old"] = assets.sprites.concepts[gone[0].concept].names[language]
    if after.lettering is not None:
        values["text"] = words.quoted(random, after.lettering.text, language)
    if before is not None and before.lettering is not None:
        values["old"] = words.quoted(random, before.lettering.text, language)
    return values


def _only_in(scene: SceneSpec, other: SceneSpec) -> tuple[Subject, ...]:
    return tuple(subject for subject in scene.subjects if subject not in other.subjects)
