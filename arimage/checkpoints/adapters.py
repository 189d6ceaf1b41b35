"""Adapters of low rank (LoRA, Hu et al. 2021, arXiv:2106.09685) in memory, and how they are merged into weights."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

ADAPTED = ("autoregressive", "transformer")


@dataclass(frozen=True)
class LowRank:
    """What a linear layer of weight (out, in), or an embedding as (size, words), gains: ``scale * up @ down``.

    Attributes:
        down: (rank, in).
        up: (out, rank).
        scale: of their product.
        bias: (out,), added ``scale`` times to the layer's own, or None.
        magnitude: DoRA's new lengths of the rows, (out,) or (out, 1), or of the columns, (1, in); None keeps them.
        embedding: the layer is one, whose weight lies the other way round.
    """

    down: Tensor
    up: Tensor
    scale: float
    bias: Tensor | None = None
    magnitude: Tensor | None = None
    embedding: bool = False

    def changes(self) -> bool:
        """Whether there is anything but zeros in it."""
        product = bool(self.down.any()) and bool(self.up.any())
        return product or self.magnitude is not None or (self.bias is not None and bool(self.bias.any()))

    def merged(self, weight: Tensor) -> Tensor:
        """The weight with all of the change, in fp32."""
        matrix = weight.float().T if self.embedding else weight.float()
        matrix = matrix + self.scale * (self.up.float().to(matrix.device) @ self.down.float().to(matrix.device))
        if self.magnitude is not None:
            wanted = self.magnitude.float().to(matrix.device)
            by_column = wanted.shape == (1, matrix.shape[1])
            lengths = torch.linalg.vector_norm(matrix, dim=0 if by_column else 1, keepdim=True)
            matrix = matrix * (wanted.reshape(lengths.shape) / lengths)
        return matrix.T if self.embedding else matrix


@dataclass(frozen=True)
class Adapters:
    """One file of adapters.

    Attributes:
        path: the file.
        sha256: of the file and its settings (hex).
        strength: how much of the change is applied: 1 is what was trained.
        layers: by the name of the layer.
        values: what whole parameters become, by their names.
    """

    path: Path
    sha256: str
    strength: float = 1.0
    layers: dict[str, LowRank] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """What tells these adapters at this strength from all others."""
        return self.sha256 if self.strength == 1 else f"{self.sha256}:{self.strength!r}"


@torch.no_grad()
def merge_adapters(network: nn.Module, adapters: Iterable[Adapters]) -> None:
    """Apply those adapters that are a network's to its weights, one after the other, in fp32."""
    parameters = dict(network.named_parameters())
    for one in adapters:
        changed: dict[str, Tensor] = {}
        for name, value in one.values.items():
            if name in parameters:
                changed[name] = value.float().to(parameters[name].device)
        for name, layer in one.layers.items():
            weight, bias = parameters.get(f"{name}.weight"), parameters.get(f"{name}.bias")
            if weight is None:
                continue
            changed[f"{name}.weight"] = layer.merged(changed.get(f"{name}.weight", weight))
            if layer.bias is not None and bias is not None:
                base = changed.get(f"{name}.bias", bias.float())
                changed[f"{name}.bias"] = base + layer.scale * layer.bias.float().to(bias.device)
        for name, value in changed.items():
            old = parameters[name].float()
            parameters[name].copy_(value if one.strength == 1 else old + one.strength * (value - old))
