"""The processes of a run, and how networks and figures are spread over them: accelerate, FSDP2, DeepSpeed.

On GPUs accelerate shards with FSDP2; on CPUs, where it does not, :meth:`Processes.spread` does. DeepSpeed keeps the
optimiser's state in a pickled format of its own, which is neither written nor read.
"""

import os
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arimage.errors import ArimageError, UsageError
from arimage.training.config import TrainConfig
from arimage.training.objective import Objective
from arimage.training.precision import computed_in
from backends.private import allow_recompiles, forget_accelerator_state

COMPILED_VARIANTS = 64


class Processes:
    """This process among those of a run.

    Attributes:
        accelerator: of accelerate.
        precision: that is computed in: no, bf16 or fp16.
        index, count: of this process, and how many there are.
        main: whether this is the one that writes and speaks.

    Raises:
        UsageError: the config asks for what the device or DeepSpeed cannot do.
    """

    def __init__(self, config: TrainConfig) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
        from accelerate.utils import ProjectConfiguration, parse_flag_from_env

        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            # Otherwise processes without GPUs would not find each other, and each would train and write the whole run.
            os.environ.setdefault("ACCELERATE_USE_CPU", "true")
        device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device  # as the accelerator will ask
        self.config, self.precision = config, computed_in(config.precision, device)
        if self.precision == "fp16" and device.type == "cpu":
            raise UsageError("precision: fp16 needs a GPU; auto is right on any device, no is fp32")
        output = Path(config.output)
        forget_accelerator_state()
        self.accelerator = Accelerator(
            mixed_precision=self.precision,
            log_with=list(config.trackers) or None,
            project_config=ProjectConfiguration(str(output), logging_dir=str(output / "logs")),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.device = self.accelerator.device
        self.index, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.by_deepspeed = self.accelerator.distributed_type.value == "DEEPSPEED"
        self.sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and self.count > 1
        if self.by_deepspeed:
            self._configure_deepspeed()

    def _configure_deepspeed(self) -> None:
        """Tell DeepSpeed what it would otherwise guess from a loader: its engine steps within ``backward``."""
        if self.config.muon:
            raise UsageError("muon needs whole matrices, and DeepSpeed flattens them: set muon=[], or use FSDP2")
        plugin = self.accelerator.state.deepspeed_plugin
        assert plugin is not None
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": self.config.batch_size,
            "gradient_accumulation_steps": self.config.accumulation,
            "gradient_clipping": self.config.clip,
            "zero_allow_untested_optimizer": True,
        }

    def spread(self, objective: Objective, optimizer: Callable[[], torch.optim.Optimizer]) -> tuple[Any, Any]:
        """Networks and optimiser over the processes; the optimiser is made when its parameters are what they will be.

        Returns:
            What is called as the objective, and the optimiser.
        """
        if self.config.compile:
            allow_recompiles(COMPILED_VARIANTS)
            for module in objective.compiled_modules():
                module.compile()
        objective.sharded = self.sharded
        shards = objective.sharded_modules()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            plugin.transformer_cls_names_to_wrap = class_names(shards)
        if not (self.sharded and self.device.type == "cpu"):
            return self.accelerator.prepare(objective, optimizer())
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (self.count,))
        for module in (*reversed(shards), objective):  # inner modules come before those that hold them
            fully_shard(module, mesh=mesh)
        return objective, self.accelerator.prepare_optimizer(optimizer())

    def settle(self, model: Any) -> None:
        """Give up the full copies of sharded weights that a pass without backward leaves behind."""
        if self.sharded:
            for module in model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()

    def trainable(self, model: Any) -> dict[str, Tensor]:
        """Trainable parameters as they are now, by the objective's own names."""
        self.settle(model)
        module = self.accelerator.unwrap_model(model)
        return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}

    def accumulating(self, model: Any, last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch: gradients are exchanged in the last one of a step only."""
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(model)

    def backward(self, loss: Tensor) -> None:
        """Gradients of one of a step's micro-batches."""
        parts = 1 if self.by_deepspeed else self.config.accumulation  # DeepSpeed divides by itself
        self.accelerator.backward(loss / parts)

    def gathered(self, value: Any) -> list[Any]:
        """What each process has, known to all."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What the main process makes, known to all."""
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([make() if self.main else None])[0]

    def first_main(self, work: Callable[[], object]) -> None:
        """Let the main process do work that the others find done.

        Raises:
            ArimageError: it failed, which all processes say.
        """

        def tried() -> ArimageError | None:
            try:
                work()
            except ArimageError as error:
                return error
            return None

        if self.count > 1 and (error := self.from_main(tried)) is not None:
            raise error

    def seed(self, step: int) -> None:
        """The global random streams of a step, for libraries that use them; processes differ, runs do not."""
        seed = (self.config.seed * 1_000_003 + (step + 1) * 101 + self.index) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def moved(self, values: Any) -> Any:
        """A batch on this process's device: tensors, what has a ``to``, and containers of them."""
        if isinstance(values, Tensor):
            return values.to(self.device, non_blocking=True)
        if hasattr(values, "to"):
            return values.to(self.device)
        if isinstance(values, Mapping):
            return {name: self.moved(value) for name, value in values.items()}
        if isinstance(values, (list, tuple)):
            return type(values)(self.moved(value) for value in values)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.main:
            print(text, flush=True)


def class_names(modules: Sequence[nn.Module]) -> list[str]:
    """How accelerate is told what to shard; it refuses a name that the networks do not have."""
    return sorted({type(module).__name__ for module in modules})


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of figures over the rows that have them."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: statistics.fmean([row[name] for row in rows if name in row]) for name in names}
