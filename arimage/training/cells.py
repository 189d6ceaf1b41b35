"""What stands in the cells of scenes, on neutral ground: the targets of a tokenizer that names things.

Things are drawn on grey and letters without what they stand on, so that a thing has one look on every background; like
looks form classes, and each class is a code.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from arimage.data.assets import Assets
from arimage.data.records import Record
from arimage.data.scenes.cells import cells_of, flat, letter_cells
from arimage.data.scenes.draw import background, draw
from arimage.data.scenes.spec import Background, Shade, scene_spec
from arimage.errors import DataError
from arimage.training.axes import principal_axes
from tokenizer.semantic_tokenizer import half_size_pixels

NEUTRAL = Background("plain", Shade("neutral", (128, 128, 128)))
TRACE = 0.12
RESEEDED = 0.02
NO_DISTANCE = 1e-12  # of points that have a centre of their own
ROUNDING = 1 / 127.5  # of pixels in [-1, 1]: one level of 255


def neutral_view(record: Record, view: Tensor, assets: Assets, patch: int) -> tuple[Tensor, Tensor]:
    """A scene's neutral view, cell by cell: (3, H/2, W/2) in [-1, 1]; and the letters' places, (h, w).

    Args:
        view: the scene as it is, at half size. Its flat cells stay as they are: ground has a colour and nothing else.

    Raises:
        DataError: the record is no scene, so nobody knows what stands on what.
    """
    facts = record.truth.get("spec")
    if not isinstance(facts, dict):
        raise DataError(
            "codes of neutral cells can be learnt from scenes only; this sample is a picture without a plan"
        )
    scene = scene_spec(facts)
    spec = replace(scene, background=NEUTRAL)
    neutral = half_size_pixels(draw(spec, assets).image)
    places = letter_cells(spec, view.shape[1] // patch, view.shape[2] // patch)
    if spec.lettering is not None and (places >= 0).any():
        bare = replace(spec, lettering=replace(spec.lettering, holder="none", holder_color=None))
        neutral = torch.where(_enlarged(places >= 0, patch), half_size_pixels(draw(bare, assets).image), neutral)
    empty = _nearly(cells_of(neutral[None], patch)[0], NEUTRAL.first.rgb)
    ground = half_size_pixels(background(scene.background, scene.width, scene.height))
    neutral = torch.where(_enlarged(empty, patch), ground, neutral)
    plain = flat(cells_of(view[None], patch))[0]
    return torch.where(_enlarged(plain, patch), view, neutral), places


def _nearly(cells: Tensor, rgb: tuple[int, int, int]) -> Tensor:
    """Which cells are a colour but for a trace of something, (..., pixels) to (...) bool."""
    color = torch.tensor(rgb).view(3, 1) / 127.5 - 1
    return (cells.unflatten(-1, (3, -1)) - color).abs().amax(dim=(-1, -2)) < TRACE


def _enlarged(mask: Tensor, patch: int) -> Tensor:
    """(h, w) to (h*patch, w*patch)."""
    return mask.repeat_interleave(patch, 0).repeat_interleave(patch, 1)


class Classes(torch.nn.Module):
    """Classes of cells that look alike: principal components of their pixels, and centres found by k-means.

    Args:
        pixels: numbers in a cell.
        components: of them that are compared.
        count: of classes.
    """

    mean: Tensor
    basis: Tensor
    centers: Tensor

    def __init__(self, pixels: int, components: int, count: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(pixels, components))
        self.register_buffer("centers", torch.zeros(count, components))

    @torch.no_grad()
    def fit(self, cells: Tensor, weights: Tensor, own: Tensor, iterations: int, seed: int) -> float:
        """Find the classes of (N, pixels) different cells, the same ones on every processor.

        In double precision, so that cells which have a centre of their own are at distance 0 and not at one of
        rounding, by which starting centres would be drawn.

        Args:
            weights: of each cell, (N,).
            own: (N,) bool, cells that are a class of their own whatever is near them; those that differ by no more
                than rounding share one.

        Returns:
            The root of the weighted mean square by which pixels differ from their class's centre.
        """
        generator = torch.Generator().manual_seed(seed)
        cells, share = cells.double(), weights.double() / weights.double().sum()
        mean = share @ cells
        centred = cells - mean
        _, axes = principal_axes((centred * share[:, None]).T @ centred)
        basis = axes[: self.basis.shape[1]].T
        points = centred @ basis
        fixed = _unlike(points[own], ROUNDING * cells.shape[1] ** 0.5)[: len(self.centers)]
        rest, rest_share = points[~own], share[~own]
        centers = _spread_out(rest, rest_share, fixed, len(self.centers), generator)
        for _ in range(iterations):
            distance, nearest = _nearest(rest, centers)
            total = torch.zeros(len(centers), dtype=points.dtype).index_add_(0, nearest, rest_share)
            moved = torch.zeros_like(centers).index_add_(0, nearest, rest * rest_share[:, None])
            filled = total > 0
            filled[: len(fixed)] = False
            centers[filled] = moved[filled] / total[filled, None]
            far = distance * rest_share
            empty = (total == 0).nonzero()[:, 0]
            empty = empty[empty >= len(fixed)][: int((far > NO_DISTANCE).sum())]
            centers[empty] = rest[far.topk(len(empty)).indices]
        distance, _ = _nearest(points, centers)
        left = (centred - points @ basis.T).square().sum(dim=1)
        for buffer, found in ((self.mean, mean), (self.basis, basis), (self.centers, centers)):
            buffer.copy_(found)
        return float(((distance + left) * share).sum() / cells.shape[1]) ** 0.5

    @torch.no_grad()
    def assign(self, cells: Tensor) -> Tensor:
        """The class of each cell: (..., pixels) to (...) int64."""
        points = (cells.flatten(0, -2) - self.mean) @ self.basis
        return _nearest(points, self.centers)[1].view(cells.shape[:-1])

    def painted(self, codes: Tensor, patch: int) -> Tensor:
        """The looks of the classes' centres: (B, h, w) to (B, 3, h*patch, w*patch)."""
        cells = self.centers[codes] @ self.basis.T + self.mean
        parts = cells.unflatten(-1, (3, patch, patch)).permute(0, 3, 1, 4, 2, 5)
        return parts.flatten(4, 5).flatten(2, 3)


def _unlike(points: Tensor, least: float) -> Tensor:
    """The points (N, components) that are farther than ``least`` from all before them."""
    near = torch.cdist(points, points) <= least
    first = near.to(torch.uint8).argmax(dim=1)
    return points[first == torch.arange(len(points), device=points.device)]


def _spread_out(points: Tensor, share: Tensor, fixed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` starting centres, ``fixed`` first, the others drawn far from each other.

    k-means++ (Arthur & Vassilvitskii 2007), many at a time: a share of the centres, drawn by squared distance, before
    distances are taken again. Centres for which no point is left lie where points could be.
    """
    centers = fixed
    distance = _nearest(points, centers)[0] if len(centers) else torch.ones_like(share)
    while len(centers) < count:
        chance = distance * share
        chance[chance <= NO_DISTANCE] = 0
        many = min(count - len(centers), max(1, round(RESEEDED * count)), int((chance > 0).sum()))
        if not many:
            break
        chosen = torch.multinomial(chance, many, generator=generator)
        centers = torch.cat([centers, points[chosen]])
        distance = torch.minimum(distance, _nearest(points, points[chosen])[0])
    spare = torch.randn(count - len(centers), points.shape[1], generator=generator, dtype=points.dtype)
    return torch.cat([centers, points.mean(dim=0) + points.std(dim=0) * spare])


def _nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre and its number, (N,) each."""
    half = centers.square().sum(dim=1) / 2
    distances, numbers = [], []
    for part in points.split(4096):
        score, number = (part @ centers.T - half).max(dim=1)
        distances.append((part.square().sum(dim=1) - 2 * score).clamp(min=0))
        numbers.append(number)
    return torch.cat(distances), torch.cat(numbers)


def different_cells(
    records: Sequence[Record], assets: Assets, patch: int, thing_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """All different neutral cells of scenes, (N, pixels); their weights, (N,); and which are letters or ground, (N,).

    Args:
        thing_weight: of a cell of a scene whose short side has more cells than the smallest scenes', per doubling.
    """
    found: dict[bytes, tuple[Tensor, float, bool]] = {}
    smallest = min(min(record.image.size) for record in records)
    for record in records:
        view = half_size_pixels(record.image)
        neutral, places = neutral_view(record, view, assets, patch)
        cells, shown = cells_of(neutral[None], patch)[0], cells_of(view[None], patch)[0]
        plain = flat(shown)
        scale = min(record.image.size) / smallest
        keys = ((cells + 1) * 127.5).round().byte()
        ground = _commonest(keys[plain])
        for row in range(cells.shape[0]):
            for column in range(cells.shape[1]):
                key = keys[row, column].numpy().tobytes()
                if key in found:
                    continue
                letter = bool(places[row, column] >= 0) and scale == 1
                own = letter or key == ground
                found[key] = (cells[row, column], thing_weight ** (scale - 1), own)
    different, weights, alone = zip(*found.values())
    return torch.stack(different), torch.tensor(weights), torch.tensor(alone)


def _commonest(keys: Tensor) -> bytes:
    """The most frequent of some cells' bytes, empty if there are none."""
    if not len(keys):
        return b""
    different, counts = keys.unique(dim=0, return_counts=True)
    return different[counts.argmax()].numpy().tobytes()
