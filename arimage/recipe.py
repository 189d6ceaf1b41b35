"""The recipe of a picture: everything that is needed to make it again, carried in the file itself."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from arimage.errors import ArimageError

RECIPE_VERSION = 1


class Source(BaseModel):
    """A picture that went into another one.

    Attributes:
        path: where it was read from, None when it was given as an object.
        sha256: of its pixels after decoding (mode, size and values).
    """

    model_config = ConfigDict(frozen=True)

    path: str | None = None
    sha256: str


class Recipe(BaseModel):
    """How one picture was made.

    Attributes:
        version: of this record's layout.
        arimage: version of the package.
        model, weights_sha256, random_weights: what made it; random weights were never trained.
        task: ``generate`` or ``edit``.
        prompt, seed: of this picture.
        size: (width, height) at which the networks worked.
        output_size: (width, height) of the picture.
        settings: diffusion and token settings, by the names of the options.
        references: the pictures that the prompt refers to; the first is the one that was edited.
        mask, mask_polarity, outpaint: what was allowed to change.
        tier: the named quality tier.
        device, dtype, torch: where it was computed.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = RECIPE_VERSION
    arimage: str
    model: str
    weights_sha256: str
    random_weights: bool
    task: Literal["generate", "edit"]
    prompt: str
    seed: int
    size: tuple[int, int]
    output_size: tuple[int, int]
    settings: dict[str, Any]
    references: tuple[Source, ...] = ()
    mask: Source | None = None
    mask_polarity: Literal["white", "black"] = "white"
    outpaint: tuple[int, int, int, int] | None = None
    tier: Literal["lossless", "fast"]
    device: str
    dtype: str
    torch: str

    def to_json(self) -> str:
        """ASCII JSON, so that every metadata field can hold it."""
        import json

        return json.dumps(self.model_dump(mode="json"), ensure_ascii=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, source: str = "the picture") -> "Recipe":
        """Read a recipe.

        Raises:
            ArimageError: it is damaged, or was written by a later version.
        """
        try:
            recipe = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ArimageError(f"the recipe in {source} is damaged: {place}: {first['msg']}") from None
        if recipe.version > RECIPE_VERSION:
            raise ArimageError(
                f"the recipe in {source} has version {recipe.version}, this arimage reads up to {RECIPE_VERSION}"
            )
        return recipe
