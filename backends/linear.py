"""Linear layers for inference: the faster product on CPUs, and one product for projections of one input.

PyTorch's fp32 product is MKL's. On CPUs with AVX-512 that are not Intel's, oneDNN is about twice as fast, and applies
the activation while the result is in the cache. It is given weights whose outputs are neighbours in memory, which
saves it a copy at each call; a single row reads them faster too. With AVX2 MKL is the faster one
(``benchmarks/kernels.py``), and layers go through PyTorch. Results differ by float rounding only.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.private import MovedModule, onednn_linear
from backends.processor import has_avx512

ONEDNN = has_avx512() and onednn_linear is not None
FEWEST_ROWS = 2
GELU_SLOPE = torch.tensor(2 * math.sqrt(2 / math.pi), device="cpu")
GELU_CUBE = 0.044715 * float(GELU_SLOPE)
GELU_FEWEST = 8192


def can_use_onednn(hidden: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies: several rows by a laid-out fp32 weight on a CPU, and no gradients to come."""
    if not ONEDNN or not can_lay_out_for_onednn(weight) or hidden.dtype != torch.float32 or learns_or_compiles():
        return False
    return hidden.numel() >= FEWEST_ROWS * hidden.shape[-1] and weight.stride() == (1, len(weight))


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., in) to (..., out)."""
    if onednn_linear is not None and can_use_onednn(hidden, weight):
        return onednn_linear(hidden, weight, bias, "none", [], "")
    return F.linear(hidden, weight, bias)


def linear_gelu_tanh(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer and the tanh form of GELU."""
    if onednn_linear is not None and can_use_onednn(hidden, weight):
        return onednn_linear(hidden, weight, bias, "gelu", [], "tanh")
    return gelu_tanh(F.linear(hidden, weight, bias))


def gelu_tanh(hidden: Tensor) -> Tensor:
    """The tanh form of GELU.

    ``x (1 + tanh(y)) / 2`` is ``x sigmoid(2y)``, and on CPUs PyTorch takes a sigmoid in a quarter of its kernel's time.
    """
    few = hidden.numel() < GELU_FEWEST
    if few or hidden.device.type != "cpu" or hidden.dtype != torch.float32 or learns_or_compiles():
        return F.gelu(hidden, approximate="tanh")
    inner = torch.addcmul(GELU_SLOPE, hidden, hidden, value=GELU_CUBE).mul_(hidden)
    return inner.sigmoid_().mul_(hidden)


def learns_or_compiles() -> bool:
    """Whether operations may be recorded, cast or compiled, so that they have to be PyTorch's own."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class Projections(MovedModule):
    """Base of attention modules: queries, keys and values from one product once :meth:`join` was called.

    The parameters keep their names; joined, they are views of one tensor, so loading and merging go on in place.
    Moving or casting parts them again.
    """

    projected: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._joined: tuple[Tensor, Tensor | None] | None = None

    @torch.no_grad()
    def join(self) -> None:
        """Put the weights beside each other; for networks that only run."""
        layers = [getattr(self, name) for name in self.projected]
        weight = _beside(layers, "weight")
        assert weight is not None
        self._joined = weight, _beside(layers, "bias")

    def project_all(self, hidden: Tensor) -> Tensor:
        """What the layers make of (..., in), one after the other: (..., sum of outs)."""
        if self._joined is not None:
            return linear(hidden, *self._joined)
        return torch.cat([getattr(self, name)(hidden) for name in self.projected], dim=-1)

    def moved(self) -> None:
        self._joined = None


@torch.no_grad()
def prepare_to_run(network: nn.Module) -> None:
    """Lay out a network that will not be trained; shapes, names and values stay.

    The projections of its attentions are joined; where oneDNN multiplies, fp32 weights are stored output beside output.
    """
    for module in network.modules():
        if isinstance(module, Linear) and can_lay_out_for_onednn(module.weight):
            module.weight.data = _laid_out(module.weight.data)
    for module in network.modules():
        if isinstance(module, Projections):
            module.join()


def can_lay_out_for_onednn(weight: Tensor) -> bool:
    """Whether a weight is one that oneDNN multiplies once it is laid out: plain fp32 on a CPU where oneDNN leads."""
    plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu" and weight.dtype == torch.float32
    return ONEDNN and plain


def _laid_out(weight: Tensor) -> Tensor:
    """The same (out, in) matrix with neighbouring outputs side by side in memory."""
    return weight.t().contiguous().t()


def _beside(layers: Sequence[nn.Module], name: str) -> Tensor | None:
    """One parameter of all layers in one tensor, of which their own become views."""
    parameters: list[nn.Parameter] = [getattr(layer, name) for layer in layers]
    if parameters[0] is None:
        return None
    together = torch.cat([parameter.data for parameter in parameters])
    if together.ndim == 2 and can_lay_out_for_onednn(together):
        together = _laid_out(together)
    for parameter, part in zip(parameters, together.split([len(parameter) for parameter in parameters])):
        parameter.data = part
    return together
