"""``arimage init`` and ``arimage info``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arimage.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from arimage.checkpoints.information import FitPlan
    from arimage.checkpoints.model_config import ModelConfig


def init(
    config: Annotated[Path, typer.Argument(help="A model.yaml, for example configs/nano/model.yaml.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; it must not exist.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example text_model.num_hidden_layers=4.")
    ] = None,
    from_glm4: Annotated[
        Path | None,
        typer.Option(
            "--from-glm4", help="GLM-4 whose text model is taken over: a folder, or owner/name in the hub's cache."
        ),
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="A tokenizer.json to take over.")] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Captions, one a line, to train a tokenizer on.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Of the random weights.", min=0)] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "bfloat16",
) -> None:
    """Write a checkpoint folder to start training from.

    arimage init configs/nano/model.yaml -o runs/start

    arimage init configs/glm-image-9b/model.yaml --from-glm4 GLM-4-9B-0414 -o runs/start
    """
    from arimage.checkpoints.hub import find
    from arimage.checkpoints.initialization import initialize_folder, read_corpus
    from arimage.checkpoints.model_config import ModelConfig
    from arimage.errors import UsageError
    from arimage.files import check_writable
    from arimage.yaml_files import load_yaml

    if output.exists():
        raise UsageError(f"{output} exists already; choose another folder or remove it")
    check_writable([output])
    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype must be float32 or bfloat16, got {dtype!r}")
    import torch

    initialize_folder(
        load_yaml(config, ModelConfig, overrides or []),
        output,
        seed=seed,
        glm4=None if from_glm4 is None else find(from_glm4, "a GLM-4 checkpoint"),
        tokenizer=tokenizer,
        corpus=None if corpus is None else read_corpus(corpus),
        dtype=getattr(torch, dtype),
    )
    print(output)


def assemble(
    base: Annotated[Path, typer.Argument(help="Checkpoint folder that the result is like.")],
    parts: Annotated[
        list[str],
        typer.Argument(
            help="network=FOLDER: semantic_tokenizer, autoregressive, transformer, glyph_encoder, autoencoder."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; it must not exist.")],
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "bfloat16",
    name: Annotated[str | None, typer.Option("--name", help="What to call the model.")] = None,
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            "--sampling",
            help="How it is best sampled, if not as in BASE: temperature=0.7, with_references.top_p=1; repeats.",
        ),
    ] = None,
) -> None:
    """Put networks that were trained side by side into one checkpoint folder.

    arimage assemble runs/tokenizer/checkpoint autoencoder=runs/autoencoder/checkpoint -o runs/both
    """
    import torch

    from arimage.checkpoints.assemble import assemble as run
    from arimage.errors import UsageError
    from arimage.files import check_writable

    if output.exists():
        raise UsageError(f"{output} exists already; choose another folder or remove it")
    check_writable([output])
    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype must be float32 or bfloat16, got {dtype!r}")
    chosen = {}
    for part in parts:
        network, separator, folder = part.partition("=")
        if not separator:
            raise UsageError(f"{part!r} must be network=FOLDER")
        chosen[network] = folder
    print(run(base, chosen, output, getattr(torch, dtype), name, _sampling(sampling or [])))


def _sampling(given: list[str]) -> dict[str, Any] | None:
    """``name=value`` of each, as numbers and truth values; those of pictures with references by themselves.

    Raises:
        UsageError: a name or a value is wrong.
    """
    from arimage.errors import UsageError, nearest
    from arimage.options import OPTIONS, WITH_REFERENCES, options_of_models

    found: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        chosen = found
        if name.startswith(f"{WITH_REFERENCES}."):
            name = name.removeprefix(f"{WITH_REFERENCES}.")
            chosen = found.setdefault(WITH_REFERENCES, {})
        if name not in options_of_models():
            raise UsageError(f"--sampling: there is no {name!r}{nearest(name, options_of_models())}")
        try:
            chosen[name] = OPTIONS[name].parsed(value)
        except UsageError as error:
            raise UsageError(f"--sampling: {error}") from None
    return found or None


def info(
    model: Annotated[Path | None, typer.Argument(help="Checkpoint folder or model.yaml; the embedded model.")] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", help="Memory of a GPU, for example 24GB: how to make a picture there.")
    ] = None,
    size: Annotated[int, typer.Option("--size", help="Side of the picture of --fit, a multiple of 32.")] = 1024,
    json: options.Json = False,
) -> None:
    """Show parameters and memory of each network, and how it fits a GPU.

    arimage info

    arimage info configs/glm-image-9b/model.yaml --fit 24GB
    """
    from arimage.checkpoints.information import fit_plans, network_sizes

    name, config, is_random = _read(model)
    sizes = network_sizes(config)
    plans = [] if fit is None else fit_plans(config, _gigabytes(fit), _side(size))
    if json:
        from dataclasses import asdict

        from arimage.cli.console import print_json

        print_json(
            {
                "model": name,
                "random_weights": is_random,
                "parameters": sum(size.parameters for size in sizes),
                "networks": {size.network: size.parameters for size in sizes},
                "config": config.model_dump(mode="json"),
                **({"fit": [asdict(plan) for plan in plans]} if plans else {}),
            }
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name + (" (never trained)" if is_random else ""))
    table.add_column("network")
    for column in ("parameters", "bf16", "fp32"):
        table.add_column(column, justify="right")
    rows = [(size.network, size.parameters) for size in sizes]
    for network, parameters in [*rows, ("all", sum(size.parameters for size in sizes))]:
        memory = [_memory(parameters * width) for width in (2, 4)]
        table.add_row(network, f"{parameters / 1e6:,.1f} M", *memory)
    Console().print(table)
    if plans:
        Console().print(_fit_table(plans, f"one picture of {size} px on a GPU of {fit}, bf16"))


def _fit_table(plans: "list[FitPlan]", title: str) -> "Table":
    from rich.table import Table

    table = Table(title=title)
    for column in ("options", "needs", "fits", "what it costs"):
        table.add_column(column, justify="right" if column == "needs" else "left")
    for plan in plans:
        table.add_row(
            plan.options or "none", f"{plan.gigabytes:.1f} GB", "yes" if plan.fits else "no", plan.costs or "nothing"
        )
    return table


def _gigabytes(text: str) -> float:
    from arimage.errors import UsageError

    number = text.strip().lower().removesuffix("gb").removesuffix("g").strip()
    try:
        memory = float(number)
    except ValueError:
        memory = 0.0
    if not 0 < memory < 1e6:
        raise UsageError(f"--fit takes the memory of a GPU, for example 24GB; got {text!r}")
    return memory


def _side(size: int) -> int:
    from arimage.errors import UsageError

    if size < 32 or size % 32:
        raise UsageError(f"--size must be a multiple of 32, got {size}")
    return size


def _memory(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _read(model: Path | None) -> "tuple[str, ModelConfig, bool]":
    from arimage.checkpoints.checkpoint import Checkpoint
    from arimage.checkpoints.embedded import embedded_folder
    from arimage.checkpoints.model_config import ModelConfig
    from arimage.yaml_files import load_yaml

    if model is not None and model.suffix in (".yaml", ".yml"):
        return str(model), load_yaml(model, ModelConfig), False
    checkpoint = Checkpoint.open(embedded_folder() if model is None else model)
    return checkpoint.name, checkpoint.config, checkpoint.is_random
