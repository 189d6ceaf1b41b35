"""Every kernel that is picked by hand beside plain PyTorch, on the shapes of the embedded model, on this CPU.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --only attention --rounds 60
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/kernels.py    # as on a processor without AVX-512

Ours and plain PyTorch are called in turns, some milliseconds each, and the fastest turn of each is compared: time of
ours over time of plain. A ratio of 1 means that ours is plain PyTorch there, or no faster. The last column marks what
is more than a tenth slower. With one thread the clock is the thread's own, so that other processes disturb less.

Rows of linear layers: 2 (a token with guidance), 16 (guesses ahead), 80 (a prompt), 268 and 1036 (the decoder at 256
and 512 px). ``precision`` compares what ``precision: auto`` takes for training with fp32.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arimage.autoregressive.attention import causal_attention, packed_causal_attention, step_attention
from arimage.autoregressive.model import RMSNorm
from arimage.training.optimizer import orthogonal
from arimage.training.precision import multiplies_bf16
from backends.linear import Linear, linear_gelu_tanh, prepare_to_run
from decoder.attention import joint_attention

HEADS, SHARED, HEAD_DIM, HIDDEN = 4, 2, 64, 256
ROWS = (2, 16, 80, 268, 1036)
LAYERS = {"queries, keys, values": (256, 768), "output": (256, 256), "narrowing": (1024, 256), "scores": (256, 2176)}
TURN = 0.01
TOO_SLOW = 1.1

Work = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """The same work by ours and by plain PyTorch."""

    group: str
    name: str
    ours: Work
    plain: Work


def running(work: Work) -> Work:
    """Without gradients, as in generation."""

    def once() -> None:
        with torch.no_grad():
            work()

    return once


def learning(work: Callable[..., Tensor], *inputs: Tensor, autocast: bool = False) -> Work:
    """Forward and backward, as in training."""

    def once() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = work(*inputs)
        torch.autograd.grad(result.float().sum(), inputs)

    return once


def linear_cases() -> Iterator[Case]:
    for name, (inner, outer) in LAYERS.items():
        ours, plain = Linear(inner, outer), nn.Linear(inner, outer)
        prepare_to_run(ours)
        for rows in ROWS:
            hidden = torch.randn(rows, inner)
            yield Case(
                "linear", f"{name}, {rows} rows", running(lambda h=hidden, f=ours: f(h)),
                running(lambda h=hidden, f=plain: f(h)),
            )  # fmt: skip
    wide, plain = Linear(256, 1024), nn.Linear(256, 1024)
    prepare_to_run(wide)
    for rows in ROWS:
        hidden = torch.randn(rows, 256)
        yield Case(
            "linear", f"widening with GELU, {rows} rows",
            running(lambda h=hidden: linear_gelu_tanh(h, wide.weight, wide.bias)),
            running(lambda h=hidden: F.gelu(plain(h), approximate="tanh")),
        )  # fmt: skip


def norm_cases() -> Iterator[Case]:
    norm = RMSNorm(HIDDEN, 1e-5).requires_grad_(False)
    for rows in ROWS:
        hidden, residual = torch.randn(2, 1, rows, HIDDEN)
        yield Case(
            "norm", f"{rows} rows", running(lambda h=hidden, r=residual: norm.added(r, h)),
            running(lambda h=hidden, r=residual: r + F.rms_norm(h, (HIDDEN,), norm.weight, norm.eps)),
        )  # fmt: skip


def plain_joint(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
    mask = None if visible is None else visible[:, None, None]
    by_head = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(*by_head, attn_mask=mask).transpose(1, 2)


def plain_causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    by_head = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(*by_head, is_causal=True, enable_gqa=True).transpose(1, 2)


def plain_step(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    mask = None if visible is None else visible[:, None]
    heads = query.transpose(1, 2)
    return F.scaled_dot_product_attention(heads, keys, values, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def attention_cases() -> Iterator[Case]:
    for tokens in (266, 512, 1036, 4096):
        rows = 2 if tokens < 4096 else 1
        three = torch.randn(3, rows, tokens, HEADS, HEAD_DIM)
        yield Case(
            "attention", f"decoder, {tokens} tokens", running(lambda t=three: joint_attention(*t)),
            running(lambda t=three: plain_joint(*t)),
        )  # fmt: skip
    for tokens in (80, 340):
        query, pair = torch.randn(1, tokens, HEADS, HEAD_DIM), torch.randn(2, 1, tokens, SHARED, HEAD_DIM)
        yield Case(
            "attention", f"prompt of {tokens}", running(lambda q=query, p=pair: causal_attention(q, *p)),
            running(lambda q=query, p=pair: plain_causal(q, *p)),
        )  # fmt: skip
    for ahead in (1, 4, 16):
        for held in (144, 400):
            query, pair = torch.randn(2, ahead, HEADS, HEAD_DIM), torch.randn(2, 2, SHARED, held, HEAD_DIM)
            visible = None
            if ahead > 1:
                visible = (torch.arange(held) <= held - ahead + torch.arange(ahead)[:, None]).expand(2, -1, -1)
            yield Case(
                "attention", f"{ahead} tokens after {held - ahead}",
                running(lambda q=query, p=pair, v=visible: step_attention(q, *p, v)),
                running(lambda q=query, p=pair, v=visible: plain_step(q, *p, v)),
            )  # fmt: skip


def training_cases() -> Iterator[Case]:
    """What the networks call in training, beside plain PyTorch in the same precision."""
    dtypes = (torch.float32, torch.bfloat16) if multiplies_bf16(torch.device("cpu")) else (torch.float32,)
    for dtype in dtypes:
        kind = str(dtype).removeprefix("torch.")
        for tokens in (268, 1036):
            three = [torch.randn(4, tokens, HEADS, HEAD_DIM, dtype=dtype, requires_grad=True) for _ in range(3)]
            yield Case(
                "training", f"decoder's attention, {tokens} tokens, {kind}", learning(joint_attention, *three),
                learning(plain_joint, *three),
            )  # fmt: skip
        lengths = (140, 96, 120, 148)
        heads = (HEADS, SHARED, SHARED)
        three = [torch.randn(1, sum(lengths), count, HEAD_DIM, dtype=dtype, requires_grad=True) for count in heads]

        def plain_packed(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int] = lengths) -> Tensor:
            rows = zip(*(part.split(lengths, dim=1) for part in (query, key, value)))
            return torch.cat([plain_causal(*row) for row in rows], dim=1)

        yield Case(
            "training", f"packed rows, {sum(lengths)} tokens, {kind}",
            learning(lambda q, k, v, lengths=lengths: packed_causal_attention(q, k, v, lengths), *three),
            learning(plain_packed, *three),
        )  # fmt: skip
    for rows in (504, 3216):
        ours, plain, hidden = Linear(256, 1024), nn.Linear(256, 1024), torch.randn(rows, 256, requires_grad=True)
        yield Case(
            "training", f"widening, {rows} rows, float32",
            learning(lambda h, w, f=ours: f(h), hidden, ours.weight),
            learning(lambda h, w, f=plain: f(h), hidden, plain.weight),
        )  # fmt: skip


def precision_cases() -> Iterator[Case]:
    """The precision that this processor trains in, beside fp32."""
    chosen = multiplies_bf16(torch.device("cpu"))
    layer = Linear(256, 1024)
    for rows in (504, 3216):
        hidden = torch.randn(rows, 256, requires_grad=True)
        yield Case(
            "precision", f"a layer learns, {rows} rows",
            learning(lambda h, w: F.gelu(layer(h), approximate="tanh"), hidden, layer.weight, autocast=chosen),
            learning(lambda h, w: F.gelu(layer(h), approximate="tanh"), hidden, layer.weight),
        )  # fmt: skip
    three = [torch.randn(4, 268, HEADS, HEAD_DIM, requires_grad=True) for _ in range(3)]
    narrow = torch.bfloat16 if chosen else torch.float32
    yield Case(
        "precision", "decoder's attention learns, 268 tokens",
        learning(lambda *t: joint_attention(*(part.to(narrow) for part in t)), *three), learning(plain_joint, *three),
    )  # fmt: skip
    for shape in ((256, 256), (1024, 256)):
        matrix = torch.randn(shape)
        yield Case(
            "precision", f"Muon, {shape[0]} x {shape[1]}", running(lambda m=matrix: orthogonal(m)),
            running(lambda m=matrix: orthogonal(m, torch.float32)),
        )  # fmt: skip


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "linear": linear_cases, "norm": norm_cases, "attention": attention_cases, "training": training_cases,
    "precision": precision_cases,
}  # fmt: skip


def compare(case: Case, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of the fastest turn of each, turns of about ``TURN`` seconds taken alternately."""
    works = case.ours, case.plain
    for work in works:
        work()
    calls = max(1, math.ceil(TURN / max(1e-6, min(_seconds(work, 1, clock) for work in works))))
    best = [math.inf, math.inf]
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            best[side] = min(best[side], _seconds(works[side], calls, clock))
    ratio = best[0] / best[1]
    return {"group": case.group, "case": case.name, "ours": best[0], "plain": best[1], "ratio": ratio}


def _seconds(work: Work, calls: int, clock: Callable[[], float]) -> float:
    since = clock()
    for _ in range(calls):
        work()
    return (clock() - since) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("kernels.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    clock = time.thread_time if given.threads == 1 else time.perf_counter
    capability = torch.backends.cpu.get_cpu_capability()
    native = "bf16 native" if multiplies_bf16(torch.device("cpu")) else "bf16 emulated"
    found = {
        **machine.environment(torch.device("cpu")), "capability": capability, "bf16": native, "cases": [],
    }  # fmt: skip
    print(f"{found['chip']}, {capability}, {native}, {given.threads} threads, torch {torch.__version__}\n")
    print("| | case | ours, ms | plain, ms | ours / plain | |\n|---|---|---|---|---|---|")
    for group in given.only:
        for case in GROUPS[group]():
            row = compare(case, given.rounds, clock)
            found["cases"].append(row)
            late = "SLOWER" if row["ratio"] > TOO_SLOW else ""
            times = f"{1e3 * row['ours']:.3f} | {1e3 * row['plain']:.3f}"
            print(f"| {row['group']} | {row['case']} | {times} | {row['ratio']:.2f} | {late} |", flush=True)
    given.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
