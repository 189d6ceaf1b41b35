"""arimage: generate and edit pictures with hybrid autoregressive and diffusion models.

    import arimage

    arimage.generate("a red fox on a blue background")[0].save("fox.png")
    arimage.edit("photo.jpg", "make the sky pink", mask="sky.png")[0].save("pink.png")

Importing this module is instant: PyTorch and everything else is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from arimage.autoregressive.sampling import TokenSampling
    from arimage.errors import (
        ArimageError,
        Cancelled,
        CheckpointError,
        ForkedError,
        InputImageError,
        UsageError,
    )
    from arimage.images.credentials import Credentials
    from arimage.images.recipe import Recipe
    from arimage.inference.api import edit, explore, generate, load, upscale
    from arimage.inference.exploration import Exploration
    from arimage.inference.pipeline import ImagePipeline
    from arimage.inference.requests import Preview, Progress
    from arimage.inference.results import GeneratedImage
    from arimage.inference.rewriting import Rewriter, Rewritten

_HOMES = {
    "ArimageError": "arimage.errors",
    "Cancelled": "arimage.errors",
    "CheckpointError": "arimage.errors",
    "Credentials": "arimage.images.credentials",
    "Exploration": "arimage.inference.exploration",
    "ForkedError": "arimage.errors",
    "GeneratedImage": "arimage.inference.results",
    "ImagePipeline": "arimage.inference.pipeline",
    "InputImageError": "arimage.errors",
    "Preview": "arimage.inference.requests",
    "Progress": "arimage.inference.requests",
    "Recipe": "arimage.images.recipe",
    "Rewriter": "arimage.inference.rewriting",
    "Rewritten": "arimage.inference.rewriting",
    "TokenSampling": "arimage.autoregressive.sampling",
    "UsageError": "arimage.errors",
    "edit": "arimage.inference.api",
    "explore": "arimage.inference.api",
    "generate": "arimage.inference.api",
    "load": "arimage.inference.api",
    "upscale": "arimage.inference.api",
}

__all__ = [
    "ArimageError",
    "Cancelled",
    "CheckpointError",
    "Credentials",
    "Exploration",
    "ForkedError",
    "GeneratedImage",
    "ImagePipeline",
    "InputImageError",
    "Preview",
    "Progress",
    "Recipe",
    "Rewriter",
    "Rewritten",
    "TokenSampling",
    "UsageError",
    "edit",
    "explore",
    "generate",
    "load",
    "upscale",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'arimage' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
