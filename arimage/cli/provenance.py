"""``arimage inspect`` and ``arimage reproduce``."""

from pathlib import Path
from typing import Annotated

import typer

from arimage.cli import options


def inspect(
    picture: Annotated[Path, typer.Argument(help="A picture of arimage's, or of a program that writes 'parameters'.")],
    json: options.Json = False,
) -> None:
    """Show how a picture was made, and its Content Credentials.

    arimage inspect fox.png
    """
    from dataclasses import asdict

    from arimage.cli.console import Console, print_json
    from arimage.errors import ArimageError
    from arimage.images.credentials import read_manifest
    from arimage.images.provenance import read_origin

    origin = read_origin(picture)
    manifest = None
    try:
        manifest = read_manifest(picture)
    except ArimageError as error:
        Console().note(f"note: {picture} carries Content Credentials that are not shown: {error}")
    shown = None
    if origin.recipe is not None:
        shown = origin.recipe.model_dump(mode="json")
    elif origin.parameters is not None:
        shown = {"parameters": asdict(origin.parameters)}
    credentials = {} if manifest is None else {"content_credentials": asdict(manifest)}
    if json:
        print_json(shown if not credentials else (shown or {}) | credentials)
        return
    if shown is None:
        print(f"{picture} carries no arimage recipe: it was made by something else, or with --no-recipe")
    elif origin.recipe is None:
        print(f"{picture} was made by another program, whose parameters are:")
        shown = shown["parameters"]
    for name, value in ((shown or {}) | credentials).items():
        if value not in (None, "", [], {}):
            print(f"{name}: {value}")


def reproduce(
    picture: Annotated[Path, typer.Argument(help="A picture that arimage wrote.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the new picture.")] = None,
    input: Annotated[
        list[Path] | None, typer.Option("--input", help="A picture that went into it, if it was moved; in order.")
    ] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="Its mask, if it was moved.")] = None,
    layout: Annotated[
        Path | None, typer.Option("--layout", help="Its layout, or the picture that was upscaled, if it was moved.")
    ] = None,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.DataType = None,
    lora: options.Lora = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a picture again from its recipe, and say whether every pixel is the same.

    arimage reproduce fox.png
    """
    from arimage.cli.console import Console, print_json
    from arimage.errors import ArimageError
    from arimage.files import check_writable
    from arimage.images.provenance import read_origin
    from arimage.images.writing import check_holds, lossy_notice, output_format

    if output is not None:
        output_format(output)
        check_writable([output])
    origin = read_origin(picture)
    recipe = origin.recipe
    if recipe is None and origin.parameters is not None:
        raise ArimageError(
            f"{picture} was made by another program, so it cannot be made again here: 'arimage inspect' shows its "
            "prompt, which 'arimage generate' takes"
        )
    if recipe is None:
        raise ArimageError(f"{picture} carries no recipe, so it cannot be made again")
    if output is not None:
        check_holds(output, recipe.output_size)
    console = Console(quiet)
    from arimage.inference.api import load
    from arimage.inference.reproduce import compare, recorded_adapters
    from arimage.inference.reproduce import reproduce as make_again

    pipeline = load(model, device=device, dtype=dtype, lora=lora or recorded_adapters(recipe))
    if pipeline.networks.weights_hash() != recipe.weights_sha256:
        console.note(f"note: made with other weights ({recipe.model}); --model and --lora name those to use")
    made = make_again(recipe, pipeline, list(input or []), mask, layout)
    result = compare(picture, made, recipe)
    if output is not None:
        made.save(output)
        if notice := lossy_notice(output, recipe.protects, made.deep is not None):
            console.note(f"note: {notice}")
    if json:
        print_json({"identical": result.identical, "changed_pixels": result.changed_pixels,
                    "largest_difference": result.largest_difference, "reasons": list(result.reasons)})  # fmt: skip
    elif result.identical:
        print("identical: every pixel is the same")
    else:
        print(f"not identical: {result.changed_pixels} pixels differ, by at most {result.largest_difference}")
        for reason in result.reasons or ("nothing in the recipe differs",):
            print(f"  {reason}")
    if not result.identical:
        raise typer.Exit(1)
