"""Flow matching from noise to a clean latent: the schedule and the sampler.

A latent at noise level sigma is ``(1 - sigma) * clean + sigma * noise``; the network predicts the velocity
``noise - clean`` (Lipman et al. 2022, arXiv:2210.02747). The schedule is shifted towards noise as the picture grows
(Esser et al. 2024, arXiv:2403.03206), in the linear form of the released checkpoint. Guidance is
part of the velocity: ``diffusion_decoder._GuidedVelocity``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from decoder.solvers import STEPS, Solver
from decoder.stochastic import StochasticWindow

THRESHOLD_FLOOR = 3.0


class ScheduleConfig(BaseModel):
    """The part of ``scheduler_config.json`` that decides the noise levels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_train_timesteps: int = Field(1000, ge=2)
    base_shift: float = 0.25
    max_shift: float = 0.75
    base_image_seq_len: int = Field(256, ge=1)

    @classmethod
    def from_scheduler(cls, config: Mapping[str, Any]) -> "ScheduleConfig":
        """Read a ``FlowMatchEulerDiscreteScheduler`` config.

        Raises:
            ValueError: it asks for a schedule of another kind (not dynamic, not linear, a terminal shift, ...).
        """
        wanted = {"use_dynamic_shifting": True, "time_shift_type": "linear"}
        for key, value in wanted.items():
            if config.get(key, value) != value:
                raise ValueError(f"scheduler: {key} = {config[key]!r} is not supported, only {value!r}")
        for key in (
            "invert_sigmas",
            "shift_terminal",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
        ):
            if config.get(key):
                raise ValueError(f"scheduler: {key} = {config[key]!r} is not supported")
        return cls(**{name: config[name] for name in cls.model_fields if name in config})

    def shift(self, sequence_length: int) -> float:
        """The shift mu of a picture of ``sequence_length`` DiT tokens (16x16 px each)."""
        return math.sqrt(sequence_length / self.base_image_seq_len) * self.max_shift + self.base_shift


@dataclass(frozen=True)
class Schedule:
    """Noise levels (S + 1,) from the first to 0, and the (S,) timesteps that the network is told, fp32."""

    sigmas: Tensor
    timesteps: Tensor

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def shift_sigma(sigma: Tensor, mu: float) -> Tensor:
    """Noise levels in (0, 1] moved towards 1 by the linear shift ``mu``: the sampler's, and training's."""
    return mu / (mu + (1 / sigma - 1))


def flow_schedule(
    steps: int,
    sequence_length: int,
    config: ScheduleConfig,
    strength: float = 1.0,
    power: float = 1.0,
    sigma_min: float = 0.0,
) -> Schedule:
    """The schedule of a picture of ``sequence_length`` DiT tokens.

    The Euler steps run over the shifted noise levels; the network is told the unshifted integer timestep minus one.
    No timestep comes twice and none lies below 0: where a power leaves less than one timestep to a step, steps take
    the nearest timesteps that are free.

    Args:
        strength: in (0, 1]; below 1 only the last part of the schedule is run, from a partly noised picture. Where that
            is less than a step, one step is taken, from that level of noise.
        power: above 0; below 1 steps are closer together at high noise, where the picture is decided, and wider apart
            at low noise. At 1 they are even, as upstream.
        sigma_min: in [0, 1); steps that would begin at less noise are left out, and the last one that is taken goes all
            the way to the clean picture. The first step is always taken.

    Raises:
        ValueError: steps, strength, power or sigma_min out of range.
    """
    if not 1 <= steps <= config.num_train_timesteps:
        raise ValueError(f"steps must lie in 1..{config.num_train_timesteps}, got {steps}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    if not power > 0:
        raise ValueError(f"power must be above 0, got {power}")
    if not 0 <= sigma_min < 1:
        raise ValueError(f"sigma_min must lie in [0, 1), got {sigma_min}")
    timesteps = np.linspace(config.num_train_timesteps, 1.0, steps + 1)[:-1][-max(1, round(steps * strength)) :]
    if steps * strength < 1:
        timesteps = np.array([max(1.0, config.num_train_timesteps * strength)])
    if power != 1:
        timesteps = timesteps[0] * (timesteps / timesteps[0]) ** power
    levels = torch.from_numpy(_distinct(timesteps.astype(np.int64)).astype(np.float32))
    sigmas = shift_sigma(levels / config.num_train_timesteps, config.shift(sequence_length))
    taken = max(1, int((sigmas >= sigma_min).sum()))
    sigmas, levels = sigmas[:taken], levels[:taken]
    return Schedule(torch.cat([sigmas, torch.zeros(1)]), levels - 1)


def _distinct(levels: np.ndarray) -> np.ndarray:
    """Falling whole levels, moved as little as needed for each to lie below the one before and none below 1.

    There must be room: no more levels than the first one counts. Levels that differ already are left alone.
    """
    position = np.arange(len(levels))
    falling = np.minimum.accumulate(levels + position) - position
    return np.maximum(falling, len(levels) - position)


@dataclass(frozen=True)
class KnownRegion:
    """What must be kept of a picture: its clean latents (C, H, W), and (H, W) with 1 where they are kept."""

    latents: Tensor
    mask: Tensor


@dataclass(frozen=True)
class StepState:
    """Where the sampler stands after a step.

    Attributes:
        step, steps: 0-based, and how many there are.
        sigma: the noise level that the step started from.
        latents: (B, C, H, W) after the step.
        clean: (B, C, H, W) the step's estimate of the clean latents.
    """

    step: int
    steps: int
    sigma: float
    latents: Tensor
    clean: Tensor


def threshold_dynamically(clean: Tensor, percentile: float) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487) of estimates in normalised latents.

    A picture's values are clipped at the given percentile of their magnitude and scaled back to three standard
    deviations when that percentile lies beyond; otherwise they are left alone.

    Args:
        clean: (B, C, H, W).
        percentile: in (0, 1].
    """
    limit = torch.quantile(clean.flatten(1).abs(), percentile, dim=1).clamp(min=THRESHOLD_FLOOR)[:, None, None, None]
    clipped = torch.maximum(torch.minimum(clean, limit), -limit)
    return torch.where(limit > THRESHOLD_FLOOR, clipped * (THRESHOLD_FLOOR / limit), clean)


def sample_flow(
    velocity: Callable[[Tensor, int], Tensor],
    noise: Tensor,
    schedule: Schedule,
    *,
    start: Tensor | None = None,
    known: KnownRegion | None = None,
    solver: Solver = "euler",
    dynamic_thresholding: float | None = None,
    stochastic: StochasticWindow | None = None,
    on_step: Callable[[StepState], None] | None = None,
) -> Tensor:
    """Integrate the flow from noise to clean latents, in fp32.

    Args:
        velocity: of (B, C, H, W) latents at a step's index.
        noise: (B, C, H, W) unit noise.
        schedule: the noise levels.
        start: clean latents to start from when the schedule does not begin at pure noise.
        known: a region that is held to its latents at every step, noised with the picture's own noise; at the end
            it is exactly what was given.
        solver: see :mod:`decoder.solvers`.
        dynamic_thresholding: percentile, see :func:`threshold_dynamically`.
        stochastic: steps that are taken with noise, for learning from rewards.
        on_step: called after each step; what it raises ends the sampling.

    Returns:
        (B, C, H, W).
    """
    sigmas = schedule.sigmas.tolist()
    latents = noise.float()
    if start is not None:
        latents = (1 - sigmas[0]) * start.float() + sigmas[0] * latents
    latents = _reimpose_known(latents, known, noise, sigmas[0])
    solver_step = STEPS[solver]
    last: Tensor | None = None
    for step in range(schedule.steps):
        sigma, following = sigmas[step], sigmas[step + 1]
        flow = velocity(latents, step).float()
        clean = latents - sigma * flow
        if dynamic_thresholding is not None:
            clean = threshold_dynamically(clean, dynamic_thresholding)
            flow = (latents - clean) / sigma
        if stochastic is not None and stochastic.holds(step):
            moved = stochastic.step(latents, flow, step, sigmas)
        else:
            ahead = solver_step(flow, last, (sigmas[step - 1], sigma, following))
            moved = latents + (following - sigma) * ahead
        latents, last = _reimpose_known(moved, known, noise, following), flow
        if on_step is not None:
            on_step(StepState(step, schedule.steps, sigma, latents, _reimpose_known(clean, known, noise, 0.0)))
    return latents


def _reimpose_known(latents: Tensor, known: KnownRegion | None, noise: Tensor, sigma: float) -> Tensor:
    if known is None:
        return latents
    kept = (1 - sigma) * known.latents.to(latents) + sigma * noise.to(latents) if sigma else known.latents.to(latents)
    return torch.where(known.mask.to(latents.device) > 0, kept, latents)
