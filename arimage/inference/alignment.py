"""A reference in which things stand where the new picture has them.

A small decoder copies details from the same place of a reference much better than from another one. Visual tokens tell
where a thing has gone to: they repeat its codes there. So cells of a reference, codes and latents, are copied to that
place before diffusion looks at it; where they came from they stay as well.
"""

import torch
from torch import Tensor

from decoder.diffusion_decoder import LATENTS_PER_TOKEN, Reference

LEAST = 1.5  # votes for a move: of two codes that the reference has once each, or of more that it has often
MOST_MOVES = 8


def aligned(reference: Reference, codes: Tensor) -> Reference:
    """The reference with copies of its cells where ``codes`` repeat them at another place.

    A move is found by votes: each cell of the picture whose code the reference has elsewhere votes for the distance
    between the two, less the more often the reference has that code. The ground, each grid's commonest code, does not
    count, nor do cells that have their code from the same place. A move takes along neighbours of what voted for it
    whose codes differ (a model may miscopy some), if at their old place the reference shows something.

    Args:
        codes: (h, w) of the picture. A reference of another size stays as it is.
    """
    if codes.shape != reference.codes.shape:
        return reference
    target, source = codes.cpu(), reference.codes.cpu()
    shown = target != target.flatten().mode().values
    shows = source != source.flatten().mode().values
    open_cells = shown & (target != source)
    own = torch.arange(source.numel()).view_as(source)
    origin = own
    for _ in range(MOST_MOVES):
        move = _likeliest_move(target, source, open_cells, shows)
        if move is None:
            break
        own_codes, possible = _moved(source, move, -1), _moved(shows, move, False) & open_cells
        cells = _grown(possible & (own_codes == target), possible)
        origin = torch.where(cells, _moved(own, move, -1), origin)
        open_cells &= ~cells
    return reference if origin is own else _with_cells(reference, origin)


def _likeliest_move(target: Tensor, source: Tensor, open_cells: Tensor, shows: Tensor) -> tuple[int, int] | None:
    """The move (rows, columns) that most codes vote for, the shortest of equal ones; None without enough votes."""
    here, there = open_cells.nonzero(), shows.nonzero()
    same = target[open_cells][:, None] == source[shows][None, :]
    weight = 1 / (source[shows][:, None] == source[shows][None, :]).sum(dim=1)
    first, second = same.nonzero().T
    moves = here[first] - there[second]
    height, width = target.shape
    votes = torch.zeros(2 * height - 1, 2 * width - 1)
    votes.index_put_((moves[:, 0] + height - 1, moves[:, 1] + width - 1), weight[second], accumulate=True)
    best = votes.max()
    if best < LEAST:
        return None
    places = (votes >= best - 1e-4).nonzero() - torch.tensor([height - 1, width - 1])
    rows, columns = min(places.tolist(), key=lambda move: (move[0] ** 2 + move[1] ** 2, move))
    return rows, columns


def _moved(grid: Tensor, move: tuple[int, int], empty: int | bool) -> Tensor:
    """A grid (h, w) whose cells have moved by rows and columns, ``empty`` where none has come."""
    made = torch.full_like(grid, empty)
    here, there = zip(*(_overlap(by, side) for by, side in zip(move, grid.shape)))
    made[here] = grid[there]
    return made


def _overlap(by: int, side: int) -> tuple[slice, slice]:
    """Where cells come to and where they come from, along one side."""
    return slice(max(0, by), min(side, side + by)), slice(max(0, -by), min(side, side - by))


def _grown(cells: Tensor, possible: Tensor) -> Tensor:
    """Cells (h, w) with all possible ones that hang together with them, corners included."""
    while True:
        wide = torch.nn.functional.max_pool2d(cells[None].float(), 3, stride=1, padding=1)[0] > 0
        if torch.equal(wide & possible, cells):
            return cells
        cells = wide & possible


def _with_cells(reference: Reference, origin: Tensor) -> Reference:
    """The reference with its cells (h, w) taken from those of these numbers."""
    n, width = LATENTS_PER_TOKEN, origin.shape[1]
    origin = origin.to(reference.codes.device)
    rows, columns = origin // width, origin % width
    blocks = reference.latents.unflatten(2, (-1, n)).unflatten(1, (-1, n))[:, rows, :, columns]
    latents = blocks.permute(2, 0, 3, 1, 4).reshape(reference.latents.shape)
    return Reference(latents, reference.codes[rows, columns])
