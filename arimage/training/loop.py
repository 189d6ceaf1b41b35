"""The training loop: every network at every stage goes through :func:`train`.

    arimage train configs/nano/decoder-256.yaml
    accelerate launch --config_file configs/fsdp2.yaml -m arimage train configs/glm-image-9b/decoder-1024.yaml

A step is a pure function of the weights and its number: batches, captions, noise and dropouts follow from the seed
and the step (:mod:`arimage.training.batches`), so a run that is killed and started again gives the losses and weights
that it would have given anyway.
"""

import fnmatch
import hashlib
import json
import math
import os
import random
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arimage.checkpoint import Checkpoint, update_checkpoint
from arimage.data.records import Record
from arimage.errors import ArimageError, DataError, UsageError
from arimage.training import state
from arimage.training.batches import Batch, StepBatches, loader
from arimage.training.config import TrainConfig
from arimage.training.objective import Objective
from arimage.training.optimizer import build_optimizer
from arimage.training.precision import computed_in
from arimage.training.progress import Progress

STATES, SAMPLES, FINISHED = "states", "samples", "checkpoint"
UNSIGNED = (
    "workers", "steps", "log_every", "save_every", "keep", "evaluate_every", "sample_every", "trackers", "output",
    "samples", "compile", "on_spike", "spike_factor",
)  # fmt: skip
SPIKE_WINDOW = 50
SHARDED = ("Layer", "Block", "AdaptiveNorm")
COMPILED = ("Layer", "Block", "Encoder", "Decoder")


class TrainingStopped(ArimageError):
    """A run stopped itself: the message says why and what it saved."""


def build_objective(checkpoint: Checkpoint, config: TrainConfig, device: torch.device) -> Objective:
    """The objective of a stage."""
    if config.train == "tokenizer":
        from arimage.training.tokenizer import TokenizerObjective

        return TokenizerObjective(checkpoint, config, device)
    if config.train == "autoencoder":
        from arimage.training.autoencoder import AutoencoderObjective

        return AutoencoderObjective(checkpoint, config, device)
    if config.train == "autoregressive":
        from arimage.training.autoregressive import AutoregressiveObjective

        return AutoregressiveObjective(checkpoint, config, device)
    from arimage.training.decoder import DecoderObjective

    return DecoderObjective(checkpoint, config, device)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step (0-based): linear warm-up, then the schedule."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    falling = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.learning_rate * (config.final_share + (1 - config.final_share) * falling)


def choose_trainable(objective: Objective, config: TrainConfig) -> list[str]:
    """Freeze what the patterns say; the names of what learns.

    Raises:
        UsageError: a pattern matches no parameter, or nothing is left to learn.
    """
    names = [name for name, _ in objective.named_parameters()]
    for pattern in (*config.trainable, *config.frozen):
        if not fnmatch.filter(names, pattern):
            raise UsageError(f"the pattern {pattern!r} matches no parameter; they are called like {names[0]!r}")
    learning = []
    for name, parameter in objective.named_parameters():
        wanted = any(fnmatch.fnmatch(name, pattern) for pattern in config.trainable)
        wanted = wanted and not any(fnmatch.fnmatch(name, pattern) for pattern in (*config.frozen, *objective.fixed))
        if config.lora is not None:
            wanted = wanted and ".lora_" in name
        parameter.requires_grad_(wanted)
        if parameter.requires_grad:
            learning.append(name)
    if not learning:
        raise UsageError("the patterns of trainable and frozen leave nothing to learn")
    return learning


class Run:
    """One run of a stage: what :func:`train` drives."""

    def __init__(self, config: TrainConfig) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
        from accelerate.utils import ProjectConfiguration

        self.config, self.output = config, Path(config.output)
        self.precision = computed_in(config.precision, PartialState().device)
        self.accelerator = Accelerator(
            mixed_precision=self.precision,
            log_with=list(config.trackers) or None,
            project_config=ProjectConfiguration(str(self.output), logging_dir=str(self.output / "logs")),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.main = self.accelerator.is_main_process
        if self._by_deepspeed:
            self._configure_deepspeed()
        self.checkpoint = Checkpoint.open(config.start)
        self.objective = build_objective(self.checkpoint, config, self.accelerator.device)
        if config.lora is not None:
            from arimage.training.lora import add_adapters

            add_adapters(self.objective, config.lora)
        self.learning = choose_trainable(self.objective, config)
        self.signature = self._signature()
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        self.batches = StepBatches(
            config.data, config.batch_size, self.objective.collate, config.captions,
            seed=config.seed, process=process, processes=processes, encoders=self._encoders,
        )  # fmt: skip
        self.held_out = None
        if config.evaluation and config.evaluation_batches:
            self.held_out = StepBatches(
                config.evaluation, config.batch_size, self.objective.collate,
                config.captions.model_copy(update={"dropout": 0.0}),
                seed=config.seed + 1, process=process, processes=processes, encoders=self._encoders,
            )  # fmt: skip
        self.step = 0
        self.recent: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self.facts: dict[str, Any] = {"bad": 0, "read": 0, "skipped": 0, "best": None, "best_step": None}

    def _encoders(self) -> str:
        from arimage.training.prepare import encoders_hash

        return encoders_hash(self.checkpoint)

    def _signature(self) -> str:
        """What a saved state must have been made with to be gone on from."""
        settings = self.config.model_dump(mode="json", exclude=set(UNSIGNED))
        settings["precision"] = self.precision  # so that a run does not go on in another one on another machine
        settings["batch_size"] = self.config.batch_size * self.accelerator.num_processes
        settings["total_steps"] = self.config.steps if self.config.schedule != "constant" else None
        settings["start"] = self.checkpoint.weights_hash()
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    # Set up

    def start(self) -> None:
        """Prepare the networks and go on from the newest valid state, if there is one."""
        config = self.config
        newest = state.newest(self.output / STATES)
        saved = None if newest is None else state.load_state(newest, self.signature)
        if saved is None:
            self._seed(-1)
            self.objective.prepare(self.batches)
        self.model, self.optimizer = self._prepared()
        self.average = None if config.ema is None else state.Average(config.ema, self._trainable())
        if saved is not None:
            self._restore(saved)
            self._say(f"going on from step {self.step}")
        if self.main and config.trackers:
            self.accelerator.init_trackers("run")

    def _optimizer(self) -> torch.optim.Optimizer:
        named = [(name, p) for name, p in self.objective.named_parameters() if p.requires_grad]
        return build_optimizer(named, self.config)

    def _prepared(self) -> tuple[Any, Any]:
        """Networks and optimiser as accelerate spreads them; FSDP2 on CPUs, which it does not do, is done here."""
        if self.config.compile:
            for module in self.objective.modules():
                if type(module).__name__ in COMPILED:
                    module.compile()
        wanted = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        self.objective.sharded = wanted and self.accelerator.num_processes > 1
        if not (self.objective.sharded and self.accelerator.device.type == "cpu"):
            return self.accelerator.prepare(self.objective, self._optimizer())
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (self.accelerator.num_processes,))
        for module in reversed(list(self.objective.modules())):
            if type(module).__name__ in SHARDED:
                fully_shard(module, mesh=mesh)
        fully_shard(self.objective, mesh=mesh)
        return self.objective, self.accelerator.prepare_optimizer(self._optimizer())

    def _trainable(self) -> dict[str, Tensor]:
        """Trainable parameters as they are now, by the objective's own names."""
        self._settle()
        module = self.accelerator.unwrap_model(self.model)
        return {name: p for name, p in module.named_parameters() if p.requires_grad}

    def _settle(self) -> None:
        """Give up the whole copies of sharded weights that a pass without backward leaves behind."""
        if self.objective.sharded:
            for module in self.model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()

    def _restore(self, saved: state.Saved) -> None:
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            set_model_state_dict,
            set_optimizer_state_dict,
        )

        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, dict(saved.weights), options=options)
        flat: dict[str, Any] = {"state": {}, "param_groups": saved.groups}
        for key, value in saved.optimizer.items():
            name, _, slot = key.rpartition("/")
            flat["state"].setdefault(name, {})[slot] = value
        if self._by_deepspeed:
            self._say("the saved state holds no optimiser (DeepSpeed keeps its own): it starts afresh")
        else:
            full = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.model, self.optimizer.optimizer, flat, options=full)
        if self.average is not None:
            for name, value in self.average.values.items():
                _copy_full(value, saved.average[name])
        self.step = saved.step
        self.facts = saved.facts
        self.recent.extend(saved.facts.pop("recent", []))
        self.objective.load_facts(saved.facts.get("objective", {}))

    # The loop

    def run(self) -> Path:
        """Train to the last step and write the finished checkpoint; its folder."""
        config = self.config
        progress = Progress(config.steps, self.step, quiet=not self.main)
        for name, reason in self.batches.unreadable:
            self._note_bad([(name, reason)])
        incoming = loader(
            self.batches, self.step * config.accumulation, config.steps * config.accumulation, config.workers
        )
        self.model.train()
        since = time.perf_counter()
        while self.step < config.steps:
            losses = self._one_step(incoming)
            self.step += 1
            if losses and self.step % config.log_every == 0:
                elapsed, since = time.perf_counter() - since, time.perf_counter()
                count = config.log_every * config.batch_size * config.accumulation * self.accelerator.num_processes
                self._log({**losses, "samples_per_second": count / max(elapsed, 1e-9)}, progress)
            done = self.step == config.steps
            if self.held_out is not None and (self.step % config.evaluate_every == 0 or done):
                self._log(self.evaluate(), progress, "evaluation")
            if self.step % config.sample_every == 0 or done:
                self.sample()
            if self.step % config.save_every == 0 or done:
                self.save()
            if self.step % min(config.evaluate_every, config.sample_every, config.save_every) == 0:
                since = time.perf_counter()
        progress.close()
        return self.export()

    def _one_step(self, incoming: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step; its mean losses, or nothing if it was skipped."""
        config = self.config
        self._seed(self.step)
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, float] = {}
        kept: list[Batch] = []
        for micro in range(config.accumulation):
            batch = next(incoming)
            self._count(batch)
            kept.append(batch)
            last = micro == config.accumulation - 1
            with _nothing() if last else self._unsynchronised():
                losses = self.model(self._moved(batch.tensors))
                parts = 1 if self._by_deepspeed else config.accumulation  # DeepSpeed divides by itself
                self.accelerator.backward(losses["loss"] / parts)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach()) / config.accumulation
        norm = self.accelerator.clip_grad_norm_(self._learning_parameters(), config.clip)
        totals = self._over_processes(totals)
        totals |= {"gradient_norm": float(norm), "learning_rate": rate}
        if not self._sound(totals, kept):
            self.optimizer.zero_grad(set_to_none=True)
            return {}
        self.recent.append(totals["loss"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        if self.average is not None:
            self.average.update(self._trainable(), self.step)
        return totals

    @property
    def _by_deepspeed(self) -> bool:
        """DeepSpeed spreads the optimiser's state in its own, pickled format, which is neither written nor read."""
        return self.accelerator.distributed_type.value == "DEEPSPEED"

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

    def _unsynchronised(self) -> Any:
        return _nothing() if self.objective.sharded else self.accelerator.no_sync(self.model)

    def _learning_parameters(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _over_processes(self, totals: dict[str, float]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return totals
        from accelerate.utils import gather_object

        rows: list[dict[str, float]] = gather_object([totals])
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: statistics.fmean([row[name] for row in rows if name in row]) for name in names}

    def _sound(self, totals: Mapping[str, float], batches: list[Batch]) -> bool:
        """Whether a step may be taken; stops the run when it may not and the config says so."""
        loss, norm = totals["loss"], totals["gradient_norm"]
        usual = statistics.median(self.recent) if len(self.recent) == SPIKE_WINDOW else math.inf
        if math.isfinite(loss) and math.isfinite(norm) and loss <= self.config.spike_factor * usual:
            return True
        if self.config.on_spike == "ignore" and math.isfinite(loss) and math.isfinite(norm):
            return True
        what = f"step {self.step + 1}: the loss is {loss:.4g} (usually {usual:.4g}), the gradient norm {norm:.4g}"
        folder = self._keep_batches(batches)
        if self.config.on_spike == "skip":
            self.facts["skipped"] += 1
            self._say(f"{what}; skipped, the batch is in {folder}")
            return False
        raise TrainingStopped(f"{what}; the batch is in {folder}. Set on_spike=skip to leave such steps out")

    def _keep_batches(self, batches: list[Batch]) -> Path:
        """Save all tensors of a bad step for inspection, those in lists too, by their places."""
        from safetensors.torch import save_file

        folder = self.output / "spikes" / f"step-{self.step + 1:08d}-{self.accelerator.process_index}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, batch in enumerate(batches):
            tensors, others = _flattened(batch.tensors)
            save_file(tensors, folder / f"batch-{number}.safetensors")
            source = self.batches.turn(self.step * self.config.accumulation + number)
            about = {"source_and_draw": source, **others}
            (folder / f"batch-{number}.json").write_text(json.dumps(about, ensure_ascii=False, default=str) + "\n")
        return folder

    def _seed(self, step: int) -> None:
        """The global streams of a step, for libraries that use them; processes differ, runs do not."""
        seed = (self.config.seed * 1_000_003 + (step + 1) * 101 + self.accelerator.process_index) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def _moved(self, tensors: Any) -> Any:
        device = self.accelerator.device
        if isinstance(tensors, Tensor):
            return tensors.to(device, non_blocking=True)
        if isinstance(tensors, Mapping):
            return {name: self._moved(value) for name, value in tensors.items()}
        if isinstance(tensors, (list, tuple)):
            return type(tensors)(self._moved(value) for value in tensors)
        return tensors

    def _count(self, batch: Batch) -> None:
        self.facts["read"] += batch.read
        self._note_bad(batch.bad)
        share = self.facts["bad"] / max(1, self.facts["read"])
        if self.facts["read"] >= 100 and share > self.config.max_bad_share:
            raise TrainingStopped(
                f"{self.facts['bad']} of {self.facts['read']} samples could not be used, more than "
                f"max_bad_share={self.config.max_bad_share}; they are named in {self.output / 'bad-samples.txt'}"
            )

    def _note_bad(self, bad: list[tuple[str, str]]) -> None:
        if not bad:
            return
        self.facts["bad"] += len(bad)
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / "bad-samples.txt").open("a", encoding="utf-8") as handle:
            handle.writelines(f"{reason}\n" for _, reason in bad)

    # Looking, saving

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The moving average in place of the weights, if there is one; out of training mode."""
        trainable = self._trainable()
        if self.average is not None:
            self.average.swap(trainable)
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            if self.average is not None:
                self.average.swap(trainable)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean losses over the held-out batches."""
        assert self.held_out is not None
        found: dict[str, list[float]] = {}
        count = self.config.evaluation_batches
        with self.averaged():
            self._seed(-2)
            for number in range(count):
                losses = self.model(self._moved(self.held_out[number].tensors))
                for name, value in losses.items():
                    found.setdefault(name, []).append(float(value))
            means = {name: statistics.fmean(values) for name, values in found.items()}  # not all batches have all parts
            totals = self._over_processes(means) | self.objective.report(self.held_out, count)
        if self.facts["best"] is None or totals["loss"] < self.facts["best"]:
            self.facts |= {"best": totals["loss"], "best_step": self.step}
        return totals

    def sample(self) -> None:
        """Pictures of the present weights, as files and in the trackers."""
        if not self.main or self.objective.sharded:
            return
        from arimage.training.samples import sample_pictures

        examples = [e for e in (self.held_out or self.batches).examples(0)[0] if isinstance(e.record, Record)]
        with self.averaged(), torch.no_grad():
            shown = self.objective.pictures(examples)
            if self.config.samples.prompts or self.config.samples.edits:
                shown += sample_pictures(self.objective, self.config.samples, self.held_out or self.batches)
        folder = self.output / SAMPLES
        folder.mkdir(parents=True, exist_ok=True)
        if shown:
            _sheet([image for _, image in shown]).save(folder / f"step-{self.step:08d}.png")
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                arrays = {name: np.asarray(image)[None] for name, image in shown}
                tracker.log_images(arrays, step=self.step, dataformats="NHWC")

    def save(self) -> None:
        """Save everything that the next step depends on."""
        saved = self._gathered()
        if self.main:
            state.save_state(self.output / STATES, saved, self.signature)
            state.thin(self.output / STATES, self.config.keep, self.facts["best_step"])
        self.accelerator.wait_for_everyone()

    def _gathered(self) -> state.Saved:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        self._settle()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        optimizer: Any = {}
        if not self._by_deepspeed:
            optimizer = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=options)
        flat: dict[str, Tensor] = {
            f"{name}/{slot}": torch.as_tensor(value)
            for name, slots in optimizer.get("state", {}).items()
            for slot, value in slots.items()
        }
        average = {} if self.average is None else {n: state.gathered(v) for n, v in self.average.values.items()}
        facts = {**self.facts, "recent": list(self.recent), "objective": self.objective.facts()}
        groups = optimizer.get("param_groups", [])
        return state.Saved(self.step, self._weights(), flat, average, groups, facts)

    def _weights(self) -> dict[str, Tensor]:
        """All weights and buffers in full, by the objective's own names."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        self._settle()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        full = get_model_state_dict(self.model, options=options)
        return {name: state.gathered(cast(Tensor, value)) for name, value in full.items()}

    def export(self) -> Path:
        """Write the finished checkpoint folder, in the open format."""
        with self.averaged(), torch.no_grad():
            figures = self.objective.finish(self.held_out or self.batches)
            weights = self._weights()
        path = self.output / FINISHED
        if self.main:
            if self.config.lora is not None:
                from arimage.training.lora import save_adapters

                path = save_adapters(self.output / "lora", weights, self.config.lora, self.config.train)
            else:
                states = self.objective.states(weights)
                update_checkpoint(
                    self.checkpoint, path, states, dtype=torch.float32, config=self.objective.model_config()
                )
            if figures:
                self._write({"step": self.step, "kind": "finish", **figures})
                self._say(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return path

    # Saying

    def _log(self, figures: Mapping[str, float], progress: Progress, kind: str = "train") -> None:
        if not self.main:
            return
        for name, value in figures.items():
            if not isinstance(value, float):
                raise DataError(f"the figure {name!r} is a {type(value).__name__}, not a number")
        self.accelerator.log({f"{kind}/{name}": value for name, value in figures.items()}, step=self.step)
        self._write({"step": self.step, "kind": kind, **figures})
        progress.show(self.step, figures, kind)

    def _write(self, row: Mapping[str, Any]) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    def _say(self, text: str) -> None:
        if self.main:
            print(text, flush=True)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _flattened(values: Any, place: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and everything else, of nested containers by their places, as in ``references/0/1``."""
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
        found, rest = _flattened(value, f"{place}/{name}" if place else str(name))
        tensors |= found
        others |= rest
    return tensors, others


def _copy_full(target: Tensor, full: Tensor) -> None:
    """Put a full tensor into one that may be sharded."""
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        full = distribute_tensor(full.to(target.device), target.device_mesh, target.placements)  # type: ignore[attr-defined]
    target.data.copy_(full)


def _sheet(images: list[Image.Image], columns: int = 4) -> Image.Image:
    width, height = max(image.width for image in images), max(image.height for image in images)
    columns = min(columns, len(images))
    sheet = Image.new("RGB", (columns * (width + 4), math.ceil(len(images) / columns) * (height + 4)), "white")
    for number, image in enumerate(images):
        sheet.paste(image, ((number % columns) * (width + 4), number // columns * (height + 4)))
    return sheet


def train(config: TrainConfig, finish: bool = False) -> Path:
    """Train a stage, from its start or from where it stopped; the folder of the finished checkpoint.

    Args:
        finish: take no further step, write the checkpoint of the newest saved state.

    Raises:
        UsageError: the config contradicts itself or the checkpoint.
        DataError: the data cannot be used.
        TrainingStopped: the loss left its track, or too many samples were bad.
    """
    run = Run(config)
    run.start()
    return run.export() if finish else run.run()
