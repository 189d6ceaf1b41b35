"""Low-rank adapters: put in for training by ``peft``, saved in its format, merged into a network for use."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from arimage.errors import UsageError
from arimage.lora import ADAPTER_FILE, CONFIG_FILE, NETWORK_KEY, PREFIX
from arimage.training.config import LoraConfig
from arimage.training.objective import Objective

NETWORKS = {"autoregressive": "model", "decoder": "transformer"}


def add_adapters(objective: Objective, config: LoraConfig) -> None:
    """Put adapters beside the chosen linear layers of the network that is trained.

    Raises:
        UsageError: peft is not installed, or the targets match nothing.
    """
    try:
        import peft
    except ImportError:
        raise UsageError("LoRA needs peft: pip install 'arimage[train]'") from None
    network = getattr(objective, NETWORKS[objective.config.train])
    names = [name for name, _ in network.named_modules()]
    targets = [target for target in config.targets if any(n == target or n.endswith(f".{target}") for n in names)]
    if not targets:
        raise UsageError(f"lora.targets {', '.join(config.targets)} match no layer of the network")
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0)
    peft.inject_adapter_in_model(settings, network)


def save_adapters(folder: Path, weights: Mapping[str, Tensor], config: LoraConfig, train: str) -> Path:
    """Write the adapters as peft does, with the network that they belong to."""
    from safetensors.torch import save_file

    prefix = f"{NETWORKS[train]}."
    adapters = {
        PREFIX + name.removeprefix(prefix).replace(".default.", "."): value.contiguous()
        for name, value in weights.items()
        if ".lora_" in name
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapters, folder / ADAPTER_FILE, metadata={"format": "pt"})
    contents: dict[str, Any] = {
        "peft_type": "LORA", "r": config.rank, "lora_alpha": config.alpha, "target_modules": list(config.targets),
        "bias": "none", NETWORK_KEY: "transformer" if train == "decoder" else "autoregressive",
    }  # fmt: skip
    (folder / CONFIG_FILE).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    return folder
