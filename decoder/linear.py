"""Linear layers of networks that only run: oneDNN's product on CPUs, and one product for projections of one input.

For fp32 PyTorch calls MKL, which reaches half of oneDNN's rate on processors that are not Intel's; oneDNN also applies
the activation while the result is in the cache. Weights whose outputs are neighbours in memory spare it a copy at each
call, and a single row reads them faster. The results differ by float rounding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FEWEST_ROWS = 2


def onednn_serves(hidden: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies: several rows by a laid-out fp32 weight on a CPU, and no gradients to come."""
    if not onednn_may_serve(weight) or hidden.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return hidden.numel() >= FEWEST_ROWS * hidden.shape[-1] and weight.stride() == (1, len(weight))


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., in) to (..., out)."""
    if onednn_serves(hidden, weight):
        return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return F.linear(hidden, weight, bias)


def linear_gelu_tanh(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer and the tanh form of GELU."""
    if onednn_serves(hidden, weight):
        return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "gelu", [], "tanh")
    return F.gelu(F.linear(hidden, weight, bias), approximate="tanh")


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class Projections(nn.Module):
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

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._joined = None
        return super()._apply(fn, recurse)


@torch.no_grad()
def prepare_to_run(network: nn.Module) -> None:
    """Lay out a network that will not be trained; shapes, names and values stay.

    The projections of its attentions are joined, and on a CPU fp32 weights are stored output beside output.
    """
    for module in network.modules():
        if isinstance(module, Linear) and onednn_may_serve(module.weight):
            module.weight.data = _laid_out(module.weight.data)
    for module in network.modules():
        if isinstance(module, Projections):
            module.join()


def onednn_may_serve(weight: Tensor) -> bool:
    """Whether a weight is one that oneDNN can take once it is laid out: plain fp32 on a CPU."""
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
    if together.ndim == 2 and onednn_may_serve(together):
        together = _laid_out(together)
    for parameter, part in zip(parameters, together.split([len(parameter) for parameter in parameters])):
        parameter.data = part
    return together
