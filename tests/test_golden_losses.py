"""Training behaviour at nano size, frozen: losses of the first steps of each stage.

Write them again, on purpose, with: python -m tests.test_golden_losses
"""

import tempfile
from pathlib import Path

import pytest
import torch

from arimage.checkpoints.initialization import initialize_folder
from arimage.checkpoints.model_config import ModelConfig
from arimage.training.config import TrainConfig
from arimage.training.loop import Run
from arimage.yaml_files import load_yaml
from tests.test_training import losses
from tests.tiny_assets import write_assets

ROOT = Path(__file__).parent.parent
FILE = Path(__file__).parent / "golden_losses.txt"
STEPS = {
    "autoencoder": 14, "tokenizer": 20, "autoregressive-256": 20, "autoregressive-quality": 6, "decoder-256": 20,
    "decoder-512": 4, "decoder-quality": 6,
}  # fmt: skip  # of the autoencoder no more: rounding of processors grows from 0.1 % here to 0.2 at the 18th step
BATCH = {"tokenizer": 8, "autoregressive-256": 2, "autoregressive-quality": 1}


def first_losses(name: str, folder: Path) -> list[float]:
    """The losses of a stage's first steps on the tests' own sprites, in fp32, from fresh weights, on one thread: with
    another number of them sums differ, and so do the classes that the tokenizer begins with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _first_losses(name, folder)
    finally:
        torch.set_num_threads(threads)


def _first_losses(name: str, folder: Path) -> list[float]:
    if not (folder / "assets").exists():
        write_assets(folder / "assets", ("noto", "fluent-flat"))
        config = load_yaml(ROOT / "configs" / "nano" / "model.yaml", ModelConfig)
        initialize_folder(config, folder / "start", dtype=torch.float32)
    settings = {
        "start": folder / "start", "output": folder / name, "assets": folder / "assets",
        "batch_size": BATCH.get(name, 2),
        "steps": STEPS[name], "precision": '"no"', "log_every": 1, "evaluation": "[]", "trackers": "[]",
        "sample_every": 999, "accumulation": 1, "warmup": 2, "scenes.groups": "[]", "scenes.minimum_rating": 1,
        "scenes.concepts": 12, "scenes.fonts": "null", "autoencoder.crop": 64,
        "tokenizer.class_samples": 32,
    }  # fmt: skip
    overrides = [f"{key}={value}" for key, value in settings.items()]
    stage = load_yaml(ROOT / "configs" / "nano" / f"{name}.yaml", TrainConfig, overrides)
    run = Run(stage)
    run.start()
    run.save = lambda: None  # type: ignore[method-assign]
    run.export = lambda: folder  # type: ignore[method-assign]
    run.sample = lambda: None  # type: ignore[method-assign]
    run.run()
    return list(losses(folder / name).values())


def golden() -> dict[str, list[float]]:
    table: dict[str, list[float]] = {}
    for line in FILE.read_text().splitlines():
        name, _, loss = line.split()
        table.setdefault(name, []).append(float(loss))
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("name", STEPS)
def test_losses_are_those_that_were_frozen(name: str, folder: Path) -> None:
    found, frozen = first_losses(name, folder), golden()[name]
    assert len(found) == len(frozen) == STEPS[name]
    assert found == pytest.approx(frozen, rel=2e-3, abs=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        lines = [
            f"{name} {step} {loss:.6f}"
            for name in STEPS
            for step, loss in enumerate(first_losses(name, Path(place)), 1)
        ]
    FILE.write_text("\n".join(lines) + "\n")
