"""Training of the diffusion decoder: flow matching under visual tokens, glyphs and references.

Noise levels are drawn logit-normal (Esser et al. 2024, arXiv:2403.03206) and shifted with the picture's size by the
sampler's own rule; the network is told the same unshifted timestep that the sampler will tell it. References run
through the same network at t = 0, with gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from arimage.checkpoints.components import Component
from arimage.checkpoints.model_config import ModelConfig
from arimage.data.records import EncodedRecord, EncodedReference, Record
from arimage.training.augmentation import LEVEL, NOISE, DecoderBatch, augmented, repeated
from arimage.training.codes import code_vectors, encode_views, reference_view
from arimage.training.config import DecoderTraining, TrainConfig
from arimage.training.distillation import Teacher, velocity_of
from arimage.training.examples import Example
from arimage.training.kept_codes import kept_cells, with_kept_codes
from arimage.training.objective import Losses, Objective, noise_of, under, uniform_of
from arimage.training.samples import pictures_from_codes
from decoder.autoencoder import Autoencoder
from decoder.glyph import GlyphEncoder, quoted_texts
from decoder.sampler import ScheduleConfig, shift_sigma
from decoder.transformer import AdaptiveNorm, Block, DiffusionTransformer
from tokenizer.pixels import from_bytes, pixel_bytes
from tokenizer.semantic_tokenizer import SemanticTokenizer, half_size

SHOWN = 8


def as_seen(pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """Pictures of one size as the autoencoder sees them, (B, 3, H, W), and as the tokenizer does, (B, 3, H/2, W/2);
    uint8, a quarter of what must otherwise go from the workers to the device."""
    return tuple(  # type: ignore[return-value]
        torch.stack([pixel_bytes(image) for image in shown])
        for shown in (pictures, [half_size(picture) for picture in pictures])
    )


def training_levels(
    normal: Tensor, sequence_length: int, schedule: ScheduleConfig, settings: DecoderTraining
) -> tuple[Tensor, Tensor]:
    """Noise levels of samples from unit normal numbers.

    Args:
        normal: (B,).
        sequence_length: DiT tokens of the picture.

    Returns:
        Shifted noise levels sigma in (0, 1], and the timesteps that the network is told, both (B,).
    """
    steps = schedule.num_train_timesteps
    levels = (_unshifted(normal, settings) * steps).ceil().clamp(1, steps)
    return shift_sigma(levels / steps, schedule.shift(sequence_length)), levels - 1


def _unshifted(normal: Tensor, settings: DecoderTraining) -> Tensor:
    """Noise levels in (0, 1), logit-normal or even, before the shift."""
    share = settings.noise_uniform
    if share:  # of the quantiles the lowest are spread evenly, the others are normal again
        quantile = torch.special.ndtr(normal)
        rest = (quantile - share) / max(1 - share, 1e-6)
        normal = torch.special.ndtri(rest.clamp(1e-6, 1 - 1e-6))
    drawn = torch.sigmoid(settings.noise_mean + settings.noise_deviation * normal)
    return torch.where(quantile < share, quantile / share, drawn) if share else drawn


class DecoderObjective(Objective):
    """Mean squared error of the velocity ``noise - clean``, or of a teacher's mean velocity over a longer step."""

    def __init__(
        self,
        dimensions: ModelConfig,
        config: TrainConfig,
        device: torch.device,
        transformer: DiffusionTransformer,
        glyph_encoder: GlyphEncoder,
        tokenizer: SemanticTokenizer,
        autoencoder: Autoencoder,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(dimensions, config, device)
        self.settings = config.decoder
        self.transformer = transformer
        if self.settings.train_glyph_encoder:
            self.glyph_encoder = glyph_encoder
        else:
            self.helpers["glyph_encoder"] = glyph_encoder.to(device)
        self.helpers["tokenizer"], self.helpers["autoencoder"] = tokenizer, autoencoder
        self.limits = dimensions.processor.limits
        self.schedule = dimensions.scheduler
        self.teacher = teacher
        self.num_codes = dimensions.quantizer.num_embeddings
        self._kept: dict[int, DecoderBatch] = {}

    def sharded_modules(self) -> list[nn.Module]:
        return [module for module in self.transformer.modules() if isinstance(module, (Block, AdaptiveNorm))]

    def checkpointed_networks(self) -> list[Any]:
        return [self.transformer]

    def compiled_modules(self) -> list[nn.Module]:
        return [module for module in self.transformer.modules() if isinstance(module, Block)]

    def train(self, mode: bool = True) -> "DecoderObjective":
        """The glyph encoder's dropout stays off: what it is asked at inference it is asked here."""
        super().train(mode)
        if self.settings.train_glyph_encoder:
            self.glyph_encoder.eval()
        return self

    @torch.no_grad()
    def prepare(self, batches: Any) -> None:
        """Give visual tokens embeddings that are as alike as their codes."""
        if not self.settings.codes_from_codebook:
            return
        table = self.transformer.prior_token_embedding.weight
        table.copy_(code_vectors(self.helpers["tokenizer"], table.shape[1], self.config.seed))

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        glyph_texts = [quoted_texts(example.caption) for example in examples]
        seeds = [example.seed for example in examples]
        encoded = [example.record for example in examples if isinstance(example.record, EncodedRecord)]
        if encoded:
            latents, codes = (torch.stack([getattr(one, name) for one in encoded]) for name in ("latents", "codes"))
            references = [list(record.references) for record in encoded]
            return {"encoded": DecoderBatch.plain(latents, codes, references, glyph_texts, seeds)}
        records = [example.record for example in examples if isinstance(example.record, Record)]
        shown = [[reference_view(source, self.limits) for source in record.sources] for record in records]
        alike: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for sample, row in enumerate(shown):
            for place, image in enumerate(row):
                alike.setdefault(image.size, []).append((sample, place))
        return {
            "pictures": as_seen([record.image for record in records]),
            "references": {
                tuple(places): as_seen([shown[sample][place] for sample, place in places]) for places in alike.values()
            },
            "kept": [kept_cells(record, self.limits) for record in records] if self.settings.kept_codes else [],
            "glyph_texts": glyph_texts,
            "seeds": seeds,
        }

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        clean = self.encode(batch)
        if self.teacher is not None:
            return self._distilled(self.teacher, clean)
        sample = augmented(clean, self.settings, self.num_codes, self.training)
        noisy, noise, timestep = self.add_noise(sample)
        velocity, silent = self.predict(sample, noisy, timestep)
        losses = F.mse_loss(velocity.float(), noise - sample.latents, reduction="none").mean(dim=(1, 2, 3)) + silent
        return self.weigh(losses, sample)

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Any]) -> DecoderBatch:
        """What the frozen encoders make of a collated batch; from a prepared cache it comes encoded, and a replay was
        encoded before."""
        if "again" in batch:
            number = batch["again"]
            if number not in self._kept:  # the run was stopped since
                self._keep(number, self._encode(self.batches.fresh(number)))
            return replace(self._kept[number], seeds=batch["seeds"])
        made = self._encode(batch)
        if "number" in batch:
            self._keep(batch["number"], made)
        return made

    def _keep(self, number: int, made: DecoderBatch) -> None:
        self._kept[number] = made
        for old in [old for old in self._kept if old <= number - self.config.replay_window]:
            del self._kept[old]

    def _encode(self, batch: Mapping[str, Any]) -> DecoderBatch:
        if "encoded" in batch:
            return batch["encoded"].to(self.device)
        latents, codes = self._encoded(*batch["pictures"])
        references: list[dict[int, EncodedReference]] = [{} for _ in latents]
        for places, shown in batch["references"].items():
            for (sample, place), its_latents, its_codes in zip(places, *self._encoded(*shown)):
                references[sample][place] = EncodedReference(its_codes, its_latents)
        rows = [[row[place] for place in sorted(row)] for row in references]
        if batch["kept"]:
            told = zip(codes, rows, batch["kept"])
            codes = torch.stack([with_kept_codes(own, [one.codes for one in row], cells) for own, row, cells in told])
        return DecoderBatch.plain(latents, codes, rows, batch["glyph_texts"], batch["seeds"])

    def _encoded(self, pictures: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) and codes (B, h/4, w/4) of what :func:`as_seen` made."""
        latents = self.helpers["autoencoder"].encode(from_bytes(pictures.to(self.device)))
        codes = encode_views(self.helpers["tokenizer"], list(from_bytes(views.to(self.device))), self.device)
        return latents, torch.stack(codes)

    def add_noise(self, sample: DecoderBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents and their noise, both (B, C, h, w), and the timesteps that the network is told, (B,)."""
        device = sample.latents.device
        normal = noise_of(sample.seeds, (1,), LEVEL, device)[:, 0]
        height, width = sample.full_size
        sigma, timestep = training_levels(normal, height * width // 4, self.schedule, self.settings)
        noise = noise_of(sample.seeds, sample.latents.shape[1:], NOISE, device)
        level = sigma[:, None, None, None]
        return (1 - level) * sample.latents + level * noise, noise, timestep

    def predict(self, sample: DecoderBatch, noisy: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor | float]:
        """The velocity (B, C, h, w) under the sample's conditions, and the zero of :meth:`_even_out`."""
        references = sample.shown_references()
        silent = self._even_out(references, sample.latents)
        glyphs = self._glyphs(sample.shown_texts())
        velocity = velocity_of(
            self.transformer, noisy, timestep, sample.codes, glyphs, references,
            sample.no_codes, sample.corners, sample.full_size,
        )  # fmt: skip
        return velocity, silent

    def weigh(self, losses: Tensor, sample: DecoderBatch) -> Losses:
        """The mean over the samples' losses (B,), and ``conditional_loss``, that over those that are told codes."""
        parts = {"loss": losses.mean()}
        conditional = ~sample.no_codes
        if conditional.any():
            parts["conditional_loss"] = losses[conditional].mean().detach()
        return parts

    def _distilled(self, teacher: Teacher, clean: DecoderBatch) -> Losses:
        """The student's one step from a level of its schedule against the teacher's walk to the next."""
        sample = repeated(clean, self.settings.noise_levels_per_image) if self.training else clean
        noise = noise_of(sample.seeds, sample.latents.shape[1:], NOISE, sample.latents.device)
        places = (uniform_of(sample.seeds, 1, LEVEL)[:, 0] * teacher.steps).long()
        texts, references = sample.glyph_texts, sample.references
        noisy, timestep, target = teacher.rollout(sample.latents, noise, places, sample.codes, texts, references)
        velocity, silent = self.predict(sample, noisy, timestep)
        return {"loss": F.mse_loss(velocity.float(), target) + (silent if isinstance(silent, float) else silent.mean())}

    def _even_out(self, references: Sequence[Sequence[EncodedReference]], latents: Tensor) -> Tensor | float:
        """Encode blank references until every process has made as many passes; a zero that depends on them.

        With sharded weights every pass through a block is an exchange between processes, so all must make as many.
        """
        if not self.sharded:
            return 0.0
        count = len({one.latents.shape for row in references for one in row})
        most = torch.tensor([count], device=latents.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        blank = torch.zeros_like(latents[0, :, :4, :4]), torch.zeros(1, 1, dtype=torch.long, device=latents.device)
        zero: Tensor | float = 0.0
        for _ in range(int(most) - count):
            cache = self.transformer.cache_references([[blank]])
            assert cache is not None
            zero = zero + sum((key.sum() + value.sum()) * 0 for key, value in cache.layers)
        return zero

    def _glyphs(self, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        if self.settings.train_glyph_encoder:
            return self.glyph_encoder.encode_padded(texts)
        encoder: GlyphEncoder = self.helpers["glyph_encoder"]
        with torch.no_grad():
            return encoder.encode_padded(texts)

    def live_networks(self) -> dict[str, Any]:
        glyph_encoder = self.glyph_encoder if self.settings.train_glyph_encoder else self.helpers["glyph_encoder"]
        return {
            "transformer": self.transformer,
            "glyph_encoder": glyph_encoder,
            "semantic_tokenizer": self.helpers["tokenizer"],
            "autoencoder": self.helpers["autoencoder"],
        }

    def pictures(self, examples: Sequence[Example]) -> list[tuple[str, Image.Image]]:
        chosen = list(examples[:SHOWN])
        return pictures_from_codes(self, chosen, self.config.samples.steps, self.config.samples.guidance)

    def states(self, weights: Mapping[str, Tensor]) -> dict[Component, dict[str, Tensor]]:
        states: dict[Component, dict[str, Tensor]] = {"transformer": under("transformer.", weights)}
        glyphs = under("glyph_encoder.encoder.", weights)
        if glyphs:
            states["text_encoder"] = glyphs
        return states
