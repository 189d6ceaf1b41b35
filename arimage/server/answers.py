"""Events of the worker as OpenAI's responses: a JSON object, or parts of a stream."""

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from arimage.errors import ArimageError
from arimage.files import write_whole
from arimage.images.writing import QUALITY, encode_picture, format_named, lossy_notice
from arimage.inference.requests import Progress
from arimage.inference.results import GeneratedImage
from arimage.inference.rewriting import Rewritten
from arimage.server.logs import LOG
from arimage.server.schemas import QUALITIES, REFERENCE_TIER, ImageBody
from arimage.server.worker import made_tokens

PREVIEW_QUALITY = 80
RESPONSE_QUALITIES = ("low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True)
class Answer:
    """How a request's pictures are told.

    Attributes:
        kind: of event: ``image_generation`` or ``image_edit``.
        size: (width, height) of the pictures.
        input_tokens: of the text, and of the pictures that were given.
        name: of files in ``save``, before their number.
        transparent: whether the pictures have transparent parts.
        rewritten: the prompt that was used where prompts are rewritten.
        save: a folder for pictures.
    """

    body: ImageBody
    kind: Literal["image_generation", "image_edit"]
    size: tuple[int, int]
    input_tokens: tuple[int, int]
    name: str
    transparent: bool = False
    rewritten: Rewritten | None = None
    save: Path | None = None

    def datum(self, image: GeneratedImage, number: int) -> dict[str, Any]:
        """A finished picture, which is also written to the folder if there is one; sent even where that fails."""
        if self.body.background == "opaque" and image.image.mode == "RGBA":
            white = Image.new("RGB", image.image.size, "white")
            white.paste(image.image, mask=image.image.getchannel("A"))
            image = replace(image, image=white, deep=None)
        compression = self.body.output_compression
        encoded = image.to_bytes(self.body.format, quality=QUALITY if compression is None else max(1, compression))
        datum: dict[str, Any] = {
            "b64_json": base64.b64encode(encoded).decode(),
            "recipe": json.loads(image.recipe.to_json()),
        }
        notices = [*image.notices]
        if self.rewritten is not None:
            datum["revised_prompt"] = self.rewritten.prompt
            notices += [self.rewritten.notice] if self.rewritten.notice else []
        lost = lossy_notice(Path(f"output_format=.{self.body.format}"), image.recipe.protects, image.deep is not None)
        notices += [lost] if lost else []
        if self.save is not None:
            try:
                write_whole(self.save / f"{self.name}-{number}.{self.body.format}", encoded)
            except ArimageError as error:
                LOG.error("not saved", extra={"fields": {"saved": self.name, "reason": str(error)}})
                notices.append("the server could not save the picture")
        if notices:
            datum["notices"] = notices
        return datum

    def usage(self, images: Sequence[GeneratedImage]) -> dict[str, Any]:
        text, pictures = self.input_tokens
        made = sum(made_tokens(image) for image in images)
        return {
            "input_tokens": text + pictures,
            "input_tokens_details": {"text_tokens": text, "image_tokens": pictures},
            "output_tokens": made,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
            "total_tokens": text + pictures + made,
        }

    def whole(self, data: list[dict[str, Any]], images: Sequence[GeneratedImage]) -> dict[str, Any]:
        """The response to a request without ``stream``."""
        return {"created": int(time.time()), "data": data, **self._about(), "usage": self.usage(images)}

    def partial(self, preview: Image.Image, index: int, picture: int) -> dict[str, Any]:
        """The event of a preview."""
        encoded = encode_picture(preview, format_named(self.body.format), quality=PREVIEW_QUALITY)
        return {
            "type": f"{self.kind}.partial_image",
            "partial_image_index": index,
            "image_index": picture,
            "b64_json": base64.b64encode(encoded).decode(),
            "created_at": int(time.time()),
            **self._about(),
        }

    def progress(self, progress: Progress) -> dict[str, Any]:
        """The event that tells how far the pictures of a request, all together, are."""
        return {
            "type": f"{self.kind}.progress",
            "stage": progress.stage,
            "done": progress.done,
            "total": progress.total,
        }

    def completed(self, datum: dict[str, Any], image: GeneratedImage, picture: int) -> dict[str, Any]:
        """The event of a finished picture."""
        return {
            "type": f"{self.kind}.completed",
            "image_index": picture,
            **datum,
            "created_at": int(time.time()),
            **self._about(),
            "usage": self.usage([image]),
        }

    def _about(self) -> dict[str, Any]:
        width, height = self.size
        return {
            "background": "transparent" if self.transparent else "opaque",
            "output_format": self.body.format,
            "quality": self._quality(),
            "size": f"{width}x{height}",
        }

    def _quality(self) -> str:
        """One of those that OpenAI's responses have."""
        if self.body.quality in RESPONSE_QUALITIES:
            return str(self.body.quality)
        tier = self.body.tier or QUALITIES.get(self.body.quality or "auto", REFERENCE_TIER)
        return "high" if tier == REFERENCE_TIER else "low"
