"""The front doors: :func:`load`, :func:`generate`, :func:`edit`, :func:`upscale` and :func:`explore`."""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Unpack

import torch

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.embedded import embedded_folder
from arimage.checkpoints.hub import find
from arimage.checkpoints.lora import LoraInput
from arimage.checkpoints.quantization import Quantization
from arimage.images.canvas import Margins
from arimage.images.sizes import Size
from arimage.inference.arguments import Input
from arimage.inference.exploration import Exploration
from arimage.inference.networks import Placement
from arimage.inference.pipeline import ImagePipeline
from arimage.inference.results import GeneratedImage
from arimage.inference.settings import Options


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    placement: Placement = "resident",
    lora: LoraInput | Sequence[LoraInput] = (),
    quantization: Quantization | None = None,
    compile: bool = False,
) -> ImagePipeline:
    """Open a checkpoint, the embedded model by default; the arguments are those of :class:`ImagePipeline`.

    Args:
        path: a folder, or ``owner/name`` of a hub repository that is in the local cache.

    Raises:
        CheckpointError: the folder cannot be used.
        UsageError: device, dtype, placement or quantization is wrong.
    """
    checkpoint = Checkpoint.open(embedded_folder() if path is None else path)
    return ImagePipeline(checkpoint, device, dtype, placement, lora, quantization, compile)


@lru_cache(maxsize=1)
def _loaded(path: str | None) -> ImagePipeline:
    return load(path)


def _pipeline(model: "str | os.PathLike[str] | ImagePipeline | None") -> ImagePipeline:
    if isinstance(model, ImagePipeline):
        return model
    return _loaded(None if model is None else str(find(model, "a folder").resolve()))


def generate(
    prompt: str | Sequence[str],
    *,
    model: str | os.PathLike[str] | ImagePipeline | None = None,
    size: Size = None,
    images_per_prompt: int = 1,
    seed: int | None = None,
    references: Input | Sequence[Input] | None = (),
    layout: Input | None = None,
    **options: Unpack[Options],
) -> list[GeneratedImage]:
    """Make pictures from text: :meth:`ImagePipeline.generate` of the embedded model, or of ``model``.

    ``model`` is a checkpoint folder or a loaded pipeline; the folder last used stays loaded.
    """
    return _pipeline(model).generate(
        prompt,
        size=size,
        images_per_prompt=images_per_prompt,
        seed=seed,
        references=references,
        layout=layout,
        **options,
    )


def edit(
    image: Input | Sequence[Input],
    prompt: str = "",
    *,
    model: str | os.PathLike[str] | ImagePipeline | None = None,
    mask: Input | None = None,
    mask_polarity: Literal["white", "black"] = "white",
    outpaint: Margins | None = None,
    size: Size = None,
    images_per_prompt: int = 1,
    seed: int | None = None,
    **options: Unpack[Options],
) -> list[GeneratedImage]:
    """Edit a picture: :meth:`ImagePipeline.edit` of the embedded model, or of ``model``."""
    return _pipeline(model).edit(
        image,
        prompt,
        mask=mask,
        mask_polarity=mask_polarity,
        outpaint=outpaint,
        size=size,
        images_per_prompt=images_per_prompt,
        seed=seed,
        **options,
    )


def upscale(
    image: Input,
    prompt: str | None = None,
    *,
    model: str | os.PathLike[str] | ImagePipeline | None = None,
    size: int | None = None,
    images_per_prompt: int = 1,
    seed: int | None = None,
    **options: Unpack[Options],
) -> list[GeneratedImage]:
    """Make a picture anew at a larger size: :meth:`ImagePipeline.upscale` of the embedded model, or of ``model``."""
    return _pipeline(model).upscale(image, prompt, size=size, images_per_prompt=images_per_prompt, seed=seed, **options)


def explore(
    prompt: str,
    *,
    model: str | os.PathLike[str] | ImagePipeline | None = None,
    count: int = 9,
    pick: int | Sequence[int] | None = None,
    change: float = 0.5,
    size: Size = None,
    seed: int | None = None,
    references: Input | Sequence[Input] | None = (),
    layout: Input | None = None,
    **options: Unpack[Options],
) -> Exploration:
    """Pictures of one prompt, or variations of one: :meth:`ImagePipeline.explore` of the embedded or named model."""
    return _pipeline(model).explore(
        prompt,
        count=count,
        pick=pick,
        change=change,
        size=size,
        seed=seed,
        references=references,
        layout=layout,
        **options,
    )
