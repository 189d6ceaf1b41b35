"""``arimage upscale``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from arimage.cli import options


@options.sampling("upscale")
def upscale(
    picture: Annotated[Path, typer.Argument(help="The picture to make larger.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="What it shows; by default what its recipe says.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Of the longer side in pixels; by default twice the picture's.")
    ] = None,
    output: options.Output = None,
    count: options.Count = 1,
    seed: options.Seed = None,
    *,
    loading: options.Loading,
    recipe: options.Recipe = True,
    ai_mark: options.AiMark = True,
    c2pa_cert: options.C2paCert = None,
    c2pa_key: options.C2paKey = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    **chosen: Any,
) -> None:
    """Make a picture anew at a larger size, as its own preview or draft; needs a model that was trained for one.

    arimage upscale fox.png --size 1024 --model path/to/model -o large.png
    """
    from arimage.cli.console import Console
    from arimage.cli.targets import Written, credentials_from, literal, output_paths, seeds_from, typed
    from arimage.errors import UsageError
    from arimage.files import check_writable
    from arimage.images.provenance import described_by
    from arimage.images.writing import output_format

    suffixed = literal(Path(f"{picture.stem}-upscaled.png"))
    if output is None:
        pattern = literal(picture.parent) / suffixed
    else:
        pattern = literal(output) / suffixed if output.is_dir() else typed(output)
    output_format(pattern)
    seeds = seeds_from(seed, count)
    paths = output_paths(pattern, seeds)
    if picture.resolve() in {path.resolve() for path in paths}:
        raise UsageError(f"{picture} would be overwritten; choose another file with -o")
    check_writable(paths)
    text = described_by(picture, "--prompt") if prompt is None else prompt
    credentials = credentials_from(c2pa_cert, c2pa_key)
    console = Console(quiet)
    pipeline = console.load(**loading)
    written = Written(count, recipe, ai_mark, console.note, credentials)
    remaining = iter(paths)
    with written.reported(json):
        with console.progress() as progress:
            images = pipeline.upscale(
                picture,
                text,
                size=size,
                images_per_prompt=count,
                seed=seeds[0],
                on_progress=progress,
                on_image=lambda image: written.write(image, next(remaining)),
                **chosen,
            )
        for notice in images[0].notices:
            console.note(f"note: {notice}")
