"""What is trained: networks, how examples become tensors, the loss, and what goes back into the checkpoint."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from arimage.checkpoints.components import Component
from arimage.checkpoints.model_config import ModelConfig
from arimage.training.config import TrainConfig
from arimage.training.examples import Example

Losses = dict[str, Tensor]

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MANTISSA = 2**24 - 1


class Objective(nn.Module, ABC):
    """Base of everything that is trained.

    Registered sub-modules are trained (or frozen by pattern); helpers that only serve, like the frozen tokenizer,
    are kept in :attr:`helpers`, which is no sub-module. :attr:`batches` are those of the run, if there is one.
    :attr:`fixed` are patterns of parameters that never learn, :attr:`sharded` says that weights are spread over
    processes. :attr:`measured_before_learning` asks for an evaluation before the first step, and
    :attr:`loss_may_leap` says that the loss has no scale, so that only one that is not finite is bad. Networks are
    handed over by :func:`arimage.training.objectives.build_objective`.

    Args:
        dimensions: of the checkpoint that the networks come from.
        config: the stage.
        device: where the helpers live.
    """

    def __init__(self, dimensions: ModelConfig, config: TrainConfig, device: torch.device) -> None:
        super().__init__()
        self.dimensions, self.config, self.device = dimensions, config, device
        self.helpers: dict[str, Any] = {}
        self.batches: Any = None
        self.fixed: tuple[str, ...] = ()
        self.sharded = False
        self.measured_before_learning = False
        self.loss_may_leap = False

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Tensors of a batch, on the CPU; runs in worker processes and touches no network."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> Losses:
        """``loss``, the mean over the batch's samples, and its parts, detached."""

    @abstractmethod
    def states(self, weights: Mapping[str, Tensor]) -> dict[Component, dict[str, Tensor]]:
        """The checkpoint's tensors that training changed, from the objective's own ``state_dict``."""

    def model_config(self) -> ModelConfig:
        """The configuration of the checkpoint that is written."""
        return self.dimensions

    def sharded_modules(self) -> list[nn.Module]:
        """The modules whose weights are gathered as one, where weights are spread over processes; outer ones first."""
        return []

    def checkpointed_networks(self) -> list[Any]:
        """The networks that can compute activations anew in the backward pass (``gradient_checkpointing``)."""
        return []

    def compiled_modules(self) -> list[nn.Module]:
        """The modules that are compiled one by one where the stage says ``compile``."""
        return []

    def prepare(self, batches: Any) -> None:
        """Called once before the first step of a run, not when one is resumed; ``batches`` gives examples."""
        return

    def finish(self, batches: Any) -> dict[str, float]:
        """Called after the last step with the weights that are exported; what it measured is reported."""
        return {}

    def after_step(self) -> None:
        """Called after each optimiser step."""
        return

    def live_networks(self) -> dict[str, Any]:
        """The networks in training, under the names that :class:`arimage.inference.networks.Networks` knows."""
        return {}

    def metadata(self) -> dict[str, Any]:
        """What a saved state must remember besides weights (JSON)."""
        return {}

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Take up what :meth:`metadata` gave."""
        return

    def report(self, batches: Any, count: int) -> dict[str, float]:
        """More figures of an evaluation than its losses."""
        return {}

    def watch(self, step: int, figures: Mapping[str, float]) -> None:
        """Called with the figures of each evaluation, the same in all processes; what it raises ends the run."""
        return

    def close(self) -> None:
        """Called when the run ends, however it ends."""
        return

    def pictures(self, examples: Sequence[Example]) -> list[tuple[str, Image.Image]]:
        """Pictures that show how far training is, for objectives that have no use for prompts."""
        return []


def noise_of(seeds: Sequence[int], shape: Sequence[int], purpose: int = 0, device: Any = "cpu") -> Tensor:
    """Unit noise, a stream for each sample: (B, *shape) in fp32. It does not depend on the sample's neighbours, nor but
    for rounding on the device, on which a whole batch is drawn at once (Box-Muller)."""
    count = math.prod(shape)
    bits = hashed(seeds, (count + 1) // 2, purpose, device)
    radius = ((((bits >> 40) & MANTISSA) + 1).float() / (MANTISSA + 1)).log_().mul_(-2).sqrt_()
    angle = (bits & MANTISSA).float() * (2 * math.pi / (MANTISSA + 1))
    noise = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return noise[:, :count].reshape(len(seeds), *shape)


def uniform_of(seeds: Sequence[int], count: int, purpose: int, device: Any = "cpu") -> Tensor:
    """Numbers in [0, 1), a stream for each sample, the same on every device: (B, count) in fp32."""
    return ((hashed(seeds, count, purpose, device) >> 40) & MANTISSA).float() / (MANTISSA + 1)


def hashed(seeds: Sequence[int], count: int, purpose: int, device: Any) -> Tensor:
    """Random bits, a stream for each sample: (B, count) int64, by SplitMix64 (Steele et al. 2014)."""
    begin = [(seed * 31 + purpose * 1_000_003 + 2**63) % 2**64 - 2**63 for seed in seeds]
    keys = _mixed(torch.tensor(begin, dtype=torch.int64).to(device))
    return _mixed(keys[:, None] + torch.arange(1, count + 1, device=device) * GOLDEN)


def _mixed(values: Tensor) -> Tensor:
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        values = (values ^ _shifted(values, shift)) * factor
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, as if int64 had no sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def generator(seed: int, purpose: int) -> torch.Generator:
    """A random stream of one sample for one purpose."""
    return torch.Generator().manual_seed((seed * 31 + purpose * 1_000_003) % 2**63)


def under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries that begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
