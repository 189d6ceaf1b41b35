"""Two processes over gloo, replicated and sharded (FSDP2), against one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.initialization import initialize_folder
from arimage.training import state
from arimage.training.config import TrainConfig
from arimage.training.loop import train
from arimage.training.objectives import build_objective
from arimage.training.optimizer import learning_rate
from arimage.training.processes import class_names
from tests.test_training import CPU, losses, metrics, stage
from tests.tiny_assets import write_assets
from tests.tiny_checkpoint import CONFIG, tiny_tokenizer

ROOT = Path(__file__).parent.parent
HANDED_OVER: dict[str, Any] = {"schedule": "constant", "save_every": 3, "keep": 9}
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
REWARDS = {"toy": {"kind": "python", "function": f"{ROOT}/tests/toy_rewards.py:low_codes", "sees": "codes"}}
ROLLED_OUT: dict[str, Any] = {
    "steps": 4, "save_every": 2, "warmup": 0, "evaluation": [], "autoregressive": {"grpo": {}},
    "reinforcement": {"group": 4, "workers": 0, "rewards": REWARDS, "options": {"preview_grid": False}},
}  # fmt: skip


pytestmark = pytest.mark.timeout(900)  # the first test of each kind starts the processes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_assets(folder / "assets")
    definition, config = tiny_tokenizer(CONFIG)
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    initialize_folder(config, folder / "start", tokenizer=folder / "tokenizer.json", dtype=torch.float32)
    return folder


def by_two(file: Path, sharded: bool, configs: Sequence[TrainConfig]) -> None:
    """Train stages one after the other in two processes, which are started once."""
    commands = []
    for number, config in enumerate(configs):
        stage_file = file.with_name(f"{file.name}-{number}.yaml")
        stage_file.write_text(config.model_dump_json(), encoding="utf-8")
        commands.append(json.dumps(["train", str(stage_file), "--threads", "1"]))
    file.write_text("\n".join(commands), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port),
               "-m", "tests.commands", str(file)]  # fmt: skip
    environment = {**os.environ, **(SHARDED if sharded else {})}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def two_of(network: str, sharded: bool, place: Path, name: str, **more: Any) -> TrainConfig:
    """A stage for two processes: the whole batch is of four."""
    output = place / f"{network}-{sharded}-{name}"
    return stage(network, place / "start", place / "assets", output, batch_size=2, **more)


def again(config: TrainConfig) -> TrainConfig:
    """A new schedule from the weights of its run."""
    return config.model_copy(update={"steps": 2, "restart": True})


@pytest.fixture(scope="module")
def replicated(place: Path) -> None:
    """What two processes with all weights each make."""
    short = two_of("decoder", False, place, "restarted", steps=3)
    by_two(
        place / "replicated",
        False,
        [
            *(two_of(network, False, place, "two") for network in ("decoder", "autoencoder")),
            *(two_of("decoder", False, place, "handed-over", steps=steps, **HANDED_OVER) for steps in (3, 6)),
            short,
            again(short),
            two_of("autoregressive", False, place, "rewarded", **ROLLED_OUT),
        ],
    )


@pytest.fixture(scope="module")
def sharded(place: Path) -> None:
    """What two processes with half of the weights each make."""
    short = two_of("decoder", True, place, "restarted", steps=3)
    stages = [two_of(network, True, place, "two") for network in ("decoder", "autoregressive")]
    by_two(
        place / "sharded",
        True,
        [
            *stages,
            *(two_of("decoder", True, place, "handed-over", steps=steps, **HANDED_OVER) for steps in (3, 6)),
            short,
            again(short),
            two_of("autoregressive", True, place, "rewarded", **ROLLED_OUT),
        ],
    )


def weights(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    state = getattr(checkpoint, name)(device=CPU, dtype=torch.float32).state_dict()
    return torch.cat([value.flatten() for _, value in sorted(state.items())])


def assert_alike(one: Path, two: Path, place: Path) -> None:
    """The losses of both runs, and their checkpoints beside the start's."""
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    whole, parts, before = (Checkpoint.open(path) for path in (one / "checkpoint", two / "checkpoint", place / "start"))
    assert whole.config.model_dump(exclude={"autoencoder"}) == parts.config.model_dump(exclude={"autoencoder"})
    for name in ("transformer", "autoregressive", "glyph_encoder", "autoencoder"):
        first, second, start = (weights(checkpoint, name) for checkpoint in (whole, parts, before))
        # Adam divides by the gradient's own size, so a weight whose gradient is all rounding may go either way.
        assert torch.linalg.vector_norm(first - second) <= 5e-3 * torch.linalg.vector_norm(first - start)


@pytest.mark.parametrize(
    ("network", "kind"),
    [("decoder", "replicated"), ("autoencoder", "replicated"), ("decoder", "sharded"), ("autoregressive", "sharded")],
)
def test_two_processes_give_the_losses_and_the_checkpoint_of_one(
    network: str, kind: str, place: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(kind)
    config = two_of(network, kind == "sharded", place, "one").model_copy(update={"batch_size": 4})
    train(config)
    assert_alike(Path(config.output), Path(two_of(network, kind == "sharded", place, "two").output), place)


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_processes_share_the_rollouts_of_one(kind: str, place: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(kind)
    config = two_of("autoregressive", kind == "sharded", place, "rewarded-one", **ROLLED_OUT)
    train(config.model_copy(update={"batch_size": 4}))
    output = Path(two_of("autoregressive", kind == "sharded", place, "rewarded", **ROLLED_OUT).output)
    one, two = metrics(Path(config.output)), metrics(output)
    assert [row["reward"] for row in two] == pytest.approx([row["reward"] for row in one], abs=1e-6)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], abs=1e-5)
    folders = Path(config.output) / "checkpoint", output / "checkpoint", place / "start"
    whole, parts, start = (weights(Checkpoint.open(folder), "autoregressive") for folder in folders)
    assert torch.linalg.vector_norm(whole - parts) <= 5e-3 * torch.linalg.vector_norm(whole - start)


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_a_new_schedule_of_two_processes_is_that_of_one(kind: str, place: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(kind)
    config = two_of("decoder", kind == "sharded", place, "restarted-one", steps=3)
    config = config.model_copy(update={"batch_size": 4})
    train(config)
    train(again(config))
    two = Path(two_of("decoder", kind == "sharded", place, "restarted").output)
    assert sorted(losses(two)) == [1, 2, 3, 4, 5]
    rates = [row["learning_rate"] for row in metrics(two)]
    assert rates[3:] == [learning_rate(again(config), step) for step in range(2)]
    assert_alike(Path(config.output), two, place)


@pytest.mark.usefixtures("replicated")
def test_two_processes_go_on_from_where_two_stopped(place: Path) -> None:
    straight = place / "straight-of-one"
    train(stage("decoder", place / "start", place / "assets", straight, batch_size=4, steps=6, **HANDED_OVER))
    config = two_of("decoder", False, place, "handed-over", steps=6, **HANDED_OVER)
    assert losses(Path(config.output)) == pytest.approx(losses(straight), rel=1e-5)


@pytest.mark.usefixtures("sharded")
def test_two_processes_and_one_go_on_from_the_shards_that_two_saved(place: Path) -> None:
    straight = place / "straight"
    train(stage("decoder", place / "start", place / "assets", straight, batch_size=4, steps=6, **HANDED_OVER))
    config = two_of("decoder", True, place, "handed-over", steps=6, **HANDED_OVER)
    output = Path(config.output)
    assert losses(output) == pytest.approx(losses(straight), rel=1e-5)
    first = output / "states" / "step-00000003"
    files = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    shards = [f"shard-0000{number}-model-00001-of-00001.safetensors" for number in (1, 2)]
    assert files == sorted([f"{part}/{name}" for part in state.PARTS for name in shards] + ["state.json"])  # no pickle
    sizes = [(first / "weights" / name).stat().st_size for name in shards]
    assert max(sizes) < 0.7 * sum(sizes)
    (output / "states" / "step-00000006" / "state.json").unlink()
    (output / "metrics.jsonl").unlink()
    train(config.model_copy(update={"batch_size": 4}))
    assert losses(output) == pytest.approx({s: v for s, v in losses(straight).items() if s > 3}, rel=1e-5)


@pytest.mark.parametrize("network", ["decoder", "autoregressive", "tokenizer", "autoencoder"])
def test_accelerate_shards_the_modules_that_an_objective_names(network: str, place: Path) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    config = stage(network, place / "start", place / "assets", place / "named")
    objective = build_objective(Checkpoint.open(place / "start"), config, CPU)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.transformer_cls_names_to_wrap = class_names(objective.sharded_modules())
    policy = fsdp2_prepare_auto_wrap_policy(plugin, objective)
    chosen = {id(module) for module in objective.modules() if policy is not None and policy(module)}
    assert chosen == {id(module) for module in objective.sharded_modules()}
    assert bool(chosen) == (network != "autoencoder")
