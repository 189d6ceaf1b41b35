r"""The training loop: every network at every stage goes through :func:`train`.

    arimage train configs/nano/decoder-256.yaml
    accelerate launch --config_file configs/accelerate/fsdp2.yaml \
        -m arimage train configs/glm-image-9b/decoder-1024.yaml

A step is a pure function of the weights and its number: batches, captions, noise and dropouts follow from the seed
and the step (:mod:`arimage.training.batches`), so a run that is killed and started again gives the losses and weights
that it would have given anyway.
"""

import fnmatch
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
from torch import Tensor

from arimage.checkpoints.checkpoint import Checkpoint, update_checkpoint
from arimage.data.records import Record
from arimage.errors import ArimageError, DataError, UsageError
from arimage.images.sheets import contact_sheet
from arimage.training import signature, state
from arimage.training.bad_samples import FILE as BAD_SAMPLES
from arimage.training.bad_samples import BadSample, BadSamples
from arimage.training.batches import StepBatches, loader
from arimage.training.config import TrainConfig
from arimage.training.examples import Batch
from arimage.training.objective import Objective
from arimage.training.optimizer import build_optimizer
from arimage.training.precision import computed_in
from arimage.training.progress import Progress

STATES, SAMPLES, FINISHED = "states", "samples", "checkpoint"
SPIKE_WINDOW = 50
LEAST_SCALE = 2.0**-14
SHARDED = ("Layer", "Block", "AdaptiveNorm")
COMPILED = ("Layer", "Block", "Encoder", "Decoder")


class TrainingStopped(ArimageError):
    """A run stopped itself: the message says why and what it saved."""


def build_objective(checkpoint: Checkpoint, config: TrainConfig, device: torch.device) -> Objective:
    """The objective of a stage."""
    if config.train == "tokenizer" and config.tokenizer.neutral:
        from arimage.training.cell_tokenizer import CellTokenizerObjective

        return CellTokenizerObjective(checkpoint, config, device)
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
    """The rate of a step of the schedule (0-based): linear warm-up, then its fall."""
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
        from accelerate.utils import ProjectConfiguration, parse_flag_from_env

        self.config, self.output = config, Path(config.output)
        device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device  # as the accelerator will ask
        self.precision = computed_in(config.precision, device)
        if self.precision == "fp16" and device.type == "cpu":
            raise UsageError("precision: fp16 needs a GPU; auto is right on any device, no is fp32")
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
        computed = config.model_copy(update={"precision": self.precision})  # a state is gone on from in its own
        self.settings = signature.settings_of(computed, self.checkpoint.weights_hash(), processes)
        self.step = self.first = 0
        self.pending: list[BadSample] = []
        self.recent: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self.facts: dict[str, Any] = {
            "skipped": 0, "overflows": 0, "scaler": None, "best": None, "best_step": None,
        }  # fmt: skip

    def _encoders(self, latents: bool) -> str | None:
        from arimage.training.prepare import encoders_hash

        useless = not latents and self.config.train != "autoregressive"
        return None if useless else encoders_hash(self.checkpoint, latents)

    @property
    def last(self) -> int:
        """The step at which the schedule ends; it began at :attr:`first`."""
        return self.first + self.config.steps

    # Set up

    def start(self) -> None:
        """Prepare the networks and go on from the newest valid state, if there is one.

        Raises:
            DataError: that state was made with other settings.
        """
        config = self.config
        newest = state.newest(self.output / STATES)
        saved = None if newest is None else state.load_state(newest)
        restarted = False
        if saved is None:
            self._seed(-1)
            self.objective.prepare(self.batches)
        else:
            restarted = self._made_otherwise(saved, str(newest))
        self.model, self.optimizer = self._prepared()
        if saved is not None:
            self._load_weights(saved)
        self.average = None if config.ema is None else state.Average(config.ema, self._trainable())
        if saved is not None:
            self._restore(saved, restarted)
            self._say(f"a new schedule from step {self.step}" if restarted else f"going on from step {self.step}")
            if config.restart and self.step >= self.last:
                self._say("all steps of these settings are done; another number of steps or seed begins a new schedule")
        if self.main and config.trackers:
            self.accelerator.init_trackers("run")

    def _made_otherwise(self, saved: state.Saved, path: str) -> bool:
        """Whether a state was made with other settings, and its weights alone are asked for.

        Raises:
            DataError: it was, and they are not; or it is of other networks.
        """
        if saved.settings is None:
            self._say(f"{path} does not say with which settings it was made: it is taken for a state of this run")
            return False
        different = signature.differences(saved.settings, self.settings)
        if not different:
            return False
        if not self.config.restart:
            raise DataError(
                f"{path} was made with other settings: {', '.join(different)}. Put them back, choose another output, "
                f"or begin a new schedule of {self.config.steps} steps from its weights with restart=true"
            )
        shapes = {name: tuple(value.shape) for name, value in self.objective.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in saved.weights.items()}
        other = [name for name in (*shapes, *found) if shapes.get(name) != found.get(name)]
        if other:
            raise DataError(f"{path} holds weights of other networks ({other[0]}); choose another output")
        return True

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

    def _load_weights(self, saved: state.Saved) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        weights, sharded = dict(saved.weights), self.objective.sharded
        if sharded:  # PyTorch spreads a weight that has two names by the first, and fails on the second
            first = {name for name, _ in self.model.named_parameters()}
            others = {name for name, _ in self.model.named_parameters(remove_duplicate=False)} - first
            weights = {name: value for name, value in weights.items() if name not in others}
        options = StateDictOptions(full_state_dict=True, strict=not sharded)
        set_model_state_dict(self.model, weights, options=options)

    def _restore(self, saved: state.Saved, restarted: bool) -> None:
        """Take up what a state holds besides weights; of one with other settings the average and the best figure."""
        if not restarted:
            self._load_optimizer(saved)
        if self.average is not None:
            for name, value in self.average.values.items():
                if name in saved.average or not restarted:
                    _copy_full(value, saved.average[name])
        self.step = saved.step
        self.first = saved.step if restarted else saved.facts.pop("first", 0)
        recent = saved.facts.pop("recent", [])
        self.facts |= {name: saved.facts[name] for name in self.facts if name in saved.facts}
        if self.accelerator.scaler is not None and self.facts["scaler"]:
            self.accelerator.scaler.load_state_dict(self.facts["scaler"])
        if saved.settings is not None and not signature.evaluated_alike(saved.settings, self.settings):
            self.facts |= {"best": None, "best_step": None}
        self.recent.extend([] if restarted else recent)
        self.objective.load_facts(saved.facts.get("objective", {}))

    def _load_optimizer(self, saved: state.Saved) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        if self._by_deepspeed:
            self._say("the saved state holds no optimiser (DeepSpeed keeps its own): it starts afresh")
            return
        flat: dict[str, Any] = {"state": {}, "param_groups": saved.groups}
        for key, value in saved.optimizer.items():
            name, _, slot = key.rpartition("/")
            flat["state"].setdefault(name, {})[slot] = value
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self.optimizer.optimizer, flat, options=options)

    # The loop

    def run(self) -> Path:
        """Train to the last step and write the finished checkpoint; its folder."""
        config = self.config
        self._look_at_data()
        progress = Progress(self.last, self.step, quiet=not self.main)
        incoming = loader(
            self.batches, self.step * config.accumulation, self.last * config.accumulation, config.workers
        )
        self.model.train()
        since = time.perf_counter()
        while self.step < self.last:
            losses = self._one_step(incoming)
            self.step += 1
            if losses and self.step % config.log_every == 0:
                elapsed, since = time.perf_counter() - since, time.perf_counter()
                count = config.log_every * config.batch_size * config.accumulation * self.accelerator.num_processes
                self._log({**losses, "samples_per_second": count / max(elapsed, 1e-9)}, progress)
            done = self.step == self.last
            if self.held_out is not None and (self.step % config.evaluate_every == 0 or done):
                self._log(self.evaluate(), progress, "evaluation")
            if self.step % config.sample_every == 0 or done:
                self.sample()
            if self.step % config.save_every == 0 or done:
                self.save()
            if self.step % min(config.evaluate_every, config.sample_every, config.save_every) == 0:
                since = time.perf_counter()
        progress.close()
        self.bad.add(self.pending)
        return self.export()

    def _one_step(self, incoming: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step; its mean losses, or nothing if it was skipped."""
        config = self.config
        self._seed(self.step)
        rate = learning_rate(config, self.step - self.first)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, float] = {}
        kept: list[Batch] = []
        for micro in range(config.accumulation):
            batch = next(incoming)
            self.pending += batch.bad
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
        self._count_bad()
        totals |= {"gradient_norm": float(norm), "learning_rate": rate}
        overflow = self._overflowed(totals)
        if not overflow and not self._sound(totals, kept):
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # it has looked at these gradients, and would refuse the next ones
            self.optimizer.zero_grad(set_to_none=True)
            return {}
        self.optimizer.step()  # after an overflow the scaler takes no step, and lowers the scale
        self.optimizer.zero_grad(set_to_none=True)
        totals |= self._scaling()
        if overflow:
            del totals["gradient_norm"]
            return totals
        self.recent.append(totals["loss"])
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
        """Means over the processes; bad samples that any of them found are known to all afterwards."""
        if self.accelerator.num_processes == 1:
            return totals
        from accelerate.utils import gather_object

        rows: list[tuple[dict[str, float], list[BadSample]]] = gather_object([(totals, self.pending)])
        self.pending = [bad for _, found in rows for bad in found]
        figures = [row for row, _ in rows]
        names = dict.fromkeys(name for row in figures for name in row)
        return {name: statistics.fmean([row[name] for row in figures if name in row]) for name in names}

    def _overflowed(self, totals: Mapping[str, float]) -> bool:
        """Whether fp16 gradients of a sound loss overflowed, which the scaler finds its scale by.

        Raises:
            TrainingStopped: they still do at a scale so small that the gradients themselves must be at fault.
        """
        if self.accelerator.mixed_precision != "fp16" or not math.isfinite(totals["loss"]):
            return False
        if math.isfinite(totals["gradient_norm"]):
            return False
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < LEAST_SCALE:
            raise TrainingStopped(
                f"step {self.step + 1}: the gradients are not finite even at the loss scale {scaler.get_scale():.3g}; "
                "train with precision=bf16 or precision=no"
            )
        self.facts["overflows"] += 1
        return True

    def _scaling(self) -> dict[str, float]:
        """For the log of an fp16 run: how many steps an overflow has skipped, and the loss scale."""
        if self.accelerator.mixed_precision != "fp16":
            return {}
        scaler = self.accelerator.scaler
        scale = {} if scaler is None else {"loss_scale": float(scaler.get_scale())}
        return {"overflows": float(self.facts["overflows"]), **scale}

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

    def _look_at_data(self) -> None:
        """Name what the data sets hold that cannot be used; too much of it ends the run before its first step."""
        both = [self.batches] if self.held_out is None else [self.batches, self.held_out]
        sizes = {name: size for batches in both for name, size in batches.sizes.items()}
        self.bad = BadSamples(self.output if self.main else None, self.config.max_bad_share, sizes)
        self.pending += [bad for batches in both for bad in batches.unreadable]
        self._count_bad()
        for data, count in self.bad.counts().items():
            self._say(f"{count} of the {sizes[data]} samples of {data} cannot be used: see {self.output / BAD_SAMPLES}")

    def _count_bad(self) -> None:
        if self.pending:
            self.bad.add(self.pending)
            self.pending = []
            excess = self.bad.excess()
            if excess is not None:
                raise TrainingStopped(excess)

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
                batch = self.held_out[number]
                self.pending += batch.bad
                losses = self.model(self._moved(batch.tensors))
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
            contact_sheet([image for _, image in shown], 4, gap=4, margin=0).save(folder / f"step-{self.step:08d}.png")
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                arrays = {name: np.asarray(image)[None] for name, image in shown}
                tracker.log_images(arrays, step=self.step, dataformats="NHWC")

    def save(self) -> None:
        """Save everything that the next step depends on."""
        saved = self._gathered()
        if self.main:
            state.save_state(self.output / STATES, saved)
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
        if self.accelerator.scaler is not None:
            self.facts["scaler"] = self.accelerator.scaler.state_dict()
        facts = {
            **self.facts, "first": self.first, "recent": list(self.recent), "objective": self.objective.facts(),
        }  # fmt: skip
        groups = optimizer.get("param_groups", [])
        return state.Saved(self.step, self._weights(), flat, average, groups, self.settings, facts)

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


def train(config: TrainConfig, finish: bool = False) -> Path:
    """Train a stage, from its start or from where it stopped; the folder of the finished checkpoint.

    Args:
        finish: take no further step, write the checkpoint of the newest saved state.

    Raises:
        UsageError: the config contradicts itself or the checkpoint.
        DataError: the data cannot be used, or the newest state was made with other settings.
        TrainingStopped: the loss left its track, or too many samples were bad.
    """
    run = Run(config)
    run.start()
    return run.export() if finish else run.run()
