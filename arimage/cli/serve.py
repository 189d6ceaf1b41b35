"""``arimage serve``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from arimage.cli import options

SERVER, LIMITS = "Server", "Limits"


def serve(
    model: options.Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535, rich_help_panel=SERVER)
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="ARIMAGE_API_KEY", help="Key that requests must bring.", rich_help_panel=SERVER),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name of the model, such as one that clients ask for; may be repeated.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose pages may call the server; may be repeated.", rich_help_panel=SERVER),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Folder for finished pictures.", file_okay=False, rich_help_panel=SERVER)
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log what is asked for.", rich_help_panel=SERVER)
    ] = False,
    rewrite: Annotated[
        str | None,
        typer.Option(
            help="Chat endpoint that rewrites prompts, such as http://127.0.0.1:8080/v1.", rich_help_panel=SERVER
        ),
    ] = None,
    rewrite_model: Annotated[
        str, typer.Option(help="Model that the endpoint is asked for.", rich_help_panel=SERVER)
    ] = "default",
    queue: Annotated[
        int, typer.Option(help="Requests that may wait beside the one that runs.", min=0, rich_help_panel=LIMITS)
    ] = 16,
    max_body: Annotated[
        int, typer.Option(help="MiB of a request's body.", min=1, max=4096, rich_help_panel=LIMITS)
    ] = 64,
    max_pixels: Annotated[
        int, typer.Option(help="Pixels of a request's pictures together.", min=1024, rich_help_panel=LIMITS)
    ] = 2**25,
    grace: Annotated[
        float,
        typer.Option(help="Seconds that a running request has when the server stops.", min=0.0, rich_help_panel=LIMITS),
    ] = 30.0,
    device: options.Device = None,
    dtype: options.DataType = None,
    placement: options.Placement = "resident",
    lora: options.Lora = None,
    quantization: options.Quantization = None,
    compile: options.Compile = False,
    threads: options.Threads = None,
    ray: options.Ray = None,
    cluster: options.ClusterFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Serve a model with the interface of OpenAI's images API.

    arimage serve

    arimage serve --model runs/nano/nano --port 9000 --alias gpt-image-2

    arimage serve --ray --cluster cluster.yaml
    """
    import importlib

    from arimage.cli.console import Console, rewriter_at
    from arimage.cli.pools import check_pools, for_workers, open_pools
    from arimage.errors import ArimageError, UsageError
    from arimage.files import check_writable

    try:
        importlib.import_module("python_multipart")  # which is asked for only when a form arrives
        from arimage.server.config import MEBIBYTE, ServerConfig
        from arimage.server.logs import logging_to_stderr
        from arimage.server.run import Server, is_loopback, listen
    except ModuleNotFoundError as error:
        raise ArimageError(f"serving needs {error.name}: pip install 'arimage[serve]'") from None

    if api_key is not None and not api_key.strip():
        raise UsageError("--api-key is empty: give a key, or leave it out")
    if save is not None:
        check_writable([save / "picture.png"])
    check_pools(ray, cluster)
    console = Console(quiet)
    rewriter = rewriter_at(rewrite, rewrite_model)
    given: dict[str, Any] = {
        "device": device, "dtype": dtype, "placement": placement, "lora": tuple(lora or ()),
        "quantization": quantization, "compile": compile,
    }  # fmt: skip
    worker = None
    if ray is None:
        pipeline = console.load(model, threads=threads, **given)
    else:
        import torch

        from arimage.server.pools import PoolWorker, ServingStages

        pipeline = console.load(model, device="cpu", lora=lora, threads=threads)
        connected, pools = open_pools(ray, cluster)
        stages = ServingStages(for_workers(model, given), torch.get_num_threads())
        worker = PoolWorker(pipeline, queue, connected, stages, pools)
    config = ServerConfig(
        api_key=api_key,
        aliases=tuple(alias or ()),
        queue=queue,
        max_body=max_body * MEBIBYTE,
        max_pixels=max_pixels,
        grace=grace,
        save=save,
        log_prompts=log_prompts,
        cors=tuple(cors or ()),
        rewriter=rewriter,
    )
    listening = listen(host, port)
    if api_key is None and not is_loopback(host):
        console.note(f"warning: anybody who reaches {host} can use this server: set --api-key or ARIMAGE_API_KEY")
    shown = f"[{host}]" if ":" in host else host
    console.note(f"{pipeline.checkpoint.name} at http://{shown}:{listening.getsockname()[1]}/v1; Ctrl-C stops it")
    with logging_to_stderr(quiet):
        Server(pipeline, config, worker).serve_on(listening)
