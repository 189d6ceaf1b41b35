"""The model that a run starts from, which learning from rewards or preferences must not leave too far behind."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from arimage.training.config import TrainConfig
from arimage.training.precision import computed_in

Network = TypeVar("Network", bound=nn.Module)


class StartingModel:
    """A network as the stage's start has it.

    Where adapters learn it is the network itself with the adapters switched off; else a frozen copy.

    Args:
        network: before anything is learnt.
        config: of the stage; what it computes in is what the copy is kept in.
        device: where the copy lives.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self._copy: nn.Module | None = None
        if config.lora is None:
            dtype = torch.bfloat16 if computed_in(config.precision, device) == "bf16" else torch.float32
            self._copy = copy.deepcopy(network).requires_grad_(False).eval().to(device, dtype)

    @contextmanager
    def of(self, network: Network) -> Iterator[Network]:
        """The starting model of a network that has learnt meanwhile."""
        if self._copy is not None:
            yield self._copy  # type: ignore[misc]
            return
        with without_adapters(network):
            yield network


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """Switch the adapters of a network off, by their scale, so that what learns stays what learns."""
    found: list[Any] = [getattr(module, "scaling", None) for module in network.modules()]
    scales: list[dict[str, float]] = [scale for scale in found if isinstance(scale, dict)]
    kept = [dict(scale) for scale in scales]
    for scale in scales:
        scale.update(dict.fromkeys(scale, 0.0))
    try:
        yield
    finally:
        for scale, values in zip(scales, kept):
            scale.update(values)


def with_fixed_glyphs(config: TrainConfig) -> TrainConfig:
    """A stage of the decoder whose glyph encoder stays as it is, as the starting model's does."""
    return config.model_copy(update={"decoder": config.decoder.model_copy(update={"train_glyph_encoder": False})})
