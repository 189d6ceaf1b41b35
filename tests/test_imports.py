"""Which module imports which: read from the sources, so that imports inside functions count as much as those on top."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("arimage", "backends", "decoder", "tokenizer")
FRONT_DOORS = ("arimage", "arimage.__main__")
BASE = {"arimage", "arimage.errors", "arimage.files", "arimage.yaml_files"}
# What each room may import besides itself. Whatever is built on the model and the pipeline stands below them here.
ROOMS = {
    "backends": set(),
    "tokenizer": {"backends"},
    "decoder": {"backends"},
    "arimage.autoregressive": {"backends", "tokenizer"},
    "arimage.options": {*BASE, "decoder"},
    "arimage.images": {*BASE, "tokenizer", "arimage.options"},
    "arimage.checkpoints": {*BASE, "backends", "decoder", "tokenizer", "arimage.autoregressive", "arimage.options"},
}
ROOMS["arimage.inference"] = {*ROOMS["arimage.checkpoints"], "arimage.checkpoints", "arimage.images"}
ROOMS["arimage.data"] = {*BASE, "tokenizer", "arimage.checkpoints", "arimage.images"}
ROOMS["arimage.evaluation"] = {*ROOMS["arimage.inference"], "arimage.inference", "arimage.data"}
ROOMS["arimage.training"] = {*ROOMS["arimage.evaluation"], "arimage.evaluation"}
ROOMS["arimage.scale"] = {*ROOMS["arimage.inference"], "arimage.inference"}
ROOMS["arimage.server"] = {*ROOMS["arimage.scale"], "arimage.scale"}
ROOMS["arimage.cli"] = {*ROOMS["arimage.training"], "arimage.training", "arimage.server", "arimage.scale"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in SOURCES.items()}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, but for what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from executed(child)


def imported(name: str) -> set[str]:
    """Our own modules that a module imports anywhere in it."""
    found = set()
    for node in executed(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in SOURCES else str(node.module) for one in inner}
    return found & SOURCES.keys() - {name}


GRAPH = {name: imported(name) for name in SOURCES}


def room(name: str) -> str:
    return name if name in BASE else ".".join(name.split(".")[: 2 if name.startswith("arimage.") else 1])


def test_there_are_no_circles() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in FRONT_DOORS])
def test_a_room_imports_what_it_is_built_on_and_nothing_else(name: str) -> None:
    allowed = BASE if name in BASE else ROOMS[room(name)] | {room(name)}
    assert {one for one in GRAPH[name] if room(one) not in allowed} == set()


def test_the_root_holds_front_doors_only() -> None:
    assert len([path for path in (ROOT / "arimage").iterdir() if path.is_file()]) <= 8


def private_uses(tree: ast.AST) -> Iterator[str]:
    """Attributes of anything but ``self`` with one underscore before them, and what is private in an imported name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if ast.unparse(node.value) not in ("self", "cls") and node.attr not in ("_replace", "_asdict"):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            if any(name.startswith("_") and not name.startswith("__") for name in names):
                yield ast.unparse(node)
            if str(node.module).startswith(("transformers.models", "diffusers.models")):
                yield ast.unparse(node)
        elif isinstance(node, ast.FunctionDef) and node.name in ("_apply", "__torch_function__"):
            yield f"def {node.name}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "._codebook" in node.value:
            yield node.value


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "backends.private"])
def test_private_parts_of_libraries_are_used_in_one_module_only(name: str) -> None:
    assert list(private_uses(TREES[name])) == []
