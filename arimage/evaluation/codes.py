"""What a semantic tokenizer's codes are worth by themselves: the same for the same thing, and letters can be told.

A thing should have the same codes on another background, at another place and beside other things; then an edit of
the background is mostly a copy, and one thing is one word to learn. A character should be readable from its code alone.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from arimage.data.assets import Assets
from arimage.data.records import Record
from arimage.data.scenes import Scenes
from arimage.data.scenes.cells import cells_of, flat, letter_cells, subject_square
from arimage.data.scenes.compose import PLACES
from arimage.data.scenes.draw import draw
from arimage.data.scenes.settings import SceneSettings
from arimage.data.scenes.spec import Box, SceneSpec, scene_spec
from arimage.data.split import concept_held_out
from arimage.evaluation.judge import Share
from tokenizer.image_size import PIXELS_PER_TOKEN
from tokenizer.semantic_tokenizer import SemanticTokenizer, half_size_pixels

CHANGES = ("another background", "another place", "other things beside it")
CORNER_PLACES = ("top left", "top right", "bottom left", "bottom right")
AT_ONCE = 32


def stability(
    tokenizer: SemanticTokenizer, assets: Assets, settings: SceneSettings, count: int, seed: int = 0
) -> dict[str, list[Share]]:
    """For ``count`` things of scenes: cells whose code stays, of those that show something, under each change.

    Args:
        settings: scenes of one subject each are drawn under them; they must stand on a grid of cells (``cells``).
            Where they hold out concepts, only things that training never saw are looked at.

    Returns:
        Shares by the change: ``another background``, ``another place``, ``other things beside it``.
    """
    scenes = Scenes(assets, settings.model_copy(update={"tasks": {"corners": 1.0}}))
    composer, random = scenes.composer, Random(f"stability/{seed}")
    pictures: list[Image.Image] = []
    places: list[tuple[int, int, int]] = []
    for scene in itertools.islice(with_first(scenes), count):
        alone = replace(scene, subjects=scene.subjects[:1])
        other = replace(alone, background=composer.background(random, scene.background.first.name))
        x, y = PLACES[random.choice(CORNER_PLACES[1:])]
        moved = composer.aligned(replace(alone, subjects=(replace(scene.subjects[0], x=x, y=y),)))
        for spec in (alone, other, moved, scene):
            pictures.append(draw(spec, assets).image)
            places.append(_area(spec))
    codes, shows = _encoded(tokenizer, pictures)
    found: dict[str, list[Share]] = {name: [] for name in CHANGES}
    for first in range(0, len(pictures), 1 + len(CHANGES)):
        for number, name in enumerate(CHANGES, 1):
            a, b = (_cut(codes[at], places[at]) for at in (first, first + number))
            shown = _cut(shows[first], places[first]) | _cut(shows[first + number], places[first + number])
            found[name].append((float((a == b)[shown].sum()), float(shown.sum())))
    return found


def with_first(scenes: Scenes) -> Iterator[SceneSpec]:
    """Scenes whose first thing training never saw, where the settings hold that out; else all."""
    for index in itertools.count():
        scene = scene_spec(scenes[index].truth["spec"])
        if scenes.settings.held != "reference concept" or concept_held_out(scene.subjects[0].concept):
            yield scene


def characters(
    tokenizer: SemanticTokenizer,
    assets: Assets,
    training: SceneSettings,
    held_out: SceneSettings,
    count: int,
    learnt: int = 1600,
) -> list[Share]:
    """Characters of ``count`` held-out texts that their code names: (right, characters) of each text.

    A code stands for the character that it has most often in ``learnt`` texts of ``training``, which must be so many
    that rare characters occur.
    """
    votes: dict[int, Counter[str]] = {}
    for _, character, code in _spelt(tokenizer, assets, training, learnt):
        votes.setdefault(code, Counter())[character] += 1
    meant = {code: counter.most_common(1)[0][0] for code, counter in votes.items()}
    shares: dict[int, list[float]] = {}
    for number, character, code in _spelt(tokenizer, assets, held_out, count):
        right = shares.setdefault(number, [0.0, 0.0])
        right[0] += meant.get(code) == character
        right[1] += 1
    return [(right, of) for right, of in shares.values()]


def counted_cells(tokenizer: SemanticTokenizer, record: Record) -> tuple[Tensor, dict[str, Tensor]]:
    """A true picture's codes (h, w), and the cells (h, w) bool that are counted of a generated grid.

    Those are cells that show something, by what they show: of a picture from text its ``codes``; of an edit ``codes
    kept``, where a part of the source stands as it did, and ``codes changed``, where one comes, or was before.
    """
    pictures = [picture.convert("RGB") for picture in (record.image, *record.sources[-1:])]
    codes, shows = _encoded(tokenizer, pictures)
    after, true = _parts(record.truth), codes[0]
    if not record.sources:
        return true, {"codes": _covered(after.values(), true) & shows[0]}
    before = _parts(record.truth["sources"][-1])
    kept = _covered([after[part] for part in after if part in before], true) & shows[0]
    come = _covered([after[part] for part in after if part not in before], true) & shows[0]
    gone = _covered([before[part] for part in before if part not in after], true)
    if shows[-1].shape == true.shape:
        gone &= shows[-1]
    cells = {"codes kept": kept, "codes changed": (come | gone) & ~kept}
    return true, {kind: chosen for kind, chosen in cells.items() if chosen.any()}


def _parts(facts: Mapping[str, Any]) -> dict[object, Box]:
    """The boxes of a drawn scene's subjects and text."""
    spec = scene_spec(facts["spec"])
    parts: dict[object, Box] = dict(zip(spec.subjects, facts["subjects"]))
    return parts if spec.lettering is None else parts | {spec.lettering: facts["text"]}


def _covered(boxes: Iterable[Box], grid: Tensor) -> Tensor:
    """The cells of a grid that boxes touch."""
    cells = torch.zeros(grid.shape, dtype=torch.bool)
    for box in boxes:
        left, top, right, bottom = (edge / PIXELS_PER_TOKEN for edge in box)
        cells[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = True
    return cells


def _spelt(
    tokenizer: SemanticTokenizer, assets: Assets, settings: SceneSettings, count: int
) -> list[tuple[int, str, int]]:
    """The characters of scenes of text and the codes of their cells: (scene, character, code)."""
    scenes = Scenes(assets, settings.model_copy(update={"tasks": {"typography": 1.0}}))
    found = []
    for start in range(0, count, AT_ONCE):
        records = [scenes[index] for index in range(start, min(count, start + AT_ONCE))]
        grids, _ = _encoded(tokenizer, [record.image for record in records])
        for number, (record, grid) in enumerate(zip(records, grids)):
            spec = scene_spec(record.truth["spec"])
            places = letter_cells(spec, *grid.shape)
            assert spec.lettering is not None
            for place, character in enumerate(spec.lettering.text):
                for code in grid[places == place].tolist():
                    found.append((start + number, character, code))
    return found


def _area(spec: SceneSpec) -> tuple[int, int, int]:
    """Row, column and side of a scene's first subject, in visual tokens."""
    top, left, side = subject_square(spec.subjects[0], spec, PIXELS_PER_TOKEN)
    return round(top), round(left), round(side)


def _cut(grid: Tensor, area: tuple[int, int, int]) -> Tensor:
    top, left, side = area
    return grid[top : top + side, left : left + side]


def _encoded(tokenizer: SemanticTokenizer, pictures: Sequence[Image.Image]) -> tuple[list[Tensor], list[Tensor]]:
    """Codes, and which cells show something: (h, w) of each picture."""
    codes: list[Tensor] = []
    for start in range(0, len(pictures), AT_ONCE):
        codes += tokenizer.encode(pictures[start : start + AT_ONCE])
    patch = tokenizer.model.visual.config.patch_size
    return codes, [~flat(cells_of(half_size_pixels(picture)[None], patch))[0] for picture in pictures]
