"""Attention over one joint row of references, glyphs and image tokens.

flash-attn takes half-precision tensors on a GPU when it is installed, packing the keys that a mask leaves;
other kernels, and which of them is used, are those of :mod:`backends.attention`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.attention import (
    by_heads_attention,
    can_use_by_heads,
    can_use_flash,
    can_use_matmul,
    flash_attn_func,
    flash_attn_varlen_func,
    matmul_attention,
)


def joint_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
    """Every query sees every visible key of its row.

    Args:
        query: (B, L, heads, head_dim).
        key, value: (B, T, heads, head_dim).
        visible: (B, T) bool, at least one in each row, or None for all.

    Returns:
        (B, L, heads, head_dim).
    """
    if can_use_flash(query):
        return _flash(query, key, value, visible)
    mask = None if visible is None else visible[:, None, None, :]
    by_head = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if can_use_matmul(query, key):
        return matmul_attention(*by_head, mask).transpose(1, 2)
    if visible is None and can_use_by_heads(query, key):
        return by_heads_attention(query, key, value)
    return F.scaled_dot_product_attention(*by_head, attn_mask=mask).transpose(1, 2)


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
