"""YAML files of settings: read, built on each other, overridden by key, and validated.

A wrong key is named together with the nearest right one.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from arimage.errors import UsageError, nearest

Model = TypeVar("Model", bound=BaseModel)


def load_yaml(path: str | Path, model: type[Model], overrides: Iterable[str] = ()) -> Model:
    """Read and validate a YAML file.

    Its key ``extends`` names the file, or the list of files, that it builds on, relative to itself. Where two files set
    the same key, the later one in the list wins, and the file itself over them all; sections are merged key by key.

    Args:
        overrides: ``key=value`` with dotted keys (``text_model.hidden_size=128``); values are YAML.

    Raises:
        UsageError: the file or one that it extends cannot be read, files extend each other in a circle, or a key or
            value is wrong; the message names it and, for an unknown key, the nearest known one.
    """
    data = _read_yaml(Path(path))
    for override in overrides:
        _override(data, override)
    return validate(data, model, str(path))


def _read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Keys and values of a file, over those of the files that it ``extends``; ``above`` are those that extend it."""
    chain = " extends ".join(str(file) for file in (*above, path))
    if path.resolve() in [file.resolve() for file in above]:
        raise UsageError(f"{above[-1]}: extends goes in a circle: {chain}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        if not above:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        hint = nearest(path.name, [file.name for file in path.parent.glob("*.yaml")])
        raise UsageError(
            f"{above[-1]}: extends {path}, which cannot be read: {error.strerror}{hint} ({chain})"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold keys and values, not a {type(data).__name__}")
    names = data.pop("extends", None) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path}: extends names a file or a list of files, not {names!r}")
    result: dict[str, Any] = {}
    for name in names:
        result = merged(result, _read_yaml(path.parent / name, (*above, path)))
    return merged(result, data)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``over`` in place of those of ``base``; sections are merged, lists and values replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(result.get(key), Mapping) and isinstance(value, Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def validate(data: Mapping[str, Any], model: type[Model], source: str) -> Model:
    """Validate plain data; see :func:`load_yaml` for errors."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _keys_at(model, first["loc"][:-1])
            hint = nearest(str(first["loc"][-1]), known)
            raise UsageError(f"{source}: unknown key {place!r}{hint}; known here: {', '.join(sorted(known))}") from None
        message = first["msg"].removeprefix("Value error, ")
        where = f"{place}: " if place else ""
        raise UsageError(f"{source}: {where}{message}") from None


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UsageError(f"{override!r} is no override; write key=value, for example text_model.hidden_size=128")
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise UsageError(f"{override!r}: {section!r} holds a value, not keys")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise UsageError(f"{override!r}: the value is not valid YAML ({problem})") from None


def _keys_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    for part in place:
        field = model.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return list(model.model_fields)
