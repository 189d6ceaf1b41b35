"""The page of commands and options, made from the commands themselves.

python -m arimage.cli.options_page > docs/options.md
"""

from typing import Any


def options_page() -> str:
    """All commands and options as Markdown."""
    from typer.main import get_command

    from arimage.cli.main import app

    lines = [
        "# Commands and options",
        "",
        "Made from the code: `python -m arimage.cli.options_page > docs/options.md`.",
        "",
    ]
    group: Any = get_command(app)
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            for inner, part in sorted(command.commands.items()):
                lines += _command(f"{name} {inner}", part)
        else:
            lines += _command(name, command)
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> list[str]:
    summary, *examples = [part.strip() for part in (command.help or "").split("\n\n")]
    lines = [f"## arimage {name}", "", summary, ""]
    if examples:
        lines += ["```", *[" ".join(example.split()) for example in examples], "```", ""]
    lines += ["| option | meaning | default |", "|---|---|---|"]
    for parameter in command.params:
        names = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            names = f"`{parameter.name.upper()}`"
        default = "" if parameter.default in (None, (), []) else f"`{parameter.default}`"
        if isinstance(parameter.show_default, str):
            default = parameter.show_default
        lines.append(f"| {names} | {(parameter.help or '').replace('|', chr(92) + '|')} | {default} |")
    return [*lines, ""]


if __name__ == "__main__":
    print(options_page(), end="")
