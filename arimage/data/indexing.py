r"""Looking through a data set and writing its index (:mod:`arimage.data.index`).

    arimage data index photos/

A shard that is looked through becomes a part beside the index, whole or not at all; when all are there they are put
together. So indexing that is killed goes on where it was, nothing twice and nothing missing, and where shards were
added or changed only these are looked through. ``python -m arimage.data.indexing`` is one of the processes that
share the work.
"""

import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from arimage.data.captions import language
from arimage.data.duplicates import first_of_their_kind
from arimage.data.forms.shard import Broken, Found, Place, Shard
from arimage.data.index import METADATA, ROWS_OF_A_GROUP, VERSION, Index, arrow, schema
from arimage.data.records import Unreachable, reason
from arimage.data.rows import Facts
from arimage.data.shards import FORMS, find_shards, open_place
from arimage.data.storage import ASKED_AT_ONCE, Storage
from arimage.data.unchanged import remember, unchanged
from arimage.errors import ArimageError, DataError

NAME = ".arimage-index.parquet"
ROWS_AT_ONCE = 1 << 15
SAID_EVERY = 10.0
ASKED_FOR_EACH = ("pictures", "table")  # forms of which each sample is a request
ALONE_FOR = 2.0  # seconds of work that other processes are not started for
OnShard = Callable[[int, int], None]


def build_index(
    path: str,
    file: Path | None = None,
    *,
    verify: bool = False,
    processes: int | None = None,
    on_shard: OnShard | None = None,
    every_file: bool = True,
) -> Index:
    """The index of a data set: the one that is there, brought up to date, or a new one.

    Args:
        file: where it is; by default beside the data, or in the user's cache where that cannot be written.
        verify: decode all pixels, not headers alone, and find duplicates.
        processes: that share the work; by default as many as there are cores.
        on_shard: is told how many shards are done, and of how many; by default a line says so from time to time.
        every_file: look at every file also of many thousands of local pictures, where the times of their folders show
            all changes but those of files that were written over in place (:mod:`arimage.data.unchanged`).

    Raises:
        DataError: there is no data, or storage does not answer.
        ArimageError: the index cannot be written.
    """
    storage, alone = open_place(path)
    places = _places(storage, alone, file)
    record = _kept(storage, alone, "folders.json")
    if not every_file and not verify and (old := _newest(places)) is not None and unchanged(storage, old, record):
        return old
    shards = find_shards(storage, alone)
    if not shards:
        raise DataError(f"{path} holds no pictures with captions; the forms that are read are in docs/data.md")
    for _ in range(3):
        try:
            index = _Build(storage, shards, places, verify).run(processes, on_shard or _lines(path))
            remember(storage, shards, index, record)
            return index
        except FileNotFoundError:  # another process put the parts together at the same time
            continue
    raise DataError(f"the parts of the index of {path} vanish while they are put together")


def _lines(path: str) -> OnShard:
    """Says on the error stream how far it is, every ``SAID_EVERY`` seconds."""
    said = time.monotonic()

    def say(done: int, of: int) -> None:
        nonlocal said
        if time.monotonic() - said > SAID_EVERY:
            said = time.monotonic()
            print(f"{path}: {done} of {of} shards looked through", file=sys.stderr, flush=True)

    return say


def _places(storage: Storage, alone: str, file: Path | None) -> list[Path]:
    """Where the index of a place may be, the best place first."""
    if file is not None:
        return [Path(file)]
    kept = _kept(storage, alone, "parquet")
    if not storage.local:
        return [kept]
    beside = Path(storage.root) / (f".{alone}{NAME}" if alone else NAME)
    return [beside, kept]


def _kept(storage: Storage, alone: str, suffix: str) -> Path:
    """A file about a place in the user's cache."""
    from arimage.checkpoints.embedded import cache_folder  # late: processes that share the work have no use for it

    identity = hashlib.sha256(f"{storage.url}\0{alone}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache_folder() / "indexes" / f"{identity}.{suffix}"


class _Build:
    def __init__(self, storage: Storage, shards: list[Shard], places: list[Path], verify: bool) -> None:
        self.storage, self.shards, self.verify = storage, shards, verify
        self.old = _newest(places)
        self.file = next((place for place in places if _writable(place.parent)), places[-1])
        self.folder = self.file.with_name(f"{self.file.name}.parts")
        self.known: dict[tuple[Any, ...], int] = {}
        if self.old is not None:
            good = (number for number, seen in enumerate(self.old.verified) if seen or not verify)
            self.known = {self.old.shards[number].identity: number for number in good}

    def run(self, processes: int | None, on_shard: OnShard) -> Index:
        """Look through what is not known, and put all together."""
        numbers = [self.known.get(shard.identity) for shard in self.shards]
        if self.old is not None and numbers == list(range(len(self.old.shards))):
            return self.old
        since = time.time()
        todo = [shard for shard, number in zip(self.shards, numbers) if number is None]
        self._make_folder()
        done = len(self.shards) - len(todo)
        missing = [shard for shard in todo if not self.part(shard).exists()]
        done += len(todo) - len(missing)
        for finished in _all_scanned(self.storage, missing, self.verify, self.part, processes):
            done += finished
            on_shard(done, len(self.shards))
        self._put_together(numbers)
        self._clean([self.part(shard) for shard in todo], since)
        return Index(self.file)

    def part(self, shard: Shard) -> Path:
        """Where what was found in a shard is kept until all is done."""
        identity = repr((self.storage.url, shard.identity, self.verify, VERSION)).encode("utf-8", "backslashreplace")
        return self.folder / f"{hashlib.sha256(identity).hexdigest()[:32]}.parquet"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArimageError(f"cannot write {self.folder}: {error.strerror}") from None

    def _clean(self, parts: Sequence[Path], since: float) -> None:
        """Delete parts that were used, and what was left of builds before."""
        for path in [*parts, *self.folder.glob("*")]:
            with suppress(FileNotFoundError):
                if path in parts or path.stat().st_mtime < since:
                    path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def _put_together(self, numbers: Sequence[int | None]) -> None:
        pa = arrow()
        seen, rows, abouts = [], [], []
        for shard, number in zip(self.shards, numbers):
            if number is None:
                metadata = json.loads(pa.parquet.read_schema(self.part(shard)).metadata[METADATA])
                seen.append(self.verify)
            else:
                assert self.old is not None
                metadata = {"rows": self.old.rows[number], "about": self.old.shards[number].about}
                seen.append(self.old.verified[number])
            rows.append(metadata["rows"])
            abouts.append(metadata["about"])
        repeated = self._duplicates(numbers) if all(seen) else None
        ratings, faults = self._counts(numbers)
        about = {
            "version": VERSION, "rows": rows, "verified": seen, "faults": faults, "ratings": ratings,
            "shards": [replace(shard, about=one).as_json() for shard, one in zip(self.shards, abouts)],
        }  # fmt: skip
        columns = schema().with_metadata({METADATA: json.dumps(about)})
        temporary = self.file.with_name(f".{self.file.name.lstrip('.')}.{secrets.token_hex(6)}.part")
        try:
            with pa.parquet.ParquetWriter(temporary, columns, compression="zstd") as writer:
                first = 0
                for table in _regrouped(self._tables(numbers, schema().names), ROWS_OF_A_GROUP):
                    if repeated is not None:
                        table = _with_duplicates(table, first, repeated)
                    writer.write_table(table.cast(columns), ROWS_OF_A_GROUP)
                    first += len(table)
            os.replace(temporary, self.file)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ArimageError(f"cannot write {self.file}: {error.strerror or error}") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _tables(self, numbers: Sequence[int | None], columns: Sequence[str]) -> Iterator[Any]:
        """The rows of all shards in order, in tables of any size."""
        read = arrow().parquet.ParquetFile
        for shard, number in zip(self.shards, numbers):
            if number is None:
                with read(self.part(shard)) as part:
                    for group in range(part.num_row_groups):
                        yield part.read_row_group(group, columns=list(columns))
            else:
                assert self.old is not None
                yield from self.old.rows_of(number, columns)

    def _counts(self, numbers: Sequence[int | None]) -> tuple[dict[int, int], int]:
        ratings: Counter[int] = Counter()
        faults = 0
        for table in self._tables(numbers, ("rating", "fault")):
            usable = table.filter(table.column("fault").is_null())
            values, counts = np.unique(usable.column("rating").to_numpy(), return_counts=True)
            ratings.update({int(value): int(count) for value, count in zip(values, counts)})
            faults += len(table) - table.column("fault").null_count
        return dict(ratings), faults

    def _duplicates(self, numbers: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
        pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for table in self._tables(numbers, ("pixel_hash", "look_hash")):
            pixels, looks = (table.column(name).fill_null(0).to_numpy() for name in ("pixel_hash", "look_hash"))
            pieces.append((pixels, looks, table.column("pixel_hash").is_valid().to_numpy()))
        return first_of_their_kind(*(np.concatenate(column) for column in zip(*pieces)))


def _with_duplicates(table: Any, first: int, repeated: tuple[np.ndarray, np.ndarray]) -> Any:
    own = np.arange(first, first + len(table))
    for name, leaders in zip(("same_as", "looks_like"), repeated):
        values = leaders[first : first + len(table)]
        column = arrow().array(values, arrow().int64(), mask=values == own)
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _regrouped(tables: Iterator[Any], rows: int) -> Iterator[Any]:
    """Tables of so many rows each, but for the last."""
    kept: list[Any] = []
    count = 0
    for table in tables:
        kept.append(table)
        count += len(table)
        while count >= rows:
            whole = arrow().concat_tables(kept)
            yield whole.slice(0, rows)
            kept = [whole.slice(rows)]
            count -= rows
    if count:
        yield arrow().concat_tables(kept)


def _newest(places: Sequence[Path]) -> Index | None:
    """The index that is there, at the best of its places."""
    return next((index for index in map(_opened, places) if index is not None), None)


def _opened(file: Path) -> Index | None:
    if not file.exists():
        return None
    with suppress(DataError):
        return Index(file)
    return None


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


# Looking through shards


def scan_shard(storage: Storage, shard: Shard, verify: bool, part: Path) -> int:
    """Look through a shard and write what was found; how many samples it has.

    Raises:
        Unreachable: storage does not answer.
    """
    rows: dict[str, list[Any]] = {name: [] for name in schema().names}
    tables: list[Any] = []
    count = 0
    try:
        for place, about in _looked_at(storage, shard, verify):
            key = place.key.encode("utf-8", "surrogateescape")
            _add(rows, key=key, parts=place.parts, offsets=list(place.offsets), lengths=list(place.lengths))
            if isinstance(about, Exception):
                _add(rows, width=0, height=0, masked=False, rating=0, fault=reason(about))
            else:
                _add(
                    rows, width=about.size[0], height=about.size[1], masked=about.masked, rating=about.rating,
                    sources=[side for size in about.sources for side in size], category=about.category,
                    kinds=list(about.captions), characters=[len(text) for text in about.captions.values()],
                    languages=[language(text) for text in about.captions.values()], pixel_hash=about.pixel_hash,
                    look_hash=about.look_hash,
                )  # fmt: skip
            count += 1
            _fill(rows, count - len(tables) * ROWS_AT_ONCE)
            if count % ROWS_AT_ONCE == 0:
                tables.append(_table(rows))
    except Broken as error:
        tables, count = [], 1
        for column in rows.values():
            column.clear()
        shard.about.clear()
        shard.about["broken"] = True
        _add(rows, key=b"", width=0, height=0, masked=False, rating=0, fault=str(error))
        _fill(rows, 1)
    tables.append(_table(rows))
    about_shard = {"rows": count, "about": {key: value for key, value in shard.about.items() if key != "ends"}}
    _write(part, tables, schema().with_metadata({METADATA: json.dumps(about_shard)}))
    return count


def _looked_at(storage: Storage, shard: Shard, verify: bool) -> Iterator[tuple[Place, Facts | Exception]]:
    """The samples of a shard with what they are, or what is wrong with them; several at once where that is waiting."""

    def looked(found: Found) -> Facts | Exception:
        try:
            return found.facts(verify)
        except Unreachable:
            raise
        except Exception as error:  # what decoders raise on people's files has no common class
            return error

    samples = FORMS[shard.form].scan(storage, shard)
    if storage.local or shard.form not in ASKED_FOR_EACH:
        yield from ((found.place, looked(found)) for found in samples)
        return
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        while some := list(islice(samples, 8 * ASKED_AT_ONCE)):
            yield from zip((found.place for found in some), pool.map(looked, some))


def _add(rows: dict[str, list[Any]], **values: Any) -> None:
    for name, value in values.items():
        rows[name].append(value)


def _fill(rows: dict[str, list[Any]], length: int) -> None:
    for column in rows.values():
        if len(column) < length:
            column.append(None)


def _table(rows: dict[str, list[Any]]) -> Any:
    table = arrow().table(rows, schema=schema())
    for column in rows.values():
        column.clear()
    return table


def _write(part: Path, tables: Sequence[Any], columns: Any) -> None:
    temporary = part.with_name(f".{part.name}.{secrets.token_hex(6)}")
    try:
        with arrow().parquet.ParquetWriter(temporary, columns) as writer:
            for table in tables:
                writer.write_table(table.cast(columns))
        os.replace(temporary, part)
    except OSError as error:
        raise ArimageError(f"cannot write {part}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _all_scanned(
    storage: Storage,
    shards: Sequence[Shard],
    verify: bool,
    part: Callable[[Shard], Path],
    processes: int | None,
) -> Iterator[int]:
    """Look through shards, with other processes where there is much to do; 1 for each that is done."""
    count = processes or (1 if storage.url.startswith("memory:") else _cores())
    todo = deque(shards)
    since = time.monotonic()
    while todo and (count == 1 or time.monotonic() - since < ALONE_FOR):
        shard = todo.popleft()
        scan_shard(storage, shard, verify, part(shard))
        yield 1
    if not todo:
        return
    finished: deque[int] = deque()
    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(_work_off, storage, todo, verify, part, finished) for _ in range(count)]
        try:
            while not all(one.done() for one in running) or finished:
                while finished:
                    yield finished.popleft()
                time.sleep(0.05)
        except BaseException:
            todo.clear()
            raise
        for one in running:
            one.result()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work_off(
    storage: Storage, todo: deque[Shard], verify: bool, part: Callable[[Shard], Path], finished: deque[int]
) -> None:
    """Let another process look through shards until none is left."""
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-m", "arimage.data.indexing"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        while True:
            try:
                shard = todo.popleft()
            except IndexError:
                return
            task = {
                "url": storage.url, "verify": verify, "part": str(part(shard)),
                "shard": {**shard.as_json(), "names": shard.names},
            }  # fmt: skip
            try:
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:
                answer = ""
            if not answer:
                todo.clear()
                raise DataError(f"{storage.full(shard.path)}: the process that looked through it was killed")
            if error := json.loads(answer).get("error"):
                todo.clear()
                raise DataError(error)
            finished.append(1)
    finally:
        with suppress(OSError):
            process.stdin.close()
        process.wait()


def main() -> None:
    """Look through shards that come as lines of JSON, and answer each with a line."""
    storages: dict[str, Storage] = {}
    for line in sys.stdin:
        task = json.loads(line)
        storage = storages.setdefault(task["url"], Storage(task["url"]))
        names = tuple((name, captioned) for name, captioned in task["shard"].pop("names"))
        answer: dict[str, Any] = {}
        try:
            answer["rows"] = scan_shard(
                storage, Shard(**task["shard"], names=names), task["verify"], Path(task["part"])
            )
        except ArimageError as error:
            answer["error"] = str(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
