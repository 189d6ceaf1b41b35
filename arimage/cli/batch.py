"""``arimage batch``."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arimage.cli import options

if TYPE_CHECKING:
    from arimage.scale.progress import Progress
    from arimage.scale.stages import ModelStages, Outcome, Work

KINDS = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}


@options.sampling("generate")
def batch(
    jobs: Annotated[str, typer.Argument(help="Table of jobs: .jsonl, .csv or .parquet, a path or URL.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder or URL.", rich_help_panel=options.OUTPUT)],
    form: Annotated[
        str, typer.Option(help="pictures, webdataset or parquet.", rich_help_panel=options.OUTPUT)
    ] = "pictures",
    format: Annotated[
        str, typer.Option(help="Of picture files: png, jpeg or webp.", rich_help_panel=options.OUTPUT)
    ] = "png",
    shard: Annotated[
        int, typer.Option(help="Jobs of a shard, or of a folder of pictures.", min=1, rich_help_panel=options.OUTPUT)
    ] = 1000,
    max_failures: Annotated[
        float, typer.Option(help="Share of bad jobs above which the run stops.", min=0.0, max=1.0)
    ] = 0.1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make a few pictures, keep none, say how long all take.")
    ] = False,
    dry_jobs: Annotated[int, typer.Option(help="How many pictures that are.", min=1)] = 4,
    token_batch: Annotated[
        int | None,
        typer.Option(help="Pictures whose tokens are drawn together.", min=1, rich_help_panel=options.MACHINE),
    ] = None,
    patience: Annotated[float, typer.Option(help="Seconds for which a store may fail.", min=0.0)] = 300.0,
    size: options.Size = None,
    *,
    loading: options.Loading,
    ray: options.Ray = None,
    cluster: options.ClusterFile = None,
    recipe: options.Recipe = True,
    ai_mark: options.AiMark = True,
    json: options.Json = False,
    quiet: options.Quiet = False,
    **chosen: Any,
) -> None:
    """Make the pictures of a table of jobs; the same command goes on where it was stopped.

    arimage batch jobs.jsonl -o pictures/

    arimage batch jobs.parquet -o s3://bucket/run1 --form webdataset --ray --cluster cluster.yaml
    """
    from typing import get_args

    from arimage.cli.console import Console, print_json
    from arimage.cli.pools import check_pools, for_workers
    from arimage.errors import UsageError, nearest
    from arimage.scale.batch import Batch
    from arimage.scale.jobs import Basis, Table
    from arimage.scale.progress import Progress
    from arimage.scale.shards import Form, needs_pyarrow
    from arimage.scale.stages import ModelStages, Output
    from arimage.scale.stores import Store
    from arimage.scale.target import Target

    if form not in get_args(Form):
        raise UsageError(
            f"--form must be one of {', '.join(get_args(Form))}, got {form!r}{nearest(form, get_args(Form))}"
        )
    if format.lower() not in KINDS:
        raise UsageError(f"--format must be one of png, jpeg, webp, got {format!r}{nearest(format, KINDS)}")
    check_pools(ray, cluster)
    kind = KINDS[format.lower()]
    if form == "parquet":
        needs_pyarrow()
    console = Console(quiet)
    given = {**loading, "lora": tuple(loading["lora"] or ())}
    model, threads = given.pop("model"), given.pop("threads")
    if ray is None:
        pipeline = console.load(model, threads=threads, **given)
    else:  # workers have GPUs; for names of jobs this machine needs none
        pipeline = console.load(model, device="cpu", lora=given["lora"], threads=threads)
        given = for_workers(model, given)
    dtype, quantization = loading["dtype"], loading["quantization"]
    asked = f" {dtype} {quantization}" if dtype or quantization else ""
    weights = pipeline.networks.weights_hash() + asked
    basis = Basis(weights, pipeline.checkpoint.sampling, chosen, size, f"{kind} {recipe} {ai_mark}")
    table = Table(jobs, basis)
    progress = Progress(table.count, console.note)
    store = Store(output, patience)
    stages = ModelStages(Output(None if dry_run else store, kind, recipe, ai_mark), given)
    if ray is None:
        stages.use(pipeline)
    if not dry_run:
        store.check()
    execute = _executor(stages, progress, token_batch, ray, cluster, console.note)
    if dry_run:
        _estimate(table, progress, execute, dry_jobs, json)
        return
    target = Target(store, form, kind)  # type: ignore[arg-type]
    summary = Batch(table, target, progress, shard, max_failures).run(execute)
    if summary.failed:
        console.note(f"{summary.failed} jobs failed: {output}/failures.jsonl says why")
    if json:
        print_json({"made": summary.made, "there": summary.there, "failed": summary.failed} | progress.as_json())
    else:
        print(f"{output}: {summary.listed} pictures, {summary.made} of them new, {summary.failed} failed")


def _executor(
    stages: "ModelStages",
    progress: "Progress",
    batch: int | None,
    ray: str | None,
    cluster: Path | None,
    say: Callable[[str], None],
) -> "Callable[[Iterator[Work]], Iterator[Outcome]]":
    """What does the work: this process, or the actors of a cluster."""
    from arimage.autoregressive.generation import TOKEN_BATCH
    from arimage.scale.local import run_here

    if ray is None:
        together = stages.pipeline.networks.placement == "sequential"
        return lambda works: run_here(stages, works, progress, batch or TOKEN_BATCH, together)
    import torch

    from arimage.cli.pools import open_pools
    from arimage.scale.pools import Pools
    from arimage.scale.stages import STAGES

    connected, pools = open_pools(ray, cluster)
    if batch is not None:
        pools = pools.model_copy(update={"batch": batch})
    progress.gpus, progress.workers = pools.gpus, {stage: pools.pool(stage).most for stage in STAGES}
    stages.threads = torch.get_num_threads()
    return Pools(connected, stages, pools, progress, say).run


def _estimate(
    table: Any, progress: "Progress", execute: "Callable[[Iterator[Work]], Iterator[Outcome]]", count: int, json: bool
) -> None:
    """Make a few pictures and say how long all of them would take."""
    import itertools
    import time
    from contextlib import closing

    from arimage.cli.console import print_json
    from arimage.errors import ArimageError
    from arimage.scale.planning import Estimate
    from arimage.scale.stages import Work
    from arimage.scale.target import Place

    good = (job for job in table if job.problem is None)
    works = (Work(job, Place("0")) for job in itertools.islice(good, count))
    began = time.monotonic()
    with closing(execute(works)) as outcomes:  # type: ignore[type-var]
        problems = [outcome.problem for outcome in outcomes if outcome.row is None]
    if not progress.stages["pixels"].pictures:
        raise ArimageError(f"none of the first {count} jobs could be made: {(problems or ['there are none'])[0]}")
    estimate = Estimate.of(progress, time.monotonic() - began)
    if json:
        print_json(estimate.as_json())
        return
    for line in estimate.lines():
        print(line)
