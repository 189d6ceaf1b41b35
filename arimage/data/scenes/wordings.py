"""Prompts as people word them: many ways to ask for one picture or edit, from ``wordings.yaml``.

The captions of :mod:`arimage.data.scenes.captions` and the instructions of :mod:`arimage.data.scenes.edits` are few, so
a model that reads nothing else obeys nothing else.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from arimage.data.assets import Assets
from arimage.data.scenes import vocabulary as words
from arimage.data.scenes.spec import SceneSpec, Subject

FILE = Path(__file__).with_name("wordings.yaml")
CHOICE, SLOT = re.compile(r"\[([^\[\]]*)\]"), re.compile(r"\{(\w+)\}")
FRAMES, PICTURES, PLACED = "edit frames", "pictures", "identity placed"


@cache
def wordings() -> dict[str, dict[str, Any]]:
    """The templates by task and language; under ``places`` words by language and place."""
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def place(random: Random, name: str, language: str) -> str:
    """Words for a place."""
    return str(random.choice(wordings()["places"][language][name]))


def request(
    random: Random, task: str, before: SceneSpec, after: SceneSpec, assets: Assets, language: str
) -> str | None:
    """An edit's instruction in free words, or None where there are none for its task or its scenes."""
    on_banner = after.lettering is not None and after.lettering.holder != "none"
    if task not in wordings() or (task == "add text" and on_banner):
        return None
    values, needed = _Values(random, before, after, assets, language).found()
    if task == "identity":
        values["old"] = assets.sprites.concepts[after.subjects[0].concept].names[language]
    if task == "identity" and "where" in values:
        task, needed = PLACED, {"where"}
    found = _worded(random, wordings()[task][language], values, needed)
    if found is None:
        return None
    frame = _chosen(random, random.choice(wordings()[FRAMES][language]))
    return _finished(random, frame.replace("{request}", found), language)


def sentence(random: Random, body: str, spec: SceneSpec, style: str, language: str) -> str | None:
    """A picture's caption in free words, or None where its background is no plain colour.

    Args:
        body: its things and texts, and where they are.
        style: its name, if it is to be told.
    """
    if spec.background.pattern != "plain":
        return None
    values = {"body": body, **_colors(random, spec, language)}
    found = _worded(random, wordings()[PICTURES][language], values)
    if found is None:
        return None
    if style:
        chinese = language == "zh"
        found += random.choice(
            (f"，{style}风格", f"，用{style}风格") if chinese else (f", {style} style", f" in {style} style")
        )
    return _finished(random, found, language)


class _Values:
    """What templates of an edit can name, and what they must."""

    def __init__(self, random: Random, before: SceneSpec, after: SceneSpec, assets: Assets, language: str) -> None:
        self.random, self.before, self.after = random, before, after
        self.assets, self.language = assets, language

    def found(self) -> tuple[dict[str, str], set[str]]:
        before, after, language = self.before, self.after, self.language
        values = {"backdrop": words.backdrop(self.random, after.background, language)}
        if after.background.pattern == "plain":
            values |= _colors(self.random, after, language)
        new = [subject for subject in after.subjects if subject not in before.subjects]
        gone = [subject for subject in before.subjects if subject not in after.subjects]
        needed: set[str] = set()
        if new:
            values |= self._named("new", new[0]) | {"thing": self._thing(new[0])}
            values["style"] = words.style(self.random, new[0].style, language)
            if new[0].place and (new[0].place != "center" or not gone):
                values |= self._where(new[0].place)
        if gone:
            values |= self._named("old", gone[0])
        if after.lettering is not None:
            values["ink"] = words.colour(self.random, after.lettering.color, language)
            lines = after.lettering.lines
            old = () if before.lettering is None else before.lettering.lines
            changed = [place for place, line in enumerate(lines) if line not in old]
            values["text"] = self._quoted(lines[changed[0] if changed else 0])
            if before.lettering is None:
                values |= self._where(after.lettering.place)
            elif changed and len(old) == len(lines):
                values["old"] = self._quoted(old[changed[0]])
                needed = {"old"} if len(old) > 1 else needed
        return values, needed

    def _named(self, slot: str, subject: Subject) -> dict[str, str]:
        name = self.assets.sprites.concepts[subject.concept].names[self.language]
        return {slot: name, f"a_{slot}": name if self.language == "zh" else words.with_article(name)}

    def _thing(self, subject: Subject) -> str:
        return words.thing(self.random, subject, self.assets.sprites.concepts[subject.concept], self.language)

    def _where(self, name: str) -> dict[str, str]:
        where = place(self.random, name, self.language)
        to = where
        for short, long in (("in the ", "into the "), ("on the ", "to the "), ("at the ", "to the ")):
            to = long + to.removeprefix(short) if to.startswith(short) else to
        return {"where": where, "to": to}

    def _quoted(self, text: str) -> str:
        return words.quoted(self.random, text, self.language)


def _colors(random: Random, spec: SceneSpec, language: str) -> dict[str, str]:
    color = words.colour(random, spec.background.first, language)
    return {"color": color, "a_color": color if language == "zh" else words.with_article(color)}


def _worded(
    random: Random, templates: list[str], values: Mapping[str, str], needed: set[str] | frozenset[str] = frozenset()
) -> str | None:
    """One of the templates whose slots all have values, with those that are needed among them, filled."""
    for template in random.sample(templates, len(templates)):
        chosen = _chosen(random, template)
        slots = set(SLOT.findall(chosen))
        if needed <= slots <= set(values):
            return SLOT.sub(lambda slot: values[slot[1]], chosen)
    return None


def _chosen(random: Random, template: str) -> str:
    return CHOICE.sub(lambda match: random.choice(match[1].split("|")), template)


def _finished(random: Random, text: str, language: str) -> str:
    """With single spaces, none in Chinese sentences, and a large letter or a small one at the beginning."""
    text = " ".join(text.split())
    if language == "zh":
        return re.sub(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])", "", text)
    return (text[0].upper() if random.random() < 0.5 else text[0]) + text[1:]
