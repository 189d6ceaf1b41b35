"""Options that several commands share."""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from arimage import options as declared
from arimage.options import Task

PICTURE, DIFFUSION, TOKENS, OUTPUT, MACHINE = "Picture", "Diffusion", "Visual tokens", "Output", "Model and machine"


def _option(*names: str, panel: str, help: str, min: int | None = None, envvar: str | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, min=min, envvar=envvar)


Model = Annotated[
    Path | None,
    _option("--model", "-m", panel=MACHINE, help="Checkpoint folder, or owner/name in the hub's cache."),
]
Device = Annotated[str | None, _option("--device", panel=MACHINE, help="auto, cpu, cuda or cuda:N.")]
DataType = Annotated[
    str | None, _option("--dtype", panel=MACHINE, help="float32, bfloat16 or float16; on a CPU float32.")
]
Placement = Annotated[
    str, _option("--placement", panel=MACHINE, help="resident keeps networks loaded, sequential holds one at a time.")
]
Quantization = Annotated[
    str | None,
    _option("--quantization", panel=MACHINE, help="int8, fp8 or (on a GPU) int4: quantise the two large networks."),
]
Compile = Annotated[
    bool,
    _option(
        "--compile/--no-compile",
        panel=MACHINE,
        help="On a GPU: compile decoder and token step; the first picture takes longer.",
    ),
]
Threads = Annotated[
    int | None, _option("--threads", panel=MACHINE, help="CPU threads of a process; all cores by default.", min=1)
]
Lora = Annotated[
    list[str] | None,
    _option("--lora", panel=MACHINE, help="LoRA adapters to merge in, PATH or PATH:STRENGTH; may be repeated."),
]


@dataclass(frozen=True)
class Group:
    """Parameters that a command takes as one dict of their values, in the order that help shows."""

    members: tuple[inspect.Parameter, ...]


def _parameter_of(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


Loading = Annotated[
    dict[str, Any],
    Group(
        (
            _parameter_of("model", Model, None),
            _parameter_of("device", Device, None),
            _parameter_of("dtype", DataType, None),
            _parameter_of("placement", Placement, "resident"),
            _parameter_of("lora", Lora, None),
            _parameter_of("quantization", Quantization, None),
            _parameter_of("compile", Compile, False),
            _parameter_of("threads", Threads, None),
        )
    ),
]
Seed = Annotated[
    int | None, _option("--seed", "-s", panel=PICTURE, help="Of the first picture; the next ones count on from it.")
]
Count = Annotated[int, _option("-n", "--count", panel=PICTURE, help="Pictures for each prompt or input.", min=1)]
Size = Annotated[
    str | None,
    _option("--size", panel=PICTURE, help="512, 640x480 (width x height), 16:9, square, portrait, landscape, ..."),
]
Output = Annotated[
    Path | None, _option("-o", "--output", panel=OUTPUT, help="File, pattern with {index} {seed}, or folder.")
]
Recipe = Annotated[
    bool,
    _option(
        "--recipe/--no-recipe", panel=OUTPUT, help="Carry the recipe in the file, and what other programs read of it."
    ),
]
AiMark = Annotated[
    bool, _option("--ai-mark/--no-ai-mark", panel=OUTPUT, help="Mark the file as made by a model (IPTC).")
]
C2paCert = Annotated[
    Path | None,
    _option(
        "--c2pa-cert",
        panel=OUTPUT,
        envvar="ARIMAGE_C2PA_CERT",
        help="Certificate chain to sign files with (C2PA, PEM).",
    ),
]
C2paKey = Annotated[
    Path | None, _option("--c2pa-key", panel=OUTPUT, envvar="ARIMAGE_C2PA_KEY", help="Its private key (PEM).")
]
Layout = Annotated[
    Path | None, _option("--layout", panel=PICTURE, help="Sketch or rough picture whose composition is followed.")
]
Json = Annotated[bool, _option("--json", panel=OUTPUT, help="Print results as JSON.")]
Quiet = Annotated[bool, _option("--quiet", "-q", panel=OUTPUT, help="No progress and no notes.")]
Rewrite = Annotated[
    str | None,
    _option("--rewrite", panel=PICTURE, help="Chat endpoint that rewrites prompts, such as http://127.0.0.1:8080/v1."),
]
RewriteModel = Annotated[str, _option("--rewrite-model", panel=PICTURE, help="Model that the endpoint is asked for.")]

Ray = Annotated[
    str | None,
    _option(
        "--ray", panel=MACHINE, help="Work on a Ray cluster: [ADDRESS], HOST:PORT; by default the one that runs here."
    ),
]
ClusterFile = Annotated[
    Path | None, _option("--cluster", panel=MACHINE, help="YAML of workers of each stage, see docs/scale.md.")
]
RAY_ADDRESS = re.compile(r"auto|local|ray://.+|[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+")


def with_ray_address(arguments: list[str]) -> list[str]:
    """Arguments in which ``--ray`` has its address, ``auto`` where none follows it."""
    completed: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        completed.append(argument)
        if argument == "--ray" and not RAY_ADDRESS.fullmatch(following):
            completed.append("auto")
    return completed


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the members of its groups (:data:`Loading`) as options of their own."""
    own = [one for one in inspect.signature(command).parameters.values() if one.kind is not one.VAR_KEYWORD]
    groups = {one.name: _members(one.annotation) for one in own}

    @functools.wraps(command)
    def run(**given: object) -> None:
        for name, members in groups.items():
            if members:
                given[name] = {one.name: given.pop(one.name) for one in members}
        command(**given)

    return _with_parameters(run, [taken for one in own for taken in groups[one.name] or (one,)])


def sampling(task: Task) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of :mod:`arimage.options` in place of its ``**chosen``, which gets those that are set.

    They stand before ``model``, the first of the options of model and machine. Groups are given as by :func:`grouped`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        taken = {option.name: option for option in declared.options_of(task)}
        inner = grouped(command)

        @functools.wraps(inner)
        def run(**given: object) -> None:
            unset = [name for name in taken if given[name] is None]
            inner(**{name: value for name, value in given.items() if name not in unset})

        own = list(inspect.signature(inner).parameters.values())
        place = [one.name for one in own].index("model")
        return _with_parameters(run, [*own[:place], *map(_parameter, taken.values()), *own[place:]])

    return decorate


def _members(annotation: Any) -> tuple[inspect.Parameter, ...]:
    """The parameters of a group, none of anything else."""
    return next((one.members for one in getattr(annotation, "__metadata__", ()) if isinstance(one, Group)), ())


def _with_parameters(run: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _parameter(option: declared.Option) -> inspect.Parameter:
    """An option of the command line, None where it is not given."""
    name = option.name.replace("_", "-")
    panel = TOKENS if option.half == "tokens" else DIFFUSION
    names = f"--{name}/--no-{name}" if option.type is bool else f"--{name}"
    shown = typer.Option(names, help=option.documentation, rich_help_panel=panel, show_default=option.defaults or False)
    return _parameter_of(option.name, Annotated[option.type | None, shown], None)
