"""Jobs: a picture each, read from a table one after another.

A job's identity is a hash of everything that its picture depends on: the row, the contents of the pictures that it
names, the settings and the weights. It does not depend on the row's place in the table.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from arimage.errors import ArimageError, UsageError, nearest
from arimage.images.inputs import shown
from arimage.options import OPTIONS, Task, options_of, recorded, refuse_misplaced, resolve
from arimage.scale.stores import StoreError, is_url, join, lines_of, version_of

SUFFIXES = (".jsonl", ".csv", ".parquet")
PICTURES = ("image", "references", "mask")
OWN = ("prompt", "id", "seed", "size", "image", "references", "mask", "mask_polarity", "outpaint", "settings")
NAME = re.compile(r"[\w-][\w -]{0,127}")
KNOWN_VERSIONS = 65536


@dataclass(frozen=True)
class Job:
    """A picture to make.

    Attributes:
        row: of the table, from 1.
        id: the name of the picture's file.
        identity: 32 hexadecimal digits.
        task: ``generate``, or ``edit`` where there is a picture to edit, a mask or margins.
        arguments: of :meth:`ImagePipeline.prepare_generation` or :meth:`~ImagePipeline.prepare_edit`; pictures are
            places, options are those that are given.
        problem: why it cannot be made, where that is known already.
    """

    row: int
    id: str
    identity: str
    task: Task = "generate"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def pictures(self) -> tuple[str, ...]:
        """Places of the pictures that it needs."""
        given = self.arguments
        masks = [given["mask"]] if given.get("mask") else []
        return (*given.get("sources", ()), *masks)


@dataclass(frozen=True)
class Basis:
    """What all jobs of a run share.

    Attributes:
        weights: hash of the model's weights and adapters.
        sampling: the checkpoint's own options.
        options: defaults, where a job says nothing and the option is for its task.
        size: likewise.
        kind: of the picture files, which their contents depend on.
    """

    weights: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    size: Any = None
    kind: str = "png"


class Table:
    """A table of jobs: ``.jsonl``, ``.csv`` or ``.parquet``, a path or URL. Iterating reads it as far as it is needed.

    Places of pictures are relative to the table.

    Raises:
        UsageError: it is another kind of file, or is not there.
    """

    def __init__(self, place: str, basis: Basis) -> None:
        self.place, self.basis = place, basis
        self.kind = next((suffix for suffix in SUFFIXES if place.lower().endswith(suffix)), "")
        if not self.kind:
            raise UsageError(f"{place}: jobs are read from {', '.join(SUFFIXES)} files")
        here = place if is_url(place) else os.path.abspath(place.removeprefix("file://"))
        self.folder = here.rpartition("/")[0]
        try:
            self.count = sum(1 for _ in self._rows()) if self.kind != ".parquet" else self._parquet().metadata.num_rows
        except FileNotFoundError:
            raise UsageError(f"{place} does not exist") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{place} cannot be read: {error}") from None

    def __iter__(self) -> Iterator[Job]:
        """The jobs; rows that are none come with their ``problem``."""
        names: set[int] = set()
        copies: dict[int, int] = {}
        for row, values in enumerate(self._rows(), 1):
            yield self._job(row, values, names, copies)

    def _rows(self) -> Iterator[Any]:
        """The rows as objects, or the texts of those that are none."""
        if self.kind == ".parquet":
            for batch in self._parquet().iter_batches(batch_size=256):
                yield from batch.to_pylist()
        elif self.kind == ".csv":
            text = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(self._lines()))
            for row in csv.DictReader(text):
                yield {name: value for name, value in row.items() if value not in (None, "")}
        else:
            for line in self._lines():
                if line.strip():
                    try:
                        yield json.loads(line.decode("utf-8-sig"))
                    except (ValueError, RecursionError) as error:
                        yield f"no JSON: {error}"

    def _lines(self) -> Iterator[bytes]:
        return lines_of(self.place)

    def _parquet(self) -> Any:
        try:
            import pyarrow.parquet
        except ImportError:
            raise UsageError("reading parquet needs pyarrow: pip install 'arimage[data]'") from None
        import fsspec

        return pyarrow.parquet.ParquetFile(fsspec.open(self.place, "rb").open())

    def _job(self, row: int, values: Any, names: set[int], copies: dict[int, int]) -> Job:
        raw = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
        name = str(values.get("id") or "") if isinstance(values, dict) else ""
        try:
            if not isinstance(values, dict):
                raise UsageError(values if isinstance(values, str) else f"a job is an object, not {values!r:.40}")
            if name and _short(name) in names:
                raise UsageError(f"the id {name!r} is that of an earlier job, too")
            return self._read(row, values, name, names, copies)
        except ArimageError as error:
            return Job(row, name or raw[:16], raw[:32], problem=str(error))

    def _read(self, row: int, values: dict[str, Any], name: str, names: set[int], copies: dict[int, int]) -> Job:
        given = _checked(values)
        task: Task = "edit" if any(given.get(key) for key in ("image", "mask", "outpaint")) else "generate"
        sources = [*([given["image"]] if "image" in given else []), *given.get("references", [])]
        if task == "edit" and not sources:
            raise UsageError("mask and outpaint need the picture to edit: image, or the first of references")
        if task == "generate" and "prompt" not in given:
            raise UsageError("prompt is missing")
        arguments: dict[str, Any] = {
            "prompt": given.get("prompt", ""),
            "sources": [join(self.folder, s) for s in sources],
        }
        for key in ("mask_polarity", "outpaint"):
            if key in given:
                arguments[key] = given[key]
        if "mask" in given:
            arguments["mask"] = join(self.folder, given["mask"])
        size = given.get("size", None if "mask" in given or "outpaint" in given else self.basis.size)
        if size is not None:
            arguments["size"] = size
        taken = {option.name for option in options_of(task)}
        if sources:
            taken -= {option.name for option in OPTIONS.values() if option.not_with_references}
        defaults = {key: value for key, value in self.basis.options.items() if key in taken}
        arguments["options"] = recorded(defaults | given["settings"])
        refuse_misplaced(given["settings"], task, bool(sources))
        tier, settings = resolve(arguments["options"], self.basis.sampling, bool(sources))
        own = {
            "arguments": {key: value for key, value in arguments.items() if key not in ("sources", "mask", "options")},
            "sources": [_version(place) for place in arguments["sources"]],
            "mask": _version(arguments["mask"]) if "mask" in arguments else None,
            "id": name,
        }
        if "seed" in given:
            seed = given["seed"]
        else:  # the same whatever the settings and the model, so that they can be compared
            contents = _short(json.dumps(own, sort_keys=True))
            copies[contents] = copies.get(contents, 0) + 1
            seed = _short(f"{contents} {copies[contents]}") % 2**32
        arguments["seed"] = seed
        about = own | {
            "seed": seed,
            "settings": recorded(settings),
            "tier": tier,
            "weights": self.basis.weights,
            "kind": self.basis.kind,
        }
        identity = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        if name:
            names.add(_short(name))
        return Job(row, name or identity[:16], identity[:32], task, arguments)


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """A row's own values by name, of the right types, with its options under ``settings``.

    Raises:
        UsageError: a name is unknown, or a value is of another type.
    """
    allowed = [*OWN, *OPTIONS]
    given: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, value in values.items():
        if name not in allowed:
            raise UsageError(f"there is no field {name!r}{nearest(str(name), allowed)}")
        if value is None or (isinstance(value, list) and not value):
            continue
        if name in OPTIONS:
            settings[name] = OPTIONS[name].parsed(value) if isinstance(value, str) else OPTIONS[name].checked(value)
        elif name == "settings":
            inner = _from_text(name, value) if isinstance(value, str) else value
            if not isinstance(inner, dict):
                raise UsageError(f"settings must be an object of options, got {value!r:.80}")
            for key, one in inner.items():
                if key not in OPTIONS:
                    raise UsageError(f"there is no option {key!r}{nearest(str(key), OPTIONS)}")
                if one is not None:
                    settings[key] = OPTIONS[key].checked(one)
        else:
            given[name] = _value(name, value)
    return given | {"settings": settings}


def _value(name: str, value: Any) -> Any:
    if name == "seed":
        number = _from_text(name, value) if isinstance(value, str) else value
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
            raise UsageError(f"seed must be a whole number in 0..2**63-1, got {value!r:.80}")
        return number
    if name == "references":
        several = _from_text(name, value) if isinstance(value, str) and value.startswith("[") else value
        several = [several] if isinstance(several, str) else several
        if not isinstance(several, list) or not all(isinstance(one, str) and one for one in several):
            raise UsageError(f"references must be a path or a list of paths, got {value!r:.80}")
        return several
    if name == "outpaint":
        margins = _from_text(name, value) if isinstance(value, str) else value
        if not isinstance(margins, list) or len(margins) != 4 or not all(isinstance(one, int) for one in margins):
            raise UsageError(f"outpaint must be [left, top, right, bottom] in pixels, got {value!r:.80}")
        return margins
    if name == "size":
        if not isinstance(value, (str, int, list)) or isinstance(value, bool):
            raise UsageError(f"size must be a side, a text such as 640x480 or [width, height], got {value!r:.80}")
        return value
    if name == "id":
        if not NAME.fullmatch(str(value)):
            raise UsageError(f"id must be up to 128 letters, digits, '-', '_' or blanks, got {value!r:.80}")
        return str(value)
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text, got {value!r:.80}")
    return value


def _from_text(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UsageError(f"{name}: {text!r:.80} is no JSON value") from None


def _version(place: str) -> str:
    """The version of a picture.

    Raises:
        UsageError: it cannot be read; were its job made all the same, it would have another identity the next time.
    """
    try:
        return _stored_version(place)
    except FileNotFoundError:
        raise UsageError(f"{shown(place)} does not exist") from None
    except StoreError as error:
        raise UsageError(str(error)) from None


_stored_version = lru_cache(maxsize=KNOWN_VERSIONS)(version_of)


def _short(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
