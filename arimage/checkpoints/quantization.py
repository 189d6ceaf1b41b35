"""Linear layers of the two large networks in 8 or 4 bits, by ``torchao``: less memory at a little precision.

Attention and feed-forward are quantised: ``int8`` row by row; ``fp8`` (e4m3) row by row, on GPUs that multiply it
together with what goes in; ``int4`` in groups of 128, on a GPU. Embeddings, norms, the modulation by time and the heads
keep their precision.
"""

from typing import Literal, get_args

import torch
from torch import nn

from arimage.errors import UsageError

Quantization = Literal["int8", "fp8", "int4"]
QUANTIZED = ("autoregressive", "transformer")
PARTS = ("self_attn", "mlp", "attn1", "ff")
GROUP = 128
MULTIPLIES_FP8 = 8, 9


def check_quantization(kind: str | None, device: torch.device) -> None:
    """Refuse what cannot be done on a device, before anything is loaded.

    Raises:
        UsageError: the kind is not known, needs a GPU, or ``torchao`` is missing.
    """
    if kind is None:
        return
    if kind not in get_args(Quantization):
        raise UsageError(f"quantization must be one of {', '.join(get_args(Quantization))}, got {kind!r}")
    if kind == "int4" and device.type != "cuda":
        raise UsageError("quantization='int4' needs a GPU; use 'int8' on a CPU")
    try:
        import torchao  # noqa: F401
    except ImportError:
        raise UsageError(f"quantization={kind!r} needs torchao: pip install 'arimage[quantize]'") from None


def is_quantized(name: str, module: nn.Module) -> bool:
    """Whether a module of one of the large networks is among those that are quantised."""
    return isinstance(module, nn.Linear) and any(part in PARTS for part in name.split("."))


def quantize(network: nn.Module, kind: Quantization, device: torch.device) -> None:
    """Quantise a network in place; layer by layer it is moved to the device, which never holds it in full precision."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int4WeightOnlyConfig,
        Int8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

    if kind == "int8":
        config = Int8WeightOnlyConfig()
    elif kind == "int4":
        config = Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) >= MULTIPLIES_FP8:
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    else:
        config = Float8WeightOnlyConfig()
    quantize_(network, config, filter_fn=lambda module, name: is_quantized(name, module), device=device)
    network.to(device)
