"""Things that an edit keeps have in its target the codes that they have in its reference.

A tokenizer gives a thing that it has learnt one code per cell on every background. The codes of a thing that it has
never seen hang on the background, so that a third of the codes of an edit's true target can be found nowhere in its
reference. No model can foretell those. Scenes say which cell shows what, so codes can be taken over from the reference,
wherever the thing stands by then: the autoregressive model learns to copy, and the decoder to render what was copied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from arimage.data.records import Record
from arimage.data.scenes.cells import subject_square
from arimage.data.scenes.spec import SceneSpec, Subject, scene_spec
from tokenizer.image_size import PIXELS_PER_TOKEN, SizeLimits, reference_size

NO_CELLS = torch.empty(0, 5, dtype=torch.long)
WHOLE = 0.02  # of a cell, by which something may stand beside the grid


def kept_cells(record: Record, limits: SizeLimits) -> Tensor:
    """Which cells of a scene show what a cell of a reference shows, things that stand on the grid of codes alone.

    Args:
        limits: of references; one that is seen at another size than it was drawn at is left out.

    Returns:
        (N, 5) int64: row and column in the target; number of the reference, row and column in it. None of a picture
        without a plan.
    """
    facts = record.truth.get("spec")
    if not isinstance(facts, Mapping):
        return NO_CELLS
    target = scene_spec(facts)
    found: list[tuple[int, int, int, int, int]] = []
    for number, source_facts in enumerate(record.truth.get("sources", ())):
        source = scene_spec(source_facts["spec"])
        if reference_size(source.height, source.width, limits) != (source.height, source.width):
            continue
        for subject in target.subjects:
            one = _same(subject, source)
            here, there = _cells(subject, target), None if one is None else _cells(one, source)
            if here is None or there is None or here[2] != there[2]:
                continue
            (top, left, side), (other_top, other_left, _) = here, there
            found += [
                (top + row, left + column, number, other_top + row, other_left + column)
                for row in range(side)
                for column in range(side)
            ]
    return torch.tensor(found, dtype=torch.long) if found else NO_CELLS


def with_kept_codes(target: Tensor, references: Sequence[Tensor], cells: Tensor) -> Tensor:
    """Codes (h, w) of a target with those of its references (h', w') in ``cells`` (:func:`kept_cells`), where both
    show something else than their commonest code, the ground."""
    if not len(cells):
        return target
    rows, columns, numbers, other_rows, other_columns = cells.to(target.device).T
    shown, made = target != target.flatten().mode().values, target.clone()
    for number, reference in enumerate(references):
        reference = reference.to(target)
        chosen = numbers == number
        here = rows[chosen], columns[chosen]
        there = reference[other_rows[chosen], other_columns[chosen]]
        taken = (there != reference.flatten().mode().values) & shown[here]
        made[here] = torch.where(taken, there, made[here])
    return made


def _same(subject: Subject, scene: SceneSpec) -> Subject | None:
    """The thing of a scene that looks like a subject; the nearest, if there are several."""
    alike = [one for one in scene.subjects if _looks(one) == _looks(subject)]
    return min(alike, key=lambda one: (one.x - subject.x) ** 2 + (one.y - subject.y) ** 2, default=None)


def _looks(subject: Subject) -> Subject:
    return replace(subject, x=0.0, y=0.0, place="", scale="")


def _cells(subject: Subject, scene: SceneSpec) -> tuple[int, int, int] | None:
    """Row, column and side of a subject in cells; None where it does not fill whole ones."""
    exact = subject_square(subject, scene, PIXELS_PER_TOKEN)
    top, left, cells = (round(value) for value in exact)
    inside = min(top, left) >= 0 and top + cells <= scene.height // PIXELS_PER_TOKEN
    if any(abs(value - round(value)) > WHOLE for value in exact) or not inside:
        return None
    return (top, left, cells) if left + cells <= scene.width // PIXELS_PER_TOKEN else None
