"""Every attention backend at hand on the shapes of a model: its time, and how far it is from fp32 arithmetic.

    python benchmarks/attention_backends.py
    python benchmarks/attention_backends.py configs/base/model.yaml --sizes 512 1024 -o attention.json
    python benchmarks/attention_backends.py configs/nano/model.yaml --device cpu --sizes 256

Shapes: a row of the decoder with both branches of guidance, and the same with one branch's glyphs padded; prompts of
the autoregressive model, of a text alone and of one with a reference; the last token of a picture over its whole
cache, of one row and of several that differ in length. ``default`` is what the networks call.

Times are medians of many calls one after the other, so that on a GPU the smallest shapes take as long as their launch.
The deviation is the largest from the same attention in fp32, relative to the largest result there; what goes beyond
the tolerance of the precision (2^-6 in bf16, 2^-16 in fp32) is marked.
"""

import argparse
import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import machine
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer

from arimage.autoregressive.attention import causal_attention, step_attention
from arimage.autoregressive.layout import preview_grid, target_grid
from arimage.checkpoints.model_config import ModelConfig
from arimage.inference.networks import choose_device
from arimage.yaml_files import load_yaml
from backends.attention import by_heads_attention
from backends.linear import ONEDNN
from decoder.attention import joint_attention

CONFIG = Path(__file__).parent.parent / "configs" / "glm-image-9b" / "model.yaml"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
TOLERANCES = {torch.bfloat16: 2**-6, torch.float32: 2**-16}
TEXT = 64
GLYPHS, NO_GLYPHS = 32, 2
QUERIES_AT_ONCE = 4096


class Unavailable(Exception):
    """A backend does not take a case; the message says why."""


@dataclass(frozen=True)
class Case:
    """One call of attention.

    Attributes:
        default: what the networks call.
        query: (B, L, heads, head_dim).
        key, value: (B, T, kv_heads, head_dim).
        visible: (B, T) bool, or None for all.
        causal: a token sees itself and what is before it; L and T are equal.
    """

    name: str
    default: Callable[["Case"], Tensor]
    query: Tensor
    key: Tensor
    value: Tensor
    visible: Tensor | None = None
    causal: bool = False


def decoder_case(config: ModelConfig, size: int, padded: bool, draw: Callable[..., Tensor]) -> Case:
    """Glyphs and image tokens of both branches of guidance; padded, one of them has hardly any glyphs."""
    decoder = config.transformer
    length = GLYPHS + 4 * target_grid(size, size).cells
    query, key, value = (draw(2, length, decoder.num_attention_heads, decoder.attention_head_dim) for _ in range(3))
    visible = None
    if padded:
        visible = torch.ones(2, length, dtype=torch.bool, device=query.device)
        visible[1, NO_GLYPHS:GLYPHS] = False
    name = f"decoder, {size} px" + (", glyphs padded" if padded else "")
    return Case(name, lambda c: joint_attention(c.query, c.key, c.value, c.visible), query, key, value, visible)


def prompt_case(config: ModelConfig, length: int, draw: Callable[..., Tensor]) -> Case:
    query, key, value = _text_heads(config, 1, length, draw)
    return Case(
        f"prompt of {length}", lambda c: causal_attention(c.query, c.key, c.value), query, key, value, causal=True
    )


def token_case(config: ModelConfig, size: int, rows: int, draw: Callable[..., Tensor]) -> Case:
    """The last token of a picture; keys and values lie head by head, as in the cache."""
    grid = target_grid(size, size)
    length = TEXT + preview_grid(grid).cells + grid.cells
    query, *pair = _text_heads(config, rows, length, draw)
    key, value = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in pair)
    visible = None
    if rows > 1:
        ends = length - torch.arange(rows, device=query.device)
        visible = torch.arange(length, device=query.device) < ends[:, None]
    name = f"token, {size} px" + (f", {rows} rows that differ" if rows > 1 else "")
    return Case(name, _step, query[:, -1:].contiguous(), key, value, visible)


def _step(case: Case) -> Tensor:
    visible = None if case.visible is None else case.visible[:, None]
    return step_attention(case.query, case.key.transpose(1, 2), case.value.transpose(1, 2), visible)


def _text_heads(config: ModelConfig, rows: int, length: int, draw: Callable[..., Tensor]) -> list[Tensor]:
    text = config.text_model
    counts = text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads
    return [draw(rows, length, heads, text.head_dim) for heads in counts]


def cases(config: ModelConfig, sizes: Sequence[int], rows: int, draw: Callable[..., Tensor]) -> Iterator[Case]:
    """One after the other, so that one is in memory at a time."""
    for size in sizes:
        for padded in (False, True):
            yield decoder_case(config, size, padded, draw)
    for codes in (0, *(target_grid(size, size).cells for size in sizes)):
        yield prompt_case(config, TEXT + codes, draw)
    for size in sizes:
        for count in (1, rows):
            yield token_case(config, size, count, draw)


def in_fp32(case: Case) -> Tensor:
    """What a case should give, head by head and some queries at a time, so that it fits."""
    shared = case.query.shape[2] // case.key.shape[2]
    result = torch.empty_like(case.query, dtype=torch.float32)
    for row in range(len(case.query)):
        for head in range(case.query.shape[2]):
            key, value = (part[row, :, head // shared].float() for part in (case.key, case.value))
            for start in range(0, case.query.shape[1], QUERIES_AT_ONCE):
                query = case.query[row, start : start + QUERIES_AT_ONCE, head].float()
                scores = query @ key.T * query.shape[-1] ** -0.5
                if case.visible is not None:
                    scores.masked_fill_(~case.visible[row], float("-inf"))
                if case.causal:
                    later = torch.ones_like(scores, dtype=torch.bool).triu(start + 1)
                    scores.masked_fill_(later, float("-inf"))
                result[row, start : start + QUERIES_AT_ONCE, head] = scores.softmax(dim=-1) @ value
    return result


def sdpa(case: Case) -> Tensor:
    """PyTorch's function, called as the networks call it."""
    query, key, value = (part.transpose(1, 2) for part in (case.query, case.key, case.value))
    mask = None if case.visible is None else case.visible[:, None, None]
    if query.shape[2] == 1:  # the heads that share a key are that key's queries
        grouped = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
        return F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask).reshape(case.query.shape)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=case.causal, enable_gqa=query.shape[1] > key.shape[1]
    ).transpose(1, 2)


def flash_attn(case: Case) -> Tensor:
    """The package of that name."""
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise Unavailable(f"not installed: {error}") from None
    if case.visible is not None:
        raise Unavailable("takes no mask; the decoder packs the keys that one leaves")
    if not case.query.is_cuda or case.query.dtype != torch.bfloat16:
        raise Unavailable("takes half precision on a GPU")
    return flash_attn_func(case.query, case.key, case.value, causal=case.causal)


def by_heads(case: Case) -> Tensor:
    """oneDNN's products head by head."""
    if not ONEDNN or case.query.device.type != "cpu" or case.query.dtype != torch.float32:
        raise Unavailable("takes fp32 on a CPU with oneDNN")
    if case.visible is not None or case.causal or case.query.shape[2] != case.key.shape[2]:
        raise Unavailable("takes rows that see all, with a key for every head")
    return by_heads_attention(case.query, case.key, case.value)


BACKENDS: dict[str, tuple[Callable[[Case], Tensor], SDPBackend | None]] = {
    "default": (lambda case: case.default(case), None),
    "SDPA math": (sdpa, SDPBackend.MATH),
    "SDPA flash": (sdpa, SDPBackend.FLASH_ATTENTION),
    "SDPA efficient": (sdpa, SDPBackend.EFFICIENT_ATTENTION),
    "SDPA cuDNN": (sdpa, SDPBackend.CUDNN_ATTENTION),
    "flash-attn": (flash_attn, None),
    "by heads": (by_heads, None),
}


@torch.no_grad()
def measure(case: Case, backend: str, expected: Tensor, least: float) -> dict[str, Any]:
    """Seconds (of calls for ``least`` seconds) and deviation of a backend, or why there are none."""
    attention, only = BACKENDS[backend]
    with contextlib.ExitStack() as stack:
        heard = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        if only is not None:
            stack.enter_context(sdpa_kernel(only))
        try:
            deviation = _deviation(attention(case), expected)
            calls = Timer(
                "attention(case)", globals={"attention": attention, "case": case}, num_threads=torch.get_num_threads()
            )
            seconds = calls.blocked_autorange(min_run_time=least).median
        except (Unavailable, RuntimeError) as error:
            return {"unavailable": _reason(error, [str(warning.message) for warning in heard])}
    return {"seconds": seconds, "deviation": deviation, "within": deviation <= TOLERANCES[case.query.dtype]}


def _deviation(result: Tensor, expected: Tensor) -> float:
    return float((result.float() - expected).abs().max() / expected.abs().max())


def _reason(error: Exception, heard: Sequence[str]) -> str:
    """In a line; PyTorch says in warnings why none of its kernels would do."""
    causes = [text.partition("(Triggered")[0] for text in heard] if "kernel" in str(error) else []
    return " ".join(" ".join(causes or [str(error).partition(". ")[0]]).split())[:240]


def compare(case: Case, least: float) -> dict[str, Any]:
    """All backends on a case."""
    expected = in_fp32(case)
    found: dict[str, Any] = {}
    for backend in BACKENDS:
        found[backend] = row = measure(case, backend, expected, least)
        if "seconds" in row and "seconds" in found["default"]:
            row["of_default"] = row["seconds"] / found["default"]["seconds"]
        print(f"{case.name}, {backend}: {_cells(row)}", flush=True)
        if case.query.is_cuda:
            torch.cuda.empty_cache()  # what a backend kept must not keep the next from running
    return {"case": case.name, "query": list(case.query.shape), "key": list(case.key.shape), "backends": found}


def _cells(row: dict[str, Any]) -> str:
    if "unavailable" in row:
        return f"not available: {row['unavailable']}"
    of_default = f"{row['of_default']:.2f}" if "of_default" in row else ""
    return f"{1e3 * row['seconds']:.3f} | {of_default} | {row['deviation']:.1e} | {'' if row['within'] else 'OUTSIDE'}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: what ran, then what did not, each reason once."""
    lines = ["| case | backend | ms | of default | deviation | |", "|---|---|---|---|---|---|"]
    missing: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for backend, found in row["backends"].items():
            if "unavailable" in found:
                missing.setdefault((backend, found["unavailable"]), []).append(row["case"])
            else:
                lines.append(f"| {row['case']} | {backend} | {_cells(found)} |")
    lines.append("\nNot available:\n")
    for (backend, reason), names in missing.items():
        lines.append(f"- {backend} ({'all' if len(names) == len(rows) else '; '.join(names)}): {reason}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=CONFIG, help="a model configuration")
    parser.add_argument("--device", help="cuda or cpu; a GPU when there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rows", type=int, default=4, help="of the batch of tokens that differ in length")
    parser.add_argument("--seconds", type=float, default=0.3, help="of calls for each time, at least")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("-o", "--output", type=Path, default=Path("attention.json"))
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    dtype = DTYPES[given.dtype or ("float32" if device.type == "cpu" else "bfloat16")]
    torch.manual_seed(0)
    draw = partial(torch.randn, device=device, dtype=dtype)
    config = load_yaml(given.model, ModelConfig)
    found = {
        **machine.environment(device), "model": str(given.model), "device": str(device),
        "dtype": str(dtype).removeprefix("torch."), "tolerance": TOLERANCES[dtype], "cases": [],
    }  # fmt: skip
    for case in cases(config, given.sizes, given.rows, draw):
        found["cases"].append(compare(case, given.seconds))
        given.output.write_text(json.dumps(found, indent=1) + "\n")
    print("\n" + table(found["cases"]))


if __name__ == "__main__":
    main()
