"""Generating the code grids of pictures, several in one batch.

Prompts, references and grids may differ from picture to picture. A picture's tokens depend on its own request
alone: each has its own random stream, and rows of a batch do not see each other. Inside a grid only codes can be
drawn; the image end is not drawn at all, since it can only stand after the last cell.

CPU: speculative decoding; several tokens are drafted and verified in one pass, since a few rows cost little more than
one there. GPU: one token of each picture in a pass, replayed as a CUDA graph where the model is compiled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arimage.autoregressive.cache import KeyValueCache
from arimage.autoregressive.layout import Grid, Prompt, generated_positions
from arimage.autoregressive.model import AutoregressiveModel, Rotation
from arimage.autoregressive.sampling import TokenSampling, draw
from backends.cuda_graphs import CudaGraphStep

UNCONSTRAINED = -1
AHEAD, FEW_AHEAD, WORTH_IT = 16, 4, 2.0
AHEAD_ROWS = 128
TOKEN_BATCH = 16


@dataclass(frozen=True)
class TokenRequest:
    """What to generate for one picture.

    Attributes:
        prompt: from :func:`arimage.autoregressive.layout.build_prompt`.
        seed: of the picture's own random stream.
        fixed: codes of the target grid (h, w) that are given, ``UNCONSTRAINED`` (-1) where they are to be generated.
        unconditional: the prompt without its text and references, for guidance; with the same grids. (References alone
            ask for copies of themselves: guided away from those, an edit would lose what it should keep.)
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
    """Where a batch stands: tokens generated and wanted, over all its pictures."""

    done: int
    total: int


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
        on_progress: called after every pass, that is some tokens of each picture; what it raises ends the generation.

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
        self.total = int(self.counts.sum())
        device = model.device
        self.ahead = AHEAD if device.type == "cpu" and not model.fixed_steps else 1
        self.room = int(self.counts.max()) + self.ahead
        self.offsets = torch.arange(self.ahead, device=device)
        self.uniform = _stack([_uniform(request) for request in requests], self.room).to(device)
        self.fixed = _stack([_fixed(request) for request in requests], self.room, fill=UNCONSTRAINED).to(device)
        self.any_fixed = bool((self.fixed >= 0).any())
        self.grids = _stack([_grids_of_places(request.prompt) for request in requests], self.room, fill=1).to(device)
        self.codes = torch.zeros(len(requests), self.room, dtype=torch.long, device=device)

    def run(self, on_progress: Callable[[TokenProgress], None] | None) -> list[list[Tensor]]:
        if self.model.fixed_steps:
            self._run_recorded(on_progress)
        else:
            self._speculate(on_progress)
        return [_cut(codes, request.prompt.grids) for codes, request in zip(self.codes.cpu(), self.requests)]

    def _speculate(self, on_progress: Callable[[TokenProgress], None] | None) -> None:
        """Some tokens of every picture in a pass: guessed ahead, and kept as far as the guesses come true.

        A token is a function of what is before it and of its own random number, so a token drawn behind right guesses
        is the very token that would have been drawn alone (Jacobi decoding, Song et al. 2021, arXiv:2002.03629, under
        fixed noise). What is drawn behind a wrong guess is the next pass's guess. Without guesses nothing waits for
        the device.
        """
        model, device = self.model, self.model.device
        cache, hidden = self._prefill()
        cos, sin = self._rotations()
        live = torch.arange(len(self.requests))
        known = torch.ones_like(live)
        pictures, first = live.to(device)[:, None], known.to(device)[:, None]
        guessed, usual = first, float(self.ahead)
        self.codes[pictures, first - 1] = self._draw(self._scores(hidden), pictures, first - 1)
        self._report(known, on_progress)
        while (unfinished := known[live] < self.counts[live]).any():
            if not unfinished.all():
                live, stay = live[unfinished], unfinished.nonzero()[:, 0].to(device)
                cache.keep(torch.cat([stay, stay + len(pictures)]) if self.guided else stay)
                pictures, first, guessed = pictures[stay], first[stay], guessed[stay]
            count = self._accepted_length(len(live), usual, int((self.counts - known)[live].max()))
            places = first + self.offsets[:count]
            self._draft(pictures, places[:, :-1], guessed)
            rows, at = self._rows(pictures, len(self.requests)), self._rows(places - 1)
            fed = self._rows(self.codes[pictures, places - 1])
            hidden = model.step(fed, (cos[rows, at], sin[rows, at]), cache)
            drawn = self._draw(self._scores(hidden), pictures, places)
            right = drawn[:, :-1] == self.codes[pictures, places[:, :-1]]
            kept = 1 + right.cumprod(dim=1).sum(dim=1, keepdim=True)
            self.codes[pictures, places] = drawn
            guessed, first = torch.maximum(guessed, first + count), first + kept
            if count == 1:
                cache.advance()
                known[live] += 1
            else:
                settled = kept.cpu()
                cache.advance(self._rows(settled)[:, 0])
                known[live] += settled[:, 0]
                usual += (float(settled.float().mean()) - usual) / FEW_AHEAD
            self._report(known, on_progress)

    def _run_recorded(self, on_progress: Callable[[TokenProgress], None] | None) -> None:
        """One token of every picture in a pass, to the end of the longest, by one recorded work."""
        cache, hidden = self._prefill()
        cos, sin = self._rotations()
        pictures = torch.arange(len(self.requests), device=self.model.device)[:, None]
        place = torch.zeros_like(pictures)
        self.codes[pictures, place] = self._draw(self._scores(hidden), pictures, place)

        def next_token() -> None:
            fed = self._rows(self.codes[pictures, place])
            at = self._rows(pictures, len(self.requests)), self._rows(place)
            hidden = self.model.static_step(fed, (cos[at], sin[at]), cache)
            place.add_(1)
            self.codes[pictures, place] = self._draw(self._scores(hidden), pictures, place)
            cache.lengths.add_(1)

        step = CudaGraphStep(next_token, self.model.device)
        for position in range(1, int(self.counts.max()) + 1):
            if position > 1:
                step()
            self._report(torch.full_like(self.counts, position), on_progress)

    def _rows(self, by_picture: Tensor, to_twin: int = 0) -> Tensor:
        """What (pictures, S) is for all rows: (rows, S); ``to_twin`` is added for unconditional ones."""
        return torch.cat([by_picture, by_picture + to_twin]) if self.guided else by_picture

    def _accepted_length(self, pictures: int, usual: float, left: int) -> int:
        """How many tokens of each picture a pass takes: fewer of many pictures, and where few guesses come true."""
        rows = 2 * pictures if self.guided else pictures
        most = max(1, min(self.ahead, AHEAD_ROWS // rows, left))
        return most if usual >= WORTH_IT else min(most, FEW_AHEAD)

    def _draft(self, pictures: Tensor, places: Tensor, guessed: Tensor) -> None:
        """Write what is given, or else the nearest code above, or the last one, at places beyond ``guessed``."""
        if places.shape[1] == 0:
            return
        start, width = self.grids[pictures, places].unbind(dim=-1)
        above = (places - guessed + width).clamp(min=0) // width * width
        source = torch.where(places - above >= start, places - above, guessed - 1)
        self.codes[pictures, places] = self._with_given(self.codes[pictures, source], pictures, places)

    def _report(self, known: Tensor, on_progress: Callable[[TokenProgress], None] | None) -> None:
        if on_progress is not None:
            known = torch.minimum(known, self.counts)
            on_progress(TokenProgress(int(known.sum()), self.total))

    def _prefill(self) -> tuple[KeyValueCache, Tensor]:
        """A cache that holds the prompts and has room for what follows, and the hidden state of their last tokens."""
        longest = max(len(prompt.tokens) for prompt in self.prompts)
        model = self.model
        cache = KeyValueCache(model.config, len(self.prompts), longest + self.room, model.device, model.dtype)
        tokens = _stack([prompt.tokens for prompt in self.prompts], longest).to(model.device)
        positions = _stack([prompt.positions.T for prompt in self.prompts], longest).permute(2, 0, 1).to(model.device)
        lengths = torch.tensor([len(prompt.tokens) for prompt in self.prompts])
        return cache, model.prefill(tokens, positions, lengths, cache)

    def _rotations(self) -> Rotation:
        positions = [generated_positions(prompt).T for prompt in self.prompts]
        return self.model.step_rotation(_stack(positions, self.room).permute(2, 0, 1))

    def _scores(self, hidden: Tensor) -> Tensor:
        """Of (rows, hidden) or (rows, S, hidden), guided: (pictures, S, codes)."""
        scores = self.model.scores(hidden, self.codebook_size).float()
        if self.guided:
            conditional, unconditional = scores.chunk(2)
            scores = unconditional + self.sampling.guidance * (conditional - unconditional)
        return scores[:, None] if scores.ndim == 2 else scores

    def _draw(self, scores: Tensor, pictures: Tensor, places: Tensor) -> Tensor:
        """The tokens of some places, (pictures, S)."""
        tokens = draw(scores.flatten(0, 1), self.uniform[pictures, places].flatten(), self.sampling)
        return self._with_given(tokens.view(scores.shape[:2]), pictures, places)

    def _with_given(self, tokens: Tensor, pictures: Tensor, places: Tensor) -> Tensor:
        """Tokens (pictures, S) of some places, or what is given in their stead."""
        if not self.any_fixed:
            return tokens
        given = self.fixed[pictures, places]
        return torch.where(given >= 0, given, tokens)


def _uniform(request: TokenRequest) -> Tensor:
    stream = torch.Generator().manual_seed(request.seed)
    return torch.rand(request.prompt.new_tokens, generator=stream)


def _fixed(request: TokenRequest) -> Tensor:
    fixed = torch.full((request.prompt.new_tokens,), UNCONSTRAINED)
    if request.fixed is not None:
        fixed[-request.prompt.target.cells :] = request.fixed.reshape(-1)
    return fixed


def _grids_of_places(prompt: Prompt) -> Tensor:
    """For every token to come where its grid starts and how wide that is: (new_tokens, 2)."""
    rows, start = [], 0
    for grid in prompt.grids:
        rows += [[start, grid.width]] * grid.cells
        start += grid.cells
    return torch.tensor(rows)


def _stack(rows: Sequence[Tensor], length: int, fill: int = 0) -> Tensor:
    """Rows padded on the right to one length: (B, length, ...)."""
    stacked = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), fill)
    for row, values in zip(stacked, rows):
        row[: len(values)] = values
    return stacked


def _cut(codes: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    cells = [grid.cells for grid in grids]
    return [part.view(tuple(grid)).clone() for part, grid in zip(codes[: sum(cells)].split(cells), grids)]
