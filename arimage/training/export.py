"""What a run leaves: a checkpoint folder in the open format, or a folder of adapters."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from arimage.checkpoints.checkpoint import Checkpoint, update_checkpoint
from arimage.training.config import TrainConfig
from arimage.training.objective import Objective

FINISHED, ADAPTERS = "checkpoint", "lora"


def finished_folder(config: TrainConfig) -> Path:
    """Where :func:`export` writes."""
    return Path(config.output) / (FINISHED if config.lora is None else ADAPTERS)


def export(objective: Objective, weights: Mapping[str, Tensor], checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Write what was learnt; a checkpoint's other networks are those that the stage started from.

    Args:
        weights: in full, by the objective's own names.
    """
    folder = finished_folder(config)
    if config.lora is not None:
        from arimage.training.lora import save_adapters

        save_adapters(folder, weights, config.lora, config.train)
        return
    states = objective.states(weights)
    update_checkpoint(checkpoint, folder, states, dtype=torch.float32, config=objective.model_config())
