"""What the training loop costs beside the networks: its speed against a bare PyTorch loop, alternating in one run.

python benchmarks/training_overhead.py --assets data/nano --start runs/nano/start --threads 2

Both loops use the same objective, the same batches, the same optimiser, clipping and a moving average of the weights;
ours adds everything else (data order, schedules, checks, logs, accelerate).
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.training.config import TrainConfig
from arimage.training.loop import Run
from arimage.training.objectives import build_objective
from arimage.training.optimizer import build_optimizer
from arimage.yaml_files import load_yaml

STAGES = ("autoregressive-256", "decoder-256")


def settings(name: str, given: argparse.Namespace, output: Path, steps: int) -> TrainConfig:
    changes = {
        "start": given.start, "assets": given.assets, "output": output, "steps": steps, "batch_size": given.batch,
        "precision": '"no"', "evaluation": "[]", "save_every": 10**9, "sample_every": 10**9, "workers": 0,
        "trackers": "[tensorboard]",
    }  # fmt: skip
    folder = Path(__file__).parent.parent / "configs" / "nano"
    return load_yaml(folder / f"{name}.yaml", TrainConfig, [f"{key}={value}" for key, value in changes.items()])


def ours(config: TrainConfig) -> float:
    """Seconds a step of our loop after the first."""
    run = Run(config)
    run.start()
    run.save = run.sample = lambda: None  # type: ignore[method-assign,assignment]
    run.export = lambda: Path()  # type: ignore[method-assign]
    moments: list[float] = []
    one = run.one_step

    def timed(incoming):
        moments.append(time.perf_counter())
        return one(incoming)

    run.one_step = timed  # type: ignore[method-assign]
    run.run()
    moments.append(time.perf_counter())
    return (moments[-1] - moments[1]) / (len(moments) - 2)


def bare(config: TrainConfig) -> float:
    """Seconds a step of a loop with nothing in it but the network, its data and its optimiser."""
    checkpoint = Checkpoint.open(config.start)
    objective = build_objective(checkpoint, config, torch.device("cpu")).train()
    objective.requires_grad_(True)
    batches = Run(config).batches
    parameters = list(objective.parameters())
    optimizer = build_optimizer(list(objective.named_parameters()), config)
    average = [p.detach().clone() for p in parameters]
    start = 0.0
    for step in range(config.steps):
        if step == 1:
            start = time.perf_counter()
        loss = objective(batches[step].tensors)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for kept, parameter in zip(average, parameters):
                kept.lerp_(parameter, 0.002)
    return (time.perf_counter() - start) / (config.steps - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for name in STAGES:
        ratios, speeds = [], []
        for number in range(given.rounds):
            with tempfile.TemporaryDirectory() as place:
                config = settings(name, given, Path(place) / str(number), given.steps)
                if number % 2:
                    full, plain = ours(config), bare(config)
                else:
                    plain, full = bare(config), ours(config)
            ratios.append(full / plain)
            speeds.append(given.batch / full)
        row = {
            "stage": name, "samples_per_second": round(statistics.median(speeds), 2),
            "overhead": round(statistics.median(ratios) - 1, 4), "ratios": [round(ratio, 4) for ratio in ratios],
        }  # fmt: skip
        rows.append(row)
        print(f"| {name} | {row['samples_per_second']} | {row['overhead']:+.1%} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
