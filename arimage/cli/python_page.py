"""The page of the Python interface, made from signatures and docstrings.

python -m arimage.cli.python_page > docs/python.md
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any


def python_page() -> str:
    """Public functions, options, classes and errors as Markdown."""
    import arimage
    from arimage.inference.pipeline import ImagePipeline
    from arimage.inference.settings import Options

    model = {"model": "checkpoint folder or loaded pipeline; the embedded model by default"}
    file = {
        "recipe": "carry the recipe in the file, and what other programs read of it.",
        "ai_mark": "mark the file as made by a model (IPTC).",
        "credentials": "certificate and key to sign the file with (C2PA).",
    }
    path = {"path": "its suffix says the format."}
    picture = arimage.GeneratedImage
    lines = [
        "# The Python interface",
        "",
        "Made from the code: `python -m arimage.cli.python_page > docs/python.md`.",
        "",
        "`arimage.generate`, `edit`, `upscale` and `explore` open the model by themselves; `arimage.load` gives",
        "a pipeline with the same four as methods. Each takes the [options](#options) besides its own arguments.",
        "",
        *_function("arimage.generate", arimage.generate, model | _meanings(ImagePipeline.generate)),
        *_function("arimage.edit", arimage.edit, model | _meanings(ImagePipeline.edit)),
        *_function("arimage.upscale", arimage.upscale, model | _meanings(ImagePipeline.upscale)),
        *_function("arimage.explore", arimage.explore, model | _meanings(ImagePipeline.explore)),
        *_fields("arimage.Exploration", arimage.Exploration),
        *_function("Exploration.pick", arimage.Exploration.pick, {"seed": "of the picture."}),
        *_function("Exploration.sheet", arimage.Exploration.sheet, {}),
        *_function("arimage.load", arimage.load, {"path": "checkpoint folder."} | _meanings(ImagePipeline)),
        *_function("ImagePipeline.make", ImagePipeline.make, _meanings(ImagePipeline.make)),
        *_options(Options),
        *_fields("arimage.GeneratedImage", picture),
        *_function("GeneratedImage.save", picture.save, path | file),
        *_function("GeneratedImage.to_bytes", picture.to_bytes, file | _meanings(picture.to_bytes)),
        *_fields("arimage.Recipe", arimage.Recipe),
        *_fields("arimage.Credentials", arimage.Credentials),
        *_function("Credentials.read", arimage.Credentials.read, {"certificate": "PEM file.", "key": "PEM file."}),
        *_fields("arimage.Progress", arimage.Progress),
        *_fields("arimage.Preview", arimage.Preview),
        *_fields("arimage.TokenSampling", arimage.TokenSampling),
        "## Errors",
        "",
        "| error | raised when | exit code of a command |",
        "|---|---|---|",
    ]
    for name in arimage.__all__:
        error = getattr(arimage, name)
        if isinstance(error, type) and issubclass(error, arimage.ArimageError):
            lines.append(f"| `arimage.{name}` | {_plain(_summary(error))} | {error.exit_code} |")
    return "\n".join(lines) + "\n"


def _function(name: str, function: Any, meanings: dict[str, str]) -> list[str]:
    """A heading, what it does, and its arguments as they are written in the code."""
    tree = _definition(function)
    assert isinstance(tree, ast.FunctionDef)
    arguments = tree.args
    positional = [argument for argument in arguments.args if argument.arg != "self"]
    rows = list(zip(positional, _defaults(arguments.defaults, len(positional)), strict=True))
    rows += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [
        *_heading(name, function),
        "| argument | type | default | meaning |",
        "|---|---|---|---|",
        *(
            f"| `{argument.arg}` | {_code(argument.annotation)} | {_code(default)} | {meanings.get(argument.arg, '')} |"
            for argument, default in rows
        ),
        "",
    ]


def _fields(name: str, kind: type) -> list[str]:
    """A heading, what it is, and the fields of a dataclass, model or typed dictionary."""
    rows = [
        f"| `{field}` | {hint} | {default} | {meaning} |"
        for field, hint, default, meaning in _rows(kind, _meanings(kind))
    ]
    return [*_heading(name, kind), "| field | type | default | meaning |", "|---|---|---|---|", *rows, ""]


def _rows(kind: type, meanings: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of what a class declares in its body."""
    tree = _definition(kind)
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field = node.target.id
            default = "" if isinstance(node.value, ast.Call) else _code(node.value)
            hint = node.annotation
            if isinstance(hint, ast.Subscript) and ast.unparse(hint.value) == "Annotated":
                assert isinstance(hint.slice, ast.Tuple)
                hint = hint.slice.elts[0]
            yield field, _code(hint), default, meanings.get(field, "")


def _options(kind: type) -> list[str]:
    """The declared options, then what is called while pictures are made."""
    from arimage.options import OPTIONS, TASKS

    lines = [*_heading("Options", kind), "| option | type | default | for | meaning |", "|---|---|---|---|---|"]
    for option in OPTIONS.values():
        tasks = "" if option.tasks == TASKS else ", ".join(f"`{task}`" for task in option.tasks)
        hint = option.hint.replace("|", "\\|")
        lines.append(f"| `{option.name}` | `{hint}` | {option.defaults} | {tasks} | {_plain(option.documentation)} |")
    for name, hint, _, meaning in _rows(kind, _meanings(kind)):
        lines.append(f"| `{name}` | {hint} |  |  | {meaning} |")
    return [*lines, ""]


def _heading(name: str, thing: Any) -> list[str]:
    return [f"## {name}", "", *textwrap.wrap(_plain(_summary(thing)), 100), ""]


def _definition(thing: Any) -> ast.stmt:
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def _defaults(given: list[ast.expr], count: int) -> list[ast.expr | None]:
    return [*[None] * (count - len(given)), *given]


def _summary(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def _meanings(thing: Any) -> dict[str, str]:
    """What the ``Args`` or ``Attributes`` of a docstring say, by name."""
    section = re.search(
        r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", inspect.getdoc(thing) or "", re.DOTALL | re.MULTILINE
    )
    result: dict[str, str] = {}
    if section is None:
        return result
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(section[1]).strip()):
        names, _, text = entry.partition(":")
        for name in names.split(","):
            result[name.strip().lstrip("*")] = _plain(" ".join(text.split()))
    return result


def _plain(text: str) -> str:
    """Markup of docstrings as Markdown, safe in a table."""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", "\\|")


def _code(node: ast.expr | None) -> str:
    if node is None:
        return ""
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)
    text = str(text).replace("|", "\\|")
    return f"`{text}`" if text else "`''`"


if __name__ == "__main__":
    print(python_page(), end="")
