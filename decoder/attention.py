"""Attention over one joint row of references, glyphs and image tokens.

flash-attn serves half-precision tensors on a GPU when it is installed, packing the keys that a mask leaves;
PyTorch's scaled-dot-product attention gives the same results otherwise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from flash_attn import flash_attn_func, flash_attn_varlen_func
except ImportError:
    flash_attn_func = flash_attn_varlen_func = None

MATMUL_SCORES = 2**20


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
    return F.scaled_dot_product_attention(*by_head, attn_mask=mask).transpose(1, 2)


def matmul_serves(query: Tensor, key: Tensor) -> bool:
    """Whether plain matrix products train faster than PyTorch's fused kernel: bf16 on a CPU, rows of a few hundred."""
    short = query.shape[1] * key.shape[1] <= MATMUL_SCORES
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad and short


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
