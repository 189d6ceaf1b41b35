"""What a client can choose from: facts about the served model, beside OpenAI's fields of it."""

from typing import Any

from arimage.checkpoints.domain import Domain
from arimage.images.sizes import parse_size
from arimage.inference.pipeline import ImagePipeline
from arimage.options import OPTIONS, TIERS
from arimage.server.config import ServerConfig
from arimage.server.schemas import MAX_PICTURES, MOST
from tokenizer.image_size import PIXELS_PER_TOKEN


def abilities(pipeline: ImagePipeline, config: ServerConfig) -> dict[str, Any]:
    """Sizes, limits and the settings of each tier, in JSON's types.

    ``size`` is (width, height) where none is asked for; sides are multiples of ``side_step`` up to ``max_side``.
    """
    limits = pipeline.engine.limits
    height, width = parse_size(None, limits)
    domain = Domain.read(pipeline.checkpoint.path)
    return {
        "size": [width, height],
        "side_step": PIXELS_PER_TOKEN,
        "max_side": limits.high,
        "max_pixels": config.max_pixels,
        "max_n": MOST,
        "max_pictures": MAX_PICTURES,
        "tiers": {tier: {name: OPTIONS[name].at(tier) for name in ("steps", "guidance")} for tier in TIERS},
        "rewrites": config.rewriter is not None,
        "notice": domain.notice if domain else "",
    }
