"""Visual tokens to latents: conditioning, guidance and sampling around the diffusion transformer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from decoder.config import PIXELS_PER_LATENT
from decoder.sampler import KnownRegion, Schedule, ScheduleConfig, StepState, flow_schedule, sample_flow
from decoder.solvers import Solver
from decoder.stochastic import StochasticWindow
from decoder.transformer import (
    DIT_TOKENS_PER_SIDE,
    Conditioning,
    DiffusionTransformer,
    Modulation,
)

LATENTS_PER_TOKEN = 4


@dataclass(frozen=True)
class Reference:
    """A reference picture as the decoder sees it: latents (C, H, W) and codes (H/4, W/4)."""

    latents: Tensor
    codes: Tensor


@dataclass(frozen=True)
class DecodeRequest:
    """One picture to render.

    Attributes:
        codes: (h, w) codes of the visual tokens.
        glyphs: (L, width) embeddings of the prompt's quoted texts.
        negative_glyphs: (L0, width) those of the unconditional branch, usually the empty text's.
        references: pictures that the conditional branch attends to.
        noise: (C, 4h, 4w) the picture's own unit noise.
        known: a region to keep.
        start_latents: (C, 4h, 4w) where to start from when strength is below 1.
    """

    codes: Tensor
    glyphs: Tensor
    negative_glyphs: Tensor
    references: tuple[Reference, ...]
    noise: Tensor
    known: KnownRegion | None = None
    start_latents: Tensor | None = None

    def __post_init__(self) -> None:
        latent_size = tuple(LATENTS_PER_TOKEN * side for side in self.codes.shape)
        if tuple(self.noise.shape[1:]) != latent_size:
            raise ValueError(f"noise for a {tuple(self.codes.shape)} grid has sides {latent_size}, "
                             f"not {tuple(self.noise.shape[1:])}")  # fmt: skip


@dataclass(frozen=True)
class DecoderSettings:
    """How latents are sampled.

    Attributes:
        steps: at least 1.
        guidance: classifier-free guidance scale, at least 1; 1 runs the conditional branch alone.
        guidance_interval: noise levels (low, high) in [0, 1] between which there is guidance
            (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        solver: see :func:`decoder.sampler.sample_flow`.
        schedule_power: above 0, see :func:`decoder.sampler.flow_schedule`.
        sigma_min: in [0, 1), likewise.
        dynamic_thresholding: percentile in (0, 1], or None.
        strength: in (0, 1]; below 1 sampling starts from ``start_latents``.
        batch_branches: run both branches of guidance in one batch; by default on a GPU only, where it pays.
    """

    steps: int = 50
    guidance: float = 1.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    solver: Solver = "euler"
    schedule_power: float = 1.0
    sigma_min: float = 0.0
    dynamic_thresholding: float | None = None
    strength: float = 1.0
    batch_branches: bool | None = field(default=None)

    def __post_init__(self) -> None:
        low, high = self.guidance_interval
        if self.steps < 1 or self.steps != int(self.steps):
            raise ValueError(f"steps must be a whole number of at least 1, got {self.steps}")
        if not 1 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be at least 1 and finite, got {self.guidance}")
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval must be (low, high) with 0 <= low <= high <= 1, got {(low, high)}")
        if self.solver not in get_args(Solver):
            raise ValueError(f"solver must be one of {', '.join(get_args(Solver))}, got {self.solver!r}")
        if not 0 < self.schedule_power < math.inf:
            raise ValueError(f"schedule_power must be above 0 and finite, got {self.schedule_power}")
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"sigma_min must lie in [0, 1), got {self.sigma_min}")
        if self.dynamic_thresholding is not None and not 0 < self.dynamic_thresholding <= 1:
            raise ValueError(f"dynamic_thresholding must lie in (0, 1], got {self.dynamic_thresholding}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {self.strength}")


class DiffusionDecoder:
    """Samples latents of pictures that share a size."""

    def __init__(self, transformer: DiffusionTransformer, schedule: ScheduleConfig) -> None:
        self.transformer = transformer
        self.schedule = schedule

    def schedule_of(self, settings: DecoderSettings, height: int, width: int) -> Schedule:
        """The noise levels of pictures of (height, width) codes."""
        return flow_schedule(
            settings.steps,
            height * width * DIT_TOKENS_PER_SIDE**2,
            self.schedule,
            settings.strength,
            settings.schedule_power,
            settings.sigma_min,
        )

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[DecodeRequest],
        settings: DecoderSettings,
        on_step: Callable[[StepState], None] | None = None,
        stochastic: StochasticWindow | None = None,
    ) -> list[Tensor]:
        """Normalised latents (C, 4h, 4w) of every request, fp32.

        Glyphs, references and noise may differ between requests; their grids must not. ``stochastic`` are steps that
        are taken with noise.

        Raises:
            ValueError: grids differ, or strength is below 1 and a request has nothing to start from.
        """
        if not requests:
            return []
        height, width = requests[0].codes.shape
        if any(request.codes.shape != (height, width) for request in requests):
            raise ValueError("the pictures of one call must have the same grid; sample others in another call")
        if settings.strength < 1 and any(request.start_latents is None for request in requests):
            raise ValueError("strength below 1 needs start_latents in every request")
        schedule = self.schedule_of(settings, height, width)
        velocity = _GuidedVelocity(self.transformer, requests, settings, schedule)
        device = self.transformer.device
        latents = sample_flow(
            velocity,
            torch.stack([request.noise for request in requests]).to(device),
            schedule,
            start=_stacked(requests, "start_latents", device) if settings.strength < 1 else None,
            known=_known(requests, device),
            solver=settings.solver,
            dynamic_thresholding=settings.dynamic_thresholding,
            stochastic=stochastic,
            on_step=on_step,
        )
        return list(latents)


class _GuidedVelocity:
    """The velocity under classifier-free guidance, with everything that does not change computed once."""

    def __init__(
        self,
        transformer: DiffusionTransformer,
        requests: Sequence[DecodeRequest],
        settings: DecoderSettings,
        schedule: Schedule,
    ) -> None:
        self.transformer, self.settings = transformer, settings
        self.sigmas = schedule.sigmas.tolist()
        device = transformer.device
        height, width = requests[0].codes.shape
        size = torch.tensor([[height, width]], device=device) * LATENTS_PER_TOKEN * PIXELS_PER_LATENT
        self.modulation: Modulation = transformer.modulate(
            schedule.timesteps.to(device), size.expand(schedule.steps, -1)
        )
        self.guided = [settings.guidance != 1 and self._in_interval(sigma) for sigma in self.sigmas[:-1]]
        batch_branches = settings.batch_branches
        if batch_branches is None:
            batch_branches = device.type != "cpu"
        self.both = self._condition(requests, (True, False)) if any(self.guided) and batch_branches else None
        self.conditional = None
        if self.both is None or not all(self.guided):
            self.conditional = self._condition(requests, (True,))
        self.unconditional = None
        if any(self.guided) and self.both is None:
            self.unconditional = self._condition(requests, (False,))

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        modulation = self.modulation.at(step)
        if not self.guided[step]:
            assert self.conditional is not None
            return self.transformer.denoise(latents, self.conditional, modulation)
        if self.both is not None:
            velocity = self.transformer.denoise(torch.cat([latents, latents]), self.both, modulation)
            conditional, unconditional = velocity.float().chunk(2)
        else:
            assert self.conditional is not None
            assert self.unconditional is not None
            conditional = self.transformer.denoise(latents, self.conditional, modulation).float()
            unconditional = self.transformer.denoise(latents, self.unconditional, modulation).float()
        return unconditional + self.settings.guidance * (conditional - unconditional)

    def _in_interval(self, sigma: float) -> bool:
        low, high = self.settings.guidance_interval
        return low <= sigma <= high

    def _condition(self, requests: Sequence[DecodeRequest], branches: tuple[bool, ...]) -> Conditioning:
        """Conditioning of the requests, once for each branch (True: conditional)."""
        rows = [(request, told) for told in branches for request in requests]
        device = self.transformer.device
        glyphs = [request.glyphs if told else request.negative_glyphs for request, told in rows]
        longest = max(len(glyph) for glyph in glyphs)
        padded = torch.stack([torch.nn.functional.pad(glyph, (0, 0, 0, longest - len(glyph))) for glyph in glyphs])
        lengths = torch.tensor([len(glyph) for glyph in glyphs])
        references = self.transformer.cache_references(
            [
                [(reference.latents, reference.codes) for reference in request.references] if told else []
                for request, told in rows
            ]
        )
        return self.transformer.condition(
            torch.stack([request.codes for request, _ in rows]).to(device),
            padded.to(device),
            (torch.arange(longest) < lengths[:, None]).to(device),
            torch.tensor([not told for _, told in rows], device=device),
            references,
        )


def _stacked(requests: Sequence[DecodeRequest], name: str, device: torch.device) -> Tensor:
    return torch.stack([getattr(request, name) for request in requests]).to(device)


def _known(requests: Sequence[DecodeRequest], device: torch.device) -> KnownRegion | None:
    if all(request.known is None for request in requests):
        return None
    latents, masks = [], []
    for request in requests:
        latents.append(torch.zeros_like(request.noise) if request.known is None else request.known.latents)
        empty = request.noise.new_zeros(request.noise.shape[1:])
        masks.append(empty if request.known is None else request.known.mask)
    return KnownRegion(torch.stack(latents).to(device), torch.stack(masks).to(device)[:, None])
