"""The bodies of requests: the fields of OpenAI's images API, and ours beside them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from arimage.inference.arguments import MAX_SEED
from arimage.inference.settings import Options
from arimage.options import TIERS, Tier
from arimage.server.errors import from_validation, invalid

MAX_PROMPT = 32_000
MAX_PICTURES = 16
MOST = 10
REFERENCE_TIER, FAST_TIER = TIERS
QUALITIES = {
    **dict.fromkeys(("low", "medium", "standard"), FAST_TIER),
    **dict.fromkeys(("high", "xhigh", "max", "hd"), REFERENCE_TIER),
}
Quality = Literal["auto", "low", "medium", "standard", "high", "xhigh", "max", "hd"]
Format = Literal["png", "jpeg", "webp"]
# Fields of OpenAI's API that nothing here corresponds to.
REFUSED = {
    "complexity": "how long to plan a picture cannot be chosen",
    "frame_count": "pictures do not move",
    "frame_duration_ms": "pictures do not move",
    "input_fidelity": "references are always followed as closely as the model can",
    "markup": "draw what may change as a mask",
    "style": "describe the style in the prompt",
    "svg": "pictures are made of pixels",
}
Body = TypeVar("Body", bound="ImageBody")


def _numbers(value: Any) -> Any:
    """``1,2,3,4`` of a form as a list."""
    if isinstance(value, str):
        value = [part.strip() for part in value.strip("[]").split(",")]
    if isinstance(value, list):
        return [int(part) if isinstance(part, str) and part.isdecimal() else part for part in value]
    return value


class ImageBody(BaseModel):
    """What all bodies share. What is null is as good as left out."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = None
    n: int | None = Field(None, ge=1, le=MOST)
    size: str | None = Field(None, max_length=40)
    quality: Quality | None = None
    output_format: Format | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    response_format: Literal["b64_json"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    user: str | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    moderation: str | None = Field(None, description="Ignored.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED - MOST)
    tier: Tier | None = None
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=1)
    negative_text: str | None = Field(None, max_length=MAX_PROMPT)
    progress: bool | None = Field(None, description="Stream events of progress, too.")

    @property
    def format(self) -> Format:
        return self.output_format or "png"

    @property
    def partials(self) -> int:
        """How many previews of each picture are streamed."""
        return self.partial_images or 0

    @property
    def arguments(self) -> dict[str, Any]:
        """What the library's calls take, but for the options."""
        size = None if self.size is None or self.size.strip().lower() == "auto" else self.size
        return {"size": size, "images_per_prompt": self.n or 1, "seed": self.seed}

    @property
    def options(self) -> Options:
        given = {
            "tier": self.tier or QUALITIES.get(self.quality or "auto"),
            "steps": self.steps,
            "guidance": self.guidance,
            "negative_text": self.negative_text,
            "strength": getattr(self, "strength", None),
            "feather": getattr(self, "feather", None),
        }
        return Options(**{name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]

    def check(self) -> None:
        """Refuse fields that do not go together."""
        if self.partials and not self.stream:
            raise invalid("partial_images", "partial_images needs stream=true")
        if self.progress and not self.stream:
            raise invalid("progress", "progress needs stream=true")
        if self.tier is not None and self.quality not in (None, "auto"):
            raise invalid("tier", "tier and quality say the same thing: leave one of them out")
        if self.background == "transparent" and self.format == "jpeg":
            raise invalid("background", "jpeg has no transparency: use png or webp, or background=opaque")
        if self.format == "png" and self.output_compression not in (None, 100):
            raise invalid("output_compression", "output_compression is for jpeg and webp: png keeps every pixel")


class GenerationBody(ImageBody):
    """``POST /v1/images/generations``."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    rewrite: bool | None = Field(None, description="Whether the prompt is rewritten, where the server can.")

    def check(self) -> None:
        super().check()
        if self.background == "transparent":
            raise invalid("background", "new pictures are opaque: use background=opaque or auto")


class EditBody(ImageBody):
    """``POST /v1/images/edits``, but for its pictures."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT)
    rewrite: bool | None = Field(None, description="Whether the prompt is rewritten, where the server can.")
    strength: float | None = Field(None, gt=0, le=1)
    feather: int | None = Field(None, ge=0, le=256)
    outpaint: Annotated[list[int], BeforeValidator(_numbers)] | None = Field(None, min_length=4, max_length=4)


class VariationBody(ImageBody):
    """``POST /v1/images/variations``, but for its picture."""

    strength: float | None = Field(None, gt=0, le=1)


def read_body(kind: type[Body], fields: Mapping[str, Any], strict: bool) -> Body:
    """The fields of a request, checked.

    Args:
        strict: numbers are numbers, as in JSON; in forms they are texts.

    Raises:
        ApiError: a field is unknown, wrong, or cannot be honoured.
    """
    for name, reason in REFUSED.items():
        if fields.get(name) is not None:
            raise invalid(name, f"{name} cannot be honoured: {reason}")
    if fields.get("response_format") == "url":
        raise invalid("response_format", "pictures are not kept for a URL: use b64_json")
    try:
        kept = {name: value for name, value in fields.items() if name not in REFUSED}
        body = kind.model_validate(kept, strict=strict)
    except ValidationError as error:
        raise from_validation(error, kind.model_fields) from None
    body.check()
    return body
