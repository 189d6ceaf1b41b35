"""Pictures of one prompt side by side, and variations of the one that is liked best."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import torch
from PIL import Image

from arimage.autoregressive.generation import UNCONSTRAINED
from arimage.errors import UsageError
from arimage.images.sheets import contact_sheet
from arimage.inference.arguments import MAX_SEED
from arimage.inference.engine import stream
from arimage.inference.requests import ImageRequest
from arimage.inference.results import GeneratedImage


@dataclass(frozen=True)
class Exploration:
    """Several pictures of one prompt.

    Attributes:
        pictures: in the order of their seeds.
    """

    pictures: tuple[GeneratedImage, ...]

    def pick(self, seed: int) -> GeneratedImage:
        """The picture of a seed.

        Raises:
            UsageError: there is none.
        """
        for picture in self.pictures:
            if picture.recipe.seed == seed:
                return picture
        seeds = ", ".join(str(picture.recipe.seed) for picture in self.pictures)
        raise UsageError(f"no picture here has the seed {seed}; they are {seeds}")

    def sheet(self) -> Image.Image:
        """All of them in one picture, with their seeds below."""
        return contact_sheet(
            [one.image for one in self.pictures], labels=[str(one.recipe.seed) for one in self.pictures]
        )


def checked_picks(pick: int | Sequence[int] | None) -> tuple[int, ...]:
    """Seeds of the pictures to vary.

    Raises:
        UsageError: one is no seed.
    """
    picks = () if pick is None else tuple(pick) if isinstance(pick, Sequence) else (pick,)
    for seed in picks:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < MAX_SEED:
            raise UsageError(f"pick must be the seed of a picture, a whole number in 0..2**63-1; got {seed!r}")
    return picks


def checked_change(change: float) -> float:
    """The share of tokens that a variation draws anew.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(change, Real) or isinstance(change, bool) or not 0 <= change <= 1:
        raise UsageError(f"change must lie in [0, 1], got {change!r}")
    return float(change)


def variation_of(picked: ImageRequest, seed: int, change: float) -> ImageRequest:
    """The request of a variation of a picture whose codes are there.

    Its preview grid is kept, and every token of the target with probability ``1 - change``, decided by ``seed``; where
    there is a draft, the tokens are its.
    """
    if isinstance(picked.draft, ImageRequest):
        return replace(picked, seed=seed, draft=variation_of(picked.draft, seed, change))
    if picked.codes is None:
        raise ValueError("a variation needs the codes of what it varies")
    if change == 0:
        return replace(picked, seed=seed)
    generator = torch.Generator().manual_seed(stream(seed, "variation"))
    anew = torch.rand(tuple(picked.codes.shape), generator=generator) < change
    return replace(picked, seed=seed, codes=None, fixed=torch.where(anew, UNCONSTRAINED, picked.codes))
