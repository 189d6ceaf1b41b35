"""Attention heads that begin by copying a reference: the code of the same cell, found by its position.

An edit keeps most codes of its reference, but a small model trained from random heads hardly learns to look them up:
as long as attention is spread over all tokens, the one right code is drowned by the others, and positions of
neighbouring cells differ too little to be told apart. So some heads begin as what the lookup is in the end. Where the
text stands before the references (``processor.text_first``), the last reference is at the same distance from the
target in every prompt; rotary position embedding turns that distance into an angle for each frequency, and biases of
queries and keys that differ by these angles match exactly the cell wanted. Values and outputs pass the codes' vectors
through. Where a thing stands elsewhere than in its reference, two layers of induction heads (Olsson et al. 2022,
arXiv:2209.11895) find it by what stands before and above. Training goes on from there.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from arimage.autoregressive.config import TextModelConfig
from arimage.autoregressive.layout import Grid, build_prompt
from arimage.autoregressive.model import AutoregressiveModel, Layer
from arimage.autoregressive.vocabulary import Vocabulary
from arimage.training.axes import principal_axes, signed

SCALE = 3.0  # length of a query's and of a key's bias in each pair of rotated entries
CONTENT = 0.3  # what is left of the weights of queries and keys, so that positions decide at first
PASSED = 1.5  # length of the rows that read a code's vector, and of the columns that write it
WRITTEN = 0.6  # gain of the norm behind attention in these layers
LEAST_SHARE = 1e-3
MATCHED = 2.0  # length of the rows by which codes are compared


@torch.no_grad()
def initialize_copy_heads(
    model: AutoregressiveModel,
    layers: Sequence[int],
    vocabulary: Vocabulary,
    codes: Tensor,
    grid: Grid,
    key_value_head: int = 0,
) -> None:
    """Let the queries of a key-value head copy, in these layers.

    The first of them looks for the next cell in its row; the second, where there is one, for the first cell of the
    next row, which a row's last cell is followed by.

    Args:
        codes: (codebook_size, hidden_size) embeddings of the codes.
        grid: of target and reference.

    Raises:
        ValueError: the text does not stand first, or a layer or the head does not exist.
    """
    config = model.config
    if not vocabulary.text_first:
        raise ValueError("references are found by their position only where the text stands first (text_first)")
    if not all(0 <= number < config.num_hidden_layers for number in layers):
        raise ValueError(f"layers are numbered 0 to {config.num_hidden_layers - 1}, got {list(layers)}")
    if not 0 <= key_value_head < config.num_key_value_heads:
        raise ValueError(f"key-value heads are numbered 0 to {config.num_key_value_heads - 1}, got {key_value_head}")
    t, h, w = (float(distance) for distance in _distances(vocabulary, grid))
    beside = _angles(config, (t, h, w - 1))
    below = _angles(config, (t, h - 1, w + grid.width - 1))
    pairs, size = len(beside), config.head_dim
    directions, rank = _directions(codes, size)
    read = PASSED * directions[:rank]
    for number in layers:
        layer = cast(Layer, model.model.language_model.layers[number])
        attention = layer.self_attn
        keys = slice(key_value_head * size, key_value_head * size + size)
        attention.k_proj.weight[keys] *= CONTENT
        attention.k_proj.bias[keys][: 2 * pairs] = SCALE * _circle(beside)
        attention.v_proj.weight[keys][:rank] = read
        group = attention.heads // attention.shared
        for head, wanted in enumerate((beside, below)[:group], key_value_head * group):
            own = slice(head * size, head * size + size)
            attention.q_proj.weight[own] *= CONTENT
            attention.q_proj.bias[own][: 2 * pairs] = SCALE * _circle(beside - wanted)
            attention.o_proj.weight[:, own][:, :rank] = read.T
        gains = layer.post_self_attn_layernorm.weight
        if gains.min() == gains.max():  # not trained yet
            gains.fill_(WRITTEN)


@torch.no_grad()
def initialize_induction_heads(model: AutoregressiveModel, layers: tuple[int, int], codes: Tensor) -> None:
    """Let heads find where the code before, or the code above, stands in what came earlier, and copy what follows it.

    So a thing is continued from its reference also at another place. In the first layer heads fetch a cell's left and
    upper neighbours, and the one above the next cell, into directions of their own; in the second layer queries of the
    present code and of the code above the next cell match keys of the left and upper neighbours.

    Args:
        layers: the two, the first before the second.
        codes: (codebook_size, hidden_size) embeddings of the codes.

    Raises:
        ValueError: heads are too few, or a layer does not exist.
    """
    config = model.config
    size, pairs = config.head_dim, sum(config.mrope_section)
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if shared < 2 or heads // shared < 2:
        raise ValueError("two key-value heads of two queries each are needed")
    if not 0 <= layers[0] < layers[1] < config.num_hidden_layers:
        raise ValueError(f"layers are numbered 0 to {config.num_hidden_layers - 1}, got {list(layers)}")
    directions, rank = _directions(codes, min(size, config.hidden_size // 4))
    code, left, above, corner = directions[: 4 * rank].split(rank)
    first, second = (cast(Layer, model.model.language_model.layers[number]) for number in layers)
    group = heads // shared

    attention = first.self_attn
    fetched = {0: ((0.0, 1.0, 0.0), above), group: ((0.0, 0.0, 1.0), left), group + 1: ((0.0, 1.0, -1.0), corner)}
    for number in (0, 1):
        own = slice(number * size, number * size + size)
        attention.k_proj.weight[own] *= CONTENT
        attention.k_proj.bias[own][: 2 * pairs] = SCALE * _circle(torch.zeros(pairs))
        attention.v_proj.weight[own][:rank] = PASSED * code
    for head, (distance, written) in fetched.items():
        own = slice(head * size, head * size + size)
        attention.q_proj.weight[own] *= CONTENT
        attention.q_proj.bias[own][: 2 * pairs] = SCALE * _circle(-_angles(config, distance))
        attention.o_proj.weight[:, own][:, :rank] = PASSED * written.T
    first.post_self_attn_layernorm.weight.fill_(WRITTEN)

    attention = second.self_attn
    free = size - 2 * pairs  # entries of a head that are not rotated: what they match does not depend on places
    mixing = torch.linalg.qr(torch.randn(rank, rank, generator=torch.Generator().manual_seed(0))).Q[:free]
    for number, head, asked, known in ((0, 0, code, left), (1, group, corner, above)):
        keys, queries = (slice(n * size, n * size + size) for n in (number, head))
        for weight, compared in ((attention.k_proj.weight[keys], known), (attention.q_proj.weight[queries], asked)):
            weight *= CONTENT
            weight[2 * pairs : 2 * pairs + len(mixing)] = MATCHED * mixing @ compared
        attention.v_proj.weight[keys][:rank] = PASSED * code
        attention.o_proj.weight[:, queries][:, :rank] = PASSED * code.T
    second.post_self_attn_layernorm.weight.fill_(WRITTEN)


def _distances(vocabulary: Vocabulary, grid: Grid) -> Tensor:
    """Of a cell from the same cell of the last reference, along t, h and w."""
    prompt = build_prompt(vocabulary, "", grid, [torch.zeros(tuple(grid), dtype=torch.long)], preview=False)
    first = int((prompt.tokens == vocabulary.image_start).nonzero()[0]) + 1
    return prompt.next_position - prompt.positions[:, first]


def _angles(config: TextModelConfig, distance: tuple[float, float, float]) -> Tensor:
    """(pairs,) by which the rotation turns a distance along t, h and w."""
    axes = torch.tensor([axis for axis, count in enumerate(config.mrope_section) for _ in range(count)])
    return config.rope_theta ** -(torch.arange(len(axes)) / len(axes)) * torch.tensor(distance)[axes]


def _directions(codes: Tensor, most: int) -> tuple[Tensor, int]:
    """(hidden_size, hidden_size) orthonormal rows, and how many of the first hold the codes, at most ``most``.

    The same on every processor: what codes leave open, signs and the rows behind their rank, is not left to rounding.
    """
    values, rows = principal_axes(codes.double().T @ codes.double())
    held = int((LEAST_SHARE**2 * values[0] < values).sum())
    stream = torch.Generator().manual_seed(0)
    rest = torch.randn(len(rows), len(rows) - held, generator=stream, dtype=rows.dtype)
    trailing = torch.linalg.qr(rest - rows[:held].T @ (rows[:held] @ rest)).Q.T
    return torch.cat([rows[:held], signed(trailing)]).to(codes.dtype), min(held, most)


def _circle(angles: Tensor) -> Tensor:
    """(2N,) the points of angles on the unit circle as the rotation pairs them: all cosines, then all sines."""
    return torch.cat([angles.cos(), angles.sin()])
