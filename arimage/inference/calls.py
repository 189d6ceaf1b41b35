"""A call that is checked and opened, but not yet run."""

from dataclasses import dataclass, field
from typing import Any

from arimage.images.canvas import Canvas
from arimage.images.recipe import Source
from arimage.inference.requests import ImageRequest
from arimage.inference.settings import Settings
from arimage.options import Task, Tier


@dataclass(frozen=True)
class Call:
    """What :meth:`ImagePipeline.run` makes: pictures of one task and the same settings.

    Attributes:
        requests: a picture each.
        values: of the options, for recipes.
        sources: the pictures that were given, as recipes name them.
        canvas: what an edit works on.
        icc_profile: of the picture that was edited or upscaled.
        notices: what should be known about the inputs.
        extras: further fields of the recipe.
    """

    task: Task
    requests: tuple[ImageRequest, ...]
    tier: Tier
    values: dict[str, Any]
    settings: Settings
    sources: tuple[Source, ...] = ()
    canvas: Canvas | None = None
    icc_profile: bytes | None = None
    notices: tuple[str, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)
