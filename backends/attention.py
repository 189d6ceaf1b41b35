"""Attention kernels, and ``can_use_*``, which say whether one takes a tensor. ``decoder/attention.py``,
``arimage/autoregressive/attention.py`` and ``tokenizer/attention.py`` choose among them.

On GPUs half-precision tensors go to flash-attn when it is installed. PyTorch's scaled-dot-product attention does the
rest, with two exceptions on CPUs: long fp32 rows where oneDNN's products are faster (head by head, see
:mod:`backends.linear`), and bf16 rows in training where the CPU multiplies bf16 natively (plain products).
"""

import torch
from torch import Tensor

from backends.linear import ONEDNN, linear
from backends.processor import multiplies_bf16

try:
    from flash_attn import flash_attn_func, flash_attn_varlen_func
except ImportError:
    flash_attn_func = flash_attn_varlen_func = None
MATMUL_SCORES = 2**20
LONG_ROW, QUERIES_AT_ONCE = 512, 256


def can_use_flash(query: Tensor) -> bool:
    """Whether flash-attn is installed and takes this tensor (a GPU, fp16 or bf16)."""
    return flash_attn_func is not None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)


def can_use_matmul(query: Tensor, key: Tensor) -> bool:
    """Whether plain matrix products train faster than PyTorch's fused kernel: bf16 on a CPU, rows of a few hundred."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not query.requires_grad:
        return False
    return query.shape[1] * key.shape[1] <= MATMUL_SCORES and multiplies_bf16(query.device)


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    """Scaled dot-product attention of (B, heads, L or T, head_dim) that keeps its scores, in the query's dtype.

    Args:
        visible: bool, broadcast to (B, heads, L, T), at least one in each row; None for all.
    """
    with torch.autocast("cpu", enabled=False):
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        return scores.softmax(dim=-1) @ value


def can_use_by_heads(query: Tensor, key: Tensor) -> bool:
    """Whether oneDNN is faster head by head than PyTorch's fused kernel: long fp32 rows on a CPU, nothing learnt."""
    plain = query.device.type == "cpu" and query.dtype == torch.float32 and not torch.is_grad_enabled()
    return ONEDNN and plain and min(query.shape[1], key.shape[1]) >= LONG_ROW


def by_heads_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention of (B, L or T, heads, head_dim), some queries of one head at a time.

    ``QUERIES_AT_ONCE`` are so few that their scores stay in a cache of the processor and below the size from which
    memory comes from the operating system page by page.
    """
    attended = torch.empty_like(query, memory_format=torch.contiguous_format)
    queries = (query * query.shape[-1] ** -0.5).transpose(1, 2).contiguous()
    keys = key.permute(0, 2, 3, 1).contiguous().transpose(2, 3)
    values = value.transpose(1, 2).contiguous().transpose(2, 3)
    for row in range(query.shape[0]):
        for head in range(query.shape[2]):
            for start in range(0, query.shape[1], QUERIES_AT_ONCE):
                part = slice(start, start + QUERIES_AT_ONCE)
                scores = linear(queries[row, head, part], keys[row, head], None)
                torch.softmax(scores, dim=-1, out=scores)
                attended[row, part, head] = linear(scores, values[row, head], None)
    return attended
