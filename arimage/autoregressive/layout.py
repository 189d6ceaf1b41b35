"""The token layout of a picture's sequence and its 3-D positions, in one implementation.

    references   start codes end, once for each
    prompt       text <sop>H W<eop> [<sop>h w<eop>] start
    preview      h x w codes (text-to-image only)
    target       H x W codes
    end

Prompting builds the part up to the second ``start``; generation continues it cell by cell; training writes the
whole. All three append to the same :class:`_Sequence`, which knows the rule of positions: text advances t, h and w
together; an image at base b has t = b, h = b + row, w = b + column, and the next base is b + max(height, width).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from arimage.autoregressive.vocabulary import Vocabulary
from tokenizer.image_size import PIXELS_PER_TOKEN

PREVIEW_SIDE = 16
IGNORED_LABEL = -100


class Grid(NamedTuple):
    """Visual tokens of a picture: one covers 32x32 pixels."""

    height: int
    width: int

    @property
    def cells(self) -> int:
        return self.height * self.width


def target_grid(height: int, width: int) -> Grid:
    """The grid of a picture of ``height`` x ``width`` pixels.

    Raises:
        ValueError: a side is not a positive multiple of 32.
    """
    if height < 1 or width < 1 or height % PIXELS_PER_TOKEN or width % PIXELS_PER_TOKEN:
        raise ValueError(f"picture sides must be positive multiples of {PIXELS_PER_TOKEN} pixels, not {height}x{width}")
    return Grid(height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN)


def preview_grid(target: Grid) -> Grid:
    """The preview of a target: the same aspect ratio in about 256 cells, at least one a side."""
    return grid_of_aspect(target, PREVIEW_SIDE)


def grid_of_aspect(target: Grid, side: int) -> Grid:
    """The aspect ratio of a target in about as many cells as a square of ``side`` has, at least one a side."""
    ratio = target.height / target.width
    return Grid(max(1, int(math.sqrt(ratio) * side)), max(1, int(math.sqrt(1 / ratio) * side)))


class Region(IntEnum):
    """What a token of a training sequence belongs to."""

    PROMPT = 0
    PREVIEW = 1
    TARGET = 2
    END = 3


@dataclass(frozen=True)
class Prompt:
    """Everything before the first generated token.

    Attributes:
        tokens: (L,) ids, the last one is image start, or the last code of a preview that is given.
        positions: (3, L).
        grids: the grids to generate, in order: preview and target, or the target alone when there are references or the
            preview is given.
        next_position: the base of the first of them.
        references: where the first code of each reference stands.
    """

    tokens: Tensor
    positions: Tensor
    grids: tuple[Grid, ...]
    next_position: int
    references: tuple[int, ...] = ()

    @property
    def target(self) -> Grid:
        return self.grids[-1]

    @property
    def new_tokens(self) -> int:
        """Cells to generate; the image end that follows them is implied."""
        return sum(grid.cells for grid in self.grids)


@dataclass(frozen=True)
class TrainingSequence:
    """A whole sequence with what the model should predict.

    Attributes:
        tokens, positions: (L,) and (3, L), prompt to image end.
        labels: (L,) the next token where it is a visual token or the end, otherwise ``IGNORED_LABEL``.
        regions: (L,) :class:`Region` of the token that the label names (``PROMPT`` where there is no label).
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    regions: Tensor


class _Sequence:
    """Tokens and positions under construction."""

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self._tokens: list[Tensor] = []
        self._positions: list[Tensor] = []

    def text(self, tokens: Sequence[int]) -> None:
        steps = torch.arange(self.position, self.position + len(tokens))
        self._append(torch.tensor(tokens, dtype=torch.long), steps.expand(3, -1))
        self.position += len(tokens)

    def image(self, grid: Grid, codes: Tensor | None = None) -> None:
        """A grid of codes, or its positions alone when the codes are still to be generated."""
        rows = torch.arange(grid.height).repeat_interleave(grid.width)
        columns = torch.arange(grid.width).repeat(grid.height)
        codes = torch.zeros(grid.cells, dtype=torch.long) if codes is None else codes.reshape(-1).long()
        self._append(codes, self.position + torch.stack([torch.zeros_like(rows), rows, columns]))
        self.position += max(grid)

    @property
    def length(self) -> int:
        return sum(len(tokens) for tokens in self._tokens)

    def _append(self, tokens: Tensor, positions: Tensor) -> None:
        self._tokens.append(tokens)
        self._positions.append(positions)

    def finish(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._tokens), torch.cat(self._positions, dim=1)


def build_prompt(
    vocabulary: Vocabulary,
    text: str,
    target: Grid,
    references: Sequence[Tensor] = (),
    *,
    preview: bool | None = None,
    preview_codes: Tensor | None = None,
) -> Prompt:
    """The prompt of one picture.

    Args:
        text: what the user wrote; control-token spellings in it stay text.
        references: code grids (h, w) of the reference pictures, in order.
        preview: generate a preview grid first; by default exactly when there are no references, as the format has
            it.
        preview_codes: those of a preview grid that is given: they stand in the prompt where a generated one would
            follow it, and the target alone is left to generate.

    Raises:
        ValueError: a reference or a preview holds something that is not a code, or is not a grid of its size.
    """
    sequence = _Sequence()
    sequence.text(vocabulary.prefix)
    if vocabulary.text_first:
        sequence.text(vocabulary.encode(text))
    starts = []
    for codes in references:
        _check_codes(codes, vocabulary.codebook_size)
        sequence.text([vocabulary.image_start])
        starts.append(sequence.length)
        sequence.image(Grid(*codes.shape), codes)
        sequence.text([vocabulary.image_end])
    if not vocabulary.text_first:
        sequence.text(vocabulary.encode(text))
    with_preview = preview_codes is not None or (not references if preview is None else preview)
    grids = (preview_grid(target), target) if with_preview else (target,)
    for grid in reversed(grids):
        shape = vocabulary.encode(f"{grid.height} {grid.width}")
        sequence.text([vocabulary.grid_start, *shape, vocabulary.grid_end])
    sequence.text([vocabulary.image_start])
    if preview_codes is not None:
        if tuple(preview_codes.shape) != tuple(grids[0]):
            raise ValueError(f"the preview of {target} is {grids[0]}, not {tuple(preview_codes.shape)}")
        _check_codes(preview_codes, vocabulary.codebook_size)
        sequence.image(grids[0], preview_codes)
        grids = (target,)
    tokens, positions = sequence.finish()
    return Prompt(tokens, positions, grids, sequence.position, tuple(starts))


def generated_positions(prompt: Prompt) -> Tensor:
    """Positions of the tokens that follow a prompt, image end included: (3, new_tokens + 1)."""
    sequence = _Sequence(prompt.next_position)
    for grid in prompt.grids:
        sequence.image(grid)
    sequence.text([0])
    return sequence.finish()[1]


def training_sequence(prompt: Prompt, codes: Sequence[Tensor], vocabulary: Vocabulary) -> TrainingSequence:
    """A prompt continued by its true codes.

    Args:
        codes: one (h, w) code grid for each of ``prompt.grids``.

    Raises:
        ValueError: the grids do not have the prompt's sizes, or hold something that is not a code.
    """
    if tuple(tuple(grid.shape) for grid in codes) != tuple(tuple(grid) for grid in prompt.grids):
        raise ValueError(f"the prompt asks for grids {prompt.grids}, got {[tuple(grid.shape) for grid in codes]}")
    sequence = _Sequence(prompt.next_position)
    regions: list[Tensor] = []
    for grid, grid_codes in zip(prompt.grids, codes):
        _check_codes(grid_codes, vocabulary.codebook_size)
        sequence.image(grid, grid_codes)
        preview = len(prompt.grids) > 1 and not regions
        regions.append(torch.full((grid.cells,), Region.PREVIEW if preview else Region.TARGET))
    sequence.text([vocabulary.image_end])
    regions.append(torch.tensor([Region.END]))
    tokens, positions = sequence.finish()
    labels = torch.full((len(prompt.tokens) + len(tokens),), IGNORED_LABEL)
    label_regions = torch.full_like(labels, Region.PROMPT)
    labels[len(prompt.tokens) - 1 : -1] = tokens
    label_regions[len(prompt.tokens) - 1 : -1] = torch.cat(regions)
    return TrainingSequence(
        torch.cat([prompt.tokens, tokens]), torch.cat([prompt.positions, positions], dim=1), labels, label_regions
    )


def _check_codes(codes: Tensor, codebook_size: int) -> None:
    if codes.ndim != 2 or codes.numel() == 0:
        raise ValueError(f"a code grid has shape (h, w), not {tuple(codes.shape)}")
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ValueError(f"codes lie in 0..{codebook_size - 1}, got {int(codes.min())}..{int(codes.max())}")
