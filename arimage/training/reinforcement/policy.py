"""The arithmetic of learning from rewards: advantages, the clipped objective, distances to the starting model."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_SPREAD = 1e-6


class Advantages(NamedTuple):
    """Of N pictures in groups: how much better each is than its group, and whether the group tells anything.

    Attributes:
        values: (N,) reward minus the mean of its group, over its deviation if asked for; 0 in groups without spread.
        kept: (N,) bool, False in those groups.
    """

    values: Tensor
    kept: Tensor


def advantages(rewards: Tensor, group: int, scale: bool = True) -> Advantages:
    """Group-relative advantages (GRPO; Shao et al. 2024, arXiv:2402.03300).

    Args:
        rewards: (N,), the pictures of a group beside each other.
        group: pictures of a group; divides N.
        scale: divide by the group's deviation; without, groups whose pictures hardly differ hardly count (Liu et al.
            2025, arXiv:2503.20783).
    """
    rows = rewards.double().view(-1, group)
    deviation = rows.std(dim=1, keepdim=True, correction=0)
    kept = deviation > LEAST_SPREAD
    better = rows - rows.mean(dim=1, keepdim=True)
    values = torch.where(kept, better / deviation.clamp(min=LEAST_SPREAD) if scale else better, 0.0)
    return Advantages(values.float().flatten(), kept.expand_as(rows).flatten())


def clipped_loss(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's pessimistic loss (Schulman et al. 2017, arXiv:1707.06347), elementwise.

    Args:
        log_ratio: log-probability now minus log-probability when the picture was made.
        advantage: of the picture, broadcast.
        clip: how far the ratio counts beyond 1.
    """
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def ratio_figures(log_ratio: Tensor, clip: float) -> dict[str, Tensor]:
    """For the log: how far the ratios are from 1 at most, and the share of them that ``clip`` may cut off."""
    distance = (log_ratio.detach().exp() - 1).abs()
    return {"ratio": distance.max(), "clipped": (distance > clip).float().mean()}


def k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """The estimate k3 of the KL divergence from the starting model, elementwise: never negative, without bias
    (Schulman 2020, http://joschu.net/blog/kl-approx.html)."""
    difference = reference - log_prob
    return difference.exp() - difference - 1


def gaussian_kl(mean: Tensor, reference: Tensor, deviation: Tensor) -> Tensor:
    """KL divergence of Gaussians (B, ...) of one deviation, averaged over all but the first dimension: (B,)."""
    return (((mean - reference) / deviation) ** 2 / 2).flatten(1).mean(dim=1)


def preference_loss(margin: Tensor) -> Tensor:
    """DPO's loss of the implicit reward's margin between chosen and rejected (Rafailov et al. 2023,
    arXiv:2305.18290)."""
    return -F.logsigmoid(margin)
