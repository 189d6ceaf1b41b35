"""Pools of actors on a Ray cluster of this machine, in figures.

    python benchmarks/scale.py rate --jobs 10000 --workers 4       # a stub of realistic sizes: share of the ideal rate
    python benchmarks/scale.py faults --jobs 200 --times 5         # kill -9 of workers, nodes and the driver
    python benchmarks/scale.py model --jobs 500                    # the embedded model: pictures and rate of plain runs

``rate`` uses pools of 1 + ``--workers``, the times of the released model's stages divided by ``--quicker``, and the
sizes of what they hand on. The ideal is the rate of the slowest stage's workers if they never waited. Nothing is
written but rows. ``faults`` compares with a run in one process, file by file.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw

from arimage.scale.batch import Batch
from arimage.scale.cluster import Cluster
from arimage.scale.jobs import Basis, Job, Table
from arimage.scale.local import run_here
from arimage.scale.pools import Pools, connect
from arimage.scale.progress import Progress
from arimage.scale.stages import Output, Work
from arimage.scale.stores import Store
from arimage.scale.stub import SIZES, StubStages
from arimage.scale.target import Place, Target

# Seconds of calls, released model: a batch of 16 tokens, one picture of the others.
CALLS = {"encode": 0.2, "tokens": 60.0, "diffusion": 16.0, "pixels": 1.0}
SMALL = {"encoded": 64, "codes": 64, "latents": 64, "picture": 64}


def cluster_of(workers: int) -> Cluster:
    """One worker of each stage, and several of diffusion; they wait more than they compute."""
    pool = {"num_cpus": 0.1}
    return Cluster.model_validate(
        {"batch": 16, "stages": {stage: {**pool, "actors": workers if stage == "diffusion" else 1} for stage in CALLS}}
    )


def rate(options: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second through the real pools, as a share of the ideal."""
    ray = connect("local", num_cpus=2, object_store_memory=options.store * 2**20)
    seconds = {stage: value / options.quicker for stage, value in CALLS.items()}
    progress = Progress(options.jobs, print)
    pools = Pools(ray, StubStages(seconds=seconds, sizes=SIZES), cluster_of(options.workers), progress, print)

    def works() -> Iterator[Work]:
        for number in range(options.jobs):
            job = Job(number + 1, f"{number}", f"{number:032x}", arguments={"prompt": "fox", "seed": number})
            yield Work(job, Place("0"))

    finished: list[float] = []
    memory: list[float] = []
    stored: list[float] = []
    there = ray.cluster_resources()["object_store_memory"]
    for number, _ in enumerate(pools.run(works())):
        finished.append(time.monotonic())
        if number % max(1, options.jobs // 20) == 0:
            memory.append(psutil.Process().memory_info().rss / 2**20)
            stored.append((there - ray.available_resources().get("object_store_memory", 0.0)) / 2**20)
    ray.shutdown()
    start = options.jobs // 10  # when all pools are full
    measured = (len(finished) - start - 1) / (finished[-1] - finished[start])
    ideal = min(
        16 / seconds["tokens"], options.workers / seconds["diffusion"], 1 / seconds["encode"], 1 / seconds["pixels"]
    )
    return {
        "jobs": options.jobs, "pictures_a_second": measured, "ideal": ideal, "share": measured / ideal,
        "driver_MiB": list(map(round, memory)), "object_store_MiB": list(map(round, stored)), "lost": pools.lost,
    }  # fmt: skip


def write_jobs(folder: Path, count: int) -> Table:
    """A table of stub jobs."""
    place = folder / "jobs.jsonl"
    place.write_text("".join(json.dumps({"prompt": f"fox {i}", "seed": i}) + "\n" for i in range(count)))
    return Table(str(place), Basis("w"))


def run_stub(jobs: Table, place: Path, ray: Any, seconds: float, workers: int) -> None:
    """A run of the stub on the pools, or in this process."""
    progress, store = Progress(jobs.count), Store(str(place))
    stages = StubStages(Output(store), {"diffusion": seconds}, SMALL)
    batch = Batch(jobs, Target(store, "webdataset"), progress, 16, 0.0)
    if ray is None:
        batch.run(lambda works: run_here(stages, works, progress, 16))
    else:
        batch.run(Pools(ray, stages, cluster_of(workers), progress, print).run)


def faults(options: argparse.Namespace) -> dict[str, Any]:
    """Runs that are hit at random moments, and what is there in the end."""
    moments = random.Random(options.seed)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = write_jobs(folder, options.jobs)
        run_stub(jobs, folder / "alone", None, 0.0, 1)
        wanted = contents(folder / "alone")
        for kind in options.kinds.split(","):
            place, hits = folder / kind, 0
            while True:
                run = {"place": place, "table": jobs.place, "workers": options.workers, "nodes": options.nodes}
                given = [text for name, value in run.items() for text in (f"--{name}", str(value))]
                driver = subprocess.Popen([sys.executable, __file__, "driver", *given])
                while driver.poll() is None:
                    time.sleep(moments.uniform(0.5, 2.0))
                    if hits < options.times and there(place) > options.jobs * hits // (options.times + 1):
                        hits += hit(kind, driver, moments)
                if driver.wait() == 0:
                    break
            found = contents(place)
            rows = [json.loads(line) for line in found["manifest.jsonl"].splitlines()]
            results[kind] = {
                "hits": hits, "listed": len(rows), "once": len({row["job"] for row in rows}) == options.jobs,
                "same": found == wanted,
            }  # fmt: skip
    return results


def hit(kind: str, driver: "subprocess.Popen[bytes]", moments: random.Random) -> int:
    """Kill something; whether it was there."""
    names = {"worker": "ray::StageActor", "node": "raylet", "driver": ""}
    below, found = [], []
    with suppress(psutil.Error):
        below = psutil.Process(driver.pid).children(recursive=True)
    for one in below:
        with suppress(psutil.Error):  # gone, or killed before and not waited for
            if names[kind] in " ".join(one.cmdline()[:1]):
                found.append(one)
    if kind == "driver":
        driver.kill()
        driver.wait()
        for process in below:  # in a cluster of its own nobody is left to end them
            with suppress(psutil.Error):
                process.kill()
        return 1
    if kind == "node":
        found = found[1:]  # the first is the head's
    if not found:
        return 0
    os.kill(moments.choice(found).pid, signal.SIGKILL)
    return 1


def driver(options: argparse.Namespace) -> dict[str, Any]:
    """The run that ``faults`` hits."""
    if options.nodes > 1:
        from ray.cluster_utils import Cluster as Nodes

        nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
        for _ in range(options.nodes - 1):
            nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        ray = connect(nodes.address)
    else:
        ray = connect("local", num_cpus=2, object_store_memory=80 * 2**20)
    run_stub(Table(options.table, Basis("w")), Path(options.place), ray, 0.1, options.workers)
    ray.shutdown()
    return {}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a target, but for those about its making."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".arimage" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def there(folder: Path) -> int:
    """Pictures that are staged or packed."""
    packed = sum(len(path.read_text().splitlines()) for path in folder.glob(".arimage/parts/*.jsonl"))
    return packed + len(list(folder.glob(".arimage/staging/*/*.json")))


def draw_references(folder: Path) -> None:
    """A picture to edit, a mask of its middle, and a picture to follow."""
    for name, ground in (("sign.png", "red"), ("style.png", "yellow")):
        picture = Image.new("RGB", (256, 256), ground)
        ImageDraw.Draw(picture).ellipse((64, 64, 192, 192), fill="white")
        picture.save(folder / name)
    mask = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(mask).rectangle((96, 96, 160, 160), fill=255)
    mask.save(folder / "mask.png")


def row_of(number: int) -> dict[str, Any]:
    """Of six jobs three pictures, an edit, a masked edit, and a picture with a reference."""
    colors = ("blue", "green", "yellow", "white")
    row: dict[str, Any] = {"prompt": f"a fox on a {colors[number % 4]} background", "seed": number}
    if number % 6 == 3:
        return row | {"prompt": f"Change the background to a {colors[number % 4]} background", "image": "sign.png"}
    if number % 6 == 4:
        return row | {"image": "sign.png", "mask": "mask.png"}
    if number % 6 == 5:
        return row | {"references": ["style.png"], "size": 256}
    return row | {"size": 256}


def model(options: argparse.Namespace) -> dict[str, Any]:
    """The embedded model by ``arimage batch``, with edits and masks among the jobs: pictures a second without Ray and
    with it, and whether the files are the same.

    Without: one process with all cores; then as many processes of ``--threads`` as there is room for, which share the
    jobs and nothing else: what the machine can give. With: ``--ray local --threads``. All in turns, ``--rounds`` times.
    """
    cores = os.cpu_count() or 1
    several = max(1, cores // options.threads)
    ways: dict[str, tuple[int, int, tuple[str, ...]]] = {
        "one process": (1, cores, ()),
        "apart": (several, options.threads, ()),
        "ray": (1, options.threads, ("--ray", "local")),
    }
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    pictures: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_references(folder)
        rows = [row_of(number) for number in range(options.jobs)]
        for turn in range(options.rounds):
            for way, (processes, threads, more) in ways.items():
                places = [folder / f"{way}-{turn}-{number}" for number in range(processes)]
                began = time.monotonic()
                running = []
                for number, place in enumerate(places):
                    jobs = folder / f"{number}-of-{processes}.jsonl"
                    jobs.write_text("".join(json.dumps(row) + "\n" for row in rows[number::processes]))
                    given = (str(jobs), "-o", str(place), "--tier", "fast", "--threads", str(threads), *more)
                    command = [sys.executable, "-m", "arimage", "batch", "--quiet", *given]
                    running.append(subprocess.Popen(command))
                if any([one.wait() for one in running]):
                    raise SystemExit(f"{way}: arimage batch failed")
                files = [path for place in places for path in place.rglob("*.png")]
                found[way].append({"seconds": time.monotonic() - began, "pictures_a_second": steady(files)})
                pictures[way] = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    rates = {way: statistics.median(one["pictures_a_second"] for one in runs) for way, runs in found.items()}
    return {
        "jobs": options.jobs, "cores": cores, "threads": options.threads, "runs": found, "pictures_a_second": rates,
        "ray_to_apart": rates["ray"] / rates["apart"], "ray_to_one_process": rates["ray"] / rates["one process"],
        "same": pictures["ray"] == pictures["apart"],
    }  # fmt: skip


def steady(files: list[Path]) -> float:
    """Pictures a second between the first and the last tenth, by when their files were written."""
    written = sorted(path.stat().st_mtime for path in files)
    first, last = len(written) // 10, len(written) - len(written) // 10 - 1
    return (last - first) / (written[last] - written[first])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rate", "faults", "model", "driver"])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--quicker", type=float, default=200.0)
    parser.add_argument("--store", type=int, default=256, help="MiB of the object store")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="model: CPU threads of a worker")
    parser.add_argument("--rounds", type=int, default=1, help="model: how often each way is run")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--kinds", default="worker,driver")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", default="")
    parser.add_argument("--table", default="")
    arguments = parser.parse_args()
    result = {"rate": rate, "faults": faults, "model": model, "driver": driver}[arguments.what](arguments)
    if result:
        print(json.dumps(result))
