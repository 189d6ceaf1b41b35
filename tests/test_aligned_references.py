"""References in which things stand where the new picture has them."""

import pytest
import torch
from torch import Tensor

from arimage.inference.alignment import aligned
from decoder.diffusion_decoder import LATENTS_PER_TOKEN, Reference

GROUND = 9
THING = torch.tensor([[11, 12, 13], [14, 15, 16]])


def grid(*things: tuple[int, int, Tensor], ground: int = GROUND) -> Tensor:
    """8 x 8 codes with things at their rows and columns."""
    codes = torch.full((8, 8), ground)
    for row, column, thing in things:
        codes[row : row + len(thing), column : column + thing.shape[1]] = thing
    return codes


def reference(codes: Tensor) -> Reference:
    """Latents that say which cell they are of, and where in it."""
    n = LATENTS_PER_TOKEN
    rows, columns = (torch.arange(n * side) for side in codes.shape)
    return Reference(torch.stack(torch.meshgrid(rows.float(), columns.float(), indexing="ij")), codes)


def origin(made: Reference) -> Tensor:
    """The cell (h, w, 2) that each cell's latents come from; they must have come as a whole."""
    n = LATENTS_PER_TOKEN
    parts = made.latents.unflatten(1, (-1, n)).unflatten(3, (-1, n)).permute(1, 3, 0, 2, 4)
    inside = torch.arange(n).float()
    assert torch.equal(parts[:, :, 0] % n, inside[:, None].expand_as(parts[:, :, 0]))
    assert torch.equal(parts[:, :, 1] % n, inside.expand_as(parts[:, :, 1]))
    return (parts[..., 0, 0] // n).long()


def places(codes: Tensor) -> Tensor:
    return torch.stack(torch.meshgrid(*(torch.arange(side) for side in codes.shape), indexing="ij"), dim=-1)


def test_a_thing_that_has_moved_is_shown_where_it_is() -> None:
    seen, wanted = grid((3, 3, THING)), grid((5, 0, THING), ground=10)
    made = aligned(reference(seen), wanted)
    assert torch.equal(made.codes, torch.where(wanted == 10, seen, wanted))
    expected = places(seen)
    expected[5:7, 0:3] = expected[3:5, 3:6]
    assert torch.equal(origin(made), expected)


def test_what_stays_is_left_and_several_things_move_by_themselves() -> None:
    kept, second = THING + 10, THING + 20
    seen = grid((0, 0, kept), (3, 0, THING), (3, 4, second))
    made = aligned(reference(seen), grid((0, 0, kept), (6, 5, THING), (5, 0, second)))
    came = origin(made)
    assert torch.equal(came[0:2, 0:3], places(seen)[0:2, 0:3])
    assert torch.equal(came[6:8, 5:8], places(seen)[3:5, 0:3])
    assert torch.equal(came[5:7, 0:3], places(seen)[3:5, 4:7])


def test_miscopied_codes_move_with_their_neighbours() -> None:
    wrong = THING.clone()
    wrong[0, 1] = 99
    seen = grid((3, 3, THING))
    made = aligned(reference(seen), grid((0, 1, wrong)))
    assert torch.equal(made.codes[0:2, 1:4], THING)
    assert torch.equal(origin(made)[0:2, 1:4], places(seen)[3:5, 3:6])


def test_a_thing_over_the_edge_brings_what_is_left_of_it() -> None:
    seen = grid((3, 3, THING))
    made = aligned(reference(seen), grid((0, 6, THING[:, :2])))
    assert torch.equal(origin(made)[0:2, 6:8], places(seen)[3:5, 3:5])


@pytest.mark.parametrize(
    "wanted",
    [
        grid((3, 3, THING)),
        grid((3, 3, THING), ground=10),
        grid(),
        grid((0, 0, THING + 50)),
        grid((0, 0, THING[:1, :1])),
        torch.full((4, 4), 11),
    ],
    ids=["the same", "another ground", "nothing", "another thing", "one code", "another size"],
)
def test_where_nothing_has_moved_the_reference_is_the_same_one(wanted: Tensor) -> None:
    own = reference(grid((3, 3, THING)))
    assert aligned(own, wanted) is own


def test_codes_that_the_reference_has_often_count_less() -> None:
    """Two cells of a texture say little about where it comes from."""
    texture = torch.full((2, 4), 11)
    own = reference(grid((2, 2, texture)))
    assert aligned(own, grid((5, 5, texture[:1, :2]))) is own


def test_a_picture_of_which_all_is_told_apart_moves_whole() -> None:
    """A photo has no ground to speak of."""
    seen = torch.arange(64).view(8, 8)
    wanted = seen.roll(2, dims=1)
    wanted[:, :2] = torch.arange(100, 116).view(8, 2)
    assert torch.equal(origin(aligned(reference(seen), wanted))[1:, 2:], places(seen)[1:, :6])
