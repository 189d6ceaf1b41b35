"""The latent autoencoder: pixels to normalised latents and back (diffusers' ``AutoencoderKL``)."""

from typing import Any

import torch
from torch import Tensor, nn

from decoder.config import PIXELS_PER_LATENT

TILED_ABOVE_PIXELS = 1536 * 1536
TILE_PIXELS = 768


class Autoencoder(nn.Module):
    """Encodes to the posterior's mode, normalised per channel; decodes what the diffusion made.

    Pictures above ``tiled_above`` pixels go through in overlapping tiles of 768 px that are blended. Where half
    precision would overflow (fp16, or a checkpoint that says so) the network runs in fp32.

    Args:
        network: a diffusers ``AutoencoderKL`` whose config carries ``latents_mean`` and ``latents_std``.
        tiled_above: pixels (H * W) above which tiles are used.
    """

    def __init__(self, network: Any, tiled_above: int = TILED_ABOVE_PIXELS) -> None:
        super().__init__()
        config = network.config
        channels = config.latent_channels
        if network.dtype == torch.float16 or config.get("force_upcast", False):
            network = network.float()
        self.network = network
        self.tiled_above = tiled_above
        self._mean = config.latents_mean or [0.0] * channels
        self._std = config.latents_std or [1.0] * channels

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        return self.network.device

    # Convolutions run channels last: twice as fast on CPUs, and what GPUs want in half precision.

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, C, H/8, W/8), the mode of the posterior, normalised, fp32.

        Raises:
            ValueError: sides are not positive multiples of 8.
        """
        height, width = pixels.shape[-2:]
        if min(height, width) < PIXELS_PER_LATENT or height % PIXELS_PER_LATENT or width % PIXELS_PER_LATENT:
            raise ValueError(f"the autoencoder takes sides that are multiples of 8, not {height}x{width}")
        self._tile(height * width)
        values = pixels.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        latents = self.network.encode(values).latent_dist.mode().float().contiguous()
        return (latents - self._column(self._mean, latents)) / self._column(self._std, latents)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) normalised latents to (B, 3, 8h, 8w) clamped to [-1, 1], fp32."""
        height, width = latents.shape[-2:]
        self._tile(height * width * PIXELS_PER_LATENT**2)
        latents = latents.float() * self._column(self._std, latents) + self._column(self._mean, latents)
        values = latents.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        return self.network.decode(values).sample.float().clamp(-1, 1).contiguous()

    def _tile(self, pixels: int) -> None:
        if pixels <= self.tiled_above:
            self.network.disable_tiling()
            return
        self.network.tile_sample_min_size = TILE_PIXELS
        self.network.tile_latent_min_size = TILE_PIXELS // PIXELS_PER_LATENT
        self.network.enable_tiling()

    @staticmethod
    def _column(values: list[float], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device, dtype=torch.float32).view(1, -1, 1, 1)
