"""PCA initialisation of the autoencoder: its encoder starts as the 16 principal components of 8x8 patches.

They keep more of small drawings than many hours of training from random kernels, and training goes on from there. Each
strided convolution is set to the principal components of 2x2 blocks of the level above; residual branches start at
zero. A large constant channel in a group makes group norm nearly a fixed scale, and silu(x) - silu(-x) = x cancels the
activation, so the last convolution reads each component exactly, as the difference of two channels.
"""

from typing import Any

import torch
from torch import Tensor

from arimage.training.axes import principal_axes

CONSTANT = 20.0
POWER = 0.75
PATCHES = 30_000


@torch.no_grad()
def initialize_from_pca(network: Any, patches: Tensor, seed: int = 0) -> float:
    """Set the encoder of an ``AutoencoderKL`` (f8, residual branches at zero) to the components of patches.

    Args:
        patches: (N, 3, 8, 8) in [-1, 1], where something is shown.

    Returns:
        The PSNR in dB of the patches from as many components as there are latent channels.

    Raises:
        ValueError: the network has no room for two channels a component beside the constants, or its last level is not
            wider than the one before.
    """
    encoder, latents = network.encoder, network.config.latent_channels
    generator = torch.Generator().manual_seed(seed)
    patches = patches[torch.randperm(len(patches), generator=generator)[:PATCHES]]
    groups, channels = encoder.conv_norm_out.num_groups, encoder.conv_norm_out.num_channels
    pairs = (channels // groups - 1) // 2
    if pairs * groups < latents:
        raise ValueError(f"{channels} channels in {groups} groups have no room for {latents} components")
    if encoder.down_blocks[3].resnets[0].conv_shortcut is None:
        raise ValueError("the last level of the autoencoder must be wider than the one before")
    encoder.conv_in.weight[:3] = 0
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1
    kept, count = patches, 3
    for level in range(3):
        convolution = encoder.down_blocks[level].downsamplers[0].conv
        matrix, kept = _components(kept, len(convolution.weight))
        convolution.weight[: len(matrix)] = 0
        convolution.weight[: len(matrix), :count, :2, :2] = matrix.view(len(matrix), count, 2, 2)
        count = len(matrix)
        shortcut = encoder.down_blocks[level + 1].resnets[0].conv_shortcut
        if level < 2 and shortcut is not None:
            shortcut.weight[:count] = 0
            shortcut.weight[range(count), range(count)] = 1
    points = kept[:, :, 0, 0]
    mean = points.mean(dim=0)
    values, axes = principal_axes((points - mean).T @ (points - mean) / len(points))
    values, vectors = values[:latents].float(), axes[:latents].T.float()
    _read_out(encoder, (vectors * values.sqrt() ** -POWER).T, mean)
    left = (points - mean).square().sum(dim=1) - ((points - mean) @ vectors).square().sum(dim=1)
    lost = patches.square().flatten(1).sum(dim=1) - points.square().sum(dim=1)
    error = float((left + lost).mean() / patches[0].numel())
    return float(10 * torch.log10(torch.tensor(4 / max(error, 1e-9))))


def _components(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The main components of 2x2 neighbours, (kept, 4 * C), and the values in them, (N, kept, h, w)."""
    parts = values.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
    if parts.shape[1] <= most:
        return torch.eye(parts.shape[1]), parts
    rows = parts.transpose(0, 1).flatten(1)
    matrix = principal_axes(rows @ rows.T / rows.shape[1])[1][:most].float()
    return matrix, torch.einsum("kc,nchw->nkhw", matrix, parts)


def _read_out(encoder: Any, matrix: Tensor, mean: Tensor) -> None:
    """The last level's shortcut, norm and convolution: each row of ``matrix`` as the difference of two channels."""
    norm, shortcut, last = encoder.conv_norm_out, encoder.down_blocks[3].resnets[0].conv_shortcut, encoder.conv_out
    width = norm.num_channels // norm.num_groups
    pairs = (width - 1) // 2
    latents, inputs = matrix.shape
    offset = -(matrix @ mean)
    middle = CONSTANT / width
    scale = (CONSTANT**2 / width - middle**2 + 1) ** 0.5
    last.weight[:latents] = 0
    last.bias[:latents] = 0
    for number in range(latents):
        first = number // pairs * width
        shortcut.weight[first], shortcut.bias[first] = 0, CONSTANT
        for sign, channel in ((1, first + 1 + 2 * (number % pairs)), (-1, first + 2 + 2 * (number % pairs))):
            shortcut.weight[channel] = 0
            shortcut.weight[channel, :inputs, 0, 0] = sign * matrix[number]
            shortcut.bias[channel] = sign * offset[number]
            norm.weight[channel], norm.bias[channel] = scale, middle
            last.weight[number, channel, 1, 1] = sign
