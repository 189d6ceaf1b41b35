"""Making a picture again from its recipe, and saying what differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from arimage.checkpoints.lora import LoraInput
from arimage.errors import ArimageError
from arimage.images.opening import Picture, PictureInput, open_picture
from arimage.images.recipe import Recipe, Source
from arimage.images.writing import keeps_pixels
from arimage.inference.pipeline import ImagePipeline
from arimage.inference.results import GeneratedImage
from arimage.options import from_recipe


@dataclass(frozen=True)
class Comparison:
    """How a reproduced picture stands to the original.

    Attributes:
        identical: every pixel is the same.
        changed_pixels, largest_difference: how many are not, and by how much at most (0 to 255, of pictures of 16 bits
            0 to 65535); None when the sizes differ.
        reasons: what is known to differ (version, weights, device, ...).
    """

    identical: bool
    changed_pixels: int | None
    largest_difference: int | None
    reasons: tuple[str, ...]


def reproduce(
    recipe: Recipe,
    pipeline: ImagePipeline,
    sources: Sequence[PictureInput] = (),
    mask: PictureInput | None = None,
    layout: PictureInput | None = None,
) -> GeneratedImage:
    """Make the picture of a recipe again.

    Args:
        sources: the pictures that went into it, where they are no longer at the recorded paths.
        mask, layout: likewise; the layout of an upscaled picture is the one that it was made of.

    Raises:
        ArimageError: a source is gone, or is not the picture that it was.
    """
    opened = _find(recipe.references, sources, "--input")
    sketch = _find_one(recipe.layout, layout, "--layout")
    references = bool(recipe.references) and sketch is None
    options: dict[str, Any] = from_recipe(recipe.settings, recipe.task, references) | {"tier": recipe.tier}
    if recipe.task == "upscale":
        if sketch is None:
            raise ArimageError("the recipe does not name the picture that was upscaled; give it with --layout")
        size = max(recipe.output_size)
        return pipeline.upscale(sketch, recipe.prompt, size=size, seed=recipe.seed, **options)[0]
    if recipe.task == "generate":
        options |= {"size": recipe.size, "seed": recipe.seed, "references": opened, "layout": sketch}
        variation = recipe.variation
        if variation is None:
            return pipeline.generate(recipe.prompt, **options)[0]
        options |= {"count": 1, "pick": variation.of, "change": variation.change}
        return pipeline.explore(recipe.prompt, **options).pictures[0]
    covering = _find_one(recipe.mask, mask, "--mask")
    resized = recipe.mask is None and recipe.outpaint is None and recipe.size == recipe.output_size
    return pipeline.edit(
        opened,
        recipe.prompt,
        mask=covering,
        mask_polarity=recipe.mask_polarity,
        outpaint=recipe.outpaint,
        size=recipe.size if resized else None,
        seed=recipe.seed,
        **options,
    )[0]


def recorded_adapters(recipe: Recipe) -> list[LoraInput]:
    """The adapters that a recipe names, each with its strength.

    Raises:
        ArimageError: one is no longer where it was.
    """
    for one in recipe.lora:
        if one.file is None or not one.file.exists():
            raise ArimageError(f"the adapters {one.path} that the recipe names are gone; give them all with --lora")
    return [(one.file, one.strength) for one in recipe.lora if one.file is not None]


def compare(original: str | Path | Image.Image, made: GeneratedImage, recipe: Recipe) -> Comparison:
    """Compare a reproduced picture with the original, pixel by pixel."""
    first, second = open_picture(original, deep=made.deep is not None), open_picture(made.image)
    reasons = _reasons(recipe, made.recipe)
    if isinstance(original, (str, Path)) and not keeps_pixels(Path(original), recipe.protects):
        reasons = (*reasons, f"format: {Path(original).suffix} files do not keep every pixel, PNG does")
    if first.rgb.size != second.rgb.size:
        return Comparison(False, None, None, (*reasons, f"size: {first.rgb.size} was, {second.rgb.size} is"))
    both_deep = first.deep is not None and made.deep is not None and first.deep.shape == made.deep.shape
    was, now = (first.deep, made.deep) if both_deep else (_values(first), _values(second))
    difference = np.abs(np.asarray(was, np.int32) - np.asarray(now, np.int32))
    changed = int((difference.max(axis=-1) > 0).sum())
    return Comparison(changed == 0, changed, int(difference.max()), reasons)


def _values(picture: Picture) -> np.ndarray:
    alpha = picture.alpha or Image.new("L", picture.rgb.size, 255)
    return np.dstack([np.asarray(picture.rgb), np.asarray(alpha)])


def _reasons(was: Recipe, now: Recipe) -> tuple[str, ...]:
    names: Mapping[str, str] = {
        "arimage": "version of arimage", "weights_sha256": "weights", "device": "device", "dtype": "precision",
        "torch": "version of PyTorch",
    }  # fmt: skip
    return tuple(
        f"{name}: {getattr(was, key)} was, {getattr(now, key)} is"
        for key, name in names.items()
        if getattr(was, key) != getattr(now, key)
    )


def _find_one(wanted: Source | None, given: PictureInput | None, option: str) -> PictureInput | None:
    found = _find([] if wanted is None else [wanted], [] if given is None else [given], option)
    return found[0] if found else None


def _find(wanted: Sequence[Source], given: Sequence[PictureInput], option: str) -> list[PictureInput]:
    """The recorded pictures, from the given ones or from where they were."""
    if given and len(given) != len(wanted):
        raise ArimageError(f"the recipe names {len(wanted)} pictures for {option}, {len(given)} were given")
    found: list[PictureInput] = []
    for i, source in enumerate(wanted):
        place = given[i] if given else source.file
        if place is None:
            raise ArimageError(f"the recipe does not say where input {i + 1} came from; give it with {option}")
        if open_picture(place).sha256() != source.sha256:
            name = source.path or f"input {i + 1}"
            raise ArimageError(f"{name} is not the picture that went into this one: its pixels differ")
        found.append(place)
    return found
