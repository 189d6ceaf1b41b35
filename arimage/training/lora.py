"""Low-rank adapters: put in for training by ``peft``, saved as it and ``diffusers`` read them, merged for use."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from arimage.checkpoints.lora import (
    ADAPTER_FILE,
    CONFIG_FILE,
    DIFFUSERS_FILE,
    DIFFUSERS_METADATA,
    DIFFUSERS_PREFIX,
    PEFT_PREFIX,
)
from arimage.errors import UsageError, nearest
from arimage.files import replaced_when_whole
from arimage.training.config import LoraConfig
from arimage.training.objective import Objective

NETWORKS = {"autoregressive": "model", "decoder": "transformer"}


def add_adapters(objective: Objective, config: LoraConfig) -> None:
    """Put adapters beside the chosen layers of the network that is trained.

    Raises:
        UsageError: peft is not installed, or a target matches no layer that can have an adapter.
    """
    try:
        import peft
    except ImportError:
        raise UsageError("LoRA needs peft: pip install 'arimage[train]'") from None
    network = getattr(objective, NETWORKS[objective.config.train])
    names = [name for name, _ in network.named_modules()]
    targets = [target for target in config.targets if _matches(target, names)]
    of_both_networks = LoraConfig.model_fields["targets"].default
    for target in config.targets:
        if target not in targets and (target not in of_both_networks or not targets):
            last = {name.rpartition(".")[2] for name in names}
            raise UsageError(f"lora.targets: {target!r} matches no layer of the network{nearest(target, last)}")
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0)
    try:
        peft.inject_adapter_in_model(settings, network)
    except ValueError as error:
        raise UsageError(f"lora.targets {', '.join(targets)}: {' '.join(str(error).split())}") from None


def _matches(target: str, names: list[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def save_adapters(folder: Path, weights: Mapping[str, Tensor], config: LoraConfig, train: str) -> Path:
    """Write the adapters as peft does, and those of the decoder once more as ``diffusers`` does.

    ``PeftModel.from_pretrained`` opens the folder, and ``load_lora_adapter(folder, use_safetensors=True)`` of the
    reference's transformer. It appears whole or not at all.
    """
    prefix = f"{NETWORKS[train]}."
    adapters = {
        re.sub(r"\.default(?=\.|$)", "", name.removeprefix(prefix)): value.contiguous()
        for name, value in weights.items()
        if ".lora_" in name
    }
    layers = [name.partition(".lora_")[0] for name in adapters]
    settings: dict[str, Any] = {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": [target for target in config.targets if _matches(target, layers)],
        "bias": "none",
    }
    with replaced_when_whole(folder) as part:
        _save(part / ADAPTER_FILE, PEFT_PREFIX, adapters, settings)
        contents = json.dumps({"peft_type": "LORA", **settings}, indent=2)
        (part / CONFIG_FILE).write_text(contents + "\n", encoding="utf-8")
        if train == "decoder":
            _save(part / DIFFUSERS_FILE, DIFFUSERS_PREFIX, adapters, settings)
    return folder


def _save(file: Path, prefix: str, adapters: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Tensors under prefixed names, and the settings where ``diffusers`` looks for them."""
    from safetensors.torch import save_file

    packed = json.dumps({prefix + name: value for name, value in settings.items()})
    named = {prefix + name: value for name, value in adapters.items()}
    save_file(named, file, {"format": "pt", DIFFUSERS_METADATA: packed})
