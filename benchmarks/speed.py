"""Unmodified upstream and ours on the same weights, prompts, sizes, steps and threads, in one process.

Runs alternate, so that a machine that drifts drifts for both; medians, spread and ratio are printed, JSON is written.
``ours`` does upstream's work (preview grid, one row of tokens, all steps); with ``--fast`` ours in the checkpoint's own
way, at both tiers, is measured beside it (``fast`` whatever steps upstream takes).
Needs the environment of ``make interop`` (upstream's editing works with transformers 5.17 only):

    make bench
    python benchmarks/speed.py --model arimage/models/nano --sizes 256 512 --repeats 5 -o speed.json
    python benchmarks/speed.py --curve batch 1 2 4 8 16 --steps 8
    python benchmarks/speed.py --curve size 256 512 1024 --steps 4 --repeats 1
    python benchmarks/speed.py --curve references 0 1 2 4 --steps 8
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from machine import bandwidth, throughput
from PIL import Image

from arimage.checkpoints.model_config import ModelConfig

PARTS = ("references", "prompt", "tokens", "diffusion", "autoencoder", "other")
PROMPT = "a fox on a blue background"
# Whatever the checkpoint's own way is.
AS_UPSTREAM = {
    "token_guidance": 1.0, "temperature": 0.9, "top_p": 0.75, "draft_side": 0, "align_references": False,
    "sigma_min": 0.0,
}  # fmt: skip
Times = dict[str, float]


def open_upstream(folder: Path) -> Any:
    """Upstream in fp32 on the CPU, kept from drawing special tokens, which it would choke on."""
    import diffusers

    return without_special_tokens(diffusers.GlmImagePipeline.from_pretrained(folder, dtype=torch.float32))


def without_special_tokens(pipeline: Any) -> Any:
    """Upstream, kept from drawing special tokens and from showing bars."""
    config = pipeline.vision_language_encoder.config
    suppressed = range(config.vq_config.num_embeddings, config.text_config.vision_vocab_size)
    pipeline.vision_language_encoder.generation_config.suppress_tokens = list(suppressed)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def timed(
    owner: Any, name: str, into: Times, part: str, clock: Callable[[], float] = time.perf_counter
) -> Iterator[None]:
    """Add the seconds that a method takes to a part; on a GPU by a clock that waits for it."""
    method = getattr(owner, name)

    def measured(*args: Any, **named: Any) -> Any:
        since = clock()
        try:
            return method(*args, **named)
        finally:
            into[part] = into.get(part, 0.0) + clock() - since

    setattr(owner, name, measured)
    try:
        yield
    finally:
        setattr(owner, name, method)


def run_upstream(pipeline: Any, size: int, steps: int, count: int, photos: list[Image.Image]) -> Times:
    times: Times = {}
    since = time.perf_counter()
    with (
        timed(pipeline, "generate_prior_tokens", times, "tokens"),
        timed(pipeline.transformer, "forward", times, "diffusion"),
        timed(pipeline.vae, "decode", times, "autoencoder"),
    ):
        for seed in range(count):  # several pictures of one call would share their visual tokens
            pipeline(
                PROMPT, image=list(photos) or None, height=size, width=size, num_inference_steps=steps,
                guidance_scale=1.5, generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
    return with_other(times, time.perf_counter() - since)


def run_ours(
    pipeline: Any,
    size: int,
    steps: int,
    count: int,
    photos: list[Image.Image],
    options: dict[str, Any],
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    import arimage.inference.engine as engine
    from arimage.autoregressive.model import AutoregressiveModel
    from decoder.autoencoder import Autoencoder
    from decoder.diffusion_decoder import DiffusionDecoder
    from tokenizer.semantic_tokenizer import SemanticTokenizer

    times: Times = {}
    since = clock()
    with (
        timed(SemanticTokenizer, "encode", times, "references", clock),
        timed(Autoencoder, "encode", times, "references", clock),
        timed(engine, "generate_grids", times, "tokens", clock),
        timed(AutoregressiveModel, "prefill", times, "prompt", clock),
        timed(DiffusionDecoder, "sample", times, "diffusion", clock),
        timed(Autoencoder, "decode", times, "autoencoder", clock),
    ):
        chosen = {"steps": steps, "guidance": 1.5} | options
        pipeline.generate(PROMPT, size=size, images_per_prompt=count, seed=0, references=photos, **chosen)
    total = clock() - since
    times["tokens"] = times.get("tokens", 0.0) - times.get("prompt", 0.0)
    return with_other(times, total)


def one_by_one(run: Callable[[], Times]) -> Callable[[], Times]:
    """The same without guesses ahead: a pass for each token."""
    import arimage.autoregressive.generation as generation

    def plain() -> Times:
        ahead, generation.AHEAD = generation.AHEAD, 1
        try:
            return run()
        finally:
            generation.AHEAD = ahead

    return plain


def with_other(times: Times, total: float) -> Times:
    return {**times, "other": max(0.0, total - sum(times.values())), "whole": total}


def alternate(runs: dict[str, Callable[[], Times]], repeats: int, warm_up: bool = True) -> dict[str, list[Times]]:
    """Each once unmeasured, then in turns."""
    for run in runs.values() if warm_up else ():
        run()
    found: dict[str, list[Times]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(run())
    return found


def medians(rows: list[Times]) -> Times:
    return {part: statistics.median(row.get(part, 0.0) for row in rows) for part in (*PARTS, "whole")}


def spread(rows: list[Times]) -> float:
    """Of the whole, largest over smallest, less one."""
    wholes = [row["whole"] for row in rows]
    return max(wholes) / min(wholes) - 1


def cold(code: str) -> tuple[float, float]:
    """Seconds and peak memory in GB of a fresh Python that runs some code."""
    after = "\nprint([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    since = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + after], capture_output=True, text=True, check=True)
    return time.perf_counter() - since, float(done.stdout.split()[-1]) / 1e6


def loading(folder: Path) -> dict[str, tuple[float, float]]:
    upstream = (
        f"import torch, diffusers\ndiffusers.GlmImagePipeline.from_pretrained({str(folder)!r}, dtype=torch.float32)"
    )
    ours = (
        f"import arimage\nnetworks = arimage.load({str(folder)!r}).networks\n"
        "for name in ('autoregressive', 'glyph_encoder', 'transformer', 'autoencoder'):\n"
        "    with networks.use(name): pass"
    )
    return {name: min(cold(code) for _ in range(2)) for name, code in (("upstream", upstream), ("ours", ours))}


def picture_memory(folder: Path, size: int, sides: Sequence[str]) -> dict[str, float]:
    """Peak memory in GB of a fresh Python that loads a model and makes a picture in two steps, by side."""
    start = (
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import arimage, speed\nfrom pathlib import Path\nfolder, size = Path({str(folder)!r}), {size}\n"
    )
    pictures = {
        "upstream": "speed.run_upstream(speed.open_upstream(folder), size, 2, 1, [])",
        "ours": "options = speed.AS_UPSTREAM | {'preview_grid': True}\n"
        "speed.run_ours(arimage.load(folder), size, 2, 1, [], options)",
    }
    return {side: cold(start + pictures[side])[1] for side in sides}


def work(
    config: ModelConfig, size: int, preview: bool, bytes_a_weight: int = 4, reference_keys: int = 0
) -> dict[str, float]:
    """What a picture takes, counted without doing it.

    Args:
        reference_keys: DiT tokens of the reference pictures that the conditional pass of a diffusion step sees.

    Returns:
        Its tokens, bytes of weights that one of them reads, and operations of a diffusion step's passes on average.
    """
    from arimage.autoregressive.layout import preview_grid, target_grid
    from arimage.autoregressive.model import AutoregressiveModel
    from backends.private import unfilled
    from decoder.transformer import DiffusionTransformer

    target = target_grid(size, size)
    with unfilled():
        model = AutoregressiveModel(config.text_model)
        transformer = DiffusionTransformer(config.transformer)
    weights = [*model.model.language_model.layers.parameters(), model.lm_head.weight]
    return {
        "tokens": target.cells + (preview_grid(target).cells if preview else 0),
        "bytes_a_token": bytes_a_weight * sum(weight.numel() for weight in weights),
        "flops_a_step": statistics.mean(_operations(transformer, target, keys) for keys in (reference_keys, 0)),
    }


def _operations(transformer: Any, target: Any, reference_keys: int) -> int:
    """Of one pass of a transformer on the meta device, where attention is counted too."""
    from torch.utils.flop_counter import FlopCounterMode

    from decoder.transformer import ReferenceCache

    config = transformer.config
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        kept = torch.empty(1, reference_keys, config.num_attention_heads, config.attention_head_dim)
        transformer(
            torch.empty(1, config.in_channels, 4 * target.height, 4 * target.width), torch.empty(1),
            prior_tokens=torch.empty(1, *target, dtype=torch.long), glyphs=torch.empty(1, 1, config.text_embed_dim),
            target_size=torch.empty(1, 2),
            references=ReferenceCache([(kept, kept)] * config.num_layers, None) if reference_keys else None,
        )  # fmt: skip
    return counter.get_total_flops()


def rates(row: Times, done: dict[str, float], machine: dict[str, Any], steps: int, count: int = 1) -> dict[str, float]:
    """Seconds of a token and of a diffusion step (two passes) of ``count`` pictures one after the other, and their
    shares of the machine's limits: of memory for tokens, of products for diffusion.
    """
    token = row["tokens"] / done["tokens"] / count
    step = row["diffusion"] / steps / count
    return {
        "token": token,
        "step": step,
        "of_bandwidth": done["bytes_a_token"] / token / 1e9 / machine["bandwidth_gb_s"],
        "of_products": 2 * done["flops_a_step"] / step / 1e9 / machine["gflop_s"],
    }


def shares(row: Times, done: dict[str, float], machine: dict[str, Any], steps: int, count: int) -> str:
    """How near to the machine's limits.

    Tokens that are guessed ahead share a read of the weights, so theirs may go beyond the limit.
    """
    found = rates(row, done, machine, steps, count)
    return (
        f"token {1e3 * found['token']:.2f} ms ({found['of_bandwidth']:.0%} of bandwidth if each read all weights), "
        f"step {1e3 * found['step']:.1f} ms ({found['of_products']:.0%} of products)"
    )


def first_line(folder: Path) -> float:
    """Seconds from starting ``arimage generate`` to its first line of progress."""
    command = [sys.executable, "-m", "arimage", "generate", PROMPT, "--model", str(folder), "-o", "/dev/null.png"]
    since = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        seen = b""
        while b"tokens" not in seen:
            byte = process.stderr.read(1)
            if not byte:
                raise RuntimeError(f"no progress came: {seen.decode()}")
            seen += byte
        seconds = time.perf_counter() - since
        process.kill()
    return seconds


def report(name: str, found: dict[str, list[Times]]) -> dict[str, Any]:
    rows = {side: medians(times) for side, times in found.items()}
    print(f"\n### {name}\n\n| | " + " | ".join((*PARTS, "whole")) + " | spread |\n|" + "---|" * (len(PARTS) + 3))
    for side, row in rows.items():
        cells = " | ".join(f"{row[part]:.2f}" for part in (*PARTS, "whole"))
        print(f"| {side} | {cells} | {100 * spread(found[side]):.0f} % |")
    for side in rows:
        if side != "upstream" and "upstream" in rows:
            theirs, ours = rows["upstream"], rows[side]
            both = {p: theirs[p] / ours[p] for p in ("tokens", "diffusion", "autoencoder", "whole") if ours[p] > 0}
            print(f"\n{side}: " + ", ".join(f"{part} {ratio:.2f}x" for part, ratio in both.items()), flush=True)
    return {"name": name, "medians": rows, "runs": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder; the embedded model by default")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--curve", nargs="+", help="size, batch or references, then the values")
    parser.add_argument("--one-by-one", action="store_true", help="also ours with a pass for each token")
    parser.add_argument("--fast", action="store_true", help="also ours in the checkpoint's own way, at both tiers")
    parser.add_argument("--ours-only", action="store_true", help="where upstream cannot run")
    parser.add_argument("-o", "--output", type=Path, default=Path("speed.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    import arimage
    from arimage.checkpoints.embedded import embedded_folder

    folder = given.model or embedded_folder()
    results: dict[str, Any] = {
        "threads": given.threads, "steps": given.steps, "torch": torch.__version__,
        "bandwidth_gb_s": bandwidth() / 1e9, "gflop_s": throughput() / 1e9, "tables": [],
    }  # fmt: skip
    print(f"{results['bandwidth_gb_s']:.0f} GB/s, {results['gflop_s']:.0f} GFLOP/s, {given.threads} threads")
    results["loading"] = {} if given.ours_only else loading(folder)
    for side, (seconds, peak) in results["loading"].items():
        print(f"import and load, {side}: {seconds:.1f} s, {peak:.2f} GB")
    results["first_line"] = min(first_line(folder) for _ in range(3))
    print(f"arimage generate to its first line of progress: {results['first_line']:.1f} s")
    ours, upstream = arimage.load(folder), None if given.ours_only else open_upstream(folder)
    axis, *values = given.curve or ["size", *map(str, given.sizes)]
    for value in map(int, values):
        size = value if axis == "size" else given.sizes[0]
        count = value if axis == "batch" else 1
        shown = value if axis == "references" else 0
        photos = [Image.new("RGB", (size, size), (40 * i, 90, 200)) for i in range(shown)]

        def ours_with(size: int, count: int, photos: list[Image.Image], options: dict[str, Any]) -> Callable[[], Times]:
            return lambda: run_ours(ours, size, given.steps, count, photos, options)

        runs: dict[str, Callable[[], Times]] = {}
        if upstream is not None:
            runs["upstream"] = lambda s=size, c=count, p=photos: run_upstream(upstream, s, given.steps, c, p)  # type: ignore[misc]
        runs["ours"] = ours_with(size, count, photos, AS_UPSTREAM | ({} if photos else {"preview_grid": True}))
        if given.one_by_one:
            runs["ours, one by one"] = one_by_one(runs["ours"])
        if given.fast:
            from arimage.options import TIERS

            runs["ours, own way"] = ours_with(size, count, photos, {})
            runs["ours, fast"] = ours_with(size, count, photos, TIERS["fast"])
        table = report(f"{axis} {value}, {given.steps} steps", alternate(runs, given.repeats))
        done = work(ours.checkpoint.config, size, preview=not photos, reference_keys=shown * (size // 16) ** 2)
        for side in ("upstream", "ours"):
            if side in table["medians"]:
                told = shares(table["medians"][side], done, results, given.steps, count)
                print(f"{side}: {told}")
        if axis == "size":
            sides = ["ours"] if upstream is None else ["upstream", "ours"]
            table["memory_gb"] = picture_memory(folder, size, sides)
            told = ", ".join(f"{side} {peak:.2f} GB" for side, peak in table["memory_gb"].items())
            print(f"peak memory of a process that makes one: {told}")
        results["tables"].append({**table, "work": done})
    given.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
