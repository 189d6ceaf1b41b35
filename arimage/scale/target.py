"""A target: pictures or shards, what is in them, and what is still missing.

    00000/fox.png, 00000/fox.json      a picture and its row with the recipe (form ``pictures``)
    00000-1f3a9c2e40b7.tar             a shard, named by its part and the jobs that were to be in it
    .arimage/parts/00000-1f3a….jsonl   the rows of what is finished
    .arimage/staging/00000/…           pictures whose shard is not there yet
    failures.jsonl, manifest.jsonl     at the end

A part is so many rows of the table. Its picture files are written first, each whole, then its shard, then its rows, and
each only where it is not there: so a run that was killed goes on where it was, and of two runs on one target the first
to write a file has written it for both.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arimage.errors import UsageError
from arimage.scale.jobs import Job
from arimage.scale.shards import READERS, SUFFIXES, WRITERS, Form, Row, to_json
from arimage.scale.stores import Store, StoreError

PARTS, STAGING = ".arimage/parts", ".arimage/staging"
MANIFEST, FAILURES = "manifest.jsonl", "failures.jsonl"


@dataclass(frozen=True)
class Place:
    """Where a picture is put: a folder in the store, and the name of its shard, empty where it is to stay."""

    folder: str
    shard: str = ""


@dataclass
class Part:
    """Some rows of the table.

    Attributes:
        name: of the part and its wanted jobs.
        place: where its pictures go.
        jobs: those that are not finished.
        rows: of what is made of them so far, by identity.
        closed: another run has finished it, with these rows.
    """

    name: str
    place: Place
    jobs: Sequence[Job]
    rows: dict[str, Row] = field(default_factory=dict)
    closed: bool = False


class Target:
    """What a run writes to.

    Args:
        store: where.
        form: of what is kept.
        kind: of picture files: png, jpeg or webp.
    """

    def __init__(self, store: Store, form: Form = "pictures", kind: str = "png") -> None:
        self.store, self.form, self.kind = store, form, kind

    def finished(self) -> set[bytes]:
        """The identities of all jobs whose pictures are in finished parts.

        Raises:
            UsageError: they are kept in another form.
        """
        for folder in ("", PARTS):
            self.store.sweep(folder)
        found: set[bytes] = set()
        for name in self._parts():
            for row in self._rows(name):
                form = next(
                    (form for form, suffix in SUFFIXES.items() if suffix and row["file"].endswith(suffix)), None
                )
                if (form or "pictures") != self.form:
                    raise UsageError(
                        f"{self.store.place} holds {form or 'pictures'}, not {self.form}: choose another target, or "
                        f"--form {form or 'pictures'}"
                    )
                found.add(bytes.fromhex(row["job"]))
        return found

    def open_part(self, number: int, jobs: Sequence[Job]) -> Part:
        """The part of these unfinished jobs, with the rows of pictures that are there already."""
        digest = hashlib.sha256("".join(job.identity for job in jobs).encode()).hexdigest()[:12]
        name = f"{number:05d}-{digest}"
        place = Place(f"{number:05d}")
        if self.form != "pictures":
            place = Place(f"{STAGING}/{name}", name + SUFFIXES[self.form])
        part = Part(name, place, jobs)
        if self._adopt(part):
            return part
        there = self.store.names(part.place.folder)
        for job in jobs:
            if f"{job.id}.json" in there:
                row = read_row(self.store, part.place, job)
                if row is not None:
                    part.rows[job.identity] = row
        return part

    def close(self, part: Part) -> None:
        """Make a part whose pictures are all made a finished one; to be called in any thread.

        Afterwards ``part.rows`` are those that are there, which another run may have written.

        Raises:
            StoreError: it cannot be written.
        """
        if not part.rows:
            return
        if not part.closed and not self._adopt(part) and self.form != "pictures":
            try:
                packed = self._pack(part)
            except FileNotFoundError as error:  # another run may have packed these pictures, and removed them
                if not self._adopt(part):
                    raise StoreError(f"{self.store.place}: {error.filename or error} is gone") from None
            else:
                if not packed:
                    self._adopt(part)
        lines = b"".join(to_json({key: row[key] for key in row if key != "recipe"}) + b"\n" for row in _in_order(part))
        self.store.write(f"{PARTS}/{part.name}.jsonl", lines, new=True)
        if self.form == "pictures":
            self.store.sweep(part.place.folder)
        else:
            self.store.remove(part.place.folder)

    def write_failures(self, failures: Sequence[Row]) -> None:
        """Write, or remove, the list of jobs that failed."""
        if failures:
            self.store.write(FAILURES, b"".join(to_json(row) + b"\n" for row in failures))
        else:
            self.store.remove(FAILURES)

    def write_manifest(self, rows_of: dict[bytes, int]) -> int:
        """Write the list of what there is of these jobs, given by identity with their rows; how many there are."""
        left, count = dict(rows_of), 0
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, MANIFEST)
            with file.open("wb") as lines:
                for name in self._parts():
                    for row in self._rows(name):
                        number = left.pop(bytes.fromhex(row["job"]), None)
                        if number is not None:
                            lines.write(to_json(row | {"row": number}) + b"\n")
                            count += 1
            self.store.put(MANIFEST, file)
        return count

    def clear_manifest(self) -> None:
        """A manifest says that everything is there: what is about to change has none."""
        self.store.remove(MANIFEST)

    def manifest(self) -> Iterator[Row]:
        """The rows of the manifest, in the order of parts.

        Raises:
            FileNotFoundError: the target is not finished.
        """
        for line in self.store.read(MANIFEST).splitlines():
            yield json.loads(line)

    def _parts(self) -> list[str]:
        return sorted(name for name in self.store.names(PARTS) if name.endswith(".jsonl"))

    def _rows(self, name: str) -> Iterator[Row]:
        for line in self.store.read(f"{PARTS}/{name}").splitlines():
            yield json.loads(line)

    def _adopt(self, part: Part) -> bool:
        """Take what a run has finished of a part as it is; whether there is any."""
        name = f"{part.name}.jsonl"
        if self.store.exists(f"{PARTS}/{name}"):
            rows = list(self._rows(name))
        elif self.form != "pictures" and self.store.exists(part.place.shard):
            with self.store.fetched(part.place.shard) as path:
                rows = list(READERS[self.form](path))
        else:
            return False
        part.rows, part.closed = {row["job"]: row for row in rows}, True
        return True

    def _pack(self, part: Part) -> bool:
        assert self.form != "pictures"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, part.place.shard)

            def contents(row: Row) -> bytes:
                return self.store.read(f"{part.place.folder}/{row['name']}")

            try:
                WRITERS[self.form](file, _in_order(part), contents)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise StoreError(f"cannot pack {part.place.shard} in {folder}: {error.strerror or error}") from None
            return self.store.put(part.place.shard, file, new=True)


def _in_order(part: Part) -> list[Row]:
    return [part.rows[job.identity] for job in part.jobs if job.identity in part.rows]


def read_row(store: Store, place: Place, job: Job) -> Row | None:
    """The row of a picture that is in its place already; None where it is another job's, or damaged."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        row: dict[str, Any] = json.loads(store.read(f"{place.folder}/{job.id}.json"))
        if row["job"] == job.identity:
            return row
    return None


def write_picture(store: Store, place: Place, job: Job, kind: str, contents: bytes, recipe: dict[str, Any]) -> Row:
    """Write a picture, then its row, which is given back: what says that it is there."""
    name = f"{job.id}.{'jpg' if kind == 'jpeg' else kind}"
    path = f"{place.folder}/{name}"
    if not store.write(path, contents, new=True):
        row = read_row(store, place, job)
        if row is not None:
            return row
        store.write(path, contents)
    width, height = recipe["output_size"]
    row = {
        "id": job.id, "job": job.identity, "row": job.row, "file": place.shard or path, "name": name,
        "sha256": hashlib.sha256(contents).hexdigest(), "bytes": len(contents), "size": [width, height],
        "seed": recipe["seed"], "recipe": recipe,
    }  # fmt: skip
    store.write(f"{place.folder}/{job.id}.json", to_json(row))
    return row
