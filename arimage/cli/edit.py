"""``arimage edit``: one picture, several, a folder or a pattern."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arimage.cli import options

if TYPE_CHECKING:
    from arimage.cli.console import Console
    from arimage.pipeline import GeneratedImage, ImagePipeline


def edit(
    inputs: Annotated[list[str], typer.Argument(help="Pictures, a folder or a pattern, then the instruction.")],
    output: options.Output = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="White may change; or a picture whose transparent part may.")
    ] = None,
    mask_polarity: Annotated[
        str, typer.Option("--mask-polarity", help="Which colour of the mask may change: white or black.")
    ] = "white",
    reference: Annotated[
        list[Path] | None, typer.Option("--reference", "-r", help="A further picture for the instruction.")
    ] = None,
    outpaint: Annotated[
        tuple[int, int, int, int] | None, typer.Option("--outpaint", help="Pixels to add: LEFT TOP RIGHT BOTTOM.")
    ] = None,
    strength: Annotated[
        float, typer.Option("--strength", help="In (0, 1]; below 1 the new picture starts from the old one.")
    ] = 1.0,
    variation: Annotated[
        bool, typer.Option("--variation", help="No instruction: every argument is a picture.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make outputs again that are there already.")] = False,
    count: options.Count = 1,
    size: options.Size = None,
    seed: options.Seed = None,
    tier: options.Tier = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    solver: options.Solver = None,
    schedule_power: options.SchedulePower = None,
    dynamic_thresholding: options.DynamicThresholding = None,
    negative_text: options.NegativeText = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    token_guidance: options.TokenGuidance = None,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.DataType = None,
    placement: options.Placement = "resident",
    lora: options.Lora = None,
    weights: options.Weights = None,
    compile: options.Compile = False,
    recipe: options.Recipe = True,
    ai_mark: options.AiMark = True,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Edit pictures by an instruction; what a mask protects stays bit for bit.

    arimage edit photo.jpg "make the sky pink" --mask sky.png -o out.png

    arimage edit holiday/ "in the style of a woodcut" -o woodcuts/

    arimage edit cat.png --variation -n 4
    """
    from arimage.cli.console import Console
    from arimage.errors import ArimageError

    pictures, prompt = _split(inputs, variation)
    plan = _plan(pictures, output, count)
    console = Console(quiet)
    todo = [(source, target) for source, target in plan if overwrite or not _done(target, len(plan) > 1, count)]
    if len(todo) < len(plan):
        console.note(f"{len(plan) - len(todo)} of {len(plan)} are there already (--overwrite makes them again)")
    if not todo:
        return
    pipeline = console.load(
        model, device=device, dtype=dtype, placement=placement, lora=lora or (), weights=weights, compile=compile
    )
    if prompt:
        console.note_domain(pipeline, [prompt], editing=True)
    chosen = options.given(
        tier=tier,
        steps=steps,
        guidance=guidance,
        guidance_interval=guidance_interval,
        solver=solver,
        schedule_power=schedule_power,
        dynamic_thresholding=dynamic_thresholding,
        negative_text=negative_text,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        token_guidance=token_guidance,
        size=size,
        seed=seed,
    )
    chosen.update(images_per_prompt=count, mask=mask, mask_polarity=mask_polarity, outpaint=outpaint, strength=strength)
    failures: list[str] = []
    finished: list[tuple[GeneratedImage, Path]] = []
    for number, (source, target) in enumerate(todo, 1):
        if len(todo) > 1:
            console.note(f"[{number}/{len(todo)}] {source}")
        try:
            made = _edit_one(pipeline, console, [source, *(reference or [])], prompt, chosen)
            finished += zip(made, _write(made, target, recipe, ai_mark))
        except ArimageError as error:
            if len(plan) == 1 or error.exit_code == 2:
                raise
            failures.append(str(error))
    from arimage.cli.generate import report

    report([image for image, _ in finished], [path for _, path in finished], json)
    if failures:
        raise ArimageError(f"{len(failures)} of {len(todo)} failed:\n  " + "\n  ".join(failures))


def _edit_one(
    pipeline: "ImagePipeline", console: "Console", sources: list[Path], prompt: str, chosen: dict[str, object]
) -> "list[GeneratedImage]":
    with console.progress() as progress:
        made = pipeline.edit(sources, prompt, on_progress=progress, **chosen)  # type: ignore[arg-type]
    for notice in made[0].notices:
        console.note(f"note: {notice}")
    return made


def _write(made: "list[GeneratedImage]", target: Path, recipe: bool, ai_mark: bool) -> list[Path]:
    from arimage.cli.generate import output_paths

    paths = output_paths(target, [image.recipe.seed for image in made])
    for image, path in zip(made, paths):
        image.save(path, recipe=recipe, ai_mark=ai_mark)
    return paths


def _split(inputs: list[str], variation: bool) -> tuple[list[Path], str]:
    """Pictures and the instruction, which comes last."""
    import glob

    from arimage.errors import InputImageError, UsageError
    from arimage.images import SUFFIXES

    names, prompt = (inputs, "") if variation else (inputs[:-1], inputs[-1])
    if not names:
        raise UsageError(
            'a picture or the instruction is missing; for example: arimage edit photo.jpg "make the sky pink" '
            "(or --variation, to make one without an instruction)"
        )
    pictures: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
            if not found:
                raise InputImageError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
            pictures += found
        elif not path.exists() and glob.has_magic(name):
            matches = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
            if not matches:
                raise InputImageError(f"no file matches {name}")
            pictures += matches
        else:
            pictures.append(path)
    return pictures, prompt


def _plan(pictures: list[Path], output: Path | None, count: int) -> list[tuple[Path, Path]]:
    """Where each picture goes."""
    from arimage.errors import UsageError
    from arimage.output import FORMATS, output_format

    single = len(pictures) == 1
    if single and output is not None and output.suffix and not output.is_dir():
        output_format(output)
        return [(pictures[0], output)]
    if output is not None and output.suffix.lower() in FORMATS and not output.is_dir():
        raise UsageError(f"{len(pictures)} pictures need a folder for -o, not the file {output}")
    plan: dict[Path, Path] = {}
    for picture in pictures:
        suffix = picture.suffix.lower() if picture.suffix.lower() in FORMATS else ".png"
        folder = picture.parent if output is None else output
        name = f"{picture.stem}-edited{suffix}" if output is None else f"{picture.stem}{suffix}"
        target = folder / name
        if target.resolve() == picture.resolve():
            raise UsageError(f"{picture} would be overwritten; choose another folder with -o")
        if target in plan:
            target = target.with_name(f"{picture.name.replace('.', '-')}{suffix}")
        plan[target] = picture
    return [(picture, target) for target, picture in plan.items()]


def _done(target: Path, several: bool, count: int) -> bool:
    """In a run over several pictures, finished ones are not made again."""
    from arimage.cli.generate import output_paths

    return several and all(path.exists() for path in output_paths(target, list(range(count))))
