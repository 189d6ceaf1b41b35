"""``arimage generate``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from arimage.cli import options

DEFAULT_OUTPUT = Path("arimage-{seed}.png")


@options.sampling("generate")
def generate(
    prompt: Annotated[list[str] | None, typer.Argument(help="What to show; '-' reads a prompt a line.")] = None,
    prompts_from: Annotated[
        Path | None, typer.Option("--prompts-from", "-f", help="File with one prompt a line.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option("--reference", "-r", help="Picture that the prompt refers to; may be repeated.")
    ] = None,
    layout: options.Layout = None,
    output: options.Output = None,
    count: options.Count = 1,
    size: options.Size = None,
    seed: options.Seed = None,
    rewrite: options.Rewrite = None,
    rewrite_model: options.RewriteModel = "default",
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
    """Make pictures from text.

    arimage generate "a red fox on a blue background" -o fox.png

    arimage generate 'a yellow sign with the text "OPEN"' -n 4 --seed 7 -o signs/{index}.png

    arimage generate "in the style of this picture: a house" --reference painting.jpg

    arimage generate "a house by the sea" --layout sketch.png
    """
    from arimage.cli.console import Console, rewriter_at
    from arimage.cli.targets import Written, credentials_from, literal, output_paths, seeds_from, sheet_path, typed
    from arimage.files import check_writable
    from arimage.images.writing import output_format

    prompts = _read_prompts(prompt or [], prompts_from)
    target = DEFAULT_OUTPUT if output is None else output
    pattern = literal(target) / DEFAULT_OUTPUT if target.is_dir() else typed(target)
    output_format(pattern)
    seeds = seeds_from(seed, len(prompts) * count)
    paths = output_paths(pattern, seeds)
    sheet = sheet_path(pattern, paths[0]) if len(paths) > 1 else None
    check_writable(paths if sheet is None else [*paths, sheet])
    credentials = credentials_from(c2pa_cert, c2pa_key)
    console = Console(quiet)
    rewriter = rewriter_at(rewrite, rewrite_model)
    pipeline = console.load(**loading)
    prompts = [console.rewritten(rewriter, text, "generate") for text in prompts]
    console.note_domain(pipeline, prompts, editing=bool(reference))
    written = Written(len(paths), recipe, ai_mark, console.note, credentials)
    remaining = iter(paths)
    with written.reported(json):
        with console.progress() as progress:
            images = pipeline.generate(
                prompts,
                size=size,
                images_per_prompt=count,
                seed=seeds[0],
                references=list(reference or []),
                layout=layout,
                on_progress=progress,
                on_image=lambda image: written.write(image, next(remaining)),
                **chosen,
            )
        for notice in dict.fromkeys(notice for image in images for notice in image.notices):
            console.note(f"note: {notice}")
        if sheet is not None:
            written.write_sheet(sheet)


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
