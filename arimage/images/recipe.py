"""The recipe of a picture: everything that is needed to make it again, carried in the file itself."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from arimage.errors import ArimageError
from arimage.options import Task, Tier

RECIPE_VERSION = 1
FILE_URI = "file://"
# Values in recipes of pictures that are there, by the names that they had.
ONCE_NAMED = {"lossless": "reference", "multistep": "ab2"}


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: not so with bytes of another encoding from a command line or file name."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any) -> Any:
    """A string that can be written and read; what is no text in it becomes U+FFFD."""
    if isinstance(value, str) and not is_text(value):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return value


def _place(value: Any) -> Any:
    return Path(value).as_uri() if isinstance(value, str) and not is_text(value) and os.path.isabs(value) else value


def _today(value: Any) -> Any:
    return ONCE_NAMED.get(value, value) if isinstance(value, str) else value


def _settings(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return values | {name: _today(values[name]) for name in ("solver",) if name in values}


Text = Annotated[str, BeforeValidator(_text)]


class Source(BaseModel):
    """A picture that went into another one.

    Attributes:
        path: where it was read from, None when it was given as an object. A name that is no UTF-8 text is written as
            a ``file://`` URI, which keeps its bytes.
        sha256: of its pixels after decoding (mode, size and values).
    """

    model_config = ConfigDict(frozen=True)

    path: Annotated[Text | None, BeforeValidator(_place)] = None
    sha256: str

    @property
    def file(self) -> Path | None:
        """The file at ``path``."""
        if self.path is None or not self.path.startswith(FILE_URI):
            return None if self.path is None else Path(self.path)
        name = os.fsdecode(unquote_to_bytes(self.path.removeprefix(FILE_URI)))
        return Path(name.removeprefix("/") if os.name == "nt" else name)


class AdapterSource(Source):
    """Adapters that were merged into the weights; the hash is of their file and settings."""

    strength: float = 1.0


class Variation(BaseModel):
    """How a picture varies another one of its prompt.

    Attributes:
        of: seeds on the way to that one: of the picture that was picked first, of the variation picked among its own.
        change: share of the visual tokens that were drawn anew at each step.
    """

    model_config = ConfigDict(frozen=True)

    of: tuple[int, ...]
    change: float


class Recipe(BaseModel):
    """How one picture was made.

    Attributes:
        version: of this record's layout.
        arimage: version of the package.
        model, weights_sha256, random_weights: what made it; random weights were never trained.
        lora: the adapters that were merged into it, in their order; ``weights_sha256`` covers them, too.
        task: ``generate``, ``edit`` or ``upscale``.
        prompt, seed: of this picture.
        size: (width, height) at which the networks worked.
        output_size: (width, height) of the picture.
        settings: diffusion and token settings, by the names of the options.
        references: the pictures that the prompt refers to; the first is the one that was edited.
        layout: the picture that the preview grid was made of.
        variation: of which picture it is one.
        mask, mask_polarity, outpaint: what was allowed to change.
        tier: the named quality tier.
        device, dtype, torch: where it was computed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = RECIPE_VERSION
    arimage: str
    model: Text
    weights_sha256: str
    random_weights: bool
    lora: tuple[AdapterSource, ...] = ()
    task: Task
    prompt: Text
    seed: int
    size: tuple[int, int]
    output_size: tuple[int, int]
    settings: Annotated[dict[str, Annotated[Any, BeforeValidator(_text)]], BeforeValidator(_settings)]
    references: tuple[Source, ...] = ()
    layout: Source | None = None
    variation: Variation | None = None
    mask: Source | None = None
    mask_polarity: Literal["white", "black"] = "white"
    outpaint: tuple[int, int, int, int] | None = None
    tier: Annotated[Tier, BeforeValidator(_today)]
    device: str
    dtype: str
    torch: str

    @property
    def protects(self) -> bool:
        """Whether a part of the edited picture was kept bit for bit."""
        return self.mask is not None or self.outpaint is not None

    def to_json(self) -> str:
        """ASCII JSON, so that every metadata field can hold it."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, source: str = "the picture") -> "Recipe":
        """Read a recipe.

        Raises:
            ArimageError: it is damaged, or was written by a later version.
        """
        try:
            recipe = cls.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "it"
            raise ArimageError(f"the recipe in {source} is damaged: {place}: {first['msg']}") from None
        except (ValueError, RecursionError) as error:
            raise ArimageError(f"the recipe in {source} is damaged: {error}") from None
        if recipe.version > RECIPE_VERSION:
            raise ArimageError(
                f"the recipe in {source} has version {recipe.version}, this arimage reads up to {RECIPE_VERSION}"
            )
        return recipe
