"""Causal grouped-query attention in its three uses: a prompt, one new token, packed training rows.

flash-attn takes half-precision tensors on a GPU when it is installed; PyTorch's scaled-dot-product attention
gives the same results otherwise.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from backends.attention import can_use_flash, can_use_matmul, flash_attn_func, flash_attn_varlen_func, matmul_attention


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over whole rows; a token sees itself and what is before it.

    Rows padded on the right need no mask: what is before a token of the row is never padding.

    Args:
        query: (B, L, heads, head_dim); key, value: (B, L, kv_heads, head_dim).

    Returns:
        (B, L, heads, head_dim).
    """
    if can_use_flash(query):
        return flash_attn_func(query, key, value, causal=True)
    by_head = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if can_use_matmul(query, key):
        keys, values = (part.repeat_interleave(query.shape[2] // key.shape[2], dim=1) for part in by_head[1:])
        visible = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool).tril()
        return matmul_attention(by_head[0], keys, values, visible).transpose(1, 2)
    return F.scaled_dot_product_attention(*by_head, is_causal=True, enable_gqa=True).transpose(1, 2)


def packed_causal_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """Causal attention within each of the sequences packed in one row.

    Args:
        query: (1, N, heads, head_dim); key, value: (1, N, kv_heads, head_dim); N = sum of ``lengths``.

    Returns:
        (1, N, heads, head_dim).
    """
    if can_use_flash(query):
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=query.device)
        longest = max(lengths)
        attended = flash_attn_varlen_func(query[0], key[0], value[0], ends, ends, longest, longest, causal=True)
        return attended[None]
    if query.device.type == "cpu":
        rows = zip(*(tensor.split(list(lengths), dim=1) for tensor in (query, key, value)))
        return torch.cat([causal_attention(*row) for row in rows], dim=1)
    padded = [pad_sequence(tensor[0].split(list(lengths)), batch_first=True) for tensor in (query, key, value)]
    attended = causal_attention(*padded)
    return torch.cat([row[:length] for row, length in zip(attended, lengths)])[None]


def step_attention(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of the newest tokens of each row over all cached ones.

    Query heads that share a key-value head are treated as that head's queries where nothing has to be copied for it.

    Args:
        query: (B, S, heads, head_dim).
        keys, values: (B, kv_heads, T, head_dim).
        visible: (B, S, T) bool, or None when every token sees all T.

    Returns:
        (B, S, heads, head_dim).
    """
    batch, count, heads, head_dim = query.shape
    shared = keys.shape[1]
    if count == 1:  # no copies, which are a third or more of the time of every layer and token
        grouped = query.view(batch, shared, heads // shared, head_dim)
        mask = None if visible is None else visible[:, None]
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        return attended.reshape(batch, 1, heads, head_dim)
    mask = None if visible is None else visible[:, None]
    by_head = query.transpose(1, 2)
    return F.scaled_dot_product_attention(by_head, keys, values, attn_mask=mask, enable_gqa=True).transpose(1, 2)
