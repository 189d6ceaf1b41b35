"""``arimage``: the commands, and what happens when one fails."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from arimage.cli import batch as batch_command
from arimage.cli import benchmark as benchmark_command
from arimage.cli import data as data_commands
from arimage.cli import edit as edit_command
from arimage.cli import evaluate as evaluate_command
from arimage.cli import explore as explore_command
from arimage.cli import generate as generate_command
from arimage.cli import model as model_commands
from arimage.cli import provenance
from arimage.cli import serve as serve_command
from arimage.cli import train as train_commands
from arimage.cli import upscale as upscale_command
from arimage.cli.console import print_what_can_be_shown
from arimage.cli.options import with_ray_address

INTERRUPTED = 130
WRONG_USAGE = 2
MOST_SAID = 500

app = typer.Typer(
    name="arimage",
    help='Generate and edit pictures. Start with: arimage generate "a red fox on a blue background"',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("generate")(generate_command.generate)
app.command("edit")(edit_command.edit)
app.command("explore")(explore_command.explore)
app.command("upscale")(upscale_command.upscale)
app.command("batch")(batch_command.batch)
app.command("inspect")(provenance.inspect)
app.command("reproduce")(provenance.reproduce)
app.command("info")(model_commands.info)
app.command("init")(model_commands.init)
app.command("assemble")(model_commands.assemble)
app.add_typer(data_commands.app, name="data")
app.command("train")(train_commands.train)
app.command("prepare")(train_commands.prepare)
app.command("plan")(train_commands.plan)
app.command("evaluate")(evaluate_command.evaluate)
app.command("serve")(serve_command.serve)
app.command("benchmark")(benchmark_command.benchmark)


def _version(wanted: bool) -> None:
    if wanted:
        import arimage

        print(f"arimage {arimage.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["ARIMAGE_DEBUG"] = "1"


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    if arguments is None:
        from backends.memory import keep_freed_memory

        keep_freed_memory()
        arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    print_what_can_be_shown()
    try:
        with _quiet_libraries():
            code = app(with_ray_address(arguments), prog_name="arimage", standalone_mode=False)
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            raise
        sys.exit(_explain(error))
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep from the screen what libraries find odd about people's files; this process is ours to set."""
    fonts = logging.getLogger("fontTools")
    level = fonts.level
    fonts.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        finally:
            fonts.setLevel(level)


def _explain(error: BaseException) -> int:
    """Say what went wrong in one line; the exit code."""
    from arimage.errors import ArimageError

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return _say("interrupted", INTERRUPTED)
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, ArimageError):
        return _say(str(error), error.exit_code)
    if hasattr(error, "format_message"):  # what the parser raises, whichever click typer brings
        return _say(_parser_message(error), WRONG_USAGE)
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()
        return 1
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return _say(f"{what[:MOST_SAID]} (unexpected; run again with --debug for details)", 1)


def _parser_message(error: Any) -> str:
    """What the parser says, with the one option that was most likely meant."""
    from arimage.errors import nearest

    option, possible = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    if option and possible:
        return f"there is no option {option!r}{nearest(option, possible)}"
    return error.format_message()


def _say(message: str, code: int) -> int:
    if message:
        print(f"arimage: {message}", file=sys.stderr)
    return code
