r"""Data that does not fit: time and memory of indexing and of a start, samples a second by form, and how it grows.

    python benchmarks/data_scale.py --samples 1000000              # tars of 10,000, 64 px; about 4 GB a form
    python benchmarks/data_scale.py --samples 0 --index-rows 100000000
    python benchmarks/data_scale.py --samples 2000 --side 512      # what decoding costs

Every figure is of a process of its own, on one core. ``webdataset`` and ``datasets`` read the same files with the same
decoding, where they are installed. The remote form is a server of this machine, started here.
"""

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DISTINCT = 256
OURS = ("pictures", "tar", "parquet", "remote")


def pictures(side: int) -> list[bytes]:
    """Encoded pictures with as much detail as photographs have, of three shapes."""
    found = []
    for number in range(DISTINCT):
        shape = ((side, side), (side * 3 // 2, side), (side, side * 3 // 2))[number % 3]
        noise = np.random.default_rng(number).integers(
            0, 255, (max(8, side // 8), max(8, side // 8), 3), dtype=np.uint8
        )
        buffer = io.BytesIO()
        Image.fromarray(noise).resize(shape, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        found.append(buffer.getvalue())
    return found


def write_tars(folder: Path, samples: int, shard: int, encoded: list[bytes]) -> None:
    for first in range(0, samples, shard):
        with tarfile.open(folder / f"{first // shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(first, min(first + shard, samples)):
                for suffix, content in (("jpg", encoded[number % DISTINCT]), ("txt", f"picture {number}".encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def write_parquet(folder: Path, samples: int, shard: int, encoded: list[bytes]) -> None:
    import pyarrow
    import pyarrow.parquet

    for first in range(0, samples, shard):
        numbers = range(first, min(first + shard, samples))
        rows = {
            "image": [{"bytes": encoded[number % DISTINCT], "path": None} for number in numbers],
            "caption": [f"picture {number}" for number in numbers],
        }
        pyarrow.parquet.write_table(pyarrow.table(rows), folder / f"{first // shard:06d}.parquet", row_group_size=100)


def write_pictures(folder: Path, samples: int, shard: int, encoded: list[bytes]) -> None:
    for number in range(samples):
        place = folder / f"{number // 1000:06d}"
        place.mkdir(exist_ok=True)
        (place / f"{number:09d}.jpg").write_bytes(encoded[number % DISTINCT])
        (place / f"{number:09d}.txt").write_text(f"picture {number}")


WRITERS: dict[str, Callable[[Path, int, int, list[bytes]], None]] = {
    "tar": write_tars, "parquet": write_parquet, "pictures": write_pictures,
}  # fmt: skip


def write_index(file: Path, rows: int, shard: int = 10_000) -> None:
    """An index of tars that are not there: photographs of a thousand sizes."""
    import pyarrow
    import pyarrow.parquet

    from arimage.data.index import METADATA, ROWS_OF_A_GROUP, VERSION, schema

    random = np.random.default_rng(0)
    counts = [min(shard, rows - first) for first in range(0, rows, shard)]
    shards = [
        {"form": "tar", "path": f"{n:06d}.tar", "stamp": "0", "size": 1, "start": 0, "stop": None, "about": {}}
        for n in range(len(counts))
    ]
    about = {
        "version": VERSION, "rows": counts, "verified": [False] * len(counts), "faults": 0, "ratings": {3: rows},
        "shards": shards,
    }  # fmt: skip
    length = ROWS_OF_A_GROUP
    starts, sides = np.arange(length) * 4096, np.arange(512, 1536, 32)
    columns: dict[str, Any] = dict.fromkeys(schema().names, [None] * length)
    columns |= {
        "key": [b"%09d" % number for number in range(length)], "parts": ["jpg,txt"] * length,
        "offsets": [[int(start), int(start) + 3072] for start in starts], "lengths": [[2048, 20]] * length,
        "width": random.choice(sides, length), "height": random.choice(sides, length),
        "masked": [False] * length, "rating": [3] * length, "kinds": [["caption"]] * length,
        "characters": random.integers(10, 300, (length, 1)).tolist(), "languages": [["en"]] * length,
    }  # fmt: skip
    table = pyarrow.table(columns, schema=schema()).cast(schema().with_metadata({METADATA: json.dumps(about)}))
    with pyarrow.parquet.ParquetWriter(file, table.schema, compression="zstd") as writer:
        for first in range(0, rows, length):
            writer.write_table(table.slice(0, min(length, rows - first)), length)


# What a process of its own measures


def measured(work: Callable[[], dict[str, Any]]) -> None:
    """Print what some work says, with its time, processor time and largest memory in MB."""
    since, used = time.perf_counter(), time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = work()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({
        "seconds": time.perf_counter() - since, "cpu_seconds": time.process_time() - used, "memory": memory,
        "imports": before, **figures,
    }))  # fmt: skip


def make_index(path: str, index: str) -> None:
    from arimage.data.indexing import build_index

    measured(lambda: {"rows": len(build_index(path, Path(index), processes=1))})


def source(path: str, index: str, side: int, batch: int, cache: str | None) -> Any:
    from arimage.training.batches import StepBatches
    from arimage.training.config import CaptionConfig, SourceConfig

    config = SourceConfig(path=path, index=index, sides=(side,), shard_cache=cache)
    return StepBatches([config], batch, lambda examples: {"seen": len(examples)}, CaptionConfig())


def start(path: str, index: str, side: int, batch: int, cache: str | None) -> None:
    import arimage.training.batches  # noqa: F401

    measured(lambda: {"rows": source(path, index, side, batch, cache).sources[0].size})


def start_of_rows(index: str, side: int, batch: int) -> None:
    """A start from an index alone, with a batch from the middle of the second epoch."""
    from arimage.data.buckets import bucket_sizes
    from arimage.data.index import Index
    from arimage.data.order import EpochOrder
    from arimage.training.config import SourceConfig
    from arimage.training.selection import choose, shard_blocks, shuffle_window

    def work() -> dict[str, Any]:
        opened = Index(Path(index))
        kinds, _ = choose(opened, bucket_sizes(side), SourceConfig(path="photos", sides=(side,)))
        blocks = shard_blocks(opened)
        order = EpochOrder(
            kinds, [rows for shard in blocks for rows in shard], batch, shards=[len(shard) for shard in blocks],
            window=shuffle_window(opened),
        )  # fmt: skip
        middle = order.batches_per_epoch * 3 // 2
        first = [opened.row(int(row)) for row in order.batch(middle)]
        assert first[0]["offsets"]
        since = time.perf_counter()
        for draw in range(20):
            order.batch(middle + draw)
        return {"rows": len(opened), "milliseconds_a_batch": (time.perf_counter() - since) * 50}

    measured(work)


def epoch(path: str, index: str, side: int, batch: int, count: int, cache: str | None) -> None:
    batches = source(path, index, side, batch, cache)
    order = batches.sources[0].order
    batches[0]
    steps = max(1, count // batch)

    def work() -> dict[str, Any]:
        half = 0.0
        for step in range(1, steps + 1):
            batches[step]
            if step == steps // 2:
                half = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"samples": steps * batch, "memory_at_half": half, **shuffle_of(order)}

    measured(work)


def shuffle_of(order: Any) -> dict[str, float]:
    """How well an epoch is shuffled, and how much of it is read in one go.

    ``blocks_a_batch``: different blocks in a batch, over its samples; ``displacement``: mean distance of a sample in
    the epoch from where it lies, over what a whole shuffle has; ``reads_in_one_go``: samples that do not begin a read.
    """
    draws = min(order.batches_per_epoch, 400)
    rows = [order.batch(draw) for draw in range(draws)]
    blocks = [np.searchsorted(order.starts, batch, "right") for batch in rows]
    every = np.concatenate(rows)
    position = np.arange(len(every)) / max(1, order.batches_per_epoch * order.batch_size)
    seen, reads = set(), 0
    recent: list[int] = []
    for block in np.concatenate(blocks):
        if int(block) not in seen:
            reads += 1
            seen.add(int(block))
            recent.append(int(block))
            if len(recent) > 256:
                seen.discard(recent.pop(0))
    return {
        "blocks_a_batch": float(np.mean([len(set(one)) for one in blocks])) / order.batch_size,
        "displacement": float(np.abs(every / len(order.kinds) - position).mean()) * 3,
        "reads_in_one_go": 1 - reads / len(every),
    }


def decoded(content: bytes, side: int) -> Image.Image:
    """What a plain loader does with a picture: decode, scale, crop."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return image.crop((0, 0, side, side))


def plain_webdataset(path: str, side: int, count: int) -> None:
    import webdataset

    tars = sorted(map(str, Path(path).glob("*.tar")))

    def work() -> dict[str, Any]:
        loaded = webdataset.WebDataset(tars, shardshuffle=False).shuffle(5000)
        for number, sample in enumerate(loaded, 1):
            decoded(sample["jpg"], side)
            sample["txt"].decode()
            if number == count:
                break
        return {"samples": number}

    measured(work)


def plain_datasets(path: str, side: int, count: int) -> None:
    import datasets

    datasets.disable_progress_bars()

    def samples() -> Iterator[dict[str, Any]]:
        files = sorted(map(str, Path(path).glob("*.parquet")))
        loaded = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        yield from loaded.shuffle(0, buffer_size=5000)

    def work() -> dict[str, Any]:
        for number, sample in enumerate(samples(), 1):
            image = sample["image"]
            decoded(image["bytes"] if isinstance(image, dict) else _encoded(image), side)
            if number == count:
                break
        return {"samples": number}

    measured(work)


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()


# Driving


def apart(task: str, *arguments: Any) -> dict[str, Any]:
    """A task in a process of its own."""
    told = [None if one is None else str(one) if isinstance(one, Path) else one for one in arguments]
    done = subprocess.run(
        [sys.executable, __file__, "--task", json.dumps([task, told])], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{task}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def served(folder: Path) -> tuple[ThreadingHTTPServer, str]:
    """A server of a folder that answers range requests."""

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                return super().do_GET()
            wanted = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            size = path.stat().st_size
            first, last = int(wanted[0] or 0), int(wanted[2] or size - 1)
            self.send_response(206 if self.headers.get("Range") else 200)
            self.send_header("Content-Length", str(max(0, min(last, size - 1) - first + 1)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            with path.open("rb") as file:
                file.seek(first)
                self.wfile.write(file.read(last - first + 1))
            return None

        def log_message(self, *_: Any) -> None:
            return None

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that goes away in the middle is nothing to tell."""

    server = Server(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/"


def of_size(samples: int, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows = []
    encoded = pictures(options.side)
    for form in options.forms:
        kept = "tar" if form == "remote" else form
        place = folder / f"{kept}-{samples}"
        if not place.exists():
            place.mkdir()
            WRITERS[kept](place, samples, options.shard, encoded)
            time.sleep(3)  # folders that changed a moment ago say nothing yet (arimage.data.storage.settled)
        server, url = served(place) if form == "remote" else (None, str(place))
        index = folder / f"{form}-{samples}.parquet"
        target = min(options.side, options.target or options.side)
        count = min(samples, options.read)
        for cache in (None, folder / f"copies-{samples}") if form == "remote" else (None,):
            row = {"form": form + (" (copies)" if cache else ""), "samples": samples}
            row["index"] = apart("make_index", url, index)
            row["start"] = apart("start", url, index, target, options.batch, cache)
            row["read"] = apart("epoch", url, index, target, options.batch, count, cache)
            rows.append(row)
            show(row)
        if server is not None:
            server.shutdown()
        plain = {"tar": ("webdataset", "plain_webdataset"), "parquet": ("datasets", "plain_datasets")}.get(form)
        if plain is not None:
            row = {"form": plain[0], "samples": samples, "read": apart(plain[1], place, target, count)}
            rows.append(row)
            show(row)
        if not options.keep and form != "tar":
            shutil.rmtree(place, ignore_errors=True)
    return rows


def show(row: dict[str, Any]) -> None:
    """A line of a table."""
    text = [f"{row['form']:16} {row['samples']:>11,}"]
    if "index" in row:
        made = row["index"]
        cost = made["cpu_seconds"] / max(1, row["samples"]) * 1e6
        text.append(f"index {made['cpu_seconds']:7.1f} s CPU ({cost:5.0f} us a sample), {made['memory']:5.0f} MB")
    if "start" in row:
        begun = row["start"]
        text.append(
            f"start {begun['cpu_seconds']:5.2f} s CPU ({begun['seconds']:.2f} s), "
            f"{begun['memory'] - begun['imports']:4.0f} MB over imports"
        )
    if "read" in row:
        read = row["read"]
        text.append(f"{read['samples'] / read['cpu_seconds']:7.0f} samples/s of CPU, {read['memory']:5.0f} MB")
        if "memory_at_half" in read:
            text.append(
                f"(half way {read['memory_at_half']:.0f}); blocks a batch {read['blocks_a_batch']:.2f}, "
                f"displacement {read['displacement']:.2f}, in one go {read['reads_in_one_go']:.3f}"
            )
    print(" | ".join(text), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 1_000_000], help="0 leaves reading out")
    parser.add_argument("--shard", type=int, default=10_000, help="samples of a tar or parquet file")
    parser.add_argument("--side", type=int, default=64, help="shorter side of the pictures")
    parser.add_argument("--target", type=int, default=0, help="side of the bucket; by default the pictures'")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--read", type=int, default=20_000, help="samples that are read of each form")
    parser.add_argument("--forms", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--index-rows", type=int, default=0, help="rows of an index without pictures")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; by default a temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep what was written")
    parser.add_argument("--json", type=Path, default=None, help="write all figures")
    parser.add_argument("--task", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task is not None:
        task, arguments = json.loads(options.task)
        globals()[task](*arguments)
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="data-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    figures: list[dict[str, Any]] = []
    try:
        if options.index_rows:
            file = folder / f"rows-{options.index_rows}.parquet"
            used = time.process_time()
            if not file.exists():
                write_index(file, options.index_rows)
            print(
                f"written in {time.process_time() - used:.0f} s of CPU, {file.stat().st_size / 1e9:.2f} GB", flush=True
            )
            row = {"form": "index alone", "samples": options.index_rows}
            row["start"] = apart("start_of_rows", file, 512, options.batch)
            figures.append(row)
            show(row)
            print(f"{row['start']['milliseconds_a_batch']:.1f} ms for the numbers of a batch")
        for samples in options.samples:
            if samples:
                figures += of_size(samples, options, folder)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
