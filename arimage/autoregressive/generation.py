"""Generating the code grids of pictures, several in one batch.

Prompts, references and grids may differ from picture to picture. A picture's tokens depend on its own request
alone: each has its own random stream, and rows of a batch do not see each other. Inside a grid only codes can be
drawn; the image end is not drawn at all, since it can only stand after the last cell.

Several pictures go token by token together. One picture alone on a CPU guesses its next tokens and checks them in one
pass, since some rows cost little more than one there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arimage.autoregressive.cache import KeyValueCache
from arimage.autoregressive.layout import Grid, Prompt, generated_positions
from arimage.autoregressive.model import AutoregressiveModel, Rotation
from arimage.autoregressive.sampling import TokenSampling, draw

FREE = -1
AHEAD, FEW_AHEAD, WORTH_IT = 16, 4, 2.0


@dataclass(frozen=True)
class TokenRequest:
    """What to generate for one picture.

    Attributes:
        prompt: from :func:`arimage.autoregressive.layout.build_prompt`.
        seed: of the picture's own random stream.
        fixed: codes of the target grid (h, w) that are given, ``FREE`` (-1) where they are to be generated.
        unconditional: the prompt without its text, for guidance; with the same grids.
    """

    prompt: Prompt
    seed: int
    fixed: Tensor | None = None
    unconditional: Prompt | None = None

    def __post_init__(self) -> None:
        if self.fixed is not None and tuple(self.fixed.shape) != tuple(self.prompt.target):
            raise ValueError(f"fixed codes have shape {tuple(self.fixed.shape)}, the target is {self.prompt.target}")
        if self.unconditional is not None and self.unconditional.grids != self.prompt.grids:
            raise ValueError("the unconditional prompt must ask for the same grids")


@dataclass(frozen=True)
class TokenProgress:
    """Where a batch stands: tokens generated and wanted, over all its pictures, and the codes so far."""

    done: int
    total: int
    _codes: Tensor
    _requests: Sequence[TokenRequest]
    _position: int

    def finished_grids(self, picture: int) -> list[Tensor]:
        """The whole grids that picture ``picture`` has by now (the preview comes first)."""
        grids, start = [], 0
        for grid in self._requests[picture].prompt.grids:
            if start + grid.cells <= self._position:
                grids.append(self._codes[picture, start : start + grid.cells].cpu().view(tuple(grid)))
            start += grid.cells
        return grids


def generate_grids(
    model: AutoregressiveModel,
    requests: Sequence[TokenRequest],
    sampling: TokenSampling,
    codebook_size: int,
    on_progress: Callable[[TokenProgress], None] | None = None,
) -> list[list[Tensor]]:
    """Code grids of every request, in the order of its prompt's grids.

    Args:
        codebook_size: codes are ``0 .. codebook_size - 1``.
        on_progress: called after every pass, that is a token of each picture or some of a single one; what it raises
            ends the generation.

    Returns:
        For each request its grids, each (h, w) int64 on the CPU.

    Raises:
        ValueError: guidance is asked for and a request has no unconditional prompt.
    """
    if not requests:
        return []
    guided = sampling.guidance != 1
    if guided and any(request.unconditional is None for request in requests):
        raise ValueError("token guidance needs every request's unconditional prompt")
    with torch.no_grad():
        return _Batch(model, requests, sampling, codebook_size, guided).run(on_progress)


class _Batch:
    """The rows of one batch: a row for each picture, then with guidance its unconditional twin."""

    def __init__(
        self,
        model: AutoregressiveModel,
        requests: Sequence[TokenRequest],
        sampling: TokenSampling,
        codebook_size: int,
        guided: bool,
    ) -> None:
        self.model, self.requests, self.sampling = model, requests, sampling
        self.codebook_size, self.guided = codebook_size, guided
        self.prompts = [request.prompt for request in requests]
        if guided:
            self.prompts += [request.unconditional for request in requests if request.unconditional is not None]
        self.counts = torch.tensor([request.prompt.new_tokens for request in requests])
        self.steps = int(self.counts.max())
        device = model.device
        self.uniform = _stack([_uniform(request) for request in requests], self.steps).to(device)
        self.fixed = _stack([_fixed(request) for request in requests], self.steps, fill=FREE).to(device)
        self.any_fixed = (self.fixed >= 0).any(dim=0).tolist()
        self.codes = torch.zeros(len(requests), self.steps, dtype=torch.long, device=device)
        self.total = int(self.counts.sum())
        self.ahead = AHEAD if device.type == "cpu" and len(requests) == 1 else 1

    def run(self, on_progress: Callable[[TokenProgress], None] | None) -> list[list[Tensor]]:
        longest = max(len(prompt.tokens) for prompt in self.prompts)
        model = self.model
        cache = KeyValueCache(model.config, len(self.prompts), longest + self.steps, model.device, model.dtype)
        hidden = self._prefill(cache, longest)
        if self.ahead > 1:
            self._run_ahead(cache, hidden, on_progress)
        else:
            self._run_together(cache, hidden, on_progress)
        return [_cut(codes, request.prompt.grids) for codes, request in zip(self.codes.cpu(), self.requests)]

    def _run_together(
        self, cache: KeyValueCache, hidden: Tensor, on_progress: Callable[[TokenProgress], None] | None
    ) -> None:
        """One token of every picture at a time."""
        cos, sin = self._rotations()
        pictures = torch.arange(len(self.requests))
        finishing = set(self.counts.tolist())
        for position in range(self.steps):
            if position in finishing:
                live = pictures[self.counts[pictures] > position]
                rows = torch.isin(pictures, live).nonzero()[:, 0]
                rows = torch.cat([rows, rows + len(pictures)]) if self.guided else rows
                cache.keep(rows.to(self.model.device))
                cos, sin, hidden = cos[rows], sin[rows], hidden[rows]
                pictures = live
            tokens = self._draw(self._scores(hidden), pictures, slice(position, position + 1))[:, 0]
            self.codes[pictures, position] = tokens
            self._report(position + 1, on_progress)
            if position + 1 < self.steps:
                tokens = tokens.repeat(2) if self.guided else tokens
                by = cos[:, position : position + 1], sin[:, position : position + 1]
                hidden = self.model.step(tokens[:, None], by, cache)
                cache.advance()

    def _run_ahead(
        self, cache: KeyValueCache, hidden: Tensor, on_progress: Callable[[TokenProgress], None] | None
    ) -> None:
        """The tokens of one picture, several in a pass: guessed ahead, and kept as far as the guesses come true.

        A token is a function of what is before it and of its own random number, so a token drawn behind right guesses
        is the very token that would have been drawn alone (Jacobi decoding, Song et al. 2021, arXiv:2002.03629, under
        fixed noise). What is drawn behind a wrong guess is the next pass's guess. Where hardly one in a pass comes
        true, fewer are made.
        """
        picture = torch.zeros(1, dtype=torch.long)
        cos, sin = self._rotations()
        width = self.requests[0].prompt.target.width
        codes = self.codes[0]
        codes[:1] = self._draw(self._scores(hidden), picture, slice(0, 1))[0]
        self._report(1, on_progress)
        known, guessed, usual = 1, 1, float(self.ahead)
        while known < self.steps:
            count = min(self.ahead if usual >= WORTH_IT else FEW_AHEAD, self.steps - known)
            for place in range(guessed, known + count - 1):
                codes[place] = codes[place - width if place >= width else place - 1]
            places, first = slice(known, known + count), known - 1
            codes[places] = self._with_given(codes[None, places], picture, places)[0]
            by = cos[:, first : first + count], sin[:, first : first + count]
            fed = codes[None, first : first + count].expand(len(self.prompts), -1)
            hidden = self.model.step(fed, by, cache)
            drawn = self._draw(self._scores(hidden), picture, places)[0]
            right = (drawn == codes[places]).tolist()[: count - 1]
            kept = right.index(False) + 1 if False in right else count
            codes[places] = drawn
            cache.advance(kept)
            usual += (kept - usual) / FEW_AHEAD
            guessed, known = max(guessed, known + count), known + kept
            self._report(known, on_progress)

    def _report(self, position: int, on_progress: Callable[[TokenProgress], None] | None) -> None:
        if on_progress is not None:
            done = int(self.counts.clamp(max=position).sum())
            on_progress(TokenProgress(done, self.total, self.codes, self.requests, position))

    def _prefill(self, cache: KeyValueCache, longest: int) -> Tensor:
        device = self.model.device
        tokens = _stack([prompt.tokens for prompt in self.prompts], longest).to(device)
        positions = _stack([prompt.positions.T for prompt in self.prompts], longest).permute(2, 0, 1).to(device)
        lengths = torch.tensor([len(prompt.tokens) for prompt in self.prompts])
        return self.model.prefill(tokens, positions, lengths, cache)

    def _rotations(self) -> Rotation:
        positions = [generated_positions(prompt).T for prompt in self.prompts]
        return self.model.step_rotation(_stack(positions, self.steps + 1).permute(2, 0, 1))

    def _scores(self, hidden: Tensor) -> Tensor:
        """Of (rows, hidden) or (rows, S, hidden), guided: (pictures, S, codes)."""
        scores = self.model.scores(hidden, self.codebook_size).float()
        if self.guided:
            conditional, unconditional = scores.chunk(2)
            scores = unconditional + self.sampling.guidance * (conditional - unconditional)
        return scores[:, None] if scores.ndim == 2 else scores

    def _draw(self, scores: Tensor, pictures: Tensor, places: slice) -> Tensor:
        """The tokens of some places, (pictures, S)."""
        tokens = draw(scores.flatten(0, 1), self.uniform[pictures, places].flatten(), self.sampling)
        return self._with_given(tokens.view(scores.shape[:2]), pictures, places)

    def _with_given(self, tokens: Tensor, pictures: Tensor, places: slice) -> Tensor:
        """Tokens (pictures, S) of some places, or what is given in their stead."""
        if not any(self.any_fixed[places]):
            return tokens
        given = self.fixed[pictures, places]
        return torch.where(given >= 0, given, tokens)


def _uniform(request: TokenRequest) -> Tensor:
    stream = torch.Generator().manual_seed(request.seed)
    return torch.rand(request.prompt.new_tokens, generator=stream)


def _fixed(request: TokenRequest) -> Tensor:
    fixed = torch.full((request.prompt.new_tokens,), FREE)
    if request.fixed is not None:
        fixed[-request.prompt.target.cells :] = request.fixed.reshape(-1)
    return fixed


def _stack(rows: Sequence[Tensor], length: int, fill: int = 0) -> Tensor:
    """Rows padded on the right to one length: (B, length, ...)."""
    stacked = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), fill)
    for row, values in zip(stacked, rows):
        row[: len(values)] = values
    return stacked


def _cut(codes: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    cells = [grid.cells for grid in grids]
    return [part.view(tuple(grid)).clone() for part, grid in zip(codes[: sum(cells)].split(cells), grids)]
