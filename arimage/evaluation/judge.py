"""What is right about a picture, by the description of the scene that it should show.

A judgement is a share: (points, of how many), so that words and characters can be pooled over pictures. The very same
judgement of the true scene is the ceiling that stands beside it.
"""

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arimage.data.assets import Assets
from arimage.data.colors import BY_NAME
from arimage.data.scenes.draw import draw
from arimage.data.scenes.spec import Background, Box, SceneSpec, Shade, Subject
from arimage.data.scenes.vocabulary import names_style
from arimage.evaluation.cases import Case
from arimage.evaluation.features import PictureFeatures
from arimage.evaluation.measures import Foreground, foreground, named_color_found, region_psnr, square_crop
from arimage.evaluation.phrasings import KINDS
from arimage.evaluation.reading import TextReader, characters_found, word_similarity, words_found

Share = tuple[float, float]
NEAR = 0.12
ENOUGH_PSNR = 24.0
GALLERY_SIDE = 192
SAME = 2
SPILL = 0.04


class Judge:
    """Judges pictures; keeps the features of all sprites that it compares with."""

    def __init__(self, assets: Assets, concepts: tuple[str, ...], styles: tuple[str, ...]) -> None:
        self.assets, self.concepts, self.styles = assets, concepts, styles
        self._galleries: dict[tuple[str, str], Tensor] = {}

    @cached_property
    def features(self) -> PictureFeatures:
        return PictureFeatures()

    @cached_property
    def reader(self) -> TextReader:
        return TextReader()

    def __call__(self, case: Case, picture: Image.Image) -> dict[str, Share]:
        """Judgements by ability; of a prompt in own words those of its kind, under names of their own."""
        if case.second is not None:
            first, second = self._repainted(case, picture), self._edited(case, picture)
            return {"two edits": _all(first, second), "two edits, first": first, "two edits, second": _all(second)}
        if case.record.mask is not None and case.record.task in ("replace", "add"):
            return {"masked edit": _all(self._boxed(case, picture), _untouched(case, picture))}
        shares = self._shares(case, picture)
        if case.own_words is None:
            return shares
        ability = KINDS[case.own_words].ability
        return {f"{name}, own words": share for name, share in shares.items() if name.startswith(ability)}

    def ability(self, name: str, case: Case, picture: Image.Image) -> Share | None:
        """One judgement alone, None where the case does not ask for it; what is not needed for it is not measured."""
        judge = self._judgements(case, picture).get(name)
        return None if judge is None else judge()

    def _shares(self, case: Case, picture: Image.Image) -> dict[str, Share]:
        """All judgements of a case; text that a prompt in own words did not ask for is no fault of theirs."""
        return {
            name: judge()
            for name, judge in self._judgements(case, picture).items()
            if case.own_words is None or name != "false text"
        }

    def _judgements(self, case: Case, picture: Image.Image) -> dict[str, Callable[[], Share]]:
        """What a case is judged by, each computed when it is called."""
        task = case.record.task
        seen, lines = cache(lambda: foreground(picture)), cache(lambda: self.reader(picture))

        def no_text() -> Share:
            return float(any(len(line.strip()) > 1 for line in lines())), 1

        def edited() -> Share:
            return self._edited(case, picture)

        if task in ("subject", "subjects"):
            ground = {"background colour": lambda: self._background(case, picture)}
            if len(case.scene["subjects"]) > 1:
                two = {"placement, two": lambda: (float(self._two(case, picture)), 1)}
                return {**ground, **two, "false text": no_text}
            one: dict[str, Callable[[], Share]] = {
                "subject": lambda: self._seen(case, picture, seen()),
                "subject, in its style": lambda: self._seen(case, picture, seen(), its_style=True),
                "placement, one": lambda: (float(_near(seen(), case)), 1),
            }
            return {**ground, **one, "false text": no_text}
        if task in ("text", "typography", "lines"):
            if task == "lines":
                return {"lines of text": lambda: self._spelt(case, lines())}
            if self._language(case) == "zh":
                return {"Chinese text": lambda: self._spelt(case, lines())}
            return {
                "English text": lambda: self._spelt(case, lines()),
                "English text, NED": lambda: (word_similarity(case.scene["lettering"]["text"], lines()), 1),
            }
        if task == "background":
            return {"edit: background": lambda: self._repainted(case, picture)}
        if task == "replace":
            return {
                "edit: replace subject": edited,
                "edit: replace subject, in its style": lambda: self._boxed(case, picture, its_style=True),
            }
        if task == "add":
            return {"edit: add subject": lambda: _all(edited(), self._kept(case, picture))}
        if task == "remove":
            return {"edit: remove subject": lambda: _all(edited(), self._repainted(case, picture))}
        if task == "move":
            return {"edit: move subject": lambda: self._moved(case, picture)}
        if task in ("add text", "change text"):
            return {f"edit: text ({self._language(case)})": edited}
        if task == "style":
            return {"edit: style": lambda: self._style(case, picture)}
        if task == "identity":
            return {"identity": lambda: self._seen(case, picture, seen())}
        return {}

    # Abilities

    def _background(self, case: Case, picture: Image.Image) -> Share:
        name = case.scene["background"]["first"]["name"]
        return float(named_color_found(picture, BY_NAME[name].rgb)), 1

    def _language(self, case: Case) -> str:
        return case.scene["lettering"]["language"]

    def _spelt(self, case: Case, lines: list[str]) -> Share:
        """Words, or Chinese characters, of the scene's text that were read."""
        found = characters_found if self._language(case) == "zh" else words_found
        return found(case.scene["lettering"]["text"], lines)

    def _seen(self, case: Case, picture: Image.Image, seen: Foreground | None, its_style: bool = False) -> Share:
        """Whether what stands out is nearer to the wanted concept than to any other."""
        return float(seen is not None and self._is(case, picture, seen.box, case.scene["subjects"][0], its_style)), 1

    def _boxed(self, case: Case, picture: Image.Image, its_style: bool = False) -> Share:
        """The same of the one subject that the edit brought, in its own box, where something must stand out."""
        before = case.record.truth["sources"][-1]["spec"]["subjects"]
        for subject, box in zip(case.scene["subjects"], case.record.truth["subjects"]):
            if subject not in before:
                empty = foreground(picture, box) is None and foreground(case.record.image, box) is not None
                return float(not empty and self._is(case, picture, box, subject, its_style)), 1
        return 0.0, 1

    def _edited(self, case: Case, picture: Image.Image) -> Share:
        """What a local edit asked for, and nothing else."""
        if case.record.task == "remove":
            return self._emptied(case, picture)
        if case.record.task in ("add text", "change text"):
            return self._spelt(case, self.reader(picture))
        return self._boxed(case, picture)

    def _moved(self, case: Case, picture: Image.Image) -> Share:
        """Whether the one subject stands at its new place, nothing is left at the old one, and the ground is right."""
        seen, ground = foreground(picture), self._background(case, picture)
        there = float(_near(seen, case)), 1
        return _all(self._seen(case, picture, seen), there, self._emptied(case, picture), ground)

    def _repainted(self, case: Case, picture: Image.Image) -> Share:
        """Whether the background is right and what stood on it before stands there still."""
        return _all(self._background(case, picture), self._kept(case, picture))

    def _kept(self, case: Case, picture: Image.Image) -> Share:
        """Whether the subjects of both scenes are as they were: 24 dB where the scenes agree inside their boxes."""
        source, target = case.record.sources[-1], case.record.image
        same = np.abs(np.asarray(source, np.int16) - np.asarray(target, np.int16)).max(axis=2) <= SAME
        region = np.zeros_like(same)
        before = case.record.truth["sources"][-1]["spec"]["subjects"]
        for subject, (left, top, right, bottom) in zip(case.scene["subjects"], case.record.truth["subjects"]):
            if subject in before:
                region[top:bottom, left:right] = True
        return float(region_psnr(picture, target, region & same) >= ENOUGH_PSNR), 1

    def _emptied(self, case: Case, picture: Image.Image) -> Share:
        """Whether nothing stands out any more where subjects were that are gone; others may spill over a little."""
        before = case.record.truth["sources"][-1]
        spill = round(SPILL * min(picture.size))
        others = [(a - spill, b - spill, c + spill, d + spill) for a, b, c, d in case.record.truth["subjects"]]
        gone = [
            box
            for subject, box in zip(before["spec"]["subjects"], before["subjects"])
            if subject not in case.scene["subjects"]
        ]
        return float(all(foreground(picture, box, others) is None for box in gone)), 1

    def _style(self, case: Case, picture: Image.Image) -> Share:
        """Whether each subject is nearer to its own sprite in the wanted style than in any other."""
        right = 0.0
        subjects, boxes = case.scene["subjects"], case.record.truth["subjects"]
        for subject, box in zip(subjects, boxes):
            feature = self.features([square_crop(picture, box)])[0]
            column = self.concepts.index(subject["concept"])
            scores = {style: float(self._gallery(style, case)[column] @ feature) for style in self.styles}
            right += max(scores, key=lambda style: scores[style]) == subject["style"]
        return right / len(subjects), 1

    def _two(self, case: Case, picture: Image.Image) -> bool:
        """Whether two subjects stand in their halves, each more like the sprite that belongs there than the other."""
        first, second = case.scene["subjects"]
        across = abs(first["x"] - second["x"]) > abs(first["y"] - second["y"])
        halves = self._halves(picture, across)
        true = self._halves(case.record.image, across)
        wanted = sorted((first, second), key=lambda s: s["x"] if across else s["y"])
        features = []
        for half, real in zip(halves, true):
            seen, should = foreground(picture, half), foreground(case.record.image, real)
            if seen is None or should is None or not _close(seen, should):
                return False
            features.append(self.features([square_crop(picture, seen.box)])[0])
        gallery = self._gallery(first["style"], case)
        rows = [gallery[self.concepts.index(subject["concept"])] for subject in wanted]
        straight = features[0] @ rows[0] + features[1] @ rows[1]
        return bool(straight > features[0] @ rows[1] + features[1] @ rows[0])

    # Sprites

    @staticmethod
    def _halves(picture: Image.Image, across: bool) -> tuple[Box, Box]:
        width, height = picture.size
        if across:
            return (0, 0, width // 2, height), (width // 2, 0, width, height)
        return (0, 0, width, height // 2), (0, height // 2, width, height)

    def _is(
        self, case: Case, picture: Image.Image, box: Box, subject: Mapping[str, Any], its_style: bool = False
    ) -> bool:
        """Whether what is shown there is nearer to a sprite of the wanted concept than to any other sprite: of the
        scene's style where that is asked for, by the prompt, a reference or ``its_style``, else of any style."""
        asked_for = its_style or case.record.task == "identity" or names_style(case.prompts, self.styles)
        styles = (subject["style"],) if asked_for else self.styles
        gallery = torch.stack([self._gallery(style, case) for style in styles])
        feature = self.features([square_crop(picture, box)])[0]
        return self.concepts[int((gallery @ feature).amax(dim=0).argmax())] == subject["concept"]

    def _gallery(self, style: str, case: Case) -> Tensor:
        """Features of every concept's sprite in a style, on the case's background colour."""
        color = case.scene["background"]["first"]["name"]
        if (style, color) not in self._galleries:
            ground = Background("plain", Shade(color, BY_NAME[color].rgb))
            crops = []
            for concept in self.concepts:
                sprite = Subject(concept, style, 0.5, 0.5, 0.8)
                drawn = draw(SceneSpec(GALLERY_SIDE, GALLERY_SIDE, ground, (sprite,)), self.assets)
                crops.append(square_crop(drawn.image, drawn.subjects[0]))
            self._galleries[style, color] = self.features.remembered(crops)
        return self._galleries[style, color]


def _all(*shares: Share) -> Share:
    return float(all(points == of for points, of in shares)), 1


def _untouched(case: Case, picture: Image.Image) -> Share:
    """Whether the picture is its source, bit for bit, where the mask protects it."""
    assert case.record.mask is not None
    protected = np.asarray(case.record.mask) <= 127
    made, source = (np.asarray(one.convert("RGB"))[protected] for one in (picture, case.record.sources[-1]))
    return float(np.array_equal(made, source)), 1


def _close(seen: Foreground, should: Foreground) -> bool:
    return abs(seen.x - should.x) < NEAR and abs(seen.y - should.y) < NEAR


def _near(seen: Foreground | None, case: Case) -> bool:
    """Whether the centre of mass is where the true scene's is."""
    should = foreground(case.record.image)
    return seen is not None and should is not None and _close(seen, should)
