"""GRPO of the autoregressive model (Shao et al. 2024, arXiv:2402.03300): visual tokens that are rewarded come oftener.

A rollout draws groups of pictures for each prompt, at temperature 1 from all codes, the decoder's noise being the same
within a group. What counts is how much better a picture is than its group. Several updates learn from a rollout, from
teacher-forced log-probabilities of its codes.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from arimage.autoregressive.generation import TOKEN_BATCH, TokenRequest, generate_grids
from arimage.autoregressive.layout import (
    IGNORED_LABEL,
    Prompt,
    Region,
    TrainingSequence,
    build_prompt,
    target_grid,
    training_sequence,
)
from arimage.autoregressive.model import AutoregressiveModel
from arimage.autoregressive.sampling import TokenSampling
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.inference.engine import stream
from arimage.inference.requests import ImageRequest
from arimage.training.autoregressive import AutoregressiveObjective, Packed, packed
from arimage.training.batches import RolloutPlace
from arimage.training.codes import encode_views
from arimage.training.examples import Example
from arimage.training.objective import Losses
from arimage.training.reinforcement.policy import advantages, clipped_loss, k3, ratio_figures
from arimage.training.reinforcement.reference import StartingModel
from arimage.training.reinforcement.rollout import Asked, RewardedObjective, Rewarder, asked, whole_weights
from tokenizer.semantic_tokenizer import half_size_pixels

EXPLORING = TokenSampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, guidance=1.0)


@dataclass
class TokenRollout:
    """Pictures of a batch of prompts, as their sequences, with what they are worth.

    Attributes:
        sequences: N of them, the pictures of a group beside each other.
        advantages, kept: (N,), see :class:`~arimage.training.reinforcement.policy.Advantages`.
        figures: rewards, for the log.
        old, start: by part, log-probabilities of its codes when the pictures were made, and of the starting model.
    """

    sequences: list[TrainingSequence]
    advantages: Tensor
    kept: Tensor
    figures: dict[str, Tensor]
    old: dict[int, Tensor] = field(default_factory=dict)
    start: dict[int, Tensor] = field(default_factory=dict)


def code_log_probs(model: AutoregressiveModel, row: Packed, codes: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the codes of packed sequences among all ``codes``, teacher-forced: (T,), fp32, and (T,) the
    sequence of each. Image ends do not count: they are not drawn."""
    hidden = model(row.tokens, row.positions, row.lengths)[0]
    drawn = (row.labels != IGNORED_LABEL) & (row.regions != Region.END)
    scores = model.scores(hidden[drawn], codes).float()
    return -F.cross_entropy(scores, row.labels[drawn], reduction="none"), row.owner[drawn]


def distinct(grids: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Grids that differ, in order of appearance, and of each given grid which of them it is."""
    different: list[Tensor] = []
    places = []
    for grid in grids:
        place = next((place for place, one in enumerate(different) if torch.equal(one, grid)), len(different))
        if place == len(different):
            different.append(grid)
        places.append(place)
    return different, places


class TokenPolicyObjective(RewardedObjective, AutoregressiveObjective):
    """The clipped objective of GRPO, with the divergence from the starting model."""

    def __init__(self, *given: Any, checkpoint: Checkpoint) -> None:
        super().__init__(*given)
        assert self.settings.grpo is not None
        assert self.config.rewarded is not None
        self.policy, self.rewarded = self.settings.grpo, self.config.rewarded
        self.rewarder = Rewarder(self.config, checkpoint, self.device, self.live_networks())
        self.starting = None
        if self.policy.kl:
            self.starting = StartingModel(self.model, self.config, self.device)
        self.measured_before_learning = self.loss_may_leap = True

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        return {"asked": asked(examples, self.limits)}

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        if not self.training:
            with whole_weights(self), torch.no_grad():
                return self.rewarder.judged(batch["asked"])
        place: RolloutPlace = batch["place"]
        rollout = self.rollout(place, batch["asked"])
        chosen = range(place.part, len(rollout.sequences), place.parts)
        row = packed([rollout.sequences[index] for index in chosen], self.device)
        now, owner = code_log_probs(self.model, row, self.vocabulary.codebook_size)
        old = rollout.old.setdefault(place.part, now.detach())
        advantage = rollout.advantages[chosen.start :: chosen.step].to(self.device)
        counted = rollout.kept[chosen.start :: chosen.step].to(self.device, torch.float32)
        losses = clipped_loss(now - old, advantage[owner], self.policy.clip)
        figures: dict[str, Tensor] = dict(rollout.figures)
        if self.starting is not None:
            start = self._start(rollout, place.part, row)
            divergence = k3(now, start)
            losses = losses + self.policy.kl * divergence
            figures["kl"] = divergence.detach().mean()
        by_sample = torch.zeros(len(chosen), device=self.device).index_add(0, owner, losses)
        counts = torch.bincount(owner, minlength=len(chosen))
        figures |= ratio_figures(now - old, self.policy.clip)
        return {"loss": (by_sample / counts * counted).mean(), **figures}

    @torch.no_grad()
    def _start(self, rollout: TokenRollout, part: int, row: Packed) -> Tensor:
        """Log-probabilities of the starting model, once a rollout."""
        if part not in rollout.start:
            assert self.starting is not None
            with self.starting.of(self.model) as model:
                rollout.start[part] = code_log_probs(model, row, self.vocabulary.codebook_size)[0]
        return rollout.start[part]

    def rollout(self, place: RolloutPlace, prompts: Sequence[Asked]) -> TokenRollout:
        """The rollout of a batch, made when its first micro-batch comes."""
        return self.kept(place, lambda: self.make(prompts))

    def make(self, prompts: Sequence[Asked]) -> TokenRollout:
        """Draw, render and judge a group of pictures for each prompt; those with the same codes once."""
        group, names = self.rewarded.group, self.rewarder.learnt
        since = time.perf_counter()
        drawn = [
            TokenRequest(prompt, stream(one.picture_seed(number), "tokens"))
            for one, prompt in zip(prompts, map(self._prompt, prompts))
            for number in range(group)
        ]
        grids: list[list[Tensor]] = []
        for first in range(0, len(drawn), TOKEN_BATCH):
            at_once = drawn[first : first + TOKEN_BATCH]
            grids += generate_grids(self.model, at_once, EXPLORING, self.vocabulary.codebook_size)
        sequences = [training_sequence(one.prompt, own, self.vocabulary) for one, own in zip(drawn, grids)]
        groups = []
        for place, one in enumerate(prompts):
            codes, places = distinct([own[-1] for own in grids[place * group : (place + 1) * group]])
            pictures: list[Image.Image] = []
            if self.rewarder.sees_pictures(names):
                asked_for = one.request
                requests = [
                    ImageRequest(asked_for.prompt, asked_for.size, one.seed, asked_for.references, codes=own)
                    for own in codes
                ]
                pictures = [made.image for made in self.rewarder.make(requests)]
            groups.append(self.rewarder.ask(names, codes, pictures, one.truth, places))
        rewards, figures = self.rewarder.collect(names, groups)
        values, kept = advantages(rewards, group, self.rewarded.scale_rewards)
        figures |= {"groups": kept.double().mean(), "rollout_seconds": torch.tensor(time.perf_counter() - since)}
        return TokenRollout(sequences, values, kept, figures)

    def _prompt(self, one: Asked) -> Prompt:
        views = [half_size_pixels(picture) for picture in one.request.references]
        references = [codes.cpu() for codes in encode_views(self.helpers["tokenizer"], views, self.device)]
        preview = self.rewarder.settings.preview_grid and not references
        size = target_grid(*one.request.size)
        return build_prompt(self.vocabulary, one.request.prompt, size, references, preview=preview)
