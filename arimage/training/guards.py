"""What keeps a run from spoiling its weights: losses that are not finite or leap, fp16 overflows, bad samples."""

import json
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from arimage.errors import ArimageError
from arimage.training.bad_samples import FILE, BadSample, BadSamples
from arimage.training.batches import StepBatches
from arimage.training.config import TrainConfig
from arimage.training.examples import Batch
from arimage.training.processes import Processes

SPIKE_WINDOW = 50
LEAST_SCALE = 2.0**-14


class TrainingStopped(ArimageError):
    """A run stopped itself: the message says why and what it saved."""


class LossGuard:
    """Whether a step may be taken.

    Args:
        may_leap: the loss has no scale: only one that is not finite is bad.

    Attributes:
        skipped, overflows: steps that were left out for their loss, and for fp16 gradients that overflowed.
    """

    def __init__(self, config: TrainConfig, processes: Processes, batches: StepBatches, may_leap: bool = False) -> None:
        self.config, self.processes, self.batches = config, processes, batches
        self.may_leap = may_leap or config.on_spike == "ignore"
        self.recent: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self.skipped = self.overflows = 0

    def accepts(self, step: int, totals: Mapping[str, float], batches: Sequence[Batch]) -> bool:
        """Whether loss and gradient of a step (0-based) are finite and not far above the usual.

        Raises:
            TrainingStopped: they are not, and the config does not say to leave such steps out.
        """
        loss, norm = totals["loss"], totals["gradient_norm"]
        usual = statistics.median(self.recent) if len(self.recent) == SPIKE_WINDOW else math.inf
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite and (loss <= self.config.spike_factor * usual or self.may_leap):
            return True
        what = f"step {step + 1}: the loss is {loss:.4g} (usually {usual:.4g}), the gradient norm {norm:.4g}"
        folder = self._keep(step, batches)
        if self.config.on_spike == "skip":
            self.skipped += 1
            self.processes.say(f"{what}; skipped, the batch is in {folder}")
            return False
        raise TrainingStopped(f"{what}; the batch is in {folder}. Set on_spike=skip to leave such steps out")

    def overflowed(self, step: int, totals: Mapping[str, float]) -> bool:
        """Whether fp16 gradients of a finite loss overflowed, which the scaler finds its scale by.

        Raises:
            TrainingStopped: they still do at a scale so small that the gradients themselves must be at fault.
        """
        if self.processes.accelerator.mixed_precision != "fp16" or not math.isfinite(totals["loss"]):
            return False
        if math.isfinite(totals["gradient_norm"]):
            return False
        scaler = self.processes.accelerator.scaler
        if scaler is not None and scaler.get_scale() < LEAST_SCALE:
            raise TrainingStopped(
                f"step {step + 1}: the gradients are not finite even at the loss scale {scaler.get_scale():.3g}; "
                "train with precision=bf16 or precision=no"
            )
        self.overflows += 1
        return True

    def passed(self, loss: float) -> None:
        """Count a step that was taken."""
        self.recent.append(loss)

    def figures(self) -> dict[str, float]:
        """For the log of an fp16 run: how many steps an overflow has skipped, and the loss scale."""
        if self.processes.accelerator.mixed_precision != "fp16":
            return {}
        scaler = self.processes.accelerator.scaler
        scale = {} if scaler is None else {"loss_scale": float(scaler.get_scale())}
        return {"overflows": float(self.overflows), **scale}

    def metadata(self) -> dict[str, Any]:
        """What a saved state must remember (JSON)."""
        scaler = self.processes.accelerator.scaler
        return {
            "skipped": self.skipped, "overflows": self.overflows, "recent": list(self.recent),
            "scaler": None if scaler is None else scaler.state_dict(),
        }  # fmt: skip

    def load_metadata(self, metadata: Mapping[str, Any], restarted: bool) -> None:
        """Take up what :meth:`metadata` gave; the losses of another schedule are not compared with."""
        self.skipped, self.overflows = metadata.get("skipped", 0), metadata.get("overflows", 0)
        self.recent.extend([] if restarted else metadata.get("recent", []))
        scaler = self.processes.accelerator.scaler
        if scaler is not None and metadata.get("scaler"):
            scaler.load_state_dict(metadata["scaler"])

    def _keep(self, step: int, batches: Sequence[Batch]) -> Path:
        """Save all tensors of a bad step for inspection, those in containers too, by their places."""
        from safetensors.torch import save_file

        folder = Path(self.config.output) / "spikes" / f"step-{step + 1:08d}-{self.processes.index}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, batch in enumerate(batches):
            tensors, others = flattened(batch.tensors)
            save_file(tensors, folder / f"batch-{number}.safetensors")
            source = self.batches.turn(step * self.config.accumulation + number)
            about = {"source_and_draw": source, **others}
            (folder / f"batch-{number}.json").write_text(json.dumps(about, ensure_ascii=False, default=str) + "\n")
        return folder


class SampleGuard:
    """Samples that cannot be used: named in ``bad-samples.txt``, and too many of them stop the run.

    Args:
        sets: the batches of training, and of evaluation if there is one.
    """

    def __init__(self, config: TrainConfig, processes: Processes, sets: Sequence[StepBatches]) -> None:
        self.processes, self.output, self.sets = processes, Path(config.output), sets
        sizes = {name: size for batches in sets for name, size in batches.sizes.items()}
        self.max_share, self.sizes = config.max_bad_share, sizes
        self.pending: list[BadSample] = []

    def start(self) -> None:
        """Name what the data sets hold that cannot be used.

        Raises:
            TrainingStopped: it is too much.
        """
        self.bad = BadSamples(self.output if self.processes.main else None, self.max_share, self.sizes)
        self.pending += [bad for batches in self.sets for bad in batches.unreadable]
        self.check()
        for data, count in self.bad.counts().items():
            self.processes.say(
                f"{count} of the {self.sizes[data]} samples of {data} cannot be used: see {self.output / FILE}"
            )

    def found(self, bad: Sequence[BadSample]) -> None:
        """Remember those of a batch until :meth:`check`; every process must know all of them by then."""
        self.pending += bad

    def check(self) -> None:
        """Name what the batches since the last call had.

        Raises:
            TrainingStopped: it is too much.
        """
        if self.pending:
            self.bad.add(self.pending)
            self.pending = []
            excess = self.bad.excess()
            if excess is not None:
                raise TrainingStopped(excess)

    def finish(self) -> None:
        """Name what is still pending."""
        self.bad.add(self.pending)


def flattened(values: Any, place: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and everything else, of nested containers by their places, as in ``references/0/latents``."""
    if isinstance(values, Tensor):
        return {place: values.detach().cpu().contiguous()}, {}
    if isinstance(values, Mapping):
        parts = values.items()
    elif isinstance(values, (list, tuple)):
        parts = enumerate(values)  # type: ignore[assignment]
    elif is_dataclass(values) and not isinstance(values, type):
        parts = vars(values).items()
    else:
        return {}, {place: values}
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for name, value in parts:
        found, rest = flattened(value, f"{place}/{name}" if place else str(name))
        tensors |= found
        others |= rest
    return tensors, others
