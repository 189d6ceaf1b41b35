"""Model, optimiser and moving average (EMA) of a run, spread over its processes: stepped, saved and loaded.

Whether a run resumes from a saved state is decided in :meth:`arimage.training.loop.Run.start`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from arimage.training import sharded_state, state
from arimage.training.config import TrainConfig
from arimage.training.objective import Objective
from arimage.training.optimizer import build_optimizer
from arimage.training.processes import Processes


class TrainState:
    """What learns in a run: the objective's networks, spread over the processes, their optimiser and moving average.

    Attributes:
        model: what is called as the objective.
        average: None where the stage has no ``ema``.
    """

    def __init__(
        self, objective: Objective, config: TrainConfig, processes: Processes, saved: state.Saved | None
    ) -> None:
        self.processes, self.sharded = processes, processes.sharded

        def optimizer() -> torch.optim.Optimizer:
            return build_optimizer([(name, p) for name, p in objective.named_parameters() if p.requires_grad], config)

        self.model, self.optimizer = processes.spread(objective, optimizer)
        if saved is not None:
            self._load_weights(saved)
        self.ema = None if config.ema is None else state.ExponentialMovingAverage(config.ema, self.trainable())

    def trainable(self) -> dict[str, Tensor]:
        """Trainable parameters as they are now, by the objective's own names."""
        return self.processes.trainable(self.model)

    def parameters(self) -> list[Tensor]:
        """What learns."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def optimizer_step(self) -> None:
        """Step along the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def discard_gradients(self) -> None:
        """Forget the gradients of a step that is not taken."""
        if self.processes.accelerator.scaler is not None:
            self.processes.accelerator.scaler.update()  # it has looked at them, and would refuse the next ones
        self.optimizer.zero_grad(set_to_none=True)

    def update_ema(self, step: int) -> None:
        """Let the moving average follow the weights after a step."""
        if self.ema is not None:
            self.ema.update(self.trainable(), step)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """The moving average in place of the weights, if there is one; out of training mode."""
        trainable = self.trainable()
        if self.ema is not None:
            self.ema.swap(trainable)
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            if self.ema is not None:
                self.ema.swap(trainable)

    # Saving

    def save(
        self, folder: Path, step: int, settings: dict[str, Any], metadata: dict[str, Any], keep: int, best: int | None
    ) -> None:
        """Save everything that the next step depends on, and remove older states but the last ``keep`` and the best."""
        full = not self.sharded
        optimizer, groups = self._optimizer_state(full)
        average = {} if self.ema is None else self.ema.values
        saved = state.Saved(step, self.weights(full), optimizer, average, groups, settings, metadata)
        if self.sharded:
            state.save_sharded(folder, saved, self.processes)
        elif self.processes.main:
            state.save_state(folder, saved)
        if self.processes.main:
            state.thin(folder, keep, best)
        self.processes.wait()

    def weights(self, full: bool = True) -> dict[str, Tensor]:
        """All weights and buffers by the objective's own names; in full they are on the CPU, of the main process at
        least. Every process must call it."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        self.processes.settle(self.model)
        options = StateDictOptions(full_state_dict=full, cpu_offload=full)
        found = cast(dict[str, Tensor], get_model_state_dict(self.model, options=options))
        return {name: state.gathered(value) for name, value in found.items()} if full else found

    def _optimizer_state(self, full: bool) -> tuple[dict[str, Tensor], list[Any]]:
        """Tensors by parameter and slot, as ``name/slot``, and the settings of the groups."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        if self.processes.by_deepspeed:
            return {}, []
        self.processes.settle(self.model)
        options = StateDictOptions(full_state_dict=full, cpu_offload=full)
        found: Any = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=options)
        slots = {
            f"{name}/{slot}": torch.as_tensor(value)
            for name, slots in found.get("state", {}).items()
            for slot, value in slots.items()
        }
        return slots, found.get("param_groups", [])

    # Taking up

    def _load_weights(self, saved: state.Saved) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        if saved.shards is not None:
            sharded_state.read_shards(saved.shards / "weights", self.weights(full=False))
            return
        if not self.sharded:
            self.processes.accelerator.unwrap_model(self.model).load_state_dict(saved.weights)
            return
        # PyTorch spreads a weight that has two names by the first, and fails on the second.
        first = {name for name, _ in self.model.named_parameters()}
        others = {name for name, _ in self.model.named_parameters(remove_duplicate=False)} - first
        weights: dict[str, Any] = {name: value for name, value in saved.weights.items() if name not in others}
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, weights, options=options)

    def load_optimizer(self, saved: state.Saved) -> None:
        """Take up the optimiser's state."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        if self.processes.by_deepspeed:
            self.processes.say("the saved state holds no optimiser (DeepSpeed keeps its own): it starts afresh")
            return
        slots = saved.optimizer
        if saved.shards is not None:
            slots, _ = self._optimizer_state(full=False)
            sharded_state.read_shards(saved.shards / "optimizer", slots)
        nested: dict[str, Any] = {"state": {}, "param_groups": saved.groups}
        for key, value in slots.items():
            name, _, slot = key.rpartition("/")
            nested["state"].setdefault(name, {})[slot] = value
        options = StateDictOptions(full_state_dict=saved.shards is None)
        set_optimizer_state_dict(self.model, self.optimizer.optimizer, nested, options=options)

    def load_ema(self, saved: state.Saved, restarted: bool) -> None:
        """Take up the moving average; a new schedule keeps its own of what the state has none of."""
        if self.ema is None:
            return
        if saved.shards is not None:
            folder = saved.shards / "average"
            known = sharded_state.shapes(folder) if restarted else self.ema.values
            wanted = {name: value for name, value in self.ema.values.items() if name in known}
            sharded_state.read_shards(folder, wanted)
            return
        for name, value in self.ema.values.items():
            if name in saved.average or not restarted:
                _copy_full(value, saved.average[name])


def _copy_full(target: Tensor, full: Tensor) -> None:
    """Put a full tensor into one that may be sharded."""
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        full = distribute_tensor(full.to(target.device), target.device_mesh, target.placements)  # type: ignore[attr-defined]
    target.data.copy_(full)


def weight_shapes(objective: Objective) -> Mapping[str, tuple[int, ...]]:
    """Of an objective that is not spread yet; a number has one dimension, of 1."""
    return {name: tuple(value.shape) or (1,) for name, value in objective.state_dict().items()}
