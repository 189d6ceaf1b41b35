"""Packs of assets: a zip with an index, as ``arimage data sprites`` writes them."""

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arimage.errors import DataError


@contextmanager
def reading_pack(path: str | Path, kind: str) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """A pack, held in memory, and its index; what goes wrong while the index is read makes it no pack of its kind.

    Raises:
        DataError: the file is missing or damaged, or its index says something else.
    """
    try:
        data = zipfile.ZipFile(io.BytesIO(Path(path).read_bytes()))
        yield data, json.loads(data.read("index.json"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; build it with: arimage data sprites") from None
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is no {kind}: {error}") from None
