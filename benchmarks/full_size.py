"""Unmodified upstream and ours at any size of model, on the same random weights, in turns in one process.

    python benchmarks/full_size.py --sizes 1024 --repeats 2 -o full-size-1024.json
    python benchmarks/full_size.py --sizes 2048 --sides ours
    python benchmarks/full_size.py --sizes 1024 --references 1
    python benchmarks/full_size.py --sizes 512 1024 --batch 4
    python benchmarks/full_size.py configs/nano/model.yaml --device cpu --sizes 256 --steps 2

The model is a configuration, the released dimensions by default. Its weights are drawn on the device in the precision
asked for, and both sides compute with the same tensors: 17.7 billion parameters in bf16 take 35 GB, once.

Both sides do the same work: preview grid, one row of tokens for each picture, two passes a diffusion step. A batch is
one call on each side. Reported are the seconds of each part; tokens a second (upstream's image end is not
counted), and the share of the measured memory bandwidth if a token of every picture of the batch reads the language
model's weights once; the share of the measured rate of matrix products that diffusion reaches; the peak of memory,
weights included. Upstream's editing needs transformers 5.17. JSON is written after every case.

On a CPU ours guesses tokens ahead, which drawn weights do not reward: for a trained model see ``speed.py``.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import transformers
from drawn_model import DrawnCheckpoint, check_alive, load_all, open_upstream, write_folder
from PIL import Image
from speed import (
    AS_UPSTREAM,
    PARTS,
    PROMPT,
    Times,
    alternate,
    medians,
    rates,
    run_ours,
    spread,
    timed,
    with_other,
    without_special_tokens,
    work,
)

from arimage.checkpoints.model_config import ModelConfig
from arimage.inference.networks import choose_device, choose_dtype
from arimage.inference.pipeline import ImagePipeline
from arimage.yaml_files import load_yaml

CONFIG = Path(__file__).parent.parent / "configs" / "glm-image-9b" / "model.yaml"
SIDES = ("upstream", "ours")
UPSTREAM_CANNOT_EDIT = "5.18"
PIXELS_PER_KEY = 16
SHOWN = (*PARTS, "whole")
STARTED = time.perf_counter()
Run = Callable[[], Times]


@dataclass(frozen=True)
class Case:
    """``batch`` square pictures of one call, each with ``references`` pictures of side ``photo`` to look at."""

    size: int
    batch: int
    references: int
    photo: int

    @property
    def name(self) -> str:
        parts = [f"{self.size} px", f"batch {self.batch}" if self.batch > 1 else ""]
        return ", ".join(filter(None, [*parts, f"{self.references} reference" if self.references else ""]))

    def photos(self) -> list[Image.Image]:
        shape = (self.references, self.photo, self.photo, 3)
        return [Image.fromarray(noise) for noise in np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)]

    def work(self, config: ModelConfig, bytes_a_weight: int) -> dict[str, float]:
        """As :func:`speed.work`, of all pictures: their tokens come together, one of each in a pass."""
        keys = self.references * (self.photo // PIXELS_PER_KEY) ** 2
        one = work(config, self.size, not self.references, bytes_a_weight, keys)
        return {**one, "flops_a_step": self.batch * one["flops_a_step"]}


def run_upstream(pipeline: Any, case: Case, steps: int, guidance: float, clock: Callable[[], float]) -> Times:
    """Seconds of each part of one call.

    Diffusion is what the call takes beside the other parts, so that nothing waits for the device between its steps.
    """
    seen: Times = {}
    language, photos = pipeline.vision_language_encoder, case.photos()
    methods = (
        (pipeline, "generate_prior_tokens"), (language, "get_image_features"), (language, "get_image_tokens"),
        (language, "generate"), (language, "_prefill"), (pipeline, "encode_prompt"), (pipeline.vae, "encode"),
        (pipeline.vae, "decode"), (pipeline.image_processor, "preprocess"), (pipeline.image_processor, "postprocess"),
    )  # fmt: skip
    since = clock()
    with contextlib.ExitStack() as stack:
        for owner, name in methods:
            stack.enter_context(timed(owner, name, seen, name, clock))
        pipeline(
            [PROMPT] * case.batch, image=[photos] * case.batch if photos else None, height=case.size, width=case.size,
            num_inference_steps=steps, guidance_scale=guidance, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    return _parts({name: seen.get(name, 0.0) for _, name in methods}, clock() - since)


def _parts(seen: Times, total: float) -> Times:
    """Upstream's methods by what they are for."""
    codes = seen["get_image_features"] + seen["get_image_tokens"]
    times = {
        "references": codes + seen["preprocess"] + seen["encode"],
        "prompt": seen["_prefill"],
        "tokens": seen["generate"] - seen["_prefill"],
        "autoencoder": seen["decode"],
    }
    texts = seen["generate_prior_tokens"] - seen["generate"] - codes + seen["encode_prompt"]
    times["diffusion"] = total - sum(times.values()) - texts - seen["postprocess"]
    return with_other(times, total)


class Bench:
    """Both pipelines on one device, and how they are run."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given = given
        self.device = choose_device(given.device)
        self.dtype = choose_dtype(given.dtype, self.device)
        self.clock = machine.clock(self.device)
        self.found: dict[str, Any] = {
            **machine.environment(self.device),
            **{name: getattr(given, name) for name in ("steps", "guidance", "repeats")},
            "model": str(given.model),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "bandwidth_gb_s": machine.bandwidth(self.device) / 1e9,
            "gflop_s": machine.throughput(self.device, self.dtype) / 1e9,
            "cases": [],
        }
        say("{chip}: {bandwidth_gb_s:.0f} GB/s, {gflop_s:.0f} GFLOP/s".format(**self.found))
        self._open(write_folder(folder, load_yaml(given.model, ModelConfig), self.dtype))

    def _open(self, folder: Path) -> None:
        since = self.clock()
        checkpoint = DrawnCheckpoint(folder, self.device, self.dtype)
        self.config = checkpoint.config
        self.ours = ImagePipeline(checkpoint, self.device, self.dtype)
        parameters = self.found["parameters"] = load_all(self.ours.networks)
        say(f"{sum(parameters.values()) / 1e9:.3f} billion parameters drawn in {self.clock() - since:.1f} s")
        check_alive(self.ours.engine)
        if "upstream" in self.given.sides:
            self.upstream = without_special_tokens(open_upstream(self.ours.networks))

    def measure(self, case: Case) -> None:
        """Run the sides in turns, and keep what came out; one that does not fit is left out."""
        runs = {side: self._run(side, case, self.given.steps) for side in self.given.sides if self._fits(side, case)}
        rows = alternate(runs, self.given.repeats, warm_up=False)
        done = case.work(self.config, self.dtype.itemsize)
        sides = {side: self._summary(times, done, case.batch) for side, times in rows.items()}
        self.found["cases"].append({**asdict(case), "name": case.name, "work": done, "sides": sides})

    def _fits(self, side: str, case: Case) -> bool:
        """Warm a side up, which shows whether it does."""
        if not self.given.warm_up_steps:
            return True
        try:
            self._run(side, case, self.given.warm_up_steps, "warm-up")()
        except torch.OutOfMemoryError as error:
            say(f"{case.name}, {side}: {error}")
            return False
        return True

    def _run(self, side: str, case: Case, steps: int, what: str = "measured") -> Run:
        guidance = self.given.guidance

        def once() -> Times:
            if side == "upstream":
                return run_upstream(self.upstream, case, steps, guidance, self.clock)
            options = AS_UPSTREAM | {"guidance": guidance} | ({} if case.references else {"preview_grid": True})
            return run_ours(self.ours, case.size, steps, case.batch, case.photos(), options, self.clock)

        def watched() -> Times:
            machine.forget_peak(self.device)
            times = once() | {"peak_gb": machine.peak_gb(self.device)}
            say(f"{case.name}, {side}, {what}: " + ", ".join(f"{part} {times.get(part, 0):.2f}" for part in SHOWN))
            return times

        return watched

    def _summary(self, times: list[Times], done: dict[str, float], batch: int) -> dict[str, Any]:
        seconds = medians(times)
        found = rates(seconds, done, self.found, self.given.steps)
        return {
            "seconds": seconds,
            "tokens_a_second": batch * done["tokens"] / seconds["tokens"],
            "step": found["step"],
            "of_bandwidth": found["of_bandwidth"],
            "of_products": found["of_products"],
            "peak_gb": max(row["peak_gb"] for row in times),
            "spread": spread(times),
            "runs": times,
        }


def say(line: str) -> None:
    """At once, and with the time since the start."""
    print(f"[{time.perf_counter() - STARTED:6.1f} s] {line}", flush=True)


def table(cases: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row for each case and side; ``whole`` says in brackets how many times as fast as upstream."""
    columns = (
        "case", "side", *PARTS[:2], "tokens", "tokens/s", "of bandwidth", "diffusion", "a step", "of products",
        "autoencoder", "other", "whole", "peak GB",
    )  # fmt: skip
    lines = [" | ".join(columns), " | ".join(["---"] * len(columns))]
    for case in cases:
        for side, row in case["sides"].items():
            part = {name: f"{seconds:.2f}" for name, seconds in row["seconds"].items()}
            if side != "upstream" and "upstream" in case["sides"]:
                times = case["sides"]["upstream"]["seconds"]["whole"] / row["seconds"]["whole"]
                part["whole"] += f" ({times:.2f}x)"
            lines.append(" | ".join([
                case["name"], side, part["references"], part["prompt"], part["tokens"],
                f"{row['tokens_a_second']:.1f}", f"{row['of_bandwidth']:.0%}", part["diffusion"], f"{row['step']:.3f}",
                f"{row['of_products']:.0%}", part["autoencoder"], part["other"], part["whole"], f"{row['peak_gb']:.1f}",
            ]))  # fmt: skip
    return "\n".join(f"| {line} |" for line in lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=CONFIG, help="a model configuration")
    parser.add_argument("--device", help="cuda or cpu; a GPU when there is one")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024])
    parser.add_argument("--references", type=int, choices=(0, 1), default=0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.5, help="above 1: two passes a step")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm-up-steps", type=int, default=2, help="of each side's unmeasured first run; 0: none")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("-o", "--output", type=Path, default=Path("full-size.json"))
    given = parser.parse_args()
    if given.guidance <= 1:
        parser.error("without guidance a step has one pass; the shares here count two: --guidance must be above 1")
    if given.references and "upstream" in given.sides and transformers.__version__ >= UPSTREAM_CANNOT_EDIT:
        parser.error("upstream's editing crashes in this transformers; use 5.17, or --sides ours")
    return given


def main() -> None:
    given = parse()
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, Path(folder))
        processor = bench.config.processor
        for size in given.sizes:
            photo = min(max(size, processor.min_side), processor.max_side)
            bench.measure(Case(size, given.batch, given.references, photo))
            given.output.write_text(json.dumps(bench.found, indent=1) + "\n")
    print("\n" + table(bench.found["cases"]))


if __name__ == "__main__":
    main()
