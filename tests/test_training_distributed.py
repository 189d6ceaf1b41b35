"""Two processes over gloo, replicated and sharded (FSDP2), against one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.initialization import initialize_folder
from arimage.training.config import TrainConfig
from arimage.training.loop import train
from tests.test_training import CPU, losses, stage
from tests.tiny_assets import write_assets
from tests.tiny_checkpoint import CONFIG, tiny_tokenizer

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_assets(folder / "assets")
    definition, config = tiny_tokenizer(CONFIG)
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    initialize_folder(config, folder / "start", tokenizer=folder / "tokenizer.json", dtype=torch.float32)
    return folder


def by_two(config: TrainConfig, file: Path, sharded: bool) -> None:
    file.write_text(config.model_dump_json(), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port),
               "-m", "arimage", "train", str(file), "--threads", "1"]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", **(SHARDED if sharded else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def weights(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    state = getattr(checkpoint, name)(device=CPU, dtype=torch.float32).state_dict()
    return torch.cat([value.flatten() for _, value in sorted(state.items())])


@pytest.mark.parametrize(
    ("network", "sharded"), [("decoder", False), ("decoder", True), ("autoregressive", True), ("autoencoder", False)]
)
def test_two_processes_give_the_losses_and_the_checkpoint_of_one(network: str, sharded: bool, place: Path) -> None:
    one = place / f"{network}-{sharded}-one"
    two = place / f"{network}-{sharded}-two"
    train(stage(network, place / "start", place / "assets", one, batch_size=4))
    by_two(stage(network, place / "start", place / "assets", two, batch_size=2), place / f"{two.name}.yaml", sharded)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    whole, parts, before = (Checkpoint.open(path) for path in (one / "checkpoint", two / "checkpoint", place / "start"))
    assert whole.config.model_dump(exclude={"autoencoder"}) == parts.config.model_dump(exclude={"autoencoder"})
    for name in ("transformer", "autoregressive", "glyph_encoder", "autoencoder"):
        first, second, start = (weights(checkpoint, name) for checkpoint in (whole, parts, before))
        # Adam divides by the gradient's own size, so a weight whose gradient is all rounding may go either way.
        assert torch.linalg.vector_norm(first - second) <= 5e-3 * torch.linalg.vector_norm(first - start)


def test_one_process_goes_on_from_what_two_sharded_ones_saved(place: Path) -> None:
    settings = {"steps": 6, "save_every": 3, "keep": 9}
    straight = place / "straight"
    train(stage("decoder", place / "start", place / "assets", straight, batch_size=4, **settings))
    output = place / "handed-over"
    config = stage("decoder", place / "start", place / "assets", output, batch_size=2, **settings)
    by_two(config, place / "handed-over.yaml", sharded=True)
    for path in (output / "states").glob("step-00000006"):
        (path / "state.json").unlink()
    (output / "metrics.jsonl").unlink()
    train(config.model_copy(update={"batch_size": 4}))
    assert losses(output) == pytest.approx({s: v for s, v in losses(straight).items() if s > 3}, rel=1e-5)
