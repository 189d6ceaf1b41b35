"""``arimage generate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arimage.cli import options

if TYPE_CHECKING:
    from arimage.pipeline import GeneratedImage

DEFAULT_OUTPUT = Path("arimage-{seed}.png")


def generate(
    prompt: Annotated[list[str] | None, typer.Argument(help="What to show; '-' reads a prompt a line.")] = None,
    prompts_from: Annotated[
        Path | None, typer.Option("--prompts-from", "-f", help="File with one prompt a line.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option("--reference", "-r", help="Picture that the prompt refers to; may be repeated.")
    ] = None,
    output: options.Output = None,
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
    preview_grid: options.PreviewGrid = None,
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
    """Make pictures from text.

    arimage generate "a red fox on a blue background" -o fox.png

    arimage generate 'a yellow sign with the text "OPEN"' -n 4 --seed 7 -o signs/{index}.png

    arimage generate "in the style of this picture: a house" --reference painting.jpg
    """
    from arimage.cli.console import Console
    from arimage.output import output_format

    prompts = _read_prompts(prompt or [], prompts_from)
    target = DEFAULT_OUTPUT if output is None else output
    if target.is_dir():
        target = target / DEFAULT_OUTPUT.name
    output_format(target)
    expand(target, 1, 0)
    console = Console(quiet)
    pipeline = console.load(
        model, device=device, dtype=dtype, placement=placement, lora=lora or (), weights=weights, compile=compile
    )
    console.note_domain(pipeline, prompts, editing=bool(reference))
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
        preview_grid=preview_grid,
    )
    with console.progress() as progress:
        images = pipeline.generate(
            prompts,
            size=size,
            images_per_prompt=count,
            seed=seed,
            references=list(reference or []),
            on_progress=progress,
            **chosen,  # type: ignore[arg-type]
        )
    for notice in dict.fromkeys(notice for image in images for notice in image.notices):
        console.note(f"note: {notice}")
    paths = write_all(images, target, recipe, ai_mark)
    report(images, paths, json)


def _read_prompts(prompts: list[str], file: Path | None) -> list[str]:
    import sys

    from arimage.errors import UsageError

    if prompts and file is not None:
        raise UsageError("give prompts on the command line or with --prompts-from, not both")
    if not prompts and file is None:
        raise UsageError('a prompt is missing; for example: arimage generate "a red fox on a blue background"')
    if file is None and prompts != ["-"]:
        return prompts
    try:
        text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read prompts from {file or 'standard input'}: {error}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{file or 'standard input'} holds no prompt")
    return lines


def expand(pattern: Path, index: int, seed: int) -> Path:
    """A path with {index} and {seed} filled in.

    Raises:
        UsageError: there is another placeholder in it.
    """
    from arimage.errors import UsageError

    try:
        return Path(str(pattern).format(index=index, seed=seed))
    except (KeyError, IndexError, ValueError) as error:
        raise UsageError(f"the output pattern {str(pattern)!r} may use {{index}} and {{seed}} only ({error})") from None


def output_paths(pattern: Path, seeds: list[int]) -> list[Path]:
    """One path a picture; numbers are added where the pattern names only one file."""
    paths = [expand(pattern, i, seed) for i, seed in enumerate(seeds, 1)]
    if len(set(paths)) < len(paths):
        paths = [pattern.with_name(f"{pattern.stem}-{i}{pattern.suffix}") for i in range(1, len(seeds) + 1)]
    return paths


def write_all(images: "list[GeneratedImage]", pattern: Path, recipe: bool, ai_mark: bool) -> list[Path]:
    """Write pictures, and a contact sheet when there are several."""
    paths = output_paths(pattern, [image.recipe.seed for image in images])
    for image, path in zip(images, paths):
        image.save(path, recipe=recipe, ai_mark=ai_mark)
    if len(images) > 1:
        from arimage.output import contact_sheet, save_picture

        sheet = paths[0].with_name(f"{pattern.stem.replace('{index}', '').replace('{seed}', '') or 'all'}-sheet.png")
        save_picture(contact_sheet([image.image for image in images]), sheet)
        paths.append(sheet)
    return paths


def report(images: "list[GeneratedImage]", paths: list[Path], as_json: bool) -> None:
    """Where the pictures are, on standard output."""
    if as_json:
        from arimage.cli.console import print_json

        print_json(
            [{"path": str(path), "recipe": image.recipe.model_dump(mode="json")} for image, path in zip(images, paths)]
        )
    else:
        for path in paths:
            print(path)
