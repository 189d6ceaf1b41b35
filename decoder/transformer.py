"""The diffusion transformer: noisy latents, visual tokens, glyphs and references to a velocity.

Each DiT token covers 16x16 pixels. A visual token (32x32) is embedded, projected and added to the four DiT tokens
that it covers; glyph embeddings join the row in front of the image; references stand before both as keys and
values that do not look back. Parameter names are the checkpoint's (folder ``transformer``).

What does not change from step to step is computed once: :meth:`DiffusionTransformer.condition` for everything but
time, :meth:`DiffusionTransformer.modulate` for all timesteps of a schedule, :meth:`DiffusionTransformer.denoise` for
the rest. :meth:`DiffusionTransformer.forward` does all three, for training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backends.linear import Linear, Projections, linear_gelu_tanh
from decoder.attention import joint_attention
from decoder.config import PIXELS_PER_LATENT, TransformerConfig

ROPE_THETA = 10000.0
NORM_EPS = 1e-5
DIT_TOKENS_PER_SIDE = 2

Rotation = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ReferenceCache:
    """Keys and values of the reference pictures of a batch.

    Attributes:
        layers: for each block (keys, values), each (B, R, heads, head_dim); R counts the longest row.
        visible: (B, R) bool, which of them belong to the row; None for all.
    """

    layers: list[KeyValue]
    visible: Tensor | None

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1]


@dataclass(frozen=True)
class Conditioning:
    """What the network is told apart from time.

    Attributes:
        prior: (B, N, hidden) projected visual tokens, at the DiT's resolution.
        glyphs: (B, L, hidden) projected glyph embeddings.
        glyph_mask: (B, L) bool, or None when no row is padded.
        rotation: of glyphs, which have no place, and image tokens, see :func:`rotate`.
        references: their keys and values, or None.
    """

    prior: Tensor
    glyphs: Tensor
    glyph_mask: Tensor | None
    rotation: Rotation
    references: ReferenceCache | None

    def visible_keys(self) -> Tensor | None:
        """Which keys of the row (references, glyphs, image) may be seen: (B, R + L + N), or None for all."""
        references = None if self.references is None else self.references.visible
        if references is None and self.glyph_mask is None:
            return None
        batch = len(self.prior)

        def all_of(length: int) -> Tensor:
            return torch.ones(batch, length, dtype=torch.bool, device=self.prior.device)

        if references is None:
            references = all_of(0 if self.references is None else self.references.length)
        glyphs = all_of(self.glyphs.shape[1]) if self.glyph_mask is None else self.glyph_mask
        return torch.cat([references, glyphs, all_of(self.prior.shape[1])], dim=1)


@dataclass(frozen=True)
class Modulation:
    """Adaptive norm parameters of some timesteps: (S, 12 * hidden) a block and (S, 2 * hidden) at the output."""

    blocks: list[Tensor]
    output: Tensor

    def at(self, step: int) -> "Modulation":
        """Those of one timestep, for a whole batch: (1, ...)."""
        return Modulation([block[step : step + 1] for block in self.blocks], self.output[step : step + 1])


def sinusoid(values: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding in fp32, cosines first: (...) -> (..., channels)."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=values.device, dtype=torch.float32) / half)
    angles = values[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def row_rotation(glyphs: int, height: int, width: int, head_dim: int, device: torch.device) -> Rotation:
    """2-D rotary angles of a grid in raster order, after some glyphs without a place (angle 0).

    Returns:
        Cosines, and sines that are negative for the first half of a head: each (glyphs + height * width, 1, head_dim),
        fp32.
    """
    quarter = torch.arange(0, head_dim // 2, 2, device=device, dtype=torch.float32) / (head_dim // 2)
    frequencies = ROPE_THETA**-quarter
    rows = torch.arange(height, device=device)[:, None, None] * frequencies
    columns = torch.arange(width, device=device)[None, :, None] * frequencies
    angles = torch.cat([rows.expand(-1, width, -1), columns.expand(height, -1, -1)], dim=-1).flatten(0, 1)
    angles = F.pad(angles, (0, 0, glyphs, 0))[:, None]
    return torch.cat([angles.cos()] * 2, dim=-1), torch.cat([-angles.sin(), angles.sin()], dim=-1)


def rotate(heads: Tensor, rope: Rotation) -> Tensor:
    """Rotate (B, N, heads, head_dim) in fp32, first half against second half, by :func:`row_rotation`."""
    wide = heads.float()
    first, second = wide.chunk(2, dim=-1)
    cos, sin = rope
    return torch.addcmul(wide * cos, torch.cat([second, first], dim=-1), sin).to(heads.dtype)


def head_norm(heads: Tensor) -> Tensor:
    """Layer norm without parameters of (..., head_dim)."""
    if heads.device.type != "cpu" or heads.dtype != torch.float32 or torch.is_grad_enabled():
        return F.layer_norm(heads, heads.shape[-1:], eps=NORM_EPS)
    # On CPUs PyTorch's kernel goes row by row, which for rows as short as a head takes twice as long as these.
    size = heads.shape[-1]
    centred = heads - heads.mean(dim=-1, keepdim=True)
    squares = torch.linalg.vector_norm(centred, dim=-1, keepdim=True).square_()
    return centred.mul_(squares.div_(size).add_(NORM_EPS).rsqrt_())


class Activation(nn.Module):
    """A projection and a non-linearity, under the name that the checkpoint gives the pair."""

    def __init__(self, size: int, inner: int, kind: str) -> None:
        super().__init__()
        if kind not in ("gelu", "gelu_tanh", "silu"):
            raise ValueError(f"there is no activation {kind!r}")
        self.proj = Linear(size, inner)
        self.kind = kind

    def forward(self, hidden: Tensor) -> Tensor:
        if self.kind == "gelu_tanh" and type(self.proj) is Linear:
            return linear_gelu_tanh(hidden, self.proj.weight, self.proj.bias)
        hidden = self.proj(hidden)
        if self.kind == "silu":
            return F.silu(hidden)
        return F.gelu(hidden, approximate="tanh" if self.kind == "gelu_tanh" else "none")


class FeedForward(nn.Module):
    def __init__(self, size: int, inner: int, out: int, kind: str) -> None:
        super().__init__()
        self.net = nn.Sequential(Activation(size, inner, kind), nn.Identity(), Linear(inner, out))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.net(hidden)


class TwoLayers(nn.Module):
    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.linear_1 = Linear(size, out)
        self.linear_2 = Linear(out, out)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(hidden)))


class TimeAndSizeEmbedding(nn.Module):
    """The conditioning vector: timestep, target size and crop corner."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.time_channels, self.size_channels = config.time_embed_dim, config.condition_dim
        self.timestep_embedder = TwoLayers(config.time_embed_dim, config.time_embed_dim)
        self.condition_embedder = TwoLayers(4 * config.condition_dim, config.time_embed_dim)

    def forward(self, timestep: Tensor, target_size: Tensor, crop: Tensor) -> Tensor:
        dtype = self.timestep_embedder.linear_1.weight.dtype
        sizes = sinusoid(torch.cat([crop, target_size], dim=1), self.size_channels).flatten(1)
        time = self.timestep_embedder(sinusoid(timestep, self.time_channels).to(dtype))
        return F.silu(time + self.condition_embedder(sizes.to(dtype)))


class PatchProjector(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.proj = Linear(config.in_channels * config.patch_size**2, config.hidden_size)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H/p * W/p, hidden)."""
        batch, channels, height, width = latents.shape
        p = self.patch
        patches = latents.view(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return self.proj(patches.reshape(batch, -1, channels * p * p))


class AdaptiveNorm(nn.Module):
    """The projection from the conditioning vector to a norm's shifts, scales and gates."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.linear = Linear(size, out)

    def forward(self, vector: Tensor) -> Tensor:
        return self.linear(vector)


class Attention(Projections):
    projected = ("to_q", "to_k", "to_v")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_dim = config.attention_head_dim
        self.to_q = Linear(size, size)
        self.to_k = Linear(size, size)
        self.to_v = Linear(size, size)
        self.to_out = nn.ModuleList([Linear(size, size)])

    def forward(
        self,
        row: Tensor,
        rotation: Rotation,
        references: KeyValue | None,
        visible: Tensor | None,
    ) -> tuple[Tensor, KeyValue]:
        """Attention of (B, L + N, hidden), glyphs first; also gives the row's own keys and values."""
        heads = self.project_all(row).unflatten(-1, (3, -1, self.head_dim))
        query, key = rotate(head_norm(heads[..., :2, :, :]).flatten(2, 3), rotation).chunk(2, dim=2)
        value = heads[..., 2, :, :]
        own = (key, value)
        if references is not None:
            key = torch.cat([references[0], key], dim=1)
            value = torch.cat([references[1], value], dim=1)
        return self.to_out[0](joint_attention(query, key, value, visible).flatten(2)), own


class Block(nn.Module):
    """Joint attention and feed-forward, modulated separately for image and glyph tokens (AdaLN-zero)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.norm1 = AdaptiveNorm(config.time_embed_dim, 12 * size)
        self.attn1 = Attention(config)
        self.ff = FeedForward(size, 4 * size, size, "gelu_tanh")

    def forward(
        self,
        image: Tensor,
        glyphs: Tensor,
        modulation: Tensor,
        rotation: Rotation,
        references: KeyValue | None,
        visible: Tensor | None,
    ) -> tuple[Tensor, Tensor, KeyValue]:
        (shift_a, g_shift_a, scale_a, g_scale_a, gate_a, g_gate_a, shift_f, g_shift_f, scale_f, g_scale_f, gate_f,
         g_gate_f) = modulation[:, None].chunk(12, dim=-1)  # fmt: skip
        length = glyphs.shape[1]
        row = torch.cat([modulated(glyphs, g_shift_a, g_scale_a), modulated(image, shift_a, scale_a)], dim=1)
        attended, own = self.attn1(row, rotation, references, visible)
        image = torch.addcmul(image, attended[:, length:], gate_a)
        glyphs = torch.addcmul(glyphs, attended[:, :length], g_gate_a)
        row = torch.cat([modulated(glyphs, g_shift_f, g_scale_f), modulated(image, shift_f, scale_f)], dim=1)
        fed = self.ff(row)
        return torch.addcmul(image, fed[:, length:], gate_f), torch.addcmul(glyphs, fed[:, :length], g_gate_f), own


def _identity(reference: tuple[Tensor, Tensor]) -> tuple[int, int]:
    return id(reference[0]), id(reference[1])


def modulated(hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters, then an affine map given from outside."""
    if len(shift) == 1:  # one for all rows: the norm's own
        return F.layer_norm(hidden, hidden.shape[-1:], 1 + scale.flatten(), shift.flatten(), NORM_EPS)
    return F.layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class DiffusionTransformer(nn.Module):
    """Predicts the flow-matching velocity ``noise - clean`` of latents.

    ``gradient_checkpointing`` trades time for memory in training.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.image_projector = PatchProjector(config)
        self.glyph_projector = FeedForward(config.text_embed_dim, size, size, "gelu")
        self.prior_token_embedding = nn.Embedding(config.prior_vq_quantizer_codebook_size, size)
        self.prior_projector = FeedForward(size, size, size, "silu")
        self.time_condition_embed = TimeAndSizeEmbedding(config)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm_out = AdaptiveNorm(config.time_embed_dim, 2 * size)
        self.proj_out = Linear(size, config.patch_size**2 * config.out_channels)
        self.gradient_checkpointing = False

    @property
    def device(self) -> torch.device:
        return self.proj_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.proj_out.weight.dtype

    def compile_steps(self) -> None:
        """Have the blocks compiled (``torch.compile``) when they are first run."""
        for block in self.transformer_blocks:
            block.compile()

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        *,
        prior_tokens: Tensor,
        glyphs: Tensor,
        target_size: Tensor,
        glyph_mask: Tensor | None = None,
        crop: Tensor | None = None,
        prior_dropped: Tensor | None = None,
        references: ReferenceCache | None = None,
    ) -> Tensor:
        """The velocity of a batch.

        Args:
            latents: (B, C, H, W) noisy normalised latents.
            timestep: (B,) the schedule's unshifted timestep minus one, 0 for clean latents.
            prior_tokens: (B, H/4, W/4) codes.
            glyphs: (B, L, text_embed_dim) glyph embeddings; L may be 0.
            target_size: (B, 2) height and width in pixels.
            glyph_mask: (B, L) bool, False on padding.
            crop: (B, 2) top and left of the crop in pixels, zeros by default.
            prior_dropped: (B,) bool, rows whose visual tokens are withheld.
            references: from :meth:`cache_references`.

        Returns:
            (B, C, H, W).
        """
        conditioning = self.condition(prior_tokens, glyphs, glyph_mask, prior_dropped, references)
        return self.denoise(latents, conditioning, self.modulate(timestep, target_size, crop))

    def condition(
        self,
        prior_tokens: Tensor,
        glyphs: Tensor,
        glyph_mask: Tensor | None = None,
        prior_dropped: Tensor | None = None,
        references: ReferenceCache | None = None,
    ) -> Conditioning:
        """Everything that does not depend on time; arguments as in :meth:`forward`."""
        prior = self.prior_token_embedding(prior_tokens)
        if prior_dropped is not None:
            prior = prior * ~prior_dropped[:, None, None, None]
        prior = self.prior_projector(prior)
        for axis in (1, 2):
            prior = prior.repeat_interleave(DIT_TOKENS_PER_SIDE, dim=axis)
        height, width = prior.shape[1:3]
        if glyph_mask is not None and bool(glyph_mask.all()):
            glyph_mask = None
        return Conditioning(
            prior.flatten(1, 2),
            self.glyph_projector(glyphs.to(self.dtype)),
            glyph_mask,
            row_rotation(glyphs.shape[1], height, width, self.config.attention_head_dim, self.device),
            references,
        )

    def modulate(self, timesteps: Tensor, target_size: Tensor, crop: Tensor | None = None) -> Modulation:
        """Modulation of timesteps (S,) at sizes (S, 2): all of a schedule's in one call."""
        crop = torch.zeros_like(target_size) if crop is None else crop
        vector = self.time_condition_embed(timesteps, target_size, crop)
        blocks = [cast(Block, block).norm1(vector) for block in self.transformer_blocks]
        return Modulation(blocks, self.norm_out(vector))

    def denoise(self, latents: Tensor, conditioning: Conditioning, modulation: Modulation) -> Tensor:
        """The velocity of (B, C, H, W) latents; ``modulation`` has one row, or one for each of the batch."""
        image = self._blocks(latents, conditioning, modulation)
        scale, shift = modulation.output[:, None].chunk(2, dim=-1)
        patches = self.proj_out(modulated(image, shift, scale))
        batch, _, height, width = latents.shape
        p = self.config.patch_size
        patches = patches.view(batch, height // p, width // p, self.config.out_channels, p, p)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, self.config.out_channels, height, width)

    def cache_references(self, rows: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> ReferenceCache | None:
        """Keys and values of reference pictures, each run through the network once at t = 0 without glyphs.

        Args:
            rows: for each row of the batch its references, each (latents (C, H, W), codes (H/4, W/4)); numbers and
                sizes may differ.

        Returns:
            The cache, or None when no row has a reference.
        """
        pictures = {_identity(one): one for row in rows for one in row}
        if not pictures:
            return None
        alike: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for identity, (latents, _) in pictures.items():
            alike.setdefault(tuple(latents.shape), []).append(identity)
        encoded: list[list[KeyValue]] = []
        tokens: dict[tuple[int, int], Tensor] = {}  # of each picture: where they stand among those of all
        total = 0
        for identities in alike.values():
            latents, codes = (torch.stack(part) for part in zip(*(pictures[identity] for identity in identities)))
            encoded.append(self._encode_references(latents, codes))
            length = encoded[-1][0][0].shape[1]
            for identity in identities:
                tokens[identity] = torch.arange(total, total + length)
                total += length
        none = torch.zeros(0, dtype=torch.long)
        places = [torch.cat([none, *(tokens[_identity(one)] for one in row)]) for row in rows]
        chosen = nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=total)  # a blank stands behind all
        index = chosen.flatten().to(self.device)

        def gathered(layer: int, part: int) -> Tensor:
            every = [layers[layer][part].flatten(0, 1) for layers in encoded]
            every.append(every[0].new_zeros(1, *every[0].shape[1:]))
            return torch.cat(every).index_select(0, index).unflatten(0, chosen.shape)

        layers = [(gathered(layer, 0), gathered(layer, 1)) for layer in range(self.config.num_layers)]
        visible = chosen < total
        return ReferenceCache(layers, None if bool(visible.all()) else visible.to(self.device))

    def _encode_references(self, latents: Tensor, codes: Tensor) -> list[KeyValue]:
        latents, codes = latents.to(self.device, self.dtype), codes.to(self.device)
        no_glyphs = latents.new_zeros(len(latents), 0, self.config.text_embed_dim)
        size = torch.tensor([latents.shape[-2:]], device=self.device) * PIXELS_PER_LATENT
        modulation = self.modulate(torch.zeros(1, device=self.device), size)
        kept: list[KeyValue] = []
        self._blocks(latents, self.condition(codes, no_glyphs), modulation, kept)
        return kept

    def _blocks(
        self,
        latents: Tensor,
        conditioning: Conditioning,
        modulation: Modulation,
        kept: list[KeyValue] | None = None,
    ) -> Tensor:
        """Image tokens after the last block; every block's own keys and values are put into ``kept``."""
        image = self.image_projector(latents.to(self.dtype)) + conditioning.prior
        glyphs = conditioning.glyphs
        visible = conditioning.visible_keys()
        for index, block in enumerate(self.transformer_blocks):
            references = None if conditioning.references is None else conditioning.references.layers[index]
            arguments = (image, glyphs, modulation.blocks[index], conditioning.rotation, references, visible)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                image, glyphs, key_value = checkpoint(block, *arguments, use_reentrant=False)
            else:
                image, glyphs, key_value = block(*arguments)
            if kept is not None:
                kept.append(key_value)
        return image
