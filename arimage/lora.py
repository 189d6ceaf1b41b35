"""LoRA adapters read from a folder and merged into a network's weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from arimage.configuration import read_json
from arimage.errors import CheckpointError

ADAPTER_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
NETWORK_KEY = "_arimage_network"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapters:
    """Adapters of one network.

    Attributes:
        sha256: of the file (hex).
        network: ``autoregressive`` or ``transformer``.
        scale: alpha / rank.
        pairs: (A, B) by the name of the linear layer; the layer gains ``scale * B @ A``.
    """

    path: Path
    sha256: str
    network: str
    scale: float
    pairs: dict[str, tuple[Tensor, Tensor]]


def read_adapters(path: str | Path) -> Adapters:
    """Read a folder that training with ``lora`` wrote.

    Raises:
        CheckpointError: it is missing, damaged, or for no network here.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(path)
    config = read_json(folder / CONFIG_FILE)
    network = config.get(NETWORK_KEY)
    if network not in ("autoregressive", "transformer"):
        raise CheckpointError(f"{folder / CONFIG_FILE}: {NETWORK_KEY} must be 'autoregressive' or 'transformer'")
    try:
        tensors = load_file(folder / ADAPTER_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / ADAPTER_FILE} cannot be read: {error}") from None
    pairs = {}
    for name, first in tensors.items():
        if ".lora_A." in name:
            second = tensors.get(name.replace(".lora_A.", ".lora_B."))
            if second is None:
                raise CheckpointError(f"{folder / ADAPTER_FILE}: {name!r} has no lora_B beside it")
            pairs[name.removeprefix(PREFIX).partition(".lora_A.")[0]] = (first, second)
    try:
        scale = float(config["lora_alpha"]) / float(config["r"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise CheckpointError(f"{folder / CONFIG_FILE}: r and lora_alpha must be numbers") from None
    digest = hashlib.sha256((folder / ADAPTER_FILE).read_bytes()).hexdigest()
    return Adapters(folder, digest, network, scale, pairs)


@torch.no_grad()
def merge_adapters(network: nn.Module, adapters: Sequence[Adapters]) -> None:
    """Add adapters to a network's weights, in fp32.

    Raises:
        CheckpointError: a layer does not exist or has another shape.
    """
    layers = dict(network.named_modules())
    for one in adapters:
        for name, (first, second) in one.pairs.items():
            weight = getattr(layers.get(name), "weight", None)
            if weight is None or weight.shape != (second.shape[0], first.shape[1]):
                raise CheckpointError(f"{one.path}: the adapter of {name!r} does not fit this checkpoint")
            change = one.scale * (second.float().to(weight.device) @ first.float().to(weight.device))
            weight.copy_((weight.float() + change).to(weight.dtype))
