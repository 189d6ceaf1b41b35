"""Distillation of a decoder into one that needs a few steps and no guidance.

arimage train configs/nano/decoder-distilled.yaml
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from arimage.data.records import EncodedReference
from arimage.training.config import Distillation
from decoder.config import PIXELS_PER_LATENT
from decoder.glyph import GlyphEncoder
from decoder.sampler import ScheduleConfig, flow_schedule
from decoder.transformer import DiffusionTransformer


def velocity_of(
    transformer: DiffusionTransformer,
    noisy: Tensor,
    timestep: Tensor,
    codes: Tensor,
    glyphs: tuple[Tensor, Tensor],
    references: Sequence[Sequence[EncodedReference]],
    no_codes: Tensor | None = None,
    corners: Tensor | None = None,
    full_size: tuple[int, int] | None = None,
) -> Tensor:
    """The velocity of a batch of (B, C, h, w) noisy latents, with all that the transformer is told.

    Args:
        no_codes: (B,) bool, True where it is not told the codes.
        corners, full_size: where the latents are crops, their corners (B, 2) and the size of the picture, in latents.
    """
    count, _, *size = noisy.shape
    embeddings, mask = glyphs
    return transformer(
        noisy,
        timestep.to(noisy.device),
        prior_tokens=codes,
        glyphs=embeddings,
        glyph_mask=mask,
        target_size=torch.tensor([full_size or size], device=noisy.device).expand(count, -1) * PIXELS_PER_LATENT,
        crop=None if corners is None else corners * PIXELS_PER_LATENT,
        prior_dropped=no_codes,
        references=transformer.cache_references([[(one.latents, one.codes) for one in row] for row in references]),
    )


class Teacher:
    """A decoder as it was, that walks from one level of a short schedule to the next in finer steps.

    Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) in one go, with guidance taken over as in Meng et
    al. 2023 (arXiv:2210.03142): the student's velocity is the straight line to where the walk ends.
    """

    def __init__(
        self,
        transformer: DiffusionTransformer,
        glyph_encoder: GlyphEncoder,
        schedule: ScheduleConfig,
        settings: Distillation,
    ) -> None:
        self.transformer, self.glyph_encoder = transformer, glyph_encoder
        self.schedule, self.settings = schedule, settings

    @property
    def steps(self) -> int:
        """Of the student."""
        return self.settings.steps

    @torch.no_grad()
    def rollout(
        self,
        clean: Tensor,
        noise: Tensor,
        places: Tensor,
        codes: Tensor,
        texts: Sequence[Sequence[str]],
        references: Sequence[Sequence[EncodedReference]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Walk each sample from the level at its place (B,) in the short schedule to the following one.

        Returns:
            Latents at the start, the timestep there, and the mean velocity of the walk.
        """
        teacher_substeps = self.settings.teacher_substeps
        fine = flow_schedule(self.steps * teacher_substeps, clean.shape[-2] * clean.shape[-1] // 4, self.schedule)
        sigmas, timesteps = fine.sigmas.to(clean.device), fine.timesteps.to(clean.device)
        places = places.to(clean.device) * teacher_substeps
        glyphs = self.glyph_encoder.encode_padded(texts)
        nothing = self.glyph_encoder.encode_padded([[] for _ in texts])
        alone: list[list[EncodedReference]] = [[] for _ in references]
        unconditional = torch.ones(len(clean), dtype=torch.bool, device=clean.device)

        def level(step: Tensor) -> Tensor:
            return sigmas[step][:, None, None, None]

        start = (1 - level(places)) * clean + level(places) * noise
        latents = start
        for step in range(teacher_substeps):
            here = places + step
            velocity = velocity_of(self.transformer, latents, timesteps[here], codes, glyphs, references).float()
            if self.settings.guidance != 1:
                unguided = velocity_of(
                    self.transformer, latents, timesteps[here], codes, nothing, alone, unconditional
                ).float()
                velocity = unguided + self.settings.guidance * (velocity - unguided)
            latents = latents + (level(here + 1) - level(here)) * velocity
        return start, timesteps[places], (latents - start) / (level(places + teacher_substeps) - level(places))
