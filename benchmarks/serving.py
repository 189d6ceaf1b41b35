"""``arimage serve`` on loopback under load, and what the server costs over the library.

    python benchmarks/serving.py                             # everything, with the embedded model
    python benchmarks/serving.py --requests 24 --repeats 4   # a quick look

Needs ``pip install 'arimage[serve]' openai``. The server is started as people start it, in a process of its own, and
measured from outside; pictures are of the tier ``fast``.

- **Overhead**: the same picture by the server (OpenAI's client) and by the library (PNG included), in turns; the ratio
  of the medians. Bar: 1.05.
- **Load**: requests a second, and seconds until half and 95 % of them are answered, at 1, 4 and 8 clients; seconds
  until the first preview of a stream.
- **Soak**: mixed requests from 8 clients (pictures, edits with masks, variations, streams), a third of them cancelled
  at a random moment, malformed ones between. Every picture must be the one that the library makes of the same
  request alone, every malformed request must be refused, and memory must stay flat: at most 5 % more in the last
  quarter than in the first half.
- **Kill**: the process is killed in the middle of a request and started again on its port.

It ends with exit code 1 where a request is lost, a picture differs, or memory grows.
"""

import argparse
import base64
import io
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import machine
import openai
from PIL import Image, ImageDraw

import arimage
from arimage.inference.pipeline import ImagePipeline

STARTING = 600.0  # seconds
FLAT = 1.05
CLIENTS = 8
PROMPTS = ("a red fox on a blue background", 'a yellow sign with the text "OPEN"', "a rocket on a purple background")
MALFORMED: tuple[dict[str, Any], ...] = (
    {"prompt": ""},
    {"prompt": "a", "size": "100x100"},
    {"prompt": "a", "n": 11},
    {"prompt": "a", "stesp": 3},
    {"prompt": "a", "model": "another"},
    {"prompt": "a", "response_format": "url"},
)


class ServerProcess:
    """``arimage serve`` in a process of its own.

    Args:
        options: of the command.
        port: 0 takes a free one.
    """

    def __init__(self, options: list[str], port: int = 0) -> None:
        command = [sys.executable, "-m", "arimage", "serve", "--port", str(port), *options]
        began = time.monotonic()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.said: list[str] = []
        self._port = threading.Event()
        self.port = port
        threading.Thread(target=self._listen, daemon=True).start()
        self._port.wait(STARTING)
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() - began > STARTING:
                self.kill()
                raise SystemExit(f"the server does not start: {self.said[-1:]}")
            time.sleep(0.05)
        self.seconds = time.monotonic() - began

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r" at http://127\.0\.0\.1:(\d+)/v1", line):
                self.port = int(found[1])
                self._port.set()
            self.said = [*self.said[-20:], line.strip()]
        self._port.set()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=60):
                return True
        except OSError:
            return False

    def memory(self) -> float:
        """Resident megabytes (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(STARTING)


@contextmanager
def serving(options: list[str], port: int = 0) -> Iterator[ServerProcess]:
    server = ServerProcess(options, port)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


@dataclass(frozen=True)
class Request:
    """A request that the server and the library can both make.

    Attributes:
        kind: ``generate``, ``edit`` or ``variation``.
        fields: of the server.
        arguments: of the library.
        streamed: with previews.
    """

    kind: str
    fields: dict[str, Any]
    arguments: dict[str, Any]
    streamed: bool = False

    def served(self, client: openai.OpenAI) -> list[Image.Image]:
        """Its pictures, from the server."""
        asked: Any = {**self.fields, **({"stream": True, "partial_images": 2} if self.streamed else {})}
        if self.kind == "generate":
            answer: Any = client.images.generate(**asked)
        elif self.kind == "edit":
            answer = client.images.edit(**asked)
        else:
            answer = client.images.create_variation(**asked)
        if self.streamed:
            return [decoded(event.b64_json) for event in answer if event.type.endswith(".completed")]
        return [decoded(datum.b64_json) for datum in answer.data]

    def alone(self, pipeline: ImagePipeline) -> list[Image.Image]:
        """Its pictures, from the library."""
        make: Any = pipeline.generate if self.kind == "generate" else pipeline.edit
        return [picture.image for picture in make(**self.arguments, tier="fast")]


def decoded(b64_json: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    image.load()
    return image


def png(image: Image.Image) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "picture.png", buffer.getvalue()


def plain(seed: int, side: int, streamed: bool = False) -> Request:
    """A picture of a usual size."""
    prompt = PROMPTS[seed % len(PROMPTS)]
    fields = {"prompt": prompt, "size": f"{side}x{side}", "quality": "low", "extra_body": {"seed": seed}}
    return Request("generate", fields, {"prompt": prompt, "size": side, "seed": seed}, streamed)


def mixture(side: int) -> list[Request]:
    """Requests of every kind, few enough for each to be made alone as well."""
    picture = Image.new("RGB", (side, side), "teal")
    ImageDraw.Draw(picture).ellipse((side // 4, side // 4, side // 2, side // 2), "orange")
    mask = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, side // 2, side))
    low: dict[str, Any] = {"quality": "low"}
    wide = side // 64 * 32
    return [
        *(plain(seed, side) for seed in range(3)),
        plain(3, side, streamed=True),
        Request(
            "generate",
            {"prompt": PROMPTS[0], "size": f"{side}x{wide}", "n": 2, **low, "extra_body": {"seed": 9}},
            {"prompt": PROMPTS[0], "size": (side, wide), "images_per_prompt": 2, "seed": 9},
        ),
        Request(
            "edit",
            {"image": png(picture), "mask": png(mask), "prompt": "a red ball", **low, "extra_body": {"seed": 4}},
            {"image": picture, "mask": mask, "prompt": "a red ball", "seed": 4},
        ),
        Request(
            "edit",
            {"image": png(picture), "prompt": "make it night", **low, "extra_body": {"seed": 5}},
            {"image": picture, "prompt": "make it night", "seed": 5},
            streamed=True,
        ),
        Request(
            "variation",
            {"image": png(picture), "extra_body": {"seed": 6, "tier": "fast"}},
            {"image": picture, "seed": 6},
        ),
    ]


def overhead(server: ServerProcess, pipeline: ImagePipeline, side: int, repeats: int) -> dict[str, Any]:
    """The same picture as base64 by the server and as PNG by the library, in turns, the first of each not counted."""
    request = plain(1, side)

    def by_server() -> object:
        return server.client.images.generate(**request.fields)

    def by_library() -> object:
        return pipeline.generate(**request.arguments, tier="fast")[0].to_bytes()

    seconds: dict[Callable[[], object], list[float]] = {by_server: [], by_library: []}
    for _ in range(repeats + 1):
        for make, taken in seconds.items():
            began = time.perf_counter()
            make()
            taken.append(time.perf_counter() - began)
    served, alone = (statistics.median(taken[1:]) for taken in seconds.values())
    return {"server_s": round(served, 4), "library_s": round(alone, 4), "ratio": round(served / alone, 3)}


def load(server: ServerProcess, side: int, clients: int, requests: int) -> dict[str, Any]:
    """Requests a second of so many clients that each ask anew as soon as they are answered."""
    seconds: list[float] = []

    def ask(number: int) -> None:
        began = time.perf_counter()
        plain(100 + number, side).served(server.client)
        seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(requests)))
    whole = time.perf_counter() - began
    half, most = statistics.median(seconds), sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * 0.95))]
    return {
        "clients": clients,
        "requests_per_second": round(requests / whole, 3),
        "p50_s": round(half, 3),
        "p95_s": round(most, 3),
    }


def first_preview(server: ServerProcess, side: int, repeats: int) -> dict[str, float]:
    """Seconds until the first preview and until the picture of a stream."""
    first, last = [], []
    for seed in range(repeats):
        fields: Any = {**plain(seed, side).fields, "stream": True, "partial_images": 3}
        began, times = time.perf_counter(), []
        for _ in server.client.images.generate(**fields):
            times.append(time.perf_counter() - began)
        first.append(times[0])
        last.append(times[-1])
    before, whole = statistics.median(first), statistics.median(last)
    return {"first_preview_s": round(before, 3), "picture_s": round(whole, 3), "share": round(before / whole, 3)}


@dataclass
class Soak:
    """What became of the requests of a soak."""

    finished: list[tuple[int, list[Image.Image]]] = field(default_factory=list)
    cancelled: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def soak(server: ServerProcess, mixed: list[Request], requests: int, seed: int) -> Soak:
    """So many mixed requests from 8 clients."""
    chance, result = random.Random(seed), Soak()
    plan = [(number, chance.randrange(len(mixed)), chance.random(), chance.random()) for number in range(requests)]

    def ask(turn: tuple[int, int, float, float]) -> None:
        number, which, fate, moment = turn
        try:
            if number % 10 == 9:
                refuse(number // 10)
                result.refused += 1
            elif fate < 1 / 3:
                cancel(server, mixed[which], moment)
                result.cancelled += 1
            else:
                result.finished.append((which, mixed[which].served(server.client)))
        except Exception as error:
            result.lost.append(f"request {number} ({mixed[which].kind}): {error!r:.200}")
        result.memory.append(server.memory())

    def refuse(number: int) -> None:
        try:
            body = MALFORMED[number % len(MALFORMED)]
            server.client.post("/images/generations", body=body, cast_to=object)
        except openai.BadRequestError:
            return
        raise AssertionError("a malformed request was not refused")

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, plan))
    return result


def cancel(server: ServerProcess, request: Request, moment: float) -> None:
    """Ask, and go away up to a second later, whether or not it is answered by then."""
    impatient = server.client.with_options(timeout=max(0.01, moment))
    try:
        request.served(impatient)
    except Exception as error:
        if "Timeout" not in type(error).__name__:  # in the middle of a stream it is not the client's own
            raise


def judged(result: Soak, alone: Callable[[int], list[Image.Image]]) -> dict[str, Any]:
    """A soak in figures; ``alone`` gives the pictures of a request of the mixture."""
    different = [
        f"a picture of request {which} differs"
        for which, pictures in result.finished
        if [one.tobytes() for one in pictures] != [one.tobytes() for one in alone(which)]
    ]
    quarter = max(1, len(result.memory) // 4)
    growth = max(result.memory[-quarter:]) / max(result.memory[: 2 * quarter])
    return {
        "finished": len(result.finished),
        "cancelled": result.cancelled,
        "refused": result.refused,
        "lost": result.lost,
        "different": different,
        "memory_mb": [round(result.memory[quarter - 1]), round(result.memory[-1])],
        "memory_growth": round(growth, 3),
    }


def killed(options: list[str], server: ServerProcess, request: Request, pictures: list[Image.Image]) -> dict[str, Any]:
    """Kill a server in the middle of a request, and start it again on its port."""
    long = replace(request, fields={**request.fields, "n": 10})
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(long.served, server.client)
        time.sleep(0.1)
        server.kill()
        told = waiting.exception(60)
    with serving(options, server.port) as again:
        same = [one.tobytes() for one in request.served(again.client)] == [one.tobytes() for one in pictures]
        return {
            "client_is_told": type(told).__name__,
            "start_s": round(again.seconds, 1),
            "same_picture": same,
            "exit_code": again.stop(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="checkpoint folder; the embedded model by default")
    parser.add_argument("--size", type=int, default=256, help="side of a picture, a multiple of 64")
    parser.add_argument("--requests", type=int, default=200, help="of the soak")
    parser.add_argument("--repeats", type=int, default=16, help="requests of each other measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8], help="of the load")
    parser.add_argument("--device", default=None)
    parser.add_argument("--seed", type=int, default=0, help="of the soak's mixture")
    parser.add_argument("-o", "--output", type=Path, default=None, help="JSON of the results")
    options = parser.parse_args()
    served = [*(["--model", str(options.model)] if options.model else [])]
    served += ["--device", options.device] if options.device else []
    pipeline = arimage.load(options.model, device=options.device)
    mixed = mixture(options.size)
    made: dict[int, list[Image.Image]] = {}

    def alone(which: int) -> list[Image.Image]:
        if which not in made:
            made[which] = mixed[which].alone(pipeline)
        return made[which]

    with serving(served) as server:
        results: dict[str, Any] = {
            "environment": machine.environment(pipeline.networks.device),
            "size": options.size,
            "start_s": round(server.seconds, 1),
            "overhead": overhead(server, pipeline, options.size, options.repeats),
            "load": [load(server, options.size, clients, options.repeats) for clients in options.clients],
            "first_preview": first_preview(server, options.size, max(1, options.repeats // 4)),
        }
        results["soak"] = judged(soak(server, mixed, options.requests, options.seed), alone)
        results["killed"] = killed(served, server, mixed[0], alone(0))
    report(results)
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1))
    outcome, after = results["soak"], results["killed"]
    bad = outcome["lost"] or outcome["different"] or outcome["memory_growth"] > FLAT
    bad = bad or not after["same_picture"] or after["exit_code"] != 0
    return 1 if bad else 0


def report(results: dict[str, Any]) -> None:
    """The results as documents show them."""
    over, first, outcome, after = (results[name] for name in ("overhead", "first_preview", "soak", "killed"))
    print(f"\n{results['size']} px, tier fast, {results['environment']['chip']}")
    print(f"a picture: server {over['server_s']} s, library {over['library_s']} s, ratio {over['ratio']}")
    print(f"first preview after {first['first_preview_s']} s of {first['picture_s']} s (share {first['share']})\n")
    alone = results["load"][0]["requests_per_second"]
    print("| clients | requests/s | against the first row | p50, s | p95, s |\n|---|---|---|---|---|")
    for row in results["load"]:
        rate = row["requests_per_second"]
        print(f"| {row['clients']} | {rate} | {rate / alone:.2f} | {row['p50_s']} | {row['p95_s']} |")
    print(
        f"\nsoak: {outcome['finished']} finished, {outcome['cancelled']} cancelled, {outcome['refused']} refused, "
        f"{len(outcome['lost'])} lost, {len(outcome['different'])} different; memory {outcome['memory_mb']} MB, "
        f"growth {outcome['memory_growth']}"
    )
    for line in [*outcome["lost"], *outcome["different"]]:
        print(f"  {line}")
    print(
        f"killed: the client is told {after['client_is_told']}, ready again after {after['start_s']} s, "
        f"same picture: {after['same_picture']}, exit code after SIGTERM: {after['exit_code']}"
    )


if __name__ == "__main__":
    sys.exit(main())
