"""The optimiser and its rate: AdamW, and Muon for the matrices and convolution kernels that a stage names.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) turns the momentum of a matrix into the nearest
orthogonal one before it is subtracted, so that all directions of a layer learn at one rate; a kernel is the matrix of
its output channels by everything that each reads. Updates are scaled to the size of AdamW's (Liu et al. 2025,
arXiv:2502.16982), so one learning rate serves both. Its steps multiply in bf16 where the device does so natively, and
in fp32 in a stage of ``precision: "no"``, so that such a stage learns the same on every kind of processor.
"""

import fnmatch
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from arimage.errors import UsageError
from arimage.training.config import TrainConfig
from arimage.training.precision import multiplies_bf16

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
ADAM_SIZE = 0.2


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a stage over named parameters; biases and norms do not decay.

    Raises:
        UsageError: a pattern of ``muon`` matches no matrix that learns.
    """
    named = list(named)
    matrices = {name for name, parameter in named if parameter.ndim in (2, 4)}
    chosen = set()
    for pattern in config.muon:
        found = fnmatch.filter(matrices, pattern)
        if not found:
            raise UsageError(f"muon: the pattern {pattern!r} matches no matrix that learns; there is {min(matrices)!r}")
        chosen |= set(found)
    parts: list[tuple[list[nn.Parameter], float, bool]] = [
        ([p for name, p in named if name in chosen], config.weight_decay, True),
        ([p for name, p in named if name not in chosen and p.ndim > 1], config.weight_decay, False),
        ([p for _, p in named if p.ndim <= 1], 0.0, False),
    ]
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": decay, **({"muon": muon} if chosen else {})}
        for params, decay, muon in parts
        if params
    ]
    if not chosen:
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    exact = torch.float32 if config.precision == "no" else None
    return MuonAdamW(groups, lr=config.learning_rate, betas=config.betas, steps_in=exact)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step of the schedule (0-based): linear warm-up, then its fall."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    falling = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * falling)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for groups with ``muon``, AdamW for the others.

    Args:
        steps_in: see :func:`orthogonal`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        steps_in: torch.dtype | None = None,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "muon": False})
        self.steps_in = steps_in

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            updates = self._muon(learning) if group["muon"] else (self._adam(one, group) for one in learning)
            for parameter, update in zip(learning, updates):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"])
        return loss

    def _muon(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Updates; matrices of one shape are made orthogonal together, which spares a GPU thousands of small calls."""
        ahead: list[Tensor] = []
        alike: dict[Any, list[int]] = {}
        for index, parameter in enumerate(parameters):
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - MOMENTUM)
            ahead.append(gradient.lerp(state["momentum"], MOMENTUM).flatten(1))
            together = parameter.is_cuda and type(gradient) is Tensor
            alike.setdefault((ahead[-1].shape, gradient.dtype) if together else index, []).append(index)
        updates = list(ahead)
        for places in alike.values():
            matrices = [ahead[place] for place in places]
            if len(places) == 1:
                made = [orthogonal(matrices[0], self.steps_in)]
            else:
                made = list(orthogonal(torch.stack(matrices), self.steps_in))
            for place, matrix in zip(places, made):
                size = ADAM_SIZE * max(matrix.shape) ** 0.5
                updates[place] = matrix.to(parameters[place].dtype).view_as(parameters[place]) * size
        return updates

    def _adam(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first, second = group["betas"]
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        step = float(state["step"])
        size = (state["square"] / (1 - second**step)).sqrt_().add_(group["eps"])
        return (state["mean"] / (1 - first**step)).div_(size)


def orthogonal(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Roughly the nearest (semi-)orthogonal matrix, by five Newton-Schulz steps; singular values end near 1.

    Args:
        matrix: (..., rows, columns).
        dtype: of the steps; by default bf16 where the device multiplies it natively, else fp32.
    """
    if dtype is None:
        dtype = torch.bfloat16 if multiplies_bf16(matrix.device) else torch.float32
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    value = (matrix.mT if tall else matrix).to(dtype)
    value = value / (value.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = value @ value.mT
        value = a * value + (b * square + c * (square @ square)) @ value
    return value.mT if tall else value
