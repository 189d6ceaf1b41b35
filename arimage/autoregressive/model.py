"""The GLM text model with vision words, and its head over them.

Parameter names are the checkpoint's (``model.language_model.*`` and ``lm_head.weight`` of
``vision_language_encoder``). Three ways in: :meth:`AutoregressiveModel.forward` for training,
:meth:`~AutoregressiveModel.prefill` for prompts and :meth:`~AutoregressiveModel.step` for the tokens that follow.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from arimage.autoregressive.attention import causal_attention, packed_causal_attention, step_attention
from arimage.autoregressive.cache import KeyValueCache
from arimage.autoregressive.config import TextModelConfig
from backends.linear import Linear, Projections, can_use_onednn, linear
from backends.norm import rms_norm

Rotation = tuple[Tensor, Tensor]


def rotation(positions: Tensor, config: TextModelConfig, dtype: torch.dtype) -> Rotation:
    """Cosines and sines of 3-D positions.

    The frequencies of the rotated part of a head are shared out between the t, h and w axes by ``mrope_section``.

    Args:
        positions: (3, B, L).

    Returns:
        Two tensors (B, L, 1, rotary_dim), computed in fp32 and given in ``dtype``.
    """
    rotary = 2 * sum(config.mrope_section)
    exponents = torch.arange(0, rotary, 2, device=positions.device, dtype=torch.float32) / rotary
    angles = positions[..., None].float() * (1.0 / config.rope_theta**exponents)
    by_axis = [axis[i] for i, axis in enumerate(angles.split(list(config.mrope_section), dim=-1))]
    angles = torch.cat(by_axis * 2, dim=-1)[:, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(heads: Tensor, rope: Rotation) -> Tensor:
    """Rotate the first ``rotary_dim`` entries of (B, L, heads, head_dim), first half against second half."""
    cos, sin = rope
    turned, kept = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    rotated = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([rotated.to(heads.dtype), kept], dim=-1)


def whole_heads(rope: Rotation, head_dim: int) -> Rotation:
    """The rotation as :func:`turn_` takes it: over whole heads, the sines of the first half negative."""
    cos, sin = rope
    kept = 0, head_dim - cos.shape[-1]
    first, second = sin.chunk(2, dim=-1)
    return F.pad(cos, kept, value=1.0), F.pad(torch.cat([-first, second], dim=-1), kept)


def turn_(heads: Tensor, rope: Rotation, rotary: int) -> None:
    """:func:`rotate` in place, in few operations.

    Args:
        heads: (B, S, heads, head_dim).
        rope: from :func:`whole_heads`, broadcast to them.
        rotary: entries of a head that are rotated.
    """
    others = heads[..., _partners(rotary, heads.shape[-1], heads.device)]
    heads.mul_(rope[0]).addcmul_(others, rope[1])


@lru_cache
def _partners(rotary: int, head_dim: int, device: torch.device) -> Tensor:
    """The entry that each of a head's is turned against: the one half a rotation away."""
    entries = torch.arange(head_dim, device=device)
    return torch.cat([entries[:rotary].roll(rotary // 2), entries[rotary:]])


@lru_cache
def _number(value: float) -> Tensor:
    return torch.tensor(value)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.root = size**0.5

    def forward(self, hidden: Tensor) -> Tensor:
        return self.added(None, hidden)

    def added(self, residual: Tensor | None, hidden: Tensor) -> Tensor:
        """The norm of ``hidden``, added to ``residual`` if there is one."""
        if hidden.dtype == torch.float32 and hidden.device.type == "cpu" and not torch.is_grad_enabled():
            # PyTorch has no kernel for this on CPUs and takes nine operations; these four take half the time.
            least = _number((self.eps * len(self.weight)) ** 0.5)
            length = torch.hypot(torch.linalg.vector_norm(hidden, dim=-1, keepdim=True), least)
            base = _number(0.0) if residual is None else residual
            return torch.addcdiv(base, hidden * self.weight, length, value=self.root)
        normed = rms_norm(hidden, self.weight, self.eps)
        return normed if residual is None else residual + normed


class Attention(Projections):
    projected = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: TextModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, shared, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, shared, bias=config.attention_bias)
        self.o_proj = Linear(queries, config.hidden_size, bias=False)
        self.heads, self.shared = config.num_attention_heads, config.num_key_value_heads
        self.rotary = 2 * sum(config.mrope_section)

    def project(self, hidden: Tensor, rope: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values: each (B, L, heads, head_dim)."""
        heads = self.project_all(hidden).unflatten(-1, (-1, self.head_dim))
        turning, value = heads.split([self.heads + self.shared, self.shared], dim=2)
        query, key = rotate(turning, rope).split([self.heads, self.shared], dim=2)
        return query, key, value

    def project_step(self, hidden: Tensor, rope: Rotation) -> Tensor:
        """Rotated queries and keys, and values, of (B, S, hidden): (B, S, heads + 2 * kv_heads, head_dim)."""
        heads = self.project_all(hidden).unflatten(-1, (-1, self.head_dim))
        turn_(heads[:, :, : self.heads + self.shared], rope, self.rotary)
        return heads


class FeedForward(nn.Module):
    def __init__(self, config: TextModelConfig) -> None:
        super().__init__()
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        return self.down_proj(up * F.silu(gate))


class Layer(nn.Module):
    """GLM-4's block: a norm before and one after each of attention and feed-forward."""

    def __init__(self, config: TextModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_self_attn_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_mlp_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        rope: Rotation,
        lengths: Sequence[int] | None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        query, key, value = self.self_attn.project(self.input_layernorm(hidden), rope)
        if cache is not None:
            cache.fill(layer, key, value)
        if lengths is None:
            attended = causal_attention(query, key, value)
        else:
            attended = packed_causal_attention(query, key, value, lengths)
        return self._finish(hidden, attended)

    def step(self, hidden: Tensor, rope: Rotation, cache: KeyValueCache, layer: int, visible: Tensor | None) -> Tensor:
        """The newest tokens of every row: (B, S, hidden)."""
        attention = self.self_attn
        heads = attention.project_step(self.input_layernorm(hidden), rope)
        keys, values = cache.append(layer, heads[:, :, attention.heads :])
        return self._finish(hidden, step_attention(heads[:, :, : attention.heads], keys, values, visible))

    def static_step(self, hidden: Tensor, rope: Rotation, pairs: Tensor, lengths: Tensor, visible: Tensor) -> Tensor:
        """:meth:`step` of one token, over all of a layer's cache ``pairs``, written at ``lengths`` (B,)."""
        attention = self.self_attn
        heads = attention.project_step(self.input_layernorm(hidden), rope)
        rows = torch.arange(len(hidden), device=hidden.device)
        pairs[rows, :, lengths] = heads[:, 0, attention.heads :]
        keys, values = pairs.split(attention.shared, dim=1)
        return self._finish(hidden, step_attention(heads[:, :, : attention.heads], keys, values, visible))

    def _finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = self.post_self_attn_layernorm.added(hidden, self.self_attn.o_proj(attended.flatten(-2)))
        return self.post_mlp_layernorm.added(hidden, self.mlp(self.post_attention_layernorm(hidden)))


class TextModel(nn.Module):
    def __init__(self, config: TextModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LanguageModel(nn.Module):
    """The name under which the checkpoint keeps the text model."""

    def __init__(self, config: TextModelConfig) -> None:
        super().__init__()
        self.language_model = TextModel(config)


class AutoregressiveModel(nn.Module):
    """Token ids and 3-D positions to scores of vision words.

    In training ``gradient_checkpointing`` trades time for memory, and ``text_rows_frozen`` lets only vision words learn
    their rows of the embedding. ``fixed_steps`` has generation go by :meth:`static_step`.
    """

    def __init__(self, config: TextModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LanguageModel(config)
        self.lm_head = Linear(config.hidden_size, config.vision_vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.text_rows_frozen = False
        self.fixed_steps = False

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        lengths: Sequence[int] | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states after the last norm.

        Args:
            tokens: (B, L). Rows may be padded on the right: padding does not reach what is before it.
            positions: (3, B, L).
            lengths: when B is 1, the lengths of the sequences packed in the row; they do not see each other.
            states: hidden states after each layer, (B, L, hidden), are appended to it.

        Returns:
            (B, L, hidden); :meth:`scores` turns them into logits.
        """
        hidden = self.model.language_model.embed_tokens(tokens)
        if self.text_rows_frozen:
            hidden = torch.where((tokens < self.config.vision_vocab_size)[..., None], hidden, hidden.detach())
        rope = self.rotation(positions)
        for layer in self.model.language_model.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, rope, lengths, use_reentrant=False)
            else:
                hidden = layer(hidden, rope, lengths)
            if states is not None:
                states.append(hidden)
        return self.model.language_model.norm(hidden)

    def rotation(self, positions: Tensor) -> Rotation:
        """Rotary cosines and sines of (3, B, L) positions for this model."""
        return rotation(positions.to(self.device), self.config, self.dtype)

    def step_rotation(self, positions: Tensor) -> Rotation:
        """The same for :meth:`step`: those of the i-th token are ``[:, i : i + 1]`` of both."""
        return whole_heads(self.rotation(positions), self.config.head_dim)

    def scores(self, hidden: Tensor, words: int | None = None) -> Tensor:
        """Logits of the first ``words`` vision words (all by default): (..., hidden) -> (..., words)."""
        if type(self.lm_head) is not Linear:  # an adapter beside it, whose part the weight does not hold
            return self.lm_head(hidden)[..., :words]
        weight = self.lm_head.weight
        if can_use_onednn(hidden, weight):
            return linear(hidden, weight, None)[..., :words]
        return F.linear(hidden, weight[:words])

    def prefill(self, tokens: Tensor, positions: Tensor, lengths: Tensor, cache: KeyValueCache) -> Tensor:
        """Read prompts into the cache.

        Args:
            tokens: (B, L), padded on the right.
            positions: (3, B, L).
            lengths: (B,) tokens of each prompt.

        Returns:
            The hidden state of each prompt's last token, (B, hidden).
        """
        hidden = self.model.language_model.embed_tokens(tokens)
        rope = self.rotation(positions)
        for index, layer in enumerate(self.model.language_model.layers):
            hidden = layer(hidden, rope, None, cache, index)
        cache.filled(lengths)
        last = hidden[torch.arange(len(hidden), device=hidden.device), lengths.to(hidden.device) - 1]
        return self.model.language_model.norm(last)

    def step(self, tokens: Tensor, rope: Rotation, cache: KeyValueCache) -> Tensor:
        """Some tokens more for every row; the caller says how many of them stay (``cache.advance``).

        Args:
            tokens: (B, S).
            rope: the tokens' rotation from :meth:`step_rotation`, (B, S, 1, head_dim) each.

        Returns:
            (B, S, hidden).
        """
        hidden = self.model.language_model.embed_tokens(tokens)
        visible = cache.visible(tokens.shape[1])
        for index, layer in enumerate(self.model.language_model.layers):
            hidden = cast(Layer, layer).step(hidden, rope, cache, index, visible)
        return self.model.language_model.norm(hidden)

    def static_step(self, tokens: Tensor, rope: Rotation, cache: KeyValueCache) -> Tensor:
        """One token more for every row, by tensors that keep their shapes and places, so that it can be recorded.

        All of the cache is read, whatever it holds; the caller counts on ``cache.lengths`` in place.

        Args:
            tokens: (B, 1).
            rope: as in :meth:`step`.

        Returns:
            (B, 1, hidden).
        """
        hidden = self.model.language_model.embed_tokens(tokens)
        capacity = torch.arange(cache.pairs[0].shape[2], device=self.device)
        visible = capacity <= cache.lengths[:, None, None]
        for layer, pairs in zip(self.model.language_model.layers, cache.pairs):
            hidden = cast(Layer, layer).static_step(hidden, rope, pairs, cache.lengths, visible)
        return self.model.language_model.norm(hidden)

    def compile_steps(self) -> None:
        """Have the layers' :meth:`static_step` compiled (``torch.compile``) when they are first run."""
        for layer in cast("list[Layer]", list(self.model.language_model.layers)):
            layer.static_step = torch.compile(layer.static_step)  # type: ignore[method-assign]
        self.fixed_steps = True
