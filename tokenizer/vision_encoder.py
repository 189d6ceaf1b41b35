"""The vision transformer of the semantic tokenizer.

Any grid of 16-pixel patches, several pictures of different sizes packed in one call; learned positions for one
square grid are interpolated bilinearly to each picture's own. Parameter names are the checkpoint's
(``model.visual.*`` of ``vision_language_encoder``).
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.attention import packed_attention
from tokenizer.config import VisionEncoderConfig

GridSize = tuple[int, int]


class PatchEmbedding(nn.Module):
    def __init__(self, config: VisionEncoderConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            config.in_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, C, h*patch, w*patch) -> (B*h*w, hidden), raster order."""
        return self.proj(pictures).flatten(2).transpose(1, 2).flatten(0, 1)


class PositionEmbedding(nn.Module):
    def __init__(self, config: VisionEncoderConfig) -> None:
        super().__init__()
        self.side = config.image_size // config.patch_size
        self.position_embedding = nn.Embedding(self.side**2, config.hidden_size)

    def forward(self, grid: GridSize) -> Tensor:
        """Positions of a (h, w) grid: (h*w, hidden), interpolated in fp32."""
        weight = self.position_embedding.weight
        table = weight.float().view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(table, size=grid, mode="bilinear", align_corners=False)
        return resized[0].flatten(1).transpose(0, 1).to(weight.dtype)


class Attention(nn.Module):
    def __init__(self, config: VisionEncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        query, key, value = self.qkv(hidden).view(len(hidden), 3, self.heads, -1).unbind(1)
        return self.proj(packed_attention(query, key, value, lengths).flatten(1))


class FeedForward(nn.Module):
    def __init__(self, config: VisionEncoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


class Block(nn.Module):
    def __init__(self, config: VisionEncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.mlp = FeedForward(config)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), lengths)
        return hidden + self.mlp(self.norm2(hidden))


def _runs(grids: Sequence[GridSize], pictures: Sequence[Tensor]) -> list[tuple[GridSize, list[Tensor]]]:
    """Neighbours of the same grid together."""
    pairs = groupby(zip(grids, pictures), key=lambda pair: pair[0])
    return [(grid, [picture for _, picture in alike]) for grid, alike in pairs]


class VisionEncoder(nn.Module):
    """Pictures to one feature vector per patch."""

    def __init__(self, config: VisionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = PositionEmbedding(config)
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Features of several pictures in one pass.

        Args:
            pictures: each (3, h*patch, w*patch) in [-1, 1], sizes may differ.

        Returns:
            For each picture its features, (hidden, h, w).

        Raises:
            ValueError: a picture's sides are not positive multiples of the patch size.
        """
        grids = [self._grid(picture) for picture in pictures]
        lengths = [height * width for height, width in grids]
        positions = {grid: self.embeddings(grid) for grid in set(grids)}
        dtype = self.patch_embed.proj.weight.dtype
        hidden = torch.cat(
            [
                self.patch_embed(torch.stack(alike).to(dtype)) + positions[grid].repeat(len(alike), 1)
                for grid, alike in _runs(grids, pictures)
            ]
        )
        for block in self.blocks:
            hidden = block(hidden, lengths)
        return [features.transpose(0, 1).unflatten(1, grid) for features, grid in zip(hidden.split(lengths), grids)]

    def _grid(self, picture: Tensor) -> GridSize:
        patch = self.config.patch_size
        channels, height, width = picture.shape
        if channels != self.config.in_channels or height < patch or width < patch or height % patch or width % patch:
            raise ValueError(
                f"the vision encoder takes ({self.config.in_channels}, {patch}*h, {patch}*w) pictures, "
                f"not {tuple(picture.shape)}"
            )
        return height // patch, width // patch
