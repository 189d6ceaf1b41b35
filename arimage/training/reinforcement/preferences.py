"""Learning from pairs that people chose between: DPO of the tokens, Diffusion-DPO of the decoder.

Each record has a ``rejected`` picture beside its own (columns ``chosen`` and ``rejected``). DPO (Rafailov et al. 2023,
arXiv:2305.18290) makes the chosen one likelier against the rejected one than the starting model has it. Of the decoder,
whose likelihoods are not known, the squared errors of both at the same noise stand for them (Wallace et al. 2023,
arXiv:2311.12908).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arimage.checkpoints.model_config import ModelConfig
from arimage.errors import DataError
from arimage.training.augmentation import DecoderBatch
from arimage.training.autoregressive import AutoregressiveObjective, packed
from arimage.training.config import TrainConfig
from arimage.training.decoder import DecoderObjective
from arimage.training.distillation import velocity_of
from arimage.training.examples import Example
from arimage.training.objective import Losses
from arimage.training.reinforcement.policy import preference_loss
from arimage.training.reinforcement.reference import StartingModel, with_fixed_glyphs
from arimage.training.reinforcement.tokens import code_log_probs
from decoder.transformer import DiffusionTransformer


def pairs(examples: Sequence[Example]) -> list[Example]:
    """The chosen pictures of a batch, then the rejected ones, with the same captions and seeds.

    Raises:
        DataError: a record has no rejected picture.
    """
    rejected = []
    for example in examples:
        record = example.pictured
        if record.rejected is None:
            raise DataError(
                f"{record.name or 'a scene'} has no rejected picture; DPO learns from pairs, with the columns chosen "
                "and rejected (docs/data.md)"
            )
        rejected.append(replace(example, record=replace(record, image=record.rejected)))
    return [*examples, *rejected]


def preferred(gain: Tensor, beta: float) -> Losses:
    """The loss of the gains (2B,) of chosen and rejected pictures over the starting model, in log-likelihood."""
    chosen, rejected = gain.chunk(2)
    margin = beta * (chosen - rejected)
    return {
        "loss": preference_loss(margin).mean(),
        "margin": margin.detach().mean(),
        "preferred": (margin.detach() > 0).float().mean(),
        "chosen": chosen.detach().mean(),
        "rejected": rejected.detach().mean(),
    }


class TokenPreferenceObjective(AutoregressiveObjective):
    """DPO over the summed log-probabilities of a picture's codes."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        assert self.settings.dpo is not None
        self.beta = self.settings.dpo.beta
        self.settings = self.settings.model_copy(update={"copy_task_prob": 0.0, "rename_prob": 0.0})
        self.starting = StartingModel(self.model, self.config, self.device)

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        return super().collate(pairs(examples))

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        row = packed(self.sequences(batch), self.device)
        codes = self.vocabulary.codebook_size
        now, owner = code_log_probs(self.model, row, codes)
        with torch.no_grad(), self.starting.of(self.model) as start:
            before, _ = code_log_probs(start, row, codes)
        gain = torch.zeros(len(row.lengths), device=self.device).index_add(0, owner, now - before)
        return preferred(gain, self.beta)


class FlowPreferenceObjective(DecoderObjective):
    """Diffusion-DPO, with the velocity's squared error in place of the noise's."""

    def __init__(self, dimensions: ModelConfig, config: TrainConfig, *networks: Any) -> None:
        super().__init__(dimensions, with_fixed_glyphs(config), *networks)
        assert self.settings.dpo is not None
        self.beta = self.settings.dpo.beta
        self.starting = StartingModel(self.transformer, self.config, self.device)

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        return super().collate(pairs(examples))

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        sample = self.encode(batch)
        noisy, noise, timestep = self.add_noise(sample)
        given = noisy, timestep, noise - sample.latents, self._glyphs(sample.glyph_texts)
        now = self._errors(self.transformer, sample, *given)
        with torch.no_grad(), self.starting.of(self.transformer) as start:
            before = self._errors(start, sample, *given)
        return preferred(before - now, self.beta)

    def _errors(
        self,
        network: DiffusionTransformer,
        sample: DecoderBatch,
        noisy: Tensor,
        timestep: Tensor,
        target: Tensor,
        glyphs: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Mean squared errors of the velocity: (2B,)."""
        silent = self._even_out(sample.references, noisy) if network is self.transformer else 0.0
        velocity = velocity_of(network, noisy, timestep, sample.codes, glyphs, sample.references) + silent
        return F.mse_loss(velocity.float(), target, reduction="none").mean(dim=(1, 2, 3))
