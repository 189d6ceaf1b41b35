"""The ``parameters`` text that AUTOMATIC1111's web interface and many programs after it write into pictures.

    a red fox
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model: "a, name"

Prompts stand as they are, of several lines if they have them; nothing in them is escaped, so that a prompt with a line
that begins with ``Negative prompt:`` is read as two. A value with a comma, a colon or a line break is a JSON string.
"""

import json
import re
from dataclasses import dataclass, field

from arimage.images.recipe import Recipe

NEGATIVE = "Negative prompt:"
SETTING = re.compile(r'\s*(\w[\w /-]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FEWEST_SETTINGS = 3


@dataclass(frozen=True)
class Parameters:
    """What a picture of another program says about how it was made; None where it says nothing.

    Attributes:
        prompt, negative_prompt, seed, steps: of the picture.
        guidance: its CFG scale.
        size: (width, height).
        others: everything else, by the names that the program has for it.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    others: dict[str, str] = field(default_factory=dict)


def parameters_text(recipe: Recipe) -> str:
    """A recipe as such programs read it."""
    settings = recipe.settings
    values = {
        "Steps": settings.get("steps"),
        "Sampler": settings.get("solver"),
        "CFG scale": settings.get("guidance"),
        "Seed": recipe.seed,
        "Size": "{}x{}".format(*recipe.output_size),
        "Model hash": recipe.weights_sha256[:10],
        "Model": recipe.model,
        "Denoising strength": settings.get("strength") if settings.get("strength", 1) < 1 else None,
        "Version": f"arimage {recipe.arimage}",
    }
    negative = settings.get("negative_text")
    lines = [recipe.prompt, f"{NEGATIVE} {negative}" if negative else ""]
    shown = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items() if value is not None)
    return "\n".join([*filter(None, lines), shown])


def parse_parameters(text: str) -> Parameters | None:
    """What such a text says, or None where it is no such text: its last line names at least three settings."""
    *lines, last = text.replace("\r\n", "\n").strip().split("\n")
    settings = {match[1]: _unquoted(match[2]) for match in SETTING.finditer(last)}
    if len(settings) < FEWEST_SETTINGS:
        return None
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        line = line.strip()
        if line.startswith(NEGATIVE):
            target, line = negative, line.removeprefix(NEGATIVE).strip()
        target.append(line)
    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", settings.pop("Size", ""))
    return Parameters(
        prompt="\n".join(prompt),
        negative_prompt="\n".join(negative),
        seed=_whole(settings.pop("Seed", "")),
        size=None if size is None else (int(size[1]), int(size[2])),
        steps=_whole(settings.pop("Steps", "")),
        guidance=_number(settings.pop("CFG scale", "")),
        others=settings,
    )


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search("[,\n:]", value) else value


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _whole(value: str) -> int | None:
    return int(value) if re.fullmatch(r"-?[0-9]{1,20}", value) else None


def _number(value: str) -> float | None:
    return float(value) if re.fullmatch(r"-?[0-9]{1,10}(\.[0-9]{1,20})?", value) else None
