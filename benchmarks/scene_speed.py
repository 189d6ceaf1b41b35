"""How many scenes a second are drawn, with captions, by worker processes of one thread each.

python benchmarks/scene_speed.py data/nano --processes 2
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path

from arimage.data.assets import Assets
from arimage.data.scenes import Scenes
from arimage.data.scenes.settings import EDIT_TASKS, PICTURE_TASKS, SceneSettings


def draw(folder: str, side: int, tasks: tuple[str, ...], first: int, count: int, ready, go, results) -> None:
    settings = SceneSettings(tasks=dict.fromkeys(tasks, 1.0), sizes=((side, side),))
    scenes = Scenes(Assets.open(folder), settings)
    for index in range(40):
        scenes[10**6 + index]
    ready.put(first)
    go.wait()
    start = time.perf_counter()
    for index in range(first, first + count):
        scenes[index]
    results.put((count, time.perf_counter() - start))


def measure(folder: str, side: int, tasks: tuple[str, ...], processes: int, count: int) -> float:
    """Scenes a second over all processes."""
    context = multiprocessing.get_context("spawn")
    ready, results, go = context.Queue(), context.Queue(), context.Event()
    workers = [
        context.Process(target=draw, args=(folder, side, tasks, 10_000 * n, count, ready, go, results))
        for n in range(processes)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.get()
    go.set()
    done = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(made / seconds for made, seconds in done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for side in (256, 512, 1024):
        for name, tasks in (("pictures", PICTURE_TASKS), ("edits", EDIT_TASKS)):
            count = max(40, given.count * 256 // side)
            rate = measure(str(given.folder), side, tasks, given.processes, count)
            rows.append({"side": side, "kind": name, "scenes_per_second": round(rate, 1)})
            print(f"| {side} | {name} | {rate:.0f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"processes": given.processes, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
