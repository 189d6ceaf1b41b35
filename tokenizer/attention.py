"""Self-attention over several pictures packed in one row: every picture attends to itself only.

flash-attn's variable-length kernel takes half-precision tensors on a GPU when the package is installed;
otherwise each picture goes through PyTorch's scaled-dot-product attention. The results are the same.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.attention import can_use_flash, flash_attn_varlen_func


def packed_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention within each of the segments of a packed row.

    Args:
        query, key, value: (N, heads, head_dim), N = sum of ``lengths``.
        lengths: tokens of each picture, in order.

    Returns:
        (N, heads, head_dim).
    """
    if can_use_flash(query):
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=query.device)
        return flash_attn_varlen_func(query, key, value, ends, ends, max(lengths), max(lengths))
    if len(lengths) > 1 and len(set(lengths)) == 1:  # all alike: one call for all
        rows = (part.unflatten(0, (len(lengths), -1)).transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(*rows).transpose(1, 2).flatten(0, 1)
    segments = [
        F.scaled_dot_product_attention(q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None])
        for q, k, v in zip(query.split(list(lengths)), key.split(list(lengths)), value.split(list(lengths)))
    ]
    return torch.cat([segment[0].transpose(0, 1) for segment in segments])
