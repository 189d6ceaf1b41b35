"""``arimage edit``: one picture, several, a folder or a pattern."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arimage.cli import options

if TYPE_CHECKING:
    from arimage.cli.console import Console
    from arimage.cli.targets import Job, Written
    from arimage.inference.pipeline import ImagePipeline


@options.sampling("edit")
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
    variation: Annotated[
        bool, typer.Option("--variation", help="No instruction: every argument is a picture.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make outputs again that are there already.")] = False,
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
    """Edit pictures by an instruction; what a mask protects stays bit for bit.

    arimage edit photo.jpg "make the sky pink" --mask sky.png -o out.png

    arimage edit holiday/ "in the style of a woodcut" -o woodcuts/

    arimage edit cat.png --variation -n 4
    """
    from arimage.cli.console import Console, rewriter_at
    from arimage.cli.targets import Written, credentials_from, plan_edits, without_results
    from arimage.errors import ArimageError, UsageError
    from arimage.files import check_writable

    found, prompt, several = _split(inputs, variation)
    if several and output is None and not (recipe or ai_mark):
        raise UsageError(
            "--no-recipe with --no-ai-mark: results beside the pictures could not be told from them in the next run; "
            "give them a folder with -o"
        )
    credentials = credentials_from(c2pa_cert, c2pa_key)
    pictures = without_results(found)
    plan = plan_edits(pictures, output, count, seed, mask is not None or outpaint is not None)
    console = Console(quiet)
    rewriter = rewriter_at(rewrite, rewrite_model)
    if len(pictures) < len(found):
        console.note(
            f"{len(found) - len(pictures)} are results of an earlier run, not inputs (alone they can be edited)"
        )
    todo = [job for job in plan if overwrite or not (several and job.done)]
    if len(todo) < len(plan):
        console.note(f"{len(plan) - len(todo)} of {len(plan)} are there already (--overwrite makes them again)")
    written = Written(count * len(todo), recipe, ai_mark, console.note, credentials)
    if not todo:
        with written.reported(json):
            return
    check_writable(path for job in todo for path in job.paths)
    failures: list[str] = []
    if size is None:
        for job in list(todo):
            try:
                _check_result(job, outpaint)
            except ArimageError as error:
                if len(plan) == 1:
                    raise
                failures.append(str(error))
                todo.remove(job)
    pipeline = console.load(**loading)
    prompt = console.rewritten(rewriter, prompt, "edit")
    if prompt:
        console.note_domain(pipeline, [prompt], editing=True)
    chosen |= {"images_per_prompt": count, "mask": mask, "mask_polarity": mask_polarity, "outpaint": outpaint}
    if size is not None:
        chosen["size"] = size
    with written.reported(json):
        for number, job in enumerate(todo, 1):
            if len(todo) > 1:
                console.note(f"[{number}/{len(todo)}] {job.source}")
            try:
                _edit_one(pipeline, console, job, [job.source, *(reference or [])], prompt, chosen, written)
            except ArimageError as error:
                if len(plan) == 1 or error.exit_code == 2:
                    raise
                failures.append(str(error))
    if failures:
        raise ArimageError(f"{len(failures)} of {written.total // count} failed:\n  " + "\n  ".join(failures))


def _check_result(job: "Job", outpaint: tuple[int, int, int, int] | None) -> None:
    """Refuse an edit whose result, as large as its input and what is added to it, its file could not hold."""
    from PIL import ExifTags, Image

    from arimage.images.opening import DECODING_ERRORS
    from arimage.images.writing import check_holds

    try:
        with Image.open(job.source) as image:
            width, height = image.size
            lying = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    except DECODING_ERRORS:
        return  # that is told where it is read
    if lying:
        width, height = height, width
    left, top, right, bottom = outpaint or (0, 0, 0, 0)
    check_holds(job.paths[0], (width + left + right, height + top + bottom))


def _edit_one(
    pipeline: "ImagePipeline",
    console: "Console",
    job: "Job",
    sources: list[Path],
    prompt: str,
    chosen: dict[str, Any],
    written: "Written",
) -> None:
    """Make the results of one input, and write each when it is finished."""
    paths = iter(job.paths)
    with console.progress() as progress:
        made = pipeline.edit(
            sources,
            prompt,
            seed=job.seeds[0],
            on_progress=progress,
            on_image=lambda image: written.write(image, next(paths)),
            **chosen,
        )
    for notice in made[0].notices:
        console.note(f"note: {notice}")


def _split(inputs: list[str], variation: bool) -> tuple[list[Path], str, bool]:
    """Pictures, the instruction, which comes last, and whether there may be several: not so for one that is named."""
    import errno
    import glob

    from arimage.errors import InputImageError, UsageError
    from arimage.images.inputs import shown
    from arimage.images.opening import SUFFIXES, hidden

    names, prompt = (inputs, "") if variation else (inputs[:-1], inputs[-1])
    if not names:
        raise UsageError(
            'a picture or the instruction is missing; for example: arimage edit photo.jpg "make the sky pink" '
            "(or --variation, to make one without an instruction)"
        )
    pictures: list[Path] = []
    for name in names:
        path = Path(name)
        try:
            path.stat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise InputImageError(f"{shown(name)} cannot be read: {error.strerror}") from None
        if path.is_dir():
            found = sorted(
                entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and not hidden(entry.name)
            )
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
    return pictures, prompt, [Path(name) for name in names] != pictures or len(pictures) > 1
