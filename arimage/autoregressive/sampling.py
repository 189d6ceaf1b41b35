"""Choosing a visual token from its scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 128


@dataclass(frozen=True)
class TokenSampling:
    """How tokens are drawn. The defaults are the format's; greedy decoding tends to flat pictures.

    Attributes:
        temperature: >= 0; 0 takes the most likely token.
        top_p: in (0, 1]; the smallest set of most likely tokens that holds this probability (nucleus sampling).
        top_k: >= 0; only the k most likely tokens; 0 for all.
        min_p: in [0, 1); only tokens at least this share as likely as the most likely one.
        guidance: >= 0; classifier-free guidance of the tokens, 1 for none.
    """

    temperature: float = 0.9
    top_p: float = 0.75
    top_k: int = 0
    min_p: float = 0.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "temperature must be at least 0": self.temperature >= 0,
            "top_p must lie in (0, 1]": 0 < self.top_p <= 1,
            "top_k must be a whole number of at least 0": self.top_k >= 0 and self.top_k == int(self.top_k),
            "min_p must lie in [0, 1)": 0 <= self.min_p < 1,
            "guidance must be at least 0": self.guidance >= 0,
        }
        for rule, holds in checks.items():
            if not holds:
                raise ValueError(f"token sampling: {rule}, got {getattr(self, rule.split()[0])}")


def draw(scores: Tensor, uniform: Tensor, sampling: TokenSampling) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution at ``uniform``.

    The filters apply in the usual order: temperature, top-k, top-p, min-p. Nothing here waits for the device.

    Args:
        scores: (B, V) logits.
        uniform: (B,) in [0, 1).

    Returns:
        (B,) indices in [0, V).
    """
    if sampling.temperature == 0:
        return scores.argmax(dim=-1)
    scores = scores.float() / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        ranked, order = scores.topk(sampling.top_k, dim=-1)
        likelihood = ranked.softmax(dim=-1)
    else:
        likelihood, order = _ranked(scores, sampling.top_p)
    kept = torch.ones_like(likelihood, dtype=torch.bool)
    if sampling.top_p < 1:
        kept &= likelihood.cumsum(dim=-1) - likelihood < sampling.top_p
    if sampling.min_p > 0:
        kept &= likelihood >= sampling.min_p * likelihood[:, :1]
    cumulative = (likelihood * kept).cumsum(dim=-1)
    place = torch.searchsorted(cumulative, uniform[:, None].to(cumulative) * cumulative[:, -1:], right=True)
    place = torch.minimum(place, kept.sum(dim=-1, keepdim=True) - 1)
    return order.gather(1, place)[:, 0]


def _ranked(scores: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities from the highest down, and their indices: all of them, or as many as ``top_p`` surely needs.

    Sorting thousands of scores for a handful of candidates is a tenth of a small model's step on a CPU; a GPU would
    have to wait for the answer whether the candidates are enough.
    """
    if scores.device.type == "cpu" and top_p < 1 and scores.shape[-1] > CANDIDATES:
        likelihood, order = scores.softmax(dim=-1).topk(CANDIDATES, dim=-1)
        if bool((likelihood.sum(dim=-1) >= top_p).all()):
            return likelihood, order
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    return ranked.softmax(dim=-1), order
