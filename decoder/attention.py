"""Attention over one joint row of references, glyphs and image tokens.

flash-attn serves half-precision tensors on a GPU when it is installed, packing the keys that a mask leaves;
PyTorch's scaled-dot-product attention gives the same results otherwise. On CPUs it multiplies by MKL; where oneDNN is
faster (see :mod:`decoder.linear`), long fp32 rows are attended head by head with its products. In training, bf16 rows
go through plain products where the CPU has them natively; where it emulates them these take twice as long.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.linear import ONEDNN, linear
from decoder.processor import multiplies_bf16

try:
    from flash_attn import flash_attn_func, flash_attn_varlen_func
except ImportError:
    flash_attn_func = flash_attn_varlen_func = None

MATMUL_SCORES = 2**20
LONG_ROW, QUERIES_AT_ONCE = 512, 256


def flash_serves(query: Tensor) -> bool:
    """Whether flash-attn is installed and takes this tensor (a GPU, fp16 or bf16)."""
    return flash_attn_func is not None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)


def joint_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
    """Every query sees every visible key of its row.

    Args:
        query: (B, L, heads, head_dim).
        key, value: (B, T, heads, head_dim).
        visible: (B, T) bool, at least one in each row, or None for all.

    Returns:
        (B, L, heads, head_dim).
    """
    if flash_serves(query):
        return _flash(query, key, value, visible)
    mask = None if visible is None else visible[:, None, None, :]
    by_head = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if matmul_serves(query, key):
        return matmul_attention(*by_head, mask).transpose(1, 2)
    if visible is None and by_heads_serves(query, key):
        return by_heads_attention(query, key, value)
    return F.scaled_dot_product_attention(*by_head, attn_mask=mask).transpose(1, 2)


def matmul_serves(query: Tensor, key: Tensor) -> bool:
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


def by_heads_serves(query: Tensor, key: Tensor) -> bool:
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


def _flash(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    if visible is None:
        return flash_attn_func(query, key, value)
    batch, length = query.shape[:2]
    counts = visible.sum(dim=1, dtype=torch.int32)
    key_ends = F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    query_ends = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=query.device)
    attended = flash_attn_varlen_func(
        query.flatten(0, 1), key[visible], value[visible], query_ends, key_ends, length, int(counts.max())
    )
    return attended.unflatten(0, (batch, length))
