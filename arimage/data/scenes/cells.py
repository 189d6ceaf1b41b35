"""The cells of a scene: what one visual token covers, seen at half size as the vision encoder sees it."""

import torch
from torch import Tensor

from arimage.data.scenes.spec import SceneSpec, Subject

FLAT = 0.02


def cells_of(views: Tensor, patch: int) -> Tensor:
    """(B, 3, h*patch, w*patch) to (B, h, w, 3 * patch * patch)."""
    parts = views.unfold(2, patch, patch).unfold(3, patch, patch)
    return parts.permute(0, 2, 3, 1, 4, 5).flatten(3)


def flat(cells: Tensor) -> Tensor:
    """Which cells have one colour all over: (..., 3 * patch * patch) in [-1, 1] to (...) bool."""
    channels = cells.unflatten(-1, (3, -1))
    return (channels.amax(dim=-1) - channels.amin(dim=-1)).amax(dim=-1) < FLAT


def subject_square(subject: Subject, spec: SceneSpec, cell: int) -> tuple[float, float, float]:
    """Top, left and side of a subject's square in cells of so many pixels; whole numbers on the grid."""
    side = subject.size * spec.short
    top, left = subject.y * spec.height - side / 2, subject.x * spec.width - side / 2
    return top / cell, left / cell, side / cell


def letter_cells(spec: SceneSpec, rows: int, columns: int) -> Tensor:
    """The place in the text of the character in each cell of a grid, (rows, columns) int64; -1 where there is none.

    Only texts that stand in cells are found (``pitch`` of their lettering).
    """
    places = torch.full((rows, columns), -1)
    text = spec.lettering
    if text is None or not text.pitch:
        return places
    side, lines = text.pitch * min(rows, columns), text.lines
    top, left = text.y * rows - side * len(lines) / 2, text.x * columns - side * text.columns / 2
    place = 0
    for number, line in enumerate(lines):
        down = slice(round(top + number * side), round(top + (number + 1) * side))
        for column in range(text.indent(line), text.indent(line) + len(line)):
            places[down, round(left + column * side) : round(left + (column + 1) * side)] = place
            place += 1
        place += 1
    return places
