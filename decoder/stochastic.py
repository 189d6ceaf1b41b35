"""Sampling steps with noise: the SDE of Flow-GRPO (Liu et al. 2025, arXiv:2505.05470), in place of Euler's.

The SDE has the marginals of the flow's ODE at every noise level, so a decoder explores without being told to. With
``s^2 = noise_level^2 * sigma / (1 - sigma)`` a step from ``sigma`` to ``following`` draws from a Gaussian,

    mean       latents * (1 + s^2 / (2 sigma) * dt) + velocity * (1 + s^2 (1 - sigma) / (2 sigma)) * dt
    deviation  s * sqrt(-dt),  with dt = following - sigma

whose density is what a policy's gradient needs. Without noise the mean is Euler's step.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Transition(NamedTuple):
    """The Gaussian of a step: ``kept * latents + moved * velocity``, and its deviation."""

    kept: float
    moved: float
    deviation: float


def transition(sigma: float, following: float, highest: float, noise_level: float) -> Transition:
    """The coefficients of a step of the SDE.

    Args:
        sigma, following: noise levels before and after it, 1 >= sigma > following >= 0.
        highest: takes the place of a ``sigma`` of 1, where s would be infinite: the schedule's second level.
        noise_level: at least 0; 0 is Euler.
    """
    step = following - sigma
    variance = noise_level**2 * sigma / (1 - (highest if sigma == 1 else sigma))
    kept = 1 + variance / (2 * sigma) * step
    moved = (1 + variance * (1 - sigma) / (2 * sigma)) * step
    return Transition(kept, moved, math.sqrt(variance * -step))


@dataclass(frozen=True)
class StochasticWindow:
    """Steps of a schedule that are taken with noise, while all others are Euler's.

    Attributes:
        first: the first of them, 0-based.
        noise_level: see :func:`transition`.
        noises: (W, B, C, H, W) unit noise, of each step and picture.
    """

    first: int
    noise_level: float
    noises: Tensor

    def holds(self, step: int) -> bool:
        """Whether a step is one of them."""
        return self.first <= step < self.first + len(self.noises)

    def step(self, latents: Tensor, velocity: Tensor, step: int, sigmas: list[float]) -> Tensor:
        """The latents after a step of a schedule of noise levels ``sigmas``."""
        kept, moved, deviation = transition(sigmas[step], sigmas[step + 1], sigmas[1], self.noise_level)
        mean = kept * latents + moved * velocity
        return mean + deviation * self.noises[step - self.first].to(mean) if deviation else mean


def gaussian_log_prob(value: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Log-density of (B, ...) values under Gaussians, averaged over all but the first dimension, fp32: (B,).

    Args:
        deviation: broadcast to the values.
    """
    value, mean, deviation = value.float(), mean.float(), deviation.float()
    density = -((value - mean) ** 2) / (2 * deviation**2) - torch.log(deviation) - math.log(2 * math.pi) / 2
    return density.flatten(1).mean(dim=1)
