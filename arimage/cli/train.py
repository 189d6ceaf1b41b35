"""``arimage train``, ``arimage prepare`` and ``arimage plan``."""

from pathlib import Path
from typing import Annotated

import typer

from arimage.cli import options

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, for example steps=100 or decoder.uncond_prob=0.2.")
]


def train(
    config: Annotated[Path, typer.Argument(help="A stage, for example configs/nano/decoder-256.yaml.")],
    overrides: Overrides = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Take no further step: write the checkpoint of the newest saved state.")
    ] = False,
    threads: options.Threads = None,
) -> None:
    """Train a network at a stage; a run that was stopped goes on where it was.

    arimage train configs/nano/autoencoder.yaml

    arimage train configs/nano/decoder-256.yaml steps=500 output=runs/try

    accelerate launch --config_file configs/accelerate/fsdp2.yaml -m arimage train configs/base/decoder-256.yaml
    """
    from arimage.cli.console import use_threads
    from arimage.training.config import TrainConfig
    from arimage.training.loop import train as run
    from arimage.yaml_files import load_yaml

    use_threads(threads)
    print(run(load_yaml(config, TrainConfig, overrides or []), finish))


def prepare(
    config: Annotated[Path, typer.Argument(help="A stage whose data is prepared.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the cache.")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Samples to prepare.", min=1)] = 10_000,
    shard: Annotated[int, typer.Option("--shard", help="Samples of a shard.", min=1)] = 512,
    threads: options.Threads = None,
    ray: options.Ray = None,
    cluster: options.ClusterFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Encode a stage's data once: visual tokens, previews, latents, glyph strings.

    arimage prepare configs/nano/decoder-256.yaml -n 20000 -o runs/nano/cache

    torchrun --nproc-per-node 8 -m arimage prepare configs/base/decoder-256.yaml -n 1000000 -o shared/cache
    """
    import os
    from functools import partial

    from arimage.cli.console import Console, use_threads
    from arimage.cli.pools import check_pools, open_pools
    from arimage.files import check_writable
    from arimage.training.cache import INDEX
    from arimage.training.config import TrainConfig
    from arimage.training.prepare import prepare as run
    from arimage.yaml_files import load_yaml

    check_writable([output / INDEX])
    check_pools(ray, cluster)
    use_threads(threads)
    process, processes = (int(os.environ.get(name, other)) for name, other in (("RANK", 0), ("WORLD_SIZE", 1)))
    console = Console(quiet or process > 0)
    stage, spread_over = load_yaml(config, TrainConfig, overrides or []), None
    if ray is not None:
        from arimage.scale.spread import spread

        connected, pools = open_pools(ray, cluster)
        spread_over = partial(spread, connected, pools.pool("encode"))
    made = run(stage, output, count, shard, console.note, spread_over, process, processes)
    others = "" if made.samples >= count else f"; other processes are at work on the rest of {count}"
    print(f"{output}: {made.samples} samples in {made.shards} shards, {made.skipped} skipped{others}")


def plan(
    config: Annotated[
        Path | None,
        typer.Argument(help="A stage, for example configs/glm-image-9b/decoder-1024.yaml; with --serve, times."),
    ] = None,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option("--gpus", help="How many GPUs.", min=1)] = 8,
    gpu_memory: Annotated[float, typer.Option("--gpu-memory", help="Of each, in GB.", min=1)] = 80,
    utilisation: Annotated[
        float, typer.Option("--utilisation", help="Share of the GPU's peak that training reaches.", min=0.01, max=1)
    ] = 0.4,
    teraflops: Annotated[
        float, typer.Option("--teraflops", help="Peak of a GPU in the stage's precision.", min=1)
    ] = 989,
    model: Annotated[
        Path | None, typer.Option("--model", help="model.yaml of the dimensions; by default the one beside the stage.")
    ] = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Divide GPUs among the stages of making pictures, by times of arimage batch."),
    ] = False,
    gpu_price: Annotated[
        float | None, typer.Option("--gpu-price", help="With --serve: of a GPU-hour, for the cost.", min=0)
    ] = None,
    json: options.Json = False,
) -> None:
    """Say what a stage needs: memory of a GPU, work of a step, time, and whether it fits.

    arimage plan configs/glm-image-9b/decoder-1024.yaml --gpus 64 --gpu-memory 80

    arimage plan --serve times.json --gpus 8
    """
    from arimage.errors import UsageError

    if serve:
        from arimage.cli.console import print_json
        from arimage.scale.planning import plan_lines, plan_serving

        division = plan_serving(config, gpus, gpu_price)
        if json:
            print_json(division)
        else:
            print("\n".join(plan_lines(division)))
        return
    if config is None:
        raise UsageError("name a stage, for example configs/glm-image-9b/decoder-1024.yaml; or use --serve")
    from arimage.training.plan import Machine, plan_stage

    machine = Machine(gpus, gpu_memory, teraflops, utilisation)
    result = plan_stage(config, overrides or [], machine, model)
    if json:
        from arimage.cli.console import print_json

        print_json(result.as_json())
        return
    for line in result.lines():
        print(line)
