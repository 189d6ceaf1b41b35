"""Training of the diffusion decoder: flow matching under visual tokens, glyphs and references.

Noise levels are drawn logit-normal (Esser et al. 2024, arXiv:2403.03206) and shifted with the picture's size by the
sampler's own rule; the network is told the same unshifted timestep that the sampler will tell it. References run
through the same network at t = 0, with gradient.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.components import Component
from arimage.data.records import EncodedRecord, Record
from arimage.training.config import DecoderTraining, TrainConfig
from arimage.training.distillation import Teacher, velocity_of
from arimage.training.examples import Example
from arimage.training.objective import Losses, Objective, generator, noise_of, under, uniform_of
from arimage.training.samples import true_token_pictures
from arimage.training.tokens import code_vectors, encode_views, reference_view
from decoder.diffusion_decoder import LATENTS_PER_TOKEN
from decoder.glyph import GlyphEncoder, quoted_texts
from decoder.sampler import ScheduleConfig, shift_sigma
from tokenizer.pixels import pixels
from tokenizer.semantic_tokenizer import half_size_pixels

SHOWN = 8
BLIND = 0.5
NOISE, LEVEL, DROPS, CORRUPTION, WINDOW, COPY = range(6)
ANOTHER = 0x9E3779B97F4A7C15 >> 2


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
    logits = settings.noise_mean + settings.noise_deviation * normal
    steps = schedule.num_train_timesteps
    levels = (torch.sigmoid(logits) * steps).ceil().clamp(1, steps)
    return shift_sigma(levels / steps, schedule.shift(sequence_length)), levels - 1


def window_corners(codes: Tensor, side: int, chance: Tensor) -> Tensor:
    """Where to cut square windows: the more cells of one show something, the likelier it is.

    Args:
        codes: (B, h, w); the most frequent code of a row is its ground.
        side: of the windows, in cells.
        chance: (B,) in [0, 1).

    Returns:
        (B, 2) rows and columns.
    """
    ground = codes.flatten(1).mode(dim=1).values[:, None, None]
    shown = F.avg_pool2d((codes != ground).float()[:, None], side, stride=1)[:, 0]
    likelihood = (shown.flatten(1) + 0.5 / side**2).cumsum(dim=1)
    place = torch.searchsorted(likelihood, chance[:, None] * likelihood[:, -1:], right=True)[:, 0]
    place = place.clamp(max=likelihood.shape[1] - 1)
    return torch.stack([place // shown.shape[2], place % shown.shape[2]], dim=1)


class DecoderObjective(Objective):
    """Mean squared error of the velocity ``noise - clean``, or of a teacher's mean velocity over a longer step."""

    def __init__(self, checkpoint: Checkpoint, config: TrainConfig, device: torch.device) -> None:
        super().__init__(checkpoint, config, device)
        self.settings = config.decoder
        cpu = torch.device("cpu")
        self.transformer = checkpoint.transformer(device=cpu, dtype=torch.float32)
        self.transformer.gradient_checkpointing = config.gradient_checkpointing
        glyph_encoder = checkpoint.glyph_encoder(device=cpu, dtype=torch.float32)
        if self.settings.train_glyph_encoder:
            self.glyph_encoder = glyph_encoder
        else:
            self.helpers["glyph_encoder"] = glyph_encoder.to(device)
        self.helpers["tokenizer"] = checkpoint.semantic_tokenizer(device=device, dtype=torch.float32)
        self.helpers["autoencoder"] = checkpoint.autoencoder(device=device, dtype=torch.float32)
        self.limits = checkpoint.config.processor.limits
        self.schedule = checkpoint.config.scheduler
        self.teacher: Teacher | None = None
        if self.settings.distillation is not None:
            self.teacher = Teacher(
                checkpoint.transformer(device=device, dtype=torch.float32),
                checkpoint.glyph_encoder(device=device, dtype=torch.float32),
                self.schedule,
                self.settings.distillation,
            )
        self.codes = checkpoint.config.quantizer.num_embeddings

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
        encoded = [example.record for example in examples if isinstance(example.record, EncodedRecord)]
        if encoded:
            tensors: dict[str, Any] = {
                "encoded": (
                    torch.stack([record.latents for record in encoded]),
                    torch.stack([record.codes for record in encoded]),
                    [[(latents, codes) for codes, latents in record.references] for record in encoded],
                )
            }
        else:
            records = [example.record for example in examples if isinstance(example.record, Record)]
            references = [[reference_view(source, self.limits) for source in record.sources] for record in records]
            tensors = {
                "pixels": torch.stack([pixels(record.image) for record in records]),
                "views": [half_size_pixels(record.image) for record in records],
                "references": [[(pixels(view), half_size_pixels(view)) for view in views] for views in references],
            }
        return {
            **tensors,
            "glyphs": [quoted_texts(example.caption) for example in examples],
            "seeds": [example.seed for example in examples],
        }

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, list[list[tuple[Tensor, Tensor]]]]:
        """Clean latents (B, C, h, w), codes (B, h/4, w/4), and each sample's references as (latents, codes)."""
        autoencoder, tokenizer = self.helpers["autoencoder"], self.helpers["tokenizer"]
        latents = autoencoder.encode(batch["pixels"])
        shown = [view for row in batch["references"] for _, view in row]
        codes = encode_views(tokenizer, [*batch["views"], *shown], self.device)
        own, others = codes[: len(latents)], iter(codes[len(latents) :])
        references = [
            [(autoencoder.encode(values[None])[0], next(others)) for values, _ in row] for row in batch["references"]
        ]
        return latents, torch.stack(own), references

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        latents, codes, references = batch["encoded"] if "encoded" in batch else self.encode(batch)
        settings = self.settings
        cut = self.training and self.teacher is None and self._in_windows(latents, references, batch["seeds"])
        draws = 1 if not self.training else settings.windows if cut else settings.draws
        seeds = [seed ^ ANOTHER * draw for draw in range(draws) for seed in batch["seeds"]]
        latents, codes, references = latents.repeat(draws, 1, 1, 1), codes.repeat(draws, 1, 1), references * draws
        size = (latents.shape[-2], latents.shape[-1])
        if self.teacher is not None:
            return self._distilled(self.teacher, batch["glyphs"] * draws, latents, codes, references, seeds)
        window = None
        if cut:
            latents, codes, references, corners = self._windows(latents, codes, references, seeds)
            window = corners, size
        drops = uniform_of(seeds, 5, DROPS).to(latents.device)
        everything = drops[:, 0] < settings.drop_all
        no_prior = everything | (drops[:, 1] < settings.drop_prior)
        no_glyphs = everything | (drops[:, 2] < settings.drop_glyphs)
        no_references = everything | (drops[:, 3] < settings.drop_references)
        if self.training and settings.copies:
            latents, codes, copied, blind = self._copies(latents, codes, references, seeds)
            no_prior = torch.where(copied, blind, no_prior)
            no_glyphs, no_references = no_glyphs | copied, no_references & ~copied
        if settings.corrupt:
            codes = self._corrupted(codes, seeds, drops[:, 4] < settings.corrupt)
        normal = torch.cat([torch.randn(1, generator=generator(seed, LEVEL)) for seed in seeds])
        sigma, timestep = training_levels(normal, size[0] * size[1] // 4, self.schedule, settings)
        noise = noise_of(seeds, latents.shape[1:], NOISE).to(latents.device)
        level = sigma.to(latents.device)[:, None, None, None]
        texts = [[] if dropped else row for row, dropped in zip(batch["glyphs"] * draws, no_glyphs.tolist())]
        kept = [[] if dropped else row for row, dropped in zip(references, no_references.tolist())]
        silent = self._even_out(len({part.shape for row in kept for part, _ in row}), latents)
        noisy = (1 - level) * latents + level * noise
        glyphs = self._glyphs(texts)
        velocity = velocity_of(self.transformer, noisy, timestep, codes, glyphs, kept, no_prior, window)
        losses = F.mse_loss(velocity.float(), noise - latents, reduction="none").mean(dim=(1, 2, 3)) + silent
        told = ~no_prior
        parts = {"loss": losses.mean()}
        if told.any():
            parts["told"] = losses[told].mean().detach()
        return parts

    def _in_windows(
        self, latents: Tensor, references: Sequence[Sequence[tuple[Tensor, Tensor]]], seeds: Sequence[int]
    ) -> bool:
        """Whether a batch is learnt from in windows."""
        settings = self.settings
        if settings.windows == 0 or settings.window * LATENTS_PER_TOKEN >= min(latents.shape[-2:]):
            return False
        if any(part.shape != latents.shape[1:] for row in references for part, _ in row):
            return False
        return bool(uniform_of(seeds[:1], 1, WINDOW)[0, 0] >= settings.whole)

    def _windows(
        self,
        latents: Tensor,
        codes: Tensor,
        references: Sequence[Sequence[tuple[Tensor, Tensor]]],
        seeds: Sequence[int],
    ) -> tuple[Tensor, Tensor, list[list[tuple[Tensor, Tensor]]], Tensor]:
        """A window of each sample's latents, codes and references, and their corners in latents."""
        side, n = self.settings.window, LATENTS_PER_TOKEN
        corners = window_corners(codes.cpu(), side, uniform_of(seeds, 2, WINDOW)[:, 1])

        def cut(part: Tensor, grid: Tensor, corner: list[int]) -> tuple[Tensor, Tensor]:
            y, x = corner
            shown = part[:, y * n : (y + side) * n, x * n : (x + side) * n]
            return shown, grid[y : y + side, x : x + side]

        places = corners.tolist()
        own = [cut(*sample) for sample in zip(latents, codes, places)]
        others = [[cut(*reference, place) for reference in row] for row, place in zip(references, places)]
        parts, grids = (torch.stack(tensors) for tensors in zip(*own))
        return parts, grids, others, corners.to(latents.device) * n

    def _copies(
        self,
        latents: Tensor,
        codes: Tensor,
        references: Sequence[Sequence[tuple[Tensor, Tensor]]],
        seeds: Sequence[int],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Targets and codes, of which some are their last reference; which ones, and which of those lose the codes."""
        chance = uniform_of(seeds, 2, COPY)
        copied = chance[:, 0] < self.settings.copies
        targets, grids = list(latents), list(codes)
        for index, row in enumerate(references):
            copied[index] &= bool(row) and row[-1][0].shape == targets[index].shape
            if copied[index]:
                targets[index], grids[index] = row[-1][0].to(latents), row[-1][1].to(codes)
        device = latents.device
        return torch.stack(targets), torch.stack(grids), copied.to(device), (chance[:, 1] < BLIND).to(device)

    def _distilled(
        self,
        teacher: "Teacher",
        texts: list[list[str]],
        latents: Tensor,
        codes: Tensor,
        references: list[list[tuple[Tensor, Tensor]]],
        seeds: Sequence[int],
    ) -> Losses:
        """The student's one step from a level of its schedule against the teacher's walk to the next."""
        silent = self._even_out(len({part.shape for row in references for part, _ in row}), latents)
        noise = noise_of(seeds, latents.shape[1:], NOISE).to(latents.device)
        places = (uniform_of(seeds, 1, LEVEL)[:, 0] * teacher.steps).long()
        noisy, timestep, target = teacher.walk(latents, noise, places, codes, texts, references)
        velocity = velocity_of(self.transformer, noisy, timestep, codes, self._glyphs(texts), references)
        return {"loss": F.mse_loss(velocity.float(), target) + (silent if isinstance(silent, float) else silent.mean())}

    def _even_out(self, count: int, latents: Tensor) -> Tensor | float:
        """Encode blank references until every process has made as many passes; a zero that depends on them.

        With sharded weights every pass through a block is an exchange between processes, so all must make as many.
        """
        if not self.sharded:
            return 0.0
        most = torch.tensor([count], device=latents.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        blank = (torch.zeros_like(latents[0, :, :4, :4]), torch.zeros(1, 1, dtype=torch.long, device=latents.device))
        zero: Tensor | float = 0.0
        for _ in range(int(most) - count):
            cache = self.transformer.encode_references([[blank]])
            assert cache is not None
            zero = zero + sum((key.sum() + value.sum()) * 0 for key, value in cache.layers)
        return zero

    def _glyphs(self, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        if self.settings.train_glyph_encoder:
            return self.glyph_encoder.encode_padded(texts)
        encoder: GlyphEncoder = self.helpers["glyph_encoder"]
        with torch.no_grad():
            return encoder.encode_padded(texts)

    def _corrupted(self, codes: Tensor, seeds: Sequence[int], chosen: Tensor) -> Tensor:
        """Random codes in place of some, as the autoregressive half may get them wrong."""
        shape = codes.shape[1:]
        rows = []
        for row, seed, corrupt in zip(codes, seeds, chosen.tolist()):
            if corrupt:
                stream = generator(seed, CORRUPTION)
                share = float(torch.rand(1, generator=stream)) * self.settings.corrupt_share
                hit = (torch.rand(shape, generator=stream) < share).to(row.device)
                row = torch.where(hit, torch.randint(self.codes, shape, generator=stream).to(row.device), row)
            rows.append(row)
        return torch.stack(rows)

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
        return true_token_pictures(self, chosen, self.config.samples.steps, self.config.samples.guidance)

    def states(self, weights: Mapping[str, Tensor]) -> dict[Component, dict[str, Tensor]]:
        states: dict[Component, dict[str, Tensor]] = {"transformer": under("transformer.", weights)}
        glyphs = under("glyph_encoder.encoder.", weights)
        if glyphs:
            states["text_encoder"] = glyphs
        return states
