"""An autoencoder that begins as the principal components of patches."""

import pytest
import torch

from arimage.checkpoints.initialization import initial_networks
from arimage.training.pca import initialize_from_pca
from tests.tiny_checkpoint import CONFIG

WIDE = CONFIG.model_copy(
    update={"autoencoder": CONFIG.autoencoder.model_copy(update={"block_out_channels": (8, 8, 16, 32)})}
)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures, (count, 3, 32, 32) in [-1, 1]."""
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear").tanh()


def patches(values: torch.Tensor) -> torch.Tensor:
    return values.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


@torch.no_grad()
def test_latents_begin_as_the_principal_components_of_their_patches() -> None:
    network = initial_networks(WIDE, 0)["vae"]
    decibels = initialize_from_pca(network, patches(pictures(64)), 0)
    held_out = pictures(16, seed=1)
    latents = network.encode(held_out).latent_dist.mode().permute(0, 2, 3, 1).flatten(0, 2)
    flat = patches(held_out).flatten(1)
    rows = torch.cat([latents, torch.ones(len(latents), 1)], dim=1)
    made = rows @ torch.linalg.lstsq(rows, flat).solution
    error = float((made - flat).square().mean())
    best = torch.pca_lowrank(flat, q=latents.shape[1], niter=6)[2]
    centred = flat - flat.mean(dim=0)
    least = float((centred - centred @ best @ best.T).square().mean())
    assert error < 1.15 * least
    assert decibels == pytest.approx(10 * torch.log10(torch.tensor(4 / least)).item(), abs=0.7)


@torch.no_grad()
def test_latents_begin_linear() -> None:
    network = initial_networks(WIDE, 0)["vae"]
    initialize_from_pca(network, patches(pictures(64)), 0)
    one, other = pictures(2, seed=3).split(1)
    ends = [network.encode(values).latent_dist.mode() for values in (one, other, (one + other) / 2)]
    off = (ends[2] - (ends[0] + ends[1]) / 2).square().mean().sqrt()
    assert off < 0.03 * ends[2].std()


def test_a_network_without_room_is_refused() -> None:
    network = initial_networks(WIDE, 0)["vae"]
    network.encoder.conv_norm_out = torch.nn.GroupNorm(16, 32)
    with pytest.raises(ValueError, match="no room"):
        initialize_from_pca(network, patches(pictures(4)), 0)
    with pytest.raises(ValueError, match="wider"):
        initialize_from_pca(initial_networks(CONFIG, 0)["vae"], patches(pictures(4)), 0)
