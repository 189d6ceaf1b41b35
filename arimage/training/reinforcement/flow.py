"""Flow-GRPO of the decoder (Liu et al. 2025, arXiv:2505.05470): pictures that are rewarded come oftener from codes.

A rollout renders the same visual tokens from different noise. Two steps of each picture are taken with noise
(:mod:`decoder.stochastic`), at a place of the schedule that its group shares; they are what is learnt from, as their
densities under the present weights can be computed. All other steps are Euler's, and guidance is that of sampling.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from arimage.autoregressive.generation import TokenRequest, generate_grids
from arimage.autoregressive.layout import build_prompt, target_grid
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.model_config import ModelConfig
from arimage.data.records import EncodedReference
from arimage.errors import UsageError
from arimage.inference.alignment import aligned
from arimage.inference.engine import stream
from arimage.training.augmentation import DecoderBatch
from arimage.training.batches import RolloutPlace
from arimage.training.config import TrainConfig
from arimage.training.decoder import DecoderObjective
from arimage.training.distillation import velocity_of
from arimage.training.examples import Example
from arimage.training.objective import Losses, generator, noise_of
from arimage.training.reinforcement.policy import advantages, clipped_loss, gaussian_kl, ratio_figures
from arimage.training.reinforcement.reference import StartingModel, with_fixed_glyphs
from arimage.training.reinforcement.rollout import Asked, RewardedObjective, Rewarder, asked, whole_weights
from decoder.diffusion_decoder import DecodeRequest, DiffusionDecoder, Reference
from decoder.sampler import Schedule, StepState
from decoder.stochastic import StochasticWindow, gaussian_log_prob, transition
from decoder.transformer import DiffusionTransformer
from tokenizer.pixels import picture as as_picture

START, STEPS, PLACE = range(100, 103)


@dataclass(frozen=True, eq=False)
class NoisyStep:
    """One noisy step of one picture.

    Attributes:
        step: of the schedule.
        before, after: (C, h, w) latents.
        sample: which of the batch's prompts.
        picture: which of all pictures.
    """

    step: int
    before: Tensor
    after: Tensor
    sample: int
    picture: int


@dataclass
class FlowRollout:
    """Pictures of a batch of prompts, as their noisy steps, with what they are worth.

    Attributes:
        noisy_steps: all noisy steps, step after step of one picture after the other.
        batch: what the decoder was told about each prompt.
        schedule: of the steps.
        advantages, kept: by picture, see :class:`~arimage.training.reinforcement.policy.Advantages`.
        figures: rewards, for the log.
        old, start: by part, log-densities when the pictures were made, and means of the starting model.
    """

    noisy_steps: list[NoisyStep]
    batch: DecoderBatch
    schedule: Schedule
    advantages: Tensor
    kept: Tensor
    figures: dict[str, Tensor]
    old: dict[int, Tensor] = field(default_factory=dict)
    start: dict[int, Tensor] = field(default_factory=dict)


class FlowPolicyObjective(RewardedObjective, DecoderObjective):
    """The clipped objective over noisy steps, with the divergence from the starting model.

    Raises:
        UsageError: the options of the rollouts are none that a step's density can be computed under.
    """

    def __init__(self, dimensions: ModelConfig, config: TrainConfig, *networks: Any, checkpoint: Checkpoint) -> None:
        super().__init__(dimensions, with_fixed_glyphs(config), *networks)
        assert self.settings.flow_grpo is not None
        assert self.config.rewarded is not None
        self.policy, self.rewarded = self.settings.flow_grpo, self.config.rewarded
        self.rewarder = Rewarder(self.config, checkpoint, self.device, self.live_networks())
        self.sampling = replace(self.rewarder.settings.decoder, solver="euler")
        if self.sampling.dynamic_thresholding is not None or self.sampling.strength < 1:
            raise UsageError("decoder.flow_grpo takes no dynamic_thresholding or strength in reinforcement.options")
        self.first_steps = range(int(self.sampling.steps * self.policy.window_until) - self.policy.window + 1)
        if not self.first_steps:
            raise UsageError(
                f"decoder.flow_grpo: a window of {self.policy.window} steps does not fit into "
                f"{self.policy.window_until:g} of {self.sampling.steps} steps; give reinforcement.options more steps"
            )
        self.starting = None
        if self.policy.kl:
            self.starting = StartingModel(self.transformer, self.config, self.device)
        self.measured_before_learning = self.loss_may_leap = True

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        return {**super().collate(examples), "asked": asked(examples, self.limits)}

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        if not self.training:
            with whole_weights(self), torch.no_grad():
                return self.rewarder.judged(batch["asked"], list(self._told(batch).codes))
        place: RolloutPlace = batch["place"]
        rollout = self.rollout(place, batch)
        chosen = range(place.part, len(rollout.noisy_steps), place.parts)
        noisy_steps = [rollout.noisy_steps[index] for index in chosen]
        steps = [transition(*self._levels(rollout, taken.step), self.policy.noise_level) for taken in noisy_steps]
        kept, moved, deviation = (
            torch.tensor(values, dtype=torch.float32, device=self.device)[:, None, None, None] for values in zip(*steps)
        )
        before = torch.stack([taken.before for taken in noisy_steps])
        after = torch.stack([taken.after for taken in noisy_steps])
        mean = kept * before + moved * self._velocity(self.transformer, rollout, noisy_steps)
        now = gaussian_log_prob(after, mean, deviation)
        old = rollout.old.setdefault(place.part, now.detach())
        pictures = torch.tensor([taken.picture for taken in noisy_steps])
        advantage = rollout.advantages[pictures].to(self.device)
        counted = rollout.kept[pictures].to(self.device, torch.float32)
        losses = clipped_loss(now - old, advantage, self.policy.clip)
        figures: dict[str, Tensor] = dict(rollout.figures)
        if self.starting is not None:
            if place.part not in rollout.start:
                with torch.no_grad(), self.starting.of(self.transformer) as network:
                    rollout.start[place.part] = kept * before + moved * self._velocity(network, rollout, noisy_steps)
            divergence = gaussian_kl(mean, rollout.start[place.part], deviation)
            losses = losses + self.policy.kl * divergence
            figures["kl"] = divergence.detach().mean()
        figures |= ratio_figures(now - old, self.policy.clip)
        return {"loss": (losses * counted).mean(), **figures}

    @staticmethod
    def _levels(rollout: FlowRollout, step: int) -> tuple[float, float, float]:
        sigmas = rollout.schedule.sigmas.tolist()
        return sigmas[step], sigmas[step + 1], sigmas[1]

    def _velocity(
        self, network: DiffusionTransformer, rollout: FlowRollout, noisy_steps: Sequence[NoisyStep]
    ) -> Tensor:
        """The guided velocity at the beginning of each noisy step, fp32."""
        batch, device = rollout.batch, self.device
        latents = torch.stack([taken.before for taken in noisy_steps])
        timesteps = torch.stack([rollout.schedule.timesteps[taken.step] for taken in noisy_steps]).to(device)
        codes = torch.stack([batch.codes[taken.sample] for taken in noisy_steps])
        texts = [batch.glyph_texts[taken.sample] for taken in noisy_steps]
        references = [batch.references[taken.sample] for taken in noisy_steps]
        silent = self._even_out(references, latents) if network is self.transformer else 0.0
        velocity = velocity_of(network, latents, timesteps, codes, self._glyphs(texts), references).float() + silent
        if self.sampling.guidance == 1:
            return velocity
        alone: list[list[EncodedReference]] = [[] for _ in noisy_steps]
        nothing = self._glyphs([self._negative() for _ in noisy_steps])
        untold = torch.ones(len(noisy_steps), dtype=torch.bool, device=device)
        unguided = velocity_of(network, latents, timesteps, codes, nothing, alone, untold).float()
        low, high = self.sampling.guidance_interval
        scale = torch.tensor(
            [
                self.sampling.guidance if low <= self._levels(rollout, taken.step)[0] <= high else 1.0
                for taken in noisy_steps
            ],
            device=device,
        )[:, None, None, None]
        return unguided + scale * (velocity - unguided)

    def _negative(self) -> list[str]:
        text = self.rewarder.settings.negative_text
        return [text] if text else []

    # Rollouts

    def rollout(self, place: RolloutPlace, batch: Mapping[str, Any]) -> FlowRollout:
        """The rollout of a batch, made when its first micro-batch comes."""
        return self.kept(place, lambda: self.make(self._told(batch), batch["asked"]))

    def _told(self, batch: Mapping[str, Any]) -> DecoderBatch:
        """What the decoder is told about each prompt; its codes are the true picture's, or generated, and references
        stand as users' do."""
        told = self.encode(batch)
        if self.policy.codes == "generated":
            made = [self._generated(*one) for one in zip(batch["asked"], told.references)]
            told = replace(told, codes=torch.stack(made).to(told.codes))
        if not self.rewarder.settings_with_references.align_references:
            return told
        standing = [
            [aligned(Reference(one.latents, one.codes), codes) for one in shown]
            for shown, codes in zip(told.references, told.codes)
        ]
        return replace(told, references=[[EncodedReference(one.codes, one.latents) for one in row] for row in standing])

    def _generated(self, one: Asked, references: Sequence[EncodedReference]) -> Tensor:
        """The visual tokens (h, w) that the autoregressive model draws for a prompt."""
        shown = [reference.codes.cpu() for reference in references]
        vocabulary, rewarder = self.rewarder.engine.vocabulary, self.rewarder
        settings = rewarder.settings_with_references if shown else rewarder.settings
        size, preview = target_grid(*one.request.size), settings.preview_grid and not shown
        prompts = [build_prompt(vocabulary, text, size, shown, preview=preview) for text in (one.request.prompt, "")]
        request = TokenRequest(prompts[0], stream(one.seed, "tokens"), None, prompts[1])
        with rewarder.networks.use("autoregressive") as model, torch.autocast(self.device.type, enabled=False):
            return generate_grids(model, [request], settings.tokens, self.num_codes)[0][-1]

    def make(self, batch: DecoderBatch, prompts: Sequence[Asked]) -> FlowRollout:
        """Render and judge a group of pictures for each prompt."""
        group, names, sampling = self.rewarded.group, self.rewarder.learnt, self.sampling
        since = time.perf_counter()
        height, width = batch.codes.shape[1:]
        decoder = DiffusionDecoder(self.transformer, self.schedule)
        schedule = decoder.schedule_of(sampling, height, width)
        if self.first_steps[-1] + self.policy.window > schedule.steps:
            raise UsageError(
                f"decoder.flow_grpo: sigma_min={sampling.sigma_min:g} leaves {schedule.steps} of {sampling.steps} "
                "steps, in which the window does not lie everywhere; give a smaller window_until or sigma_min"
            )
        glyphs, mask = self._glyphs(batch.glyph_texts)
        negative, shown = self._glyphs([self._negative()])
        noisy_steps: list[NoisyStep] = []
        groups = []
        for place, one in enumerate(prompts):
            references = tuple(Reference(other.latents, other.codes) for other in batch.references[place])
            told = batch.codes[place], glyphs[place][mask[place]], negative[0][shown[0]], references
            noises, window = self._noise(batch.seeds[place], one, batch.latents.shape[1:])
            requests = [DecodeRequest(*told, noise) for noise in noises.to(self.device)]
            passed: list[Tensor] = []

            def on_step(state: StepState, first: int = window.first, passed: list[Tensor] = passed) -> None:
                if first - 1 <= state.step < first + self.policy.window:
                    passed.append(state.latents)

            latents = decoder.sample(requests, sampling, on_step, window)
            if window.first == 0:
                passed.insert(0, noises.to(self.device))
            for number in range(group):
                picture = place * group + number
                for step in range(self.policy.window):
                    before, after = passed[step][number], passed[step + 1][number]
                    noisy_steps.append(NoisyStep(window.first + step, before, after, place, picture))
            autoencoder = self.helpers["autoencoder"]
            pictures = [as_picture(autoencoder.decode(latent[None])[0]) for latent in latents]
            groups.append(self.rewarder.ask(names, [batch.codes[place].cpu()] * group, pictures, one.truth))
        rewards, figures = self.rewarder.collect(names, groups)
        values, kept = advantages(rewards, group, self.rewarded.scale_rewards)
        figures |= {"groups": kept.double().mean(), "rollout_seconds": torch.tensor(time.perf_counter() - since)}
        return FlowRollout(noisy_steps, batch, schedule, values, kept, figures)

    def _noise(self, seed: int, one: Asked, shape: Sequence[int]) -> tuple[Tensor, StochasticWindow]:
        """What the pictures of a prompt begin from, (G, C, h, w), and their noisy steps."""
        numbers = range(self.rewarded.group)
        seeds = [one.picture_seed(number) for number in numbers]
        first = int(torch.randint(len(self.first_steps), (1,), generator=generator(seed, PLACE)))
        begin = noise_of([seed] * len(seeds) if self.policy.shared_noise else seeds, shape, START)
        noises = noise_of(seeds, (self.policy.window, *shape), STEPS).transpose(0, 1)
        return begin, StochasticWindow(first, self.policy.noise_level, noises.to(self.device))
