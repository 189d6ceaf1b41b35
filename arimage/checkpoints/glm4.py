"""The surgery that turns a GLM-4 language model into a starting point for images.

The embedding rows move behind the new vision words, the output head is replaced by one over vision words, and
everything in between is kept. GLM-4 rotates neighbouring pairs of a head's entries, GLM-Image its first half against
its second: the rows of the query and key projections are put into that order, so that text gives the same hidden
states as before.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from arimage.autoregressive.config import TextModelConfig
from arimage.checkpoints.weights import WeightFiles
from arimage.errors import CheckpointError


def glm4_text_config(glm4: Mapping[str, Any], vision: TextModelConfig, pad: int) -> TextModelConfig:
    """Dimensions of the text model that a GLM-4 ``config.json`` leads to.

    Args:
        vision: where the number of vision words comes from.
        pad: id of the pad token, counted behind the vision words.

    Raises:
        CheckpointError: it is no GLM-4 checkpoint, or of an unsupported kind.
    """
    if glm4.get("model_type") != "glm4":
        raise CheckpointError(f"config.json: model_type is {glm4.get('model_type')!r}, a GLM-4 checkpoint has 'glm4'")
    rope = {**glm4, **(glm4.get("rope_parameters") or {})}
    heads, hidden = glm4["num_attention_heads"], glm4["hidden_size"]
    head_dim = glm4.get("head_dim") or hidden // heads
    if head_dim * heads != hidden:
        raise CheckpointError(f"config.json: head_dim {head_dim} x {heads} heads is not hidden_size {hidden}")
    factor = rope.get("partial_rotary_factor", 0.5)
    return TextModelConfig(
        vocab_size=glm4["vocab_size"] + vision.vision_vocab_size,
        vision_vocab_size=vision.vision_vocab_size,
        hidden_size=hidden,
        intermediate_size=glm4["intermediate_size"],
        num_hidden_layers=glm4["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=glm4["num_key_value_heads"],
        rms_norm_eps=glm4.get("rms_norm_eps", 1e-5),
        attention_bias=glm4.get("attention_bias", True),
        max_position_embeddings=glm4.get("max_position_embeddings", 131072),
        rope_theta=rope.get("rope_theta", 10000.0),
        partial_rotary_factor=factor,
        mrope_section=_sections(int(head_dim * factor) // 2),
        pad_token_id=pad,
    )


def glm4_states(weights: WeightFiles, config: TextModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the autoregressive model, one by one.

    New embedding rows and the new head are drawn with the spread of the text rows.
    """
    generator = torch.Generator().manual_seed(seed)
    embedding = "model.embed_tokens.weight"
    layers = sorted(name for name in weights.names if name.startswith("model.layers.") or name == "model.norm.weight")
    if embedding not in weights.names or not layers:
        raise CheckpointError(f"{weights.folder}: the tensors of a GLM-4 text model are missing ({embedding!r}, ...)")
    for name, tensor in weights.read([embedding, *layers]):
        tensor = tensor.float()
        if name == embedding:
            words, size, spread = config.vision_vocab_size, config.hidden_size, float(tensor.std())
            new_rows = torch.randn(words, size, generator=generator) * spread
            yield "lm_head.weight", torch.randn(words, size, generator=generator) * spread
            tensor = torch.cat([new_rows, tensor])
        elif ".q_proj." in name or ".k_proj." in name:
            tensor = halves_from_pairs(tensor, config)
        yield name.replace("model.", "model.language_model.", 1), tensor.clone()


def halves_from_pairs(projection: Tensor, config: TextModelConfig) -> Tensor:
    """Rows of a query or key projection (weight or bias), reordered within each head's rotated part."""
    rotary = 2 * sum(config.mrope_section)
    order = torch.cat([torch.arange(0, rotary, 2), torch.arange(1, rotary, 2), torch.arange(rotary, config.head_dim)])
    heads = projection.unflatten(0, (-1, config.head_dim))
    return heads[:, order].flatten(0, 1)


def _sections(rotary: int) -> tuple[int, int, int]:
    """The share of t, h and w among the frequencies: 1 to 1.5 to 1.5, as released (8, 12, 12)."""
    sides = rotary * 3 // 8
    return rotary - 2 * sides, sides, sides
