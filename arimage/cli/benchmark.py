"""``arimage benchmark``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from arimage.cli import options


@options.sampling("generate")
def benchmark(
    name: Annotated[str, typer.Argument(help="cvtg-2k, longtext, geneval, dpg-bench, gedit or imgedit.")],
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="The benchmark's own file or folder of prompts; by default 50 of ours."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the pictures and the report.")] = Path(
        "benchmark"
    ),
    images: Annotated[Path | None, typer.Option("--images", help="Folder of the pictures to edit.")] = None,
    language: Annotated[str, typer.Option("--language", help="en or zh: which of our own prompts of longtext.")] = "en",
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="Pictures of each prompt; as its scorer counts on.", min=1, max=16)
    ] = None,
    count: Annotated[int | None, typer.Option("-n", "--count", help="Only the first prompts.", min=1)] = None,
    share: Annotated[
        str, typer.Option("--share", help="1/4: the first of four processes that share the prompts.")
    ] = "1/1",
    size: options.Size = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Of the first picture.", min=0)] = 0,
    model: options.Model = None,
    device: options.Device = None,
    dtype: options.DataType = None,
    placement: options.Placement = "resident",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    **chosen: Any,
) -> None:
    """Make a public benchmark's pictures where its scorer expects them, and score texts by its formula.

    arimage benchmark cvtg-2k --prompts CVTG-2K/ --model models/GLM-Image -o runs/cvtg

    arimage benchmark longtext --language zh --size 512 -o runs/longtext
    """
    from arimage.cli.console import Console, print_json
    from arimage.errors import UsageError, nearest
    from arimage.evaluation.benchmarks.readers import BENCHMARKS, own_prompts, read_cases
    from arimage.evaluation.benchmarks.run import (
        ABOUT,
        Making,
        check_about,
        make_pictures,
        prompts_hash,
        score_pictures,
        score_rows,
        write_report,
    )
    from arimage.files import check_writable
    from arimage.images.sizes import parse_size

    if name not in BENCHMARKS:
        raise UsageError(f"there is no benchmark {name!r}{nearest(name, BENCHMARKS)}; known: {', '.join(BENCHMARKS)}")
    check_writable([output / ABOUT])
    part = _share(share)
    cases = read_cases(name, prompts or own_prompts(name, language), repeats, images)[:count]
    console = Console(quiet)
    pipeline = console.load(model, device=device, dtype=dtype, placement=placement, threads=threads)
    making = Making(parse_size(_size(size), pipeline.engine.limits), seed, chosen, part)
    about = {
        "benchmark": name, "model": pipeline.checkpoint.name, "weights_sha256": pipeline.networks.weights_hash(),
        "size": list(making.size), "seed": seed, "options": chosen, "prompts": prompts_hash(cases),
    }  # fmt: skip
    check_about(output, about)
    make_pictures(cases, pipeline, making, output, console.note)
    rows = score_rows(score_pictures(name, cases, output)) if part[0] == 0 else []
    table = write_report(name, cases, output, rows, about) if part[0] == 0 else ""
    if json:
        print_json({f"{row.score}{', ' * bool(row.group)}{row.group}": row.share for row in rows})
    else:
        print(table or f"{output}: share {share} is there")


def _size(size: str | None) -> Any:
    return int(size) if size is not None and size.isdigit() else size


def _share(text: str) -> tuple[int, int]:
    from arimage.errors import UsageError

    first, _, of = text.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise UsageError(f"--share must be like 1/4, the first of four, got {text!r}")
    return int(first) - 1, int(of)
