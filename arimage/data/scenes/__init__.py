"""Scenes: pictures composed of artwork and text, with captions, edits and ground truth, without end.

    scenes = Scenes(Assets.open("data/nano"), SceneSettings(tasks={"subject": 1, "background": 1}))
    record = scenes[12345]

A record is a pure function of the settings and its index: the data set needs no disk, and any worker may draw any
part of it.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from random import Random

from PIL import Image, ImageDraw

from arimage.data.assets import Assets
from arimage.data.records import Record
from arimage.data.scenes.captions import captions
from arimage.data.scenes.compose import Composer
from arimage.data.scenes.draw import Drawn, draw
from arimage.data.scenes.edits import Edit, Editor
from arimage.data.scenes.quality import rating
from arimage.data.scenes.settings import PICTURE_TASKS, SceneSettings
from arimage.data.scenes.spec import Box, SceneSpec
from arimage.data.scenes.wordings import request

__all__ = ["SceneSettings", "Scenes"]

RUN = 64
MASK_MARGIN = 0.04


class Scenes:
    """An endless data set. Indices run from 0.

    Args:
        run: so many neighbours share a size, so that batches may be made of them.

    Raises:
        DataError: the assets hold too little for the settings.
    """

    def __init__(self, assets: Assets, settings: SceneSettings, run: int = RUN) -> None:
        self.assets, self.settings, self.run = assets, settings, run
        self.composer = Composer(assets, settings)
        self.editor = Editor(self.composer)
        self._tasks = [task for task, share in settings.tasks.items() if share]
        self._shares = [share for share in settings.tasks.values() if share]

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a record, without drawing it."""
        return Random(f"size/{self.settings.seed}/{index // self.run}").choice(self.settings.sizes)

    def task(self, index: int) -> str:
        """The task of a record, without drawing it."""
        return Random(f"task/{self.settings.seed}/{index}").choices(self._tasks, self._shares)[0]

    def __getitem__(self, index: int) -> Record:
        random = Random(f"{self.settings.split}/{self.settings.held}/{self.settings.seed}/{index}")
        task, size = self.task(index), self.size(index)
        for _ in range(50):
            record = self._picture(random, task, size) if task in PICTURE_TASKS else self._edit(random, task, size)
            if record.rating >= self.settings.minimum_rating:
                break
        record.truth["index"] = index
        return record

    def _picture(self, random: Random, task: str, size: tuple[int, int]) -> Record:
        spec = self.composer.until(
            random, lambda random: self.composer.picture(random, task, size), self.composer.allowed
        )
        spec = self.composer.aligned(spec)
        drawn = draw(spec, self.assets)
        told = captions(spec, self.assets, random, self.settings.styles_named, self.settings.free_wordings)
        grade = rating(spec, drawn, self.assets)
        return Record(drawn.image, told, task=task, rating=grade, name="scene", truth=truth(spec, drawn))

    def _worded(self, random: Random, task: str, edit: Edit) -> dict[str, str]:
        """The instructions of an edit, and those in free words: ``language/free 1`` and so on."""
        told = dict(edit.instructions)
        for language in edit.instructions:
            for number in range(1, self.settings.free_wordings + 1):
                if said := request(random, task, edit.sources[-1], edit.target, self.assets, language):
                    told[f"{language}/free {number}"] = said
        return told

    def _edit(self, random: Random, task: str, size: tuple[int, int]) -> Record:
        edit = self.editor.make(random, task, size)
        aligned = self.composer.aligned
        edit = replace(edit, sources=tuple(aligned(spec) for spec in edit.sources), target=aligned(edit.target))
        edit = replace(edit, instructions=self._worded(random, task, edit))
        drawn = draw(edit.target, self.assets)
        sources = [draw(spec, self.assets) for spec in edit.sources]
        mask = None
        facts = truth(edit.target, drawn)
        facts["sources"] = [truth(spec, source) for spec, source in zip(edit.sources, sources)]
        facts["changed"] = None
        if edit.local:
            boxes = changed_boxes(edit.sources[-1], sources[-1], edit.target, drawn)
            facts["changed"] = boxes
            if edit.masked:
                mask = edit_mask(boxes, size)
        grade = rating(edit.target, drawn, self.assets)
        images = tuple(source.image for source in sources)
        return Record(drawn.image, edit.instructions, images, mask, task, grade, "scene", facts)


def truth(spec: SceneSpec, drawn: Drawn) -> dict[str, object]:
    """What was drawn where: the scene's description, and the boxes of its parts in pixels."""
    return {"spec": asdict(spec), "subjects": drawn.subjects, "text": drawn.text, "holder": drawn.holder}


def changed_boxes(before: SceneSpec, drawn_before: Drawn, after: SceneSpec, drawn_after: Drawn) -> list[Box]:
    """Boxes of the parts that two scenes do not share; outside them the pictures are identical."""
    boxes: list[Box] = []
    old = dict(zip(before.subjects, drawn_before.reach))
    new = dict(zip(after.subjects, drawn_after.reach))
    for subject, box in [*old.items(), *new.items()]:
        if (subject in old) != (subject in new):
            boxes.append(box)
    if before.lettering != after.lettering:
        for part in (drawn_before, drawn_after):
            boxes += [_grown(box, 2, before) for box in (part.text, part.holder) if box is not None]
    return boxes


def _grown(box: Box, by: int, spec: SceneSpec) -> Box:
    left, top, right, bottom = box
    return max(0, left - by), max(0, top - by), min(spec.width, right + by), min(spec.height, bottom + by)


def edit_mask(boxes: Sequence[Box], size: tuple[int, int]) -> Image.Image:
    """A mask, L, that is white in some boxes and a little around them."""
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    margin = round(MASK_MARGIN * min(size))
    for left, top, right, bottom in boxes:
        pen.rectangle((left - margin, top - margin, right - 1 + margin, bottom - 1 + margin), fill=255)
    return mask
