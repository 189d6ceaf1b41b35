"""Augmentations of the decoder's batches: each is a function from one typed batch to another.

Random numbers come from the samples' own seeds, a stream for each purpose, so that a sample is augmented alike whatever
its neighbours are.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arimage.data.records import EncodedReference
from arimage.training.codes import with_codes_renamed
from arimage.training.config import DecoderTraining
from arimage.training.objective import uniform_of
from decoder.diffusion_decoder import LATENTS_PER_TOKEN

NOISE, LEVEL, DROPS, CORRUPTION, CROP, COPY, NAMES, CHOICE = range(8)
BLIND = 0.5
ANOTHER = 0x9E3779B97F4A7C15 >> 2


@dataclass(frozen=True, eq=False)
class DecoderBatch:
    """Encoded pictures with all that the decoder is told about them.

    Attributes:
        latents: (B, C, h, w) clean, normalised.
        codes: (B, h/4, w/4) visual tokens.
        references: of each sample any number, each with latents (C, h', w') and codes (h'/4, w'/4).
        glyph_texts: of each sample the texts that it shows.
        seeds: of each sample's random numbers.
        full_size: (height, width) of the pictures in latents, of which ``latents`` may be crops.
        corners: (B, 2) rows and columns of the crops in latents; None where ``latents`` are whole pictures.
        no_codes, no_glyphs, no_references: (B,) bool, True where the decoder is not told that condition.
    """

    latents: Tensor
    codes: Tensor
    references: list[list[EncodedReference]]
    glyph_texts: list[list[str]]
    seeds: list[int]
    full_size: tuple[int, int]
    corners: Tensor | None
    no_codes: Tensor
    no_glyphs: Tensor
    no_references: Tensor

    @classmethod
    def plain(
        cls,
        latents: Tensor,
        codes: Tensor,
        references: list[list[EncodedReference]],
        glyph_texts: list[list[str]],
        seeds: list[int],
    ) -> "DecoderBatch":
        """Whole pictures with all their conditions."""
        size = latents.shape[-2], latents.shape[-1]
        all_told = [torch.zeros(len(latents), dtype=torch.bool, device=latents.device) for _ in range(3)]
        return cls(latents, codes, references, glyph_texts, seeds, size, None, *all_told)

    def __len__(self) -> int:
        return len(self.seeds)

    def to(self, device: torch.device) -> "DecoderBatch":
        """The batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved, references=[[one.to(device) for one in row] for row in self.references])

    def shown_texts(self) -> list[list[str]]:
        """The texts, but none where they are left out."""
        return [[] if left_out else row for row, left_out in zip(self.glyph_texts, self.no_glyphs.tolist())]

    def shown_references(self) -> list[list[EncodedReference]]:
        """The references, but none where they are left out."""
        return [[] if left_out else row for row, left_out in zip(self.references, self.no_references.tolist())]


def augmented(batch: DecoderBatch, settings: DecoderTraining, num_codes: int, training: bool) -> DecoderBatch:
    """What the decoder learns from (``training``) or is evaluated on: whole pictures or crops, some without conditions,
    some with corrupted codes, some edits turned into copying or under other names."""
    if training and settings.rename_prob:  # before samples are repeated, which share their encoded references then
        batch = with_renamed_codes(batch, settings.rename_prob, num_codes)
    if training and learnt_in_crops(batch, settings):
        batch = cropped(repeated(batch, settings.crops_per_image), settings.crop_cells)
    elif training:
        batch = repeated(batch, settings.noise_levels_per_image)
    batch = with_dropped_conditions(batch, settings)
    if training and settings.copy_task_prob:
        batch = with_copy_tasks(batch, settings.copy_task_prob)
    if settings.corrupt:
        batch = with_corrupted_codes(batch, settings.corrupt, settings.corrupt_share, num_codes)
    return batch


def repeated(batch: DecoderBatch, times: int) -> DecoderBatch:
    """Every sample so many times, each time with other random numbers."""
    return replace(
        batch,
        latents=batch.latents.repeat(times, 1, 1, 1),
        codes=batch.codes.repeat(times, 1, 1),
        references=batch.references * times,
        glyph_texts=batch.glyph_texts * times,
        seeds=[seed ^ ANOTHER * time for time in range(times) for seed in batch.seeds],
        no_codes=batch.no_codes.repeat(times),
        no_glyphs=batch.no_glyphs.repeat(times),
        no_references=batch.no_references.repeat(times),
    )


def learnt_in_crops(batch: DecoderBatch, settings: DecoderTraining) -> bool:
    """Whether a batch is learnt from in crops: they must be smaller than the pictures, of which references have the
    size, and a share of the batches stays whole."""
    if settings.crops_per_image == 0 or settings.crop_cells * LATENTS_PER_TOKEN >= min(batch.full_size):
        return False
    if any(one.latents.shape != batch.latents.shape[1:] for row in batch.references for one in row):
        return False
    return bool(uniform_of(batch.seeds[:1], 1, CROP)[0, 0] >= settings.full_image_prob)


def cropped(batch: DecoderBatch, cells: int) -> DecoderBatch:
    """A square crop of each sample, ``cells`` codes wide, and the same one of its references."""
    n = LATENTS_PER_TOKEN
    corners = crop_corners(batch.codes.cpu(), cells, uniform_of(batch.seeds, 2, CROP)[:, 1])
    places = corners.tolist()

    def cut(one: EncodedReference, corner: list[int]) -> EncodedReference:
        y, x = corner
        latents = one.latents[:, y * n : (y + cells) * n, x * n : (x + cells) * n]
        return EncodedReference(one.codes[y : y + cells, x : x + cells], latents)

    own = [cut(EncodedReference(*sample), place) for *sample, place in zip(batch.codes, batch.latents, places)]
    return replace(
        batch,
        latents=torch.stack([one.latents for one in own]),
        codes=torch.stack([one.codes for one in own]),
        references=[[cut(one, place) for one in row] for row, place in zip(batch.references, places)],
        corners=corners.to(batch.latents.device) * n,
    )


def crop_corners(codes: Tensor, side: int, chance: Tensor) -> Tensor:
    """Where to cut square crops: the more cells of one show something, the likelier it is.

    Args:
        codes: (B, h, w); the most frequent code of a row is its ground.
        side: of the crops, in cells.
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


def with_dropped_conditions(batch: DecoderBatch, settings: DecoderTraining) -> DecoderBatch:
    """Some samples without any condition, for guidance, and some without one of them."""
    chance = _drop_chances(batch)
    everything = chance[:, 0] < settings.uncond_prob
    return replace(
        batch,
        no_codes=everything | (chance[:, 1] < settings.drop_prior),
        no_glyphs=everything | (chance[:, 2] < settings.drop_glyphs),
        no_references=everything | (chance[:, 3] < settings.drop_references),
    )


def with_copy_tasks(batch: DecoderBatch, prob: float) -> DecoderBatch:
    """Some samples become exercises in copying: the last reference is the target, it is always shown, no glyphs say
    what it shows, and in half of them no codes either. References of another size than the target cannot be copied."""
    chance = uniform_of(batch.seeds, 2, COPY)
    latents, codes = list(batch.latents), list(batch.codes)
    asked = (chance[:, 0] < prob).tolist()
    for index, row in enumerate(batch.references):
        asked[index] &= bool(row) and row[-1].latents.shape == latents[index].shape
        if asked[index]:
            latents[index], codes[index] = row[-1].latents.to(latents[index]), row[-1].codes.to(codes[index])
    device = batch.latents.device
    chosen, blind = torch.tensor(asked, device=device), (chance[:, 1] < BLIND).to(device)
    return replace(
        batch,
        latents=torch.stack(latents),
        codes=torch.stack(codes),
        no_codes=torch.where(chosen, blind, batch.no_codes),
        no_glyphs=batch.no_glyphs | chosen,
        no_references=batch.no_references & ~chosen,
    )


def with_renamed_codes(batch: DecoderBatch, prob: float, num_codes: int) -> DecoderBatch:
    """In a share ``prob`` of the samples with references, codes that the target has in common with them are others, in
    all of them alike: what such a code looks like is nowhere to be found but in the references."""
    chance = uniform_of(batch.seeds, 1, CHOICE)[:, 0].tolist()
    chosen = [index for index, row in enumerate(batch.references) if row and chance[index] < prob]
    if not chosen:
        return batch
    grids = [[one.codes for one in batch.references[index]] for index in chosen]
    seeds = [batch.seeds[index] for index in chosen]
    renamed, targets, _ = with_codes_renamed(grids, batch.codes[chosen], num_codes, seeds, NAMES)
    codes, references = batch.codes.clone(), list(batch.references)
    codes[chosen] = targets
    for index, row in zip(chosen, renamed):
        references[index] = [replace(one, codes=new) for one, new in zip(references[index], row)]
    return replace(batch, codes=codes, references=references)


def with_corrupted_codes(batch: DecoderBatch, prob: float, share: float, num_codes: int) -> DecoderBatch:
    """In a share ``prob`` of the samples random codes in place of up to ``share`` of theirs, as the autoregressive
    model may get them wrong."""
    count, device = batch.codes[0].numel(), batch.codes.device
    chance = uniform_of(batch.seeds, 1 + 2 * count, CORRUPTION, device)
    corrupt = _drop_chances(batch)[:, 4:] < prob
    hit = corrupt & (chance[:, 1 : 1 + count] < chance[:, :1] * share)
    others = (chance[:, 1 + count :] * num_codes).long()
    return replace(batch, codes=torch.where(hit, others, batch.codes.flatten(1)).view_as(batch.codes))


def _drop_chances(batch: DecoderBatch) -> Tensor:
    """(B, 5) in [0, 1): for all conditions, codes, glyphs, references, and corruption."""
    return uniform_of(batch.seeds, 5, DROPS, batch.latents.device)
