"""``arimage explore``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from arimage.cli import options


@options.sampling("generate")
def explore(
    prompt: Annotated[str, typer.Argument(help="What to show.")],
    count: Annotated[int, typer.Option("-n", "--count", help="Pictures to make.", min=1)] = 9,
    pick: Annotated[
        list[int] | None,
        typer.Option("--pick", help="Seed of the picture to vary; given again, of the variation of it to vary."),
    ] = None,
    change: Annotated[
        float, typer.Option("--change", help="Share of its visual tokens that a variation draws anew; in [0, 1].")
    ] = 0.5,
    reference: Annotated[
        list[Path] | None, typer.Option("--reference", "-r", help="Picture that the prompt refers to; may be repeated.")
    ] = None,
    layout: options.Layout = None,
    output: options.Output = None,
    size: options.Size = None,
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
    """Make several pictures of one prompt, each in a file and all on a sheet with their seeds; then vary one of them.

    arimage explore "a red fox on a blue background" -o foxes

    arimage explore "a red fox on a blue background" -o foxes --pick 1234567 --change 0.3
    """
    from arimage.cli.console import Console
    from arimage.cli.targets import Written, credentials_from, literal, output_paths, seeds_from, sheet_path, typed
    from arimage.files import check_writable
    from arimage.images.writing import output_format

    picks = list(pick or [])
    name = Path("-".join(map(str, ["arimage", *picks, "{seed}.png"])))
    if output is None:
        pattern = name
    else:
        pattern = literal(output) / name if output.is_dir() or not output.suffix else typed(output)
    output_format(pattern)
    seeds = seeds_from(seed, count)
    paths = output_paths(pattern, seeds)
    sheet = sheet_path(pattern, paths[0])
    check_writable([*paths, sheet])
    credentials = credentials_from(c2pa_cert, c2pa_key)
    console = Console(quiet)
    pipeline = console.load(**loading)
    console.note_domain(pipeline, [prompt], editing=bool(reference))
    written = Written(count, recipe, ai_mark, console.note, credentials)
    remaining = iter(paths)
    with written.reported(json):
        with console.progress() as progress:
            made = pipeline.explore(
                prompt,
                count=count,
                pick=picks,
                change=change,
                size=size,
                seed=seeds[0],
                references=list(reference or []),
                layout=layout,
                on_progress=progress,
                on_image=lambda image: written.write(image, next(remaining)),
                **chosen,
            )
        for notice in made.pictures[0].notices:
            console.note(f"note: {notice}")
        written.write_sheet(sheet, seeds=True)
        console.note("note: the same command with --pick SEED varies one of them; arimage edit changes its file")
