"""JSON files of a checkpoint folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arimage.checkpoints.hub import fetch_hint, refuse_pointer
from arimage.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint folder.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = fetch_hint(path) or "; the folder is not a complete GLM-Image checkpoint"
        raise CheckpointError(f"{path} is missing{hint}") from None
    except (OSError, ValueError) as error:
        refuse_pointer(path)
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__} where a JSON object belongs")
    return data


def require(path: Path, section: str, data: Mapping[str, Any], **wanted: Any) -> None:
    """Refuse values that change the computation in a way the networks here do not follow; a missing key is no fault.

    Args:
        section: where ``data`` lies in the file, for the message; empty at its top.
        wanted: the only value of each key.

    Raises:
        CheckpointError: a key has another value.
    """
    for key, value in wanted.items():
        if data.get(key, value) != value:
            name = f"{section}.{key}" if section else key
            raise CheckpointError(f"{path}: {name} = {data[key]!r} is not supported, only {value!r}")


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Write an object, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
