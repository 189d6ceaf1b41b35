"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

PICTURE, DIFFUSION, TOKENS, OUTPUT, MACHINE = "Picture", "Diffusion", "Visual tokens", "Output", "Model and machine"


def _option(*names: str, panel: str, help: str, min: int | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, min=min)


Model = Annotated[
    Path | None,
    _option("--model", "-m", panel=MACHINE, help="Checkpoint folder, or owner/name in the hub's cache."),
]
Device = Annotated[str | None, _option("--device", panel=MACHINE, help="auto, cpu, cuda or cuda:N.")]
DataType = Annotated[
    str | None, _option("--dtype", panel=MACHINE, help="float32, bfloat16 or float16; on a CPU float32.")
]
Placement = Annotated[
    str, _option("--placement", panel=MACHINE, help="resident keeps networks loaded, sequential holds one at a time.")
]
Weights = Annotated[
    str | None,
    _option("--weights", panel=MACHINE, help="int8, fp8 or (on a GPU) int4: quantise the two large networks."),
]
Compile = Annotated[
    bool,
    _option(
        "--compile/--no-compile",
        panel=MACHINE,
        help="On a GPU: compile decoder and token step; the first picture takes longer.",
    ),
]
Lora = Annotated[
    list[str] | None,
    _option("--lora", panel=MACHINE, help="LoRA adapters to merge in, PATH or PATH:STRENGTH; may be repeated."),
]
Tier = Annotated[
    str | None, _option("--tier", panel=DIFFUSION, help="lossless (50 steps) or fast (5, multistep, nearly the same).")
]
Steps = Annotated[int | None, _option("--steps", panel=DIFFUSION, help="Diffusion steps, 1 to 1000.")]
Guidance = Annotated[float | None, _option("--guidance", panel=DIFFUSION, help="Guidance of the decoder, 1 is none.")]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    _option("--guidance-interval", panel=DIFFUSION, help="Noise levels LOW HIGH (0 to 1) with guidance."),
]
Solver = Annotated[
    str | None, _option("--solver", panel=DIFFUSION, help="euler, or multistep, which needs fewer steps.")
]
SchedulePower = Annotated[
    float | None,
    _option("--schedule-power", panel=DIFFUSION, help="Below 1: steps are closer together at high noise; 1 is even."),
]
DynamicThresholding = Annotated[
    float | None,
    _option("--dynamic-thresholding", panel=DIFFUSION, help="Clip clean estimates at this percentile, in (0, 1]."),
]
NegativeText = Annotated[
    str | None, _option("--negative-text", panel=DIFFUSION, help="Text to keep from appearing in the picture.")
]
Temperature = Annotated[float | None, _option("--temperature", panel=TOKENS, help="0 takes the most likely token.")]
TopP = Annotated[float | None, _option("--top-p", panel=TOKENS, help="Nucleus sampling, in (0, 1].")]
TopK = Annotated[int | None, _option("--top-k", panel=TOKENS, help="Only the k most likely tokens; 0 for all.")]
MinP = Annotated[float | None, _option("--min-p", panel=TOKENS, help="Least share of the most likely token's chance.")]
TokenGuidance = Annotated[
    float | None, _option("--token-guidance", panel=TOKENS, help="Guidance of the tokens, 1 is none.")
]
PreviewGrid = Annotated[
    bool | None,
    _option("--preview-grid/--no-preview-grid", panel=TOKENS, help="Generate the format's preview grid first."),
]
Seed = Annotated[
    int | None, _option("--seed", "-s", panel=PICTURE, help="Of the first picture; the next ones count on from it.")
]
Count = Annotated[int, _option("-n", "--count", panel=PICTURE, help="Pictures for each prompt or input.", min=1)]
Size = Annotated[
    str | None,
    _option("--size", panel=PICTURE, help="512, 640x480 (width x height), 16:9, square, portrait, landscape, ..."),
]
Output = Annotated[
    Path | None, _option("-o", "--output", panel=OUTPUT, help="File, pattern with {index} {seed}, or folder.")
]
Recipe = Annotated[bool, _option("--recipe/--no-recipe", panel=OUTPUT, help="Carry the recipe in the file.")]
AiMark = Annotated[
    bool, _option("--ai-mark/--no-ai-mark", panel=OUTPUT, help="Mark the file as made by a model (IPTC).")
]
Json = Annotated[bool, _option("--json", panel=OUTPUT, help="Print results as JSON.")]
Quiet = Annotated[bool, _option("--quiet", "-q", panel=OUTPUT, help="No progress and no notes.")]


def given(**options: object) -> dict[str, object]:
    """The options that were given: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}
