"""The planner against what can be counted, and the recipe of nano from nothing to a picture."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.initialization import initialize_folder
from arimage.cli.main import run
from arimage.errors import UsageError
from arimage.training.batches import StepBatches
from arimage.training.config import TrainConfig
from arimage.training.objectives import build_objective
from arimage.training.plan import Machine, plan, plan_stage
from arimage.yaml_files import load_yaml
from tests.stages import cost, name, stages
from tests.test_training import CPU, stage
from tests.tiny_assets import write_assets
from tests.tiny_checkpoint import CONFIG, tiny_tokenizer

ROOT = Path(__file__).parent.parent
MACHINE = Machine(gpus=1, memory=80, teraflops=100, utilisation=1.0)


@pytest.mark.parametrize("network", ["decoder", "autoregressive"])
def test_the_work_of_a_step_is_what_is_counted(network: str, tmp_path: Path) -> None:
    definition, config = tiny_tokenizer(CONFIG)
    (tmp_path / "t.json").write_text(json.dumps(definition), encoding="utf-8")
    start = initialize_folder(config, tmp_path / "start", tokenizer=tmp_path / "t.json", dtype=torch.float32)
    assets = write_assets(tmp_path / "assets")
    wide = {"tasks": {"subject": 1}, "sizes": [[256, 256]]}
    settings = stage(network, start, assets, tmp_path, data=[{"scenes": wide, "assets": str(assets)}],
                     decoder={"corrupt": 0.0}, batch_size=1)  # fmt: skip
    objective: Any = build_objective(Checkpoint.open(start), settings, CPU)
    objective.requires_grad_(True)
    batches = StepBatches(settings.data, 1, objective.collate, settings.captions)
    batch = batches[0].tensors
    if network == "decoder":
        batch |= {"glyph_texts": [["a text of sixty-three bytes, as many as the planner expects....."]]}
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        objective(batch)["loss"].backward()
    planned = plan(settings, config, MACHINE)
    assert planned.flops == pytest.approx(counter.get_total_flops(), rel=0.35)
    names = ("transformer", "glyph_encoder") if network == "decoder" else ("model",)
    counted = sum(p.numel() for name in names for p in getattr(objective, name).parameters())
    assert planned.trained == pytest.approx(counted, rel=0.02)


def test_memory_is_shared_by_gpus_and_saved_by_checkpointing() -> None:
    path = ROOT / "configs" / "glm-image-9b" / "decoder-1024.yaml"
    one, many = (plan_stage(path, [], Machine(gpus, 80, 989, 0.4)) for gpus in (1, 64))
    assert not one.fits
    assert many.fits
    assert one.optimizer == pytest.approx(64 * many.optimizer)
    plain = plan_stage(path, ["gradient_checkpointing=false"], Machine(64, 80, 989, 0.4))
    assert plain.activations > 5 * many.activations
    assert plain.flops < many.flops
    adapters = plan_stage(path, ["lora={rank: 16}"], Machine(1, 80, 989, 0.4))
    assert adapters.optimizer < 0.02 * one.optimizer
    assert "does NOT fit" in "\n".join(one.lines())


def test_precision_auto_is_planned_as_bf16_and_fp32_doubles_what_is_computed() -> None:
    path = ROOT / "configs" / "nano" / "decoder-256.yaml"
    auto, bf16, fp32 = (plan_stage(path, given, MACHINE) for given in ([], ["precision=bf16"], ["precision=no"]))
    assert auto == bf16
    assert (fp32.activations, fp32.others) == (2 * bf16.activations, 2 * bf16.others)
    assert fp32.optimizer == bf16.optimizer
    assert "(bf16)" in auto.lines()[-3]


@pytest.mark.parametrize("path", [*stages("base"), *stages("glm-image-9b")], ids=name)
def test_every_stage_of_the_large_sizes_fits_and_costs_what_its_file_says(path: Path) -> None:
    said = re.fullmatch(r"(\d+) GB on each of (\d+) GPUs, ([\d.]+) hours \(planned\)", cost(path))
    assert said
    found = plan_stage(path, [], Machine(int(said[2]), 80, 989, 0.4))
    assert found.fits
    assert found.flops > 0
    assert f"{found.stage}:" in found.lines()[0]
    hours = found.seconds_a_step * load_yaml(path, TrainConfig).steps / 3600
    assert (said[1], said[3]) == (f"{found.memory:.0f}", f"{hours:.1f}")


def test_dimensions_that_cannot_be_found_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text("{train: decoder, start: a, output: b, steps: 1, data: [{path: x}]}")
    with pytest.raises(UsageError, match="--model"):
        plan_stage(file, [], MACHINE)


ASK = """
import json, socket, sys
with socket.create_connection(("localhost", int(sys.argv[1]))) as place:
    place.sendall(json.dumps(sys.argv[2:]).encode() + b"\\n")
    sys.exit(int(place.makefile().read() or 1))
"""


def answer(commands: socket.socket, asking: subprocess.Popen[str]) -> None:
    """Run here, with everything imported, the commands that a program asks for until it ends."""
    commands.settimeout(0.2)
    while asking.poll() is None:
        try:
            connection, _ = commands.accept()
        except TimeoutError:
            continue
        connection.settimeout(None)
        with connection, connection.makefile("rw") as stream:
            with pytest.raises(SystemExit) as caught:
                run(json.loads(stream.readline()))
            stream.write(str(caught.value.code or 0))


@pytest.mark.timeout(900)
def test_the_recipe_of_nano_goes_from_nothing_to_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fifteen commands come to this process, as each would import all libraries anew."""
    assets = write_assets(tmp_path / "assets", ("noto", "fluent-flat"))
    monkeypatch.chdir(ROOT)
    (tmp_path / "ask.py").write_text(ASK)
    with socket.create_server(("localhost", 0)) as commands:
        arimage = f"{sys.executable} -I -S {tmp_path}/ask.py {commands.getsockname()[1]}"
        recipe = subprocess.Popen(
            ["bash", "configs/nano/run.sh", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "BUDGET": "toy", "ASSETS": str(assets), "ARIMAGE": arimage},
        )  # fmt: skip
        try:
            answer(commands, recipe)
        finally:
            recipe.kill()
            _, told = recipe.communicate()
    assert recipe.returncode == 0, told[-3000:]
    checkpoint = Checkpoint.open(tmp_path / "run" / "nano")
    assert not checkpoint.is_random
    assert checkpoint.config.autoencoder.latents_mean is not None
    assert Image.open(tmp_path / "run" / "fox.png").size == (256, 256)
