r"""The training loop: every network at every stage goes through :func:`train`.

    arimage train configs/nano/decoder-256.yaml
    accelerate launch --config_file configs/accelerate/fsdp2.yaml \
        -m arimage train configs/glm-image-9b/decoder-1024.yaml

A step is a pure function of the weights and its number: batches, captions, noise and dropouts follow from the seed
and the step (:mod:`arimage.training.batches`), so a run that is killed and started again gives the losses and weights
that it would have given anyway.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.errors import DataError
from arimage.training import signature, state
from arimage.training.batches import Replays, Rollouts, StepBatches, loader
from arimage.training.config import CaptionConfig, SourceConfig, TrainConfig
from arimage.training.examples import Batch
from arimage.training.export import export, finished_folder
from arimage.training.guards import LossGuard, SampleGuard
from arimage.training.interruption import Interrupted, Interruption
from arimage.training.metrics import Metrics
from arimage.training.objectives import build_objective, choose_trainable
from arimage.training.optimizer import learning_rate
from arimage.training.processes import Processes, mean
from arimage.training.progress import Progress
from arimage.training.sources import make_indexes
from arimage.training.train_state import TrainState, weight_shapes

STATES, SAMPLES = "states", "samples"


class Run:
    """One run of a stage: what :func:`train` drives.

    Attributes:
        step: optimiser steps done.
        waited: seconds for which data were waited for since the last line of the log.
        first, last: the steps between which the schedule lies.
        train_state: networks, optimiser and moving average, once the run is started.
        best, best_step: the lowest loss of an evaluation.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.output = config, Path(config.output)
        self.processes = Processes(config)
        self.accelerator, self.main = self.processes.accelerator, self.processes.main
        self.checkpoint = Checkpoint.open(config.start)
        self.objective = build_objective(self.checkpoint, config, self.processes.device)
        if config.lora is not None:
            from arimage.training.lora import add_adapters

            add_adapters(self.objective, config.lora)
        self.learning = choose_trainable(self.objective, config)
        rewarded = config.rewarded
        rollouts = None if rewarded is None else Rollouts(rewarded.updates, rewarded.parts, config.accumulation)
        self.processes.first_main(lambda: make_indexes((*config.data, *config.evaluation)))
        replays = Replays(config.replays, config.replay_window, config.seed) if config.replays else None
        self.batches = self._batches(config.data, config.captions, config.seed, rollouts, replays)
        self.objective.batches = self.batches
        self.held_out = None
        if config.evaluation and config.evaluation_batches:
            captions = config.captions.model_copy(update={"dropout": 0.0})
            self.held_out = self._batches(config.evaluation, captions, config.seed + 1)
        computed = config.model_copy(update={"precision": self.processes.precision})  # a run goes on in its own
        self.settings = signature.settings_of(computed, self.checkpoint.weights_hash(), self.processes.count)
        self.losses = LossGuard(config, self.processes, self.batches, self.objective.loss_may_leap)
        sets = [self.batches] if self.held_out is None else [self.batches, self.held_out]
        self.samples = SampleGuard(config, self.processes, sets)
        self.metrics = Metrics(config, self.processes)
        self.interruption = Interruption()
        self.stopping = False
        self.waited = 0.0
        self.step = self.first = 0
        self.best: float | None = None
        self.best_step: int | None = None

    def _batches(
        self,
        sources: tuple[SourceConfig, ...],
        captions: CaptionConfig,
        seed: int,
        rollouts: Rollouts | None = None,
        replays: Replays | None = None,
    ) -> StepBatches:
        return StepBatches(
            sources, self.config.batch_size, self.objective.collate, captions,
            seed=seed, process=self.processes.index, processes=self.processes.count, encoders=self._encoders,
            rollouts=rollouts, accumulation=self.config.accumulation, replays=replays,
        )  # fmt: skip

    def _encoders(self, latents: bool) -> str | None:
        from arimage.training.prepare import encoders_hash

        useless = not latents and self.config.train != "autoregressive"
        return None if useless else encoders_hash(self.checkpoint, latents)

    @property
    def last(self) -> int:
        return self.first + self.config.steps

    def start(self) -> None:
        """Prepare the networks and go on from the newest valid state, if there is one.

        Raises:
            DataError: that state was made with other settings.
        """
        newest = self.processes.from_main(lambda: state.newest(self.output / STATES))
        saved = None if newest is None else state.load_state(newest)
        restarted = saved is not None and self._made_otherwise(saved, str(newest))
        if saved is None:
            self.processes.seed(-1)
            self.objective.prepare(self.batches)
        self.train_state = TrainState(self.objective, self.config, self.processes, saved)
        if saved is not None:
            self._restore(saved, restarted)
        if self.batches.replays is not None:
            first = self.first * self.config.accumulation
            self.batches.replays = replace(self.batches.replays, first=first)
        if self.main and self.config.trackers:
            self.accelerator.init_trackers("run")

    def _made_otherwise(self, saved: state.Saved, path: str) -> bool:
        """Whether a state was made with other settings, and its weights alone are asked for.

        Raises:
            DataError: it was, and they are not; or it is of other networks.
        """
        if saved.settings is None:
            self.processes.say(
                f"{path} does not say with which settings it was made: it is taken for a state of this run"
            )
            return False
        different = signature.differences(saved.settings, self.settings)
        if not different:
            return False
        if not self.config.restart:
            raise DataError(
                f"{path} was made with other settings: {', '.join(different)}. Put them back, choose another output, "
                f"or begin a new schedule of {self.config.steps} steps from its weights with restart=true"
            )
        shapes, found = weight_shapes(self.objective), saved.shapes()
        other = [name for name in (*shapes, *found) if shapes.get(name) != found.get(name)]
        if other:
            raise DataError(f"{path} holds weights of other networks ({other[0]}); choose another output")
        return True

    def _restore(self, saved: state.Saved, restarted: bool) -> None:
        """Take up what a state holds besides weights; of one with other settings the average and the best figure."""
        if not restarted:
            self.train_state.load_optimizer(saved)
        self.train_state.load_ema(saved, restarted)
        self.step = saved.step
        self.first = saved.step if restarted else saved.metadata.get("first", 0)
        self.losses.load_metadata(saved.metadata, restarted)
        if saved.settings is None or signature.evaluated_alike(saved.settings, self.settings):
            self.best, self.best_step = saved.metadata.get("best"), saved.metadata.get("best_step")
        self.objective.load_metadata(saved.metadata.get("objective", {}))
        say = self.processes.say
        say(f"a new schedule from step {self.step}" if restarted else f"going on from step {self.step}")
        now = self.batches.digests()
        for name, before in saved.metadata.get("data", {}).items():
            if not restarted and now.get(name, before) != before:
                say(f"{name} has changed since {self.step} steps were done: from here on its order is another")
        if self.config.restart and self.step >= self.last:
            say("all steps of these settings are done; another number of steps or seed begins a new schedule")

    def run(self) -> Path:
        """Train to the last step and write the finished checkpoint; its folder.

        Raises:
            DataError: the epochs that sources may have do not last so long.
            Interrupted: Ctrl-C or SIGTERM; the state is saved.
        """
        with self.interruption:
            self.learn()
        self.samples.finish()
        return self.export()

    def learn(self) -> None:
        """Take the steps that are left."""
        config = self.config
        self.samples.start()
        if any(source.epochs for source in config.data):
            self.batches.turn(self.last * config.accumulation - 1)  # says now, not then, where data is used up
        progress = Progress(self.last, self.step, quiet=not self.main)
        incoming = loader(
            self.batches, self.step * config.accumulation, self.last * config.accumulation, config.workers
        )
        self.train_state.model.train()
        if self.held_out is not None and self.step == self.first and self.objective.measured_before_learning:
            self.metrics.log(self.step, self.evaluate(), progress, "evaluation")
        since = time.perf_counter()
        while self.step < self.last:
            figures = self.one_step(incoming)
            self.step += 1
            if figures and self.step % config.log_every == 0:
                elapsed, since = time.perf_counter() - since, time.perf_counter()
                count = config.log_every * config.batch_size * config.accumulation * self.processes.count
                told = {"samples_per_second": count / max(elapsed, 1e-9), "waiting": self.waited / max(elapsed, 1e-9)}
                self.waited = 0.0
                self.metrics.log(self.step, {**figures, **told}, progress)
            done = self.step == self.last
            if self.held_out is not None and (self.step % config.evaluate_every == 0 or done):
                self.metrics.log(self.step, self.evaluate(), progress, "evaluation")
            if self.step % config.sample_every == 0 or done:
                self.sample()
            if self.step % config.save_every == 0 or done or self.stopping:
                self.save()
            if self.stopping and not done:
                raise Interrupted(
                    f"stopped at step {self.step} of {self.last}, saved; the same command goes on from there"
                )
            if self.step % min(config.evaluate_every, config.sample_every, config.save_every) == 0:
                since = time.perf_counter()
        progress.close()

    def one_step(self, incoming: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step; its mean losses, or nothing if it was left out."""
        config, processes, train_state = self.config, self.processes, self.train_state
        processes.seed(self.step)
        rate = learning_rate(config, self.step - self.first)
        for group in train_state.optimizer.param_groups:
            group["lr"] = rate
        rows: list[dict[str, float]] = []
        batches: list[Batch] = []
        waited = 0.0
        for micro in range(config.accumulation):
            since = time.perf_counter()
            batch = next(incoming)
            waited += time.perf_counter() - since
            batches.append(batch)
            self.samples.pending += batch.bad
            with processes.accumulating(train_state.model, last=micro == config.accumulation - 1):
                losses = train_state.model(processes.moved(batch.tensors))
                processes.backward(losses["loss"])
            rows.append({name: float(value.detach()) for name, value in losses.items()})
        norm = self.accelerator.clip_grad_norm_(train_state.parameters(), config.clip)
        totals = self._over_processes(mean(rows)) | {"gradient_norm": float(norm), "learning_rate": rate}
        self.waited += waited
        self.samples.check()
        overflow = self.losses.overflowed(self.step, totals)
        if not overflow and not self.losses.accepts(self.step, totals, batches):
            train_state.discard_gradients()
            return {}
        train_state.optimizer_step()  # after an overflow the scaler takes no step, and lowers the scale
        totals |= self.losses.figures()
        if overflow:
            del totals["gradient_norm"]
            return totals
        self.losses.passed(totals["loss"])
        self.objective.after_step()
        train_state.update_ema(self.step)
        return totals

    def _over_processes(self, figures: dict[str, float]) -> dict[str, float]:
        """Means over the processes; bad samples and a stop that any of them knows of are known to all afterwards."""
        rows = self.processes.gathered((figures, self.samples.pending, self.interruption.asked))
        self.samples.pending = [bad for _, found, _ in rows for bad in found]
        self.stopping = any(asked for _, _, asked in rows)
        return mean([row for row, _, _ in rows])

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean losses over the held-out batches."""
        assert self.held_out is not None
        found: dict[str, list[float]] = {}
        count = self.config.evaluation_batches
        with self.train_state.ema_weights():
            self.processes.seed(-2)
            for number in range(count):
                batch = self.held_out[number]
                self.samples.pending += batch.bad
                for name, value in self.train_state.model(self.processes.moved(batch.tensors)).items():
                    found.setdefault(name, []).append(float(value))
            means = {name: statistics.fmean(values) for name, values in found.items()}  # not all batches have all parts
            totals = self._over_processes(means | self.objective.report(self.held_out, count))
        self.objective.watch(self.step, totals)
        if self.best is None or totals["loss"] < self.best:
            self.best, self.best_step = totals["loss"], self.step
        return totals

    def sample(self) -> None:
        """Pictures of the present weights, as files and in the trackers."""
        if not self.main or self.processes.sharded:
            return
        from arimage.training.samples import training_pictures, write_pictures

        batches = self.held_out or self.batches
        with self.train_state.ema_weights(), torch.no_grad():
            shown = training_pictures(self.objective, self.checkpoint, self.config.samples, batches)
        write_pictures(shown, self.output / SAMPLES, self.step, self.accelerator.trackers)

    def save(self) -> None:
        """Save everything that the next step depends on."""
        metadata: dict[str, Any] = {
            **self.losses.metadata(), "first": self.first, "best": self.best, "best_step": self.best_step,
            "objective": self.objective.metadata(), "data": self.batches.digests(),
        }  # fmt: skip
        folder = self.output / STATES
        self.train_state.save(folder, self.step, self.settings, metadata, self.config.keep, self.best_step)

    def export(self) -> Path:
        """Write the finished checkpoint folder, in the open format."""
        with self.train_state.ema_weights(), torch.no_grad():
            figures = self.objective.finish(self.held_out or self.batches)
            weights = self.train_state.weights()
        if self.main:
            export(self.objective, weights, self.checkpoint, self.config)
            if figures:
                self.metrics.write({"step": self.step, "kind": "finish", **figures})
                self.processes.say(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        self.processes.wait()
        self.accelerator.end_training()
        return finished_folder(self.config)


def train(config: TrainConfig, finish: bool = False) -> Path:
    """Train a stage, from its start or from where it stopped; the folder of the finished checkpoint.

    Args:
        finish: take no further step, write the checkpoint of the newest saved state.

    Raises:
        UsageError: the config contradicts itself or the checkpoint.
        DataError: the data cannot be used, or the newest state was made with other settings.
        TrainingStopped: the loss left its track, or too many samples were bad.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    run = Run(config)
    try:
        run.start()
        return run.export() if finish else run.run()
    finally:
        run.objective.close()
