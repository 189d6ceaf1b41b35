"""Training: every network learns, every run resumes exactly, every fault is named."""

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor

from arimage.autoregressive.generation import TokenRequest, generate_grids
from arimage.autoregressive.layout import Region, build_prompt, target_grid, training_sequence
from arimage.autoregressive.sampling import TokenSampling
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.initialization import initialize_folder
from arimage.cli.main import run as cli
from arimage.errors import DataError, UsageError
from arimage.images.provenance import read_recipe
from arimage.inference.api import load
from arimage.training import augmentation, naming_heads, signature, state
from arimage.training.augmentation import DecoderBatch, crop_corners, with_copy_tasks
from arimage.training.bad_samples import BadSample, BadSamples
from arimage.training.batches import Replays, StepBatches, loader
from arimage.training.cache import CacheSource
from arimage.training.codes import encode_views
from arimage.training.config import AutoregressiveTraining, CaptionConfig, LoraConfig, SourceConfig, TrainConfig
from arimage.training.decoder import DecoderObjective, training_levels
from arimage.training.examples import Example
from arimage.training.guards import TrainingStopped, flattened
from arimage.training.loop import Run, train
from arimage.training.naming_heads import Alignment
from arimage.training.objective import noise_of
from arimage.training.objectives import build_objective
from arimage.training.optimizer import learning_rate
from arimage.training.plan import Machine, plan
from arimage.training.prepare import prepare, smallest_integers
from arimage.yaml_files import validate
from decoder.diffusion_decoder import DecodeRequest, DecoderSettings, DiffusionDecoder
from decoder.sampler import ScheduleConfig, flow_schedule
from tests.tiny_assets import write_assets
from tests.tiny_checkpoint import CONFIG, TEXT_FIRST, tiny_folder, tiny_tokenizer
from tokenizer.pixels import pixels

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
STAGES = ("autoencoder", "tokenizer", "autoregressive", "decoder")


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly initialised small model."""
    definition, config = tiny_tokenizer(CONFIG)
    folder = tmp_path_factory.mktemp("start") / "tiny"
    tokenizer = folder.parent / "tokenizer.json"
    tokenizer.write_text(json.dumps(definition), encoding="utf-8")
    return initialize_folder(config, folder, tokenizer=tokenizer, dtype=torch.float32)


def stage(network: str, start: Path, assets: Path, output: Path, **more: Any) -> TrainConfig:
    tasks: dict[str, float] = {"subject": 1, "text": 1}
    if network in ("autoregressive", "decoder"):
        tasks |= {"background": 1, "combine": 1}
    scenes = {"tasks": tasks, "sizes": [[64, 64]], "chinese_text": 0.0}
    values = {
        "train": network, "start": str(start), "output": str(output), "steps": 6, "batch_size": 2, "warmup": 2,
        "save_every": 3, "evaluate_every": 3, "sample_every": 100, "log_every": 1, "trackers": [],
        "precision": "no", "evaluation_batches": 1, "data": [{"scenes": scenes, "assets": str(assets)}],
        "evaluation": [{"scenes": {**scenes, "split": "evaluation"}, "assets": str(assets)}],
        "autoencoder": {"crop": 32, "statistics_samples": 4}, "tokenizer": {"decoder_size": 32, "text_layers": 1},
        "samples": {"size": [64, 64], "steps": 2}, **more,
    }  # fmt: skip
    return validate(values, TrainConfig, "test")


def metrics(output: Path, kind: str = "train") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def losses(output: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in metrics(output)}


# Learning


@pytest.mark.parametrize("network", STAGES)
def test_a_stage_runs_and_what_it_writes_opens_and_makes_a_picture(
    network: str, start: Path, assets: Path, tmp_path: Path
) -> None:
    folder = train(stage(network, start, assets, tmp_path / "run", sample_every=6))
    pipeline = load(folder, device="cpu")
    image = pipeline.generate("a red square", size=64, steps=2, seed=1)[0].image
    assert image.size == (64, 64)
    before, after = (Checkpoint.open(path).weights_hash() for path in (start, folder))
    assert before != after
    assert not pipeline.checkpoint.is_random
    assert [row["step"] for row in metrics(tmp_path / "run", "evaluation")] == [3, 6]
    if network != "autoregressive":
        assert list((tmp_path / "run" / "samples").glob("*.png"))


@pytest.fixture(scope="module")
def handful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures with captions."""
    folder = tmp_path_factory.mktemp("handful")
    for name, left, right in (("one", (220, 40, 40), (250, 240, 90)), ("two", (30, 60, 200), (240, 240, 240))):
        image = Image.new("RGB", (64, 64), left)
        image.paste(right, (32, 0, 64, 64))
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"picture {name}", encoding="utf-8")
    return folder


def overfit(network: str, start: Path, assets: Path, handful: Path, output: Path, steps: int, **more: Any) -> Run:
    config = stage(
        network, start, assets, output, steps=steps, learning_rate=4e-3, save_every=steps, ema=None, evaluation=[],
        data=[{"path": str(handful), "sides": [64]}], captions={"dropout": 0.0}, weight_decay=0.0, **more,
    )  # fmt: skip
    run = Run(config)
    run.start()
    run.run()
    return run


@pytest.fixture(scope="module")
def autoencoder(start: Path, assets: Path, handful: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One that knows the handful."""
    settings = {"crop": 0, "statistics_samples": 2}
    return overfit("autoencoder", start, assets, handful, tmp_path_factory.mktemp("vae"), 150, autoencoder=settings)


def test_the_autoencoder_learns_a_handful_by_heart(autoencoder: Run) -> None:
    run = autoencoder
    rows = metrics(run.output)
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 10
    shown = run.objective.pictures(run.batches.examples(0)[0])[0][1]
    true, made = shown.getpixel((8, 8)), shown.getpixel((64 + 8, 8))
    assert max(abs(a - b) for a, b in zip(true, made)) < 40
    assert run.objective.report(run.batches, 1)["picture_psnr"] > 20
    config = Checkpoint.open(run.output / "checkpoint").config.autoencoder
    assert config.latents_mean != CONFIG.autoencoder.latents_mean
    assert all(value > 0 for value in config.latents_std)


def test_latents_can_be_scaled_by_what_they_change_in_pixels(start: Path, assets: Path, tmp_path: Path) -> None:
    settings = {"crop": 32, "statistics_samples": 4, "latent_scale": "pixels"}
    folder = train(stage("autoencoder", start, assets, tmp_path / "run", steps=1, autoencoder=settings))
    autoencoder = Checkpoint.open(folder).autoencoder(device=CPU, dtype=torch.float32)
    run = Run(stage("autoencoder", start, assets, tmp_path / "other"))
    images = [example.pictured.image for step in range(2) for example in run.held_out.examples(step)[0]]  # type: ignore[union-attr]
    latents = torch.stack([autoencoder.encode(pixels(image)[None])[0] for image in images])
    assert latents.square().mean() == pytest.approx(1, rel=0.02)
    changes = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel] += 0.02 * noise_of(list(range(len(latents))), latents.shape[2:])
        changes.append(float((autoencoder.decode(moved) - autoencoder.decode(latents)).square().mean().sqrt()))
    assert max(changes) < 1.3 * min(changes)


def test_the_tokenizer_learns_a_handful_by_heart(start: Path, assets: Path, handful: Path, tmp_path: Path) -> None:
    run = overfit("tokenizer", start, assets, handful, tmp_path / "run", 120)
    history = metrics(tmp_path / "run")
    assert history[-1]["pixels"] < 0.35 * history[0]["pixels"]
    report = run.objective.report(run.batches, 1)
    assert report["retrieval_after"] >= 0.5
    tokenizer = Checkpoint.open(tmp_path / "run" / "checkpoint").semantic_tokenizer(device=CPU, dtype=torch.float32)
    pictures = [example.pictured.image for example in run.batches.examples(0)[0]]
    grids = tokenizer.encode(pictures)
    run.objective.eval()
    with torch.no_grad():
        batch = run.batches[0].tensors
        features = run.objective.features(batch["views"])
        vectors = torch.nn.functional.normalize(run.objective.quant_conv(features), dim=1)
        rows = vectors.permute(0, 2, 3, 1).flatten(1, 2)
        _, codes, _ = run.objective.quantizer(rows, freeze_codebook=True)
    table = tokenizer.model.vqmodel
    nearness = [(rows * table.embed(chosen)).sum(-1) for chosen in (torch.stack(grids).flatten(1), codes)]
    assert torch.allclose(*nearness, atol=1e-5)


def test_the_autoregressive_model_learns_a_handful_by_heart(
    start: Path, assets: Path, handful: Path, tmp_path: Path
) -> None:
    run = overfit("autoregressive", start, assets, handful, tmp_path / "run", 250, clip=5.0)
    rows = metrics(tmp_path / "run")
    assert rows[-1]["loss"] < 0.1 * rows[0]["loss"]
    objective = run.objective.eval()
    for example in run.batches.examples(0)[0]:
        prompt = build_prompt(objective.vocabulary, example.caption, target_grid(64, 64))
        made = generate_grids(objective.model, [TokenRequest(prompt, 1)], TokenSampling(temperature=0.0),
                              objective.vocabulary.codebook_size)[0]  # fmt: skip
        (_, true) = objective.encode(objective.collate([example]))[0]
        assert (made[-1] == true[-1]).float().mean() == 1.0


def test_the_decoder_learns_a_handful_by_heart(autoencoder: Run, assets: Path, handful: Path, tmp_path: Path) -> None:
    folder = autoencoder.output / "checkpoint"
    settings = {"uncond_prob": 0.0, "corrupt": 0.0}
    run = overfit("decoder", folder, assets, handful, tmp_path / "run", 250, decoder=settings)
    rows = metrics(tmp_path / "run")
    assert sum(row["loss"] for row in rows[-30:]) < 0.6 * sum(row["loss"] for row in rows[:30])
    shown = run.objective.pictures(run.batches.examples(0)[0])
    for _, sheet in shown:
        for x in (8, 56):
            true, made = sheet.getpixel((x, 32)), sheet.getpixel((64 + x, 32))
            assert sum(abs(a - b) for a, b in zip(true, made)) / 3 < 70, (true, made)


def test_crops_lie_around_what_is_shown_and_larger_ones_are_fewer(start: Path, assets: Path, tmp_path: Path) -> None:
    scenes = {"tasks": {"subject": 1}, "sizes": [[128, 128]], "patterns": 0.0}
    settings = {"crop": 32, "crop_sizes": {64: 0.3, 128: 0.2}, "object_crop_prob": 1.0, "aligned": 1.0}
    config = stage(
        "autoencoder", start, assets, tmp_path, batch_size=16, autoencoder=settings,
        data=[{"scenes": scenes, "assets": str(assets)}],
    )  # fmt: skip
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    batches = StepBatches(config.data, 16, objective.collate, config.captions)
    shapes = set()
    for step in range(40):
        values = batches[step].tensors["pixels"]
        shapes.add(tuple(values.shape))
        assert values.flatten(2).std(dim=2).amax(dim=1).min() > 0  # no crop is plain ground
    assert shapes == {(16, 3, 32, 32), (4, 3, 64, 64), (1, 3, 128, 128)}
    with pytest.raises(UsageError, match="crop_sizes"):
        stage("autoencoder", start, assets, tmp_path, autoencoder={"crop_sizes": {64: 0.7, 128: 0.5}})


def test_a_frozen_encoder_stays_as_it_is(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage("tokenizer", start, assets, tmp_path / "run", tokenizer={"frozen_encoder": True})
    folder = train(config)
    before, after = (
        Checkpoint.open(path).semantic_tokenizer(device=CPU, dtype=torch.float32).state_dict()
        for path in (start, folder)
    )
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert all(equal for name, equal in same.items() if ".visual." in name)
    assert not same["model.vqmodel.quantize.embedding.weight"]
    assert metrics(tmp_path / "run")[-1]["features"] > 0


def test_only_vision_rows_learn_when_that_is_asked(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage(
        "autoregressive", start, assets, tmp_path / "run", vision_rows_only=True, weight_decay=0.0,
        trainable=["*embed_tokens*", "*lm_head*"],
    )  # fmt: skip
    folder = train(config)
    before, after = (
        Checkpoint.open(path).autoregressive(device=CPU, dtype=torch.float32).state_dict() for path in (start, folder)
    )
    rows = CONFIG.text_model.vision_vocab_size
    table = "model.language_model.embed_tokens.weight"
    assert not torch.equal(before[table][:rows], after[table][:rows])
    assert torch.equal(before[table][rows:], after[table][rows:])
    assert all(torch.equal(before[n], after[n]) for n in before if "layers" in n)


def test_patterns_that_match_nothing_are_named(start: Path, assets: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'\\*attention9\\*' matches no parameter"):
        Run(stage("decoder", start, assets, tmp_path, frozen=["*attention9*"]))
    with pytest.raises(UsageError, match="nothing to learn"):
        Run(stage("decoder", start, assets, tmp_path, frozen=["*"]))


def test_a_compiled_run_gives_the_losses_of_one_that_is_not(start: Path, assets: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("compiling for a CPU needs g++")
    settings: dict[str, Any] = {"steps": 2, "evaluation": [], "save_every": 9}
    train(stage("autoregressive", start, assets, tmp_path / "plain", **settings))
    train(stage("autoregressive", start, assets, tmp_path / "compiled", compile=True, **settings))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert (tmp_path / "compiled" / "checkpoint" / "model_index.json").exists()


@pytest.mark.parametrize("network", ["autoregressive", "decoder"])
def test_checkpointing_activations_changes_no_loss(network: str, start: Path, assets: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 3, "evaluation": [], "save_every": 9}
    train(stage(network, start, assets, tmp_path / "plain", **settings))
    train(stage(network, start, assets, tmp_path / "saving", gradient_checkpointing=True, **settings))
    assert losses(tmp_path / "saving") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


@pytest.mark.parametrize("network", ["autoregressive", "decoder"])
def test_fixed_prompts_and_edits_are_drawn_into_files_and_the_tracker(
    network: str, start: Path, assets: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    samples = {"prompts": ["a red square", 'the word "OPEN"'], "edits": 1, "size": [64, 64], "steps": 2}
    config = stage(
        network, start, assets, tmp_path / "run", steps=4, sample_every=2, samples=samples, trackers=["tensorboard"]
    )
    train(config)
    sheets = sorted((tmp_path / "run" / "samples").glob("*.png"))
    assert [path.name for path in sheets] == ["step-00000002.png", "step-00000004.png"]
    assert Image.open(sheets[0]).width >= 3 * 64
    log = EventAccumulator(str(next((tmp_path / "run" / "logs").rglob("events*")).parent))
    log.Reload()
    assert "a red square" in log.Tags()["images"]
    assert {"train/loss", "evaluation/loss"} <= set(log.Tags()["scalars"])


# What the losses are


def test_noise_levels_are_those_of_the_sampler_and_rise_with_size() -> None:
    schedule, settings = ScheduleConfig(), stage_settings()
    normal = torch.linspace(-2.5, 2.5, 101)
    means = []
    for side in (256, 512, 1024):
        length = (side // 16) ** 2
        sigma, told = training_levels(normal, length, schedule, settings)
        sampled = flow_schedule(1000, length, schedule)
        table = {int(t): float(s) for t, s in zip(sampled.timesteps, sampled.sigmas)}
        for s, t in zip(sigma.tolist(), told.tolist()):
            if int(t) in table:
                assert abs(table[int(t)] - s) < 1e-6
        means.append(float(sigma.mean()))
        signal_to_noise = ((1 - sigma) / sigma) ** 2
        means[-1] = float(signal_to_noise.log().mean())
    assert means[0] > means[1] > means[2]
    assert {int(t) for t in told} <= set(range(1000))


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_share_of_the_noise_levels_is_even(share: float) -> None:
    normal = torch.special.ndtri((torch.arange(20000) + 0.5) / 20000)
    settings = stage_settings().model_copy(update={"noise_mean": 1.0, "noise_deviation": 1.2, "noise_uniform": share})
    told = (training_levels(normal, 256, ScheduleConfig(), settings)[1] + 1) / 1000
    plain = torch.special.ndtr((torch.logit(torch.tensor([0.2, 0.5, 0.8, 0.95])) - 1) / 1.2)
    for level, below in zip((0.2, 0.5, 0.8, 0.95), plain.tolist()):
        wanted = share * level + (1 - share) * below
        assert float((told <= level).float().mean()) == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("shows", ["picture", "blank"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_so_many_pictures_begin_with_a_preview(
    start: Path, assets: Path, tmp_path: Path, share: float, shows: str
) -> None:
    """Pictures have one as often as asked, edits never; a blank one is the same for every picture of a size."""
    settings = {"preview": share, "preview_shows": shows}
    config = stage("autoregressive", start, assets, tmp_path, autoregressive=settings, batch_size=24)
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    batches = StepBatches(config.data, 24, objective.collate, CaptionConfig(), seed=1)
    batch = batches[0].tensors
    previews = []
    for sample, (references, own) in zip(batch["samples"], objective.encode(batch)):
        assert own[-1].shape == (2, 2)
        assert len(own) == 1 + sample["preview"]
        assert not (references and sample["preview"])
        previews += own[:-1]
    pictures = sum(not sample["references"] for sample in batch["samples"])
    assert 0 < pictures < 24
    assert len(previews) == share * pictures or 0 < len(previews) < pictures
    assert (len({tuple(codes.flatten().tolist()) for codes in previews}) <= 1) == (shows == "blank" or not previews)


def test_exercises_in_copying_show_a_renamed_reference_and_ask_for_it(
    start: Path, assets: Path, tmp_path: Path
) -> None:
    """Every edit becomes one, no picture does; equal codes stay equal under their new names."""
    for share in (0.0, 1.0):
        config = stage(
            "autoregressive", start, assets, tmp_path, autoregressive={"copy_task_prob": share}, batch_size=24
        )
        objective: Any = build_objective(Checkpoint.open(start), config, CPU)
        batch = StepBatches(config.data, 24, objective.collate, CaptionConfig(), seed=1)[0].tensors
        plain = [{name: value for name, value in sample.items() if name != "copied"} for sample in batch["samples"]]
        before = objective.encode({"samples": plain})
        renamed = 0
        for sample, (references, own), (true, target) in zip(batch["samples"], objective.encode(batch), before):
            assert ("copied" in sample) == (share == 1 and bool(references))
            if "copied" not in sample:
                assert torch.equal(own[-1], target[-1])
                continue
            assert sample["text"] == ""
            assert len(own) == 1
            assert torch.equal(own[0], references[-1])
            pairs = {(int(a), int(b)) for a, b in zip(true[-1].flatten(), own[0].flatten())}
            assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
            renamed += any(a != b for a, b in pairs)
        parts = objective.eval()(batch)
        assert ("copy_accuracy" in parts) == (renamed > 0) == (share == 1)


def test_renamed_edits_keep_their_text_and_hide_what_is_kept_behind_new_codes(
    start: Path, assets: Path, tmp_path: Path
) -> None:
    """New codes stand for codes that target and references share, one for one; all other codes stay."""
    config = stage("autoregressive", start, assets, tmp_path, autoregressive={"rename_prob": 1.0}, batch_size=24)
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    batch = StepBatches(config.data, 24, objective.collate, CaptionConfig(), seed=1)[0].tensors
    plain = [{name: value for name, value in sample.items() if name != "renamed"} for sample in batch["samples"]]
    before = objective.encode({"samples": plain})
    hidden = 0
    for sample, old, new in zip(batch["samples"], before, objective.encode(batch)):
        assert ("renamed" in sample) == bool(old.references)
        pairs = {
            (int(a), int(b))
            for grids in zip([*old.references, old.targets[-1]], [*new.references, new.targets[-1]])
            for a, b in zip(grids[0].flatten(), grids[1].flatten())
        }
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
        changed = {a for a, b in pairs if a != b}
        held = {int(code) for codes in old.references for code in codes.flatten()}
        assert changed <= held & {int(code) for code in old.targets[-1].flatten()}
        hidden += len(changed)
        assert {b for a, b in pairs if a != b} == set(sample.get("new_codes", torch.empty(0)).tolist())
    parts = objective.eval()(batch)
    assert hidden > 0
    assert "renamed_accuracy" in parts


def local_edits(assets: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A stage whose edits keep some of the codes, and others."""
    scenes = {"tasks": {"subject": 1, "remove": 4, "identity": 1}, "sizes": [[256, 256]], "patterns": 0.0}
    data = [{"scenes": scenes, "assets": str(assets)}]
    return {"autoregressive": settings, "batch_size": 12, "data": data, "evaluation": data}


def test_codes_that_an_edit_changes_are_told_from_those_it_keeps(start: Path, assets: Path, tmp_path: Path) -> None:
    """At what the reference shows, after some layers, changed and kept codes counting alike; in training only."""
    settings = {"changes": 0.5, "changes_layer": 1}
    config = stage("autoregressive", start, assets, tmp_path, **local_edits(assets, settings))
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    batch = StepBatches(config.data, 12, objective.collate, CaptionConfig(), seed=1)[0].tensors
    with torch.no_grad():
        objective.changes.weight.normal_(generator=torch.Generator().manual_seed(0))
        plain = objective.eval()(batch)
        learnt = objective.train()(batch)
        expected, right, edits = 0.0, 0.0, 0
        for sample, codes, sequence in zip(batch["samples"], objective.encode(batch), objective.sequences(batch)):
            if sample["task"] in ("identity", "combine") or not codes.references or not sample["text"]:
                assert "changed" not in sample
                continue
            source, target = codes.references[-1].flatten(), codes.targets[-1].flatten()
            ground = source.bincount().argmax()
            if "changed" not in sample:
                assert not bool(((source == target) & (source != ground)).any())
                continue
            first, changed, kept = sample["changed"]
            assert torch.equal(sequence.tokens[first : first + len(source)], source)
            assert torch.equal(changed, source != target)
            assert torch.equal(kept, (source == target) & (source != ground))
            states: list[torch.Tensor] = []
            objective.model(sequence.tokens[None], sequence.positions[:, None], [len(sequence.tokens)], states)
            hidden = states[0][0, first : first + len(source)]
            scores = objective.changes(torch.nn.functional.layer_norm(hidden, hidden.shape[-1:]))[:, 0]
            losses = torch.nn.functional.softplus(torch.where(changed, -scores, scores))
            expected += float((losses[changed].mean() + losses[kept].mean()) / 2)
            hits = ((scores > 0) == changed).float()
            right += float((hits[changed].mean() + hits[kept].mean()) / 2)
            edits += 1
    assert edits > 2
    assert float(plain["changes"]) == pytest.approx(expected / 12, rel=1e-4)
    assert float(plain["changes_accuracy"]) == pytest.approx(right / edits, rel=1e-4)
    assert float(learnt["loss"]) == pytest.approx(float(plain["loss"]) + 0.5 * expected / 12, rel=1e-4)
    names = objective.states(objective.state_dict())["vision_language_encoder"]
    assert not any("changes" in name for name in names)


def test_texts_and_the_codes_that_they_name_find_each_other(start: Path, assets: Path, tmp_path: Path) -> None:
    """By the words' states and the codes' rows of the embedding alone; what an edit keeps is not named."""
    with pytest.raises(UsageError, match=r"autoregressive.alignment needs a model that reads the text first"):
        build_objective(
            Checkpoint.open(start),
            stage("autoregressive", start, assets, tmp_path, autoregressive={"alignment": 1}),
            CPU,
        )
    start = tiny_folder(tmp_path / "start", config=TEXT_FIRST)
    config = stage("autoregressive", start, assets, tmp_path, **local_edits(assets, {"alignment": 0.5}))
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    batch = StepBatches(config.data, 12, objective.collate, CaptionConfig(), seed=1)[0].tensors
    with torch.no_grad():
        plain, learnt = objective.eval()(batch), objective.train()(batch)
        edits = 0
        for sample, codes, sequence in zip(batch["samples"], objective.encode(batch), objective.sequences(batch)):
            if sample["task"] == "identity" or not sample["text"]:
                assert "named" not in sample
                continue
            named, beside = ({int(code) for code in part} for part in sample["named"])
            assert sequence.tokens[: sample["words"]].tolist() == objective.vocabulary.encode(sample["text"])
            target = codes.targets[-1].flatten().tolist()
            if not codes.references:
                assert (named, beside) == (set(target), set())
                continue
            source = codes.references[-1].flatten().tolist()
            assert beside == {before for before, after in zip(source, target) if before == after}
            assert named == {code for pair in zip(source, target) if pair[0] != pair[1] for code in pair} - beside
            edits += 1
    assert edits > 2
    assert float(learnt["loss"]) == pytest.approx(float(plain["loss"]) + 0.5 * float(plain["alignment"]), rel=1e-4)
    assert not any("alignment" in name for name in objective.states(objective.state_dict())["vision_language_encoder"])


def test_a_stage_may_begin_with_a_head_that_recognises_names(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes and words of the stage's data are aligned before the first step."""
    # A tokenizer of random weights gives things no codes of their own, so that none is recognised surely.
    monkeypatch.setattr(naming_heads, "_scores", lambda *given: (0.6, 0.2))
    start = tiny_folder(tmp_path / "start", config=TEXT_FIRST)
    settings = local_edits(assets, {"naming_head": {"layer": 1, "head": 0, "steps": 60, "prompts": 60}})
    config = stage("autoregressive", start, assets, tmp_path / "run", **settings | {"batch_size": 4, "steps": 1})
    run = Run(config)
    run.start()
    assert "aligning 60/60: alignment" in capsys.readouterr().out
    model: Any = run.objective.model
    attention = model.model.language_model.layers[1].self_attn
    assert not attention.q_proj.weight[: attention.rotary].any()
    assert attention.q_proj.weight[attention.rotary : attention.head_dim].any()
    before = Checkpoint.open(start).autoregressive(device=CPU, dtype=torch.float32).state_dict()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    layer = "model.language_model.layers.1.self_attn."
    parts = (
        "q_proj.weight",
        "q_proj.bias",
        "k_proj.weight",
        "k_proj.bias",
        "v_proj.weight",
        "v_proj.bias",
        "o_proj.weight",
    )
    assert changed == {"model.language_model.embed_tokens.weight", *(layer + part for part in parts)}
    for wrong, told in (({"layer": 9}, "there is no head 0 in a layer 9"), ({"head": 40}, "there is no head 40")):
        more = {"autoregressive": {"naming_head": {"layer": 1, "steps": 1, "prompts": 8, **wrong}}}
        with pytest.raises(UsageError, match=rf"autoregressive.naming_head: {told}"):
            Run(stage("autoregressive", start, assets, tmp_path / "wrong", **settings | more)).start()


def test_the_contrastive_loss_of_texts_and_codes_by_hand() -> None:
    alignment = Alignment(2, 2)
    with torch.no_grad():
        for projection in (alignment.codes, alignment.words):
            projection.weight.copy_(torch.eye(2))
        alignment.scale.zero_()  # a scale of 1
    codes = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    texts = [torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])]
    told = alignment(codes, texts, torch.tensor([[True, False], [False, True]]))
    near, far = math.exp(1), math.exp(-1)  # exponentials of what a near and a far word count
    both = near + far
    by_code = (math.log((both + far) / both) + math.log((both + near) / near)) / 2
    by_text = (math.log(2) + math.log((near + far) / near)) / 2
    assert float(told["alignment"].detach()) == pytest.approx((by_code + by_text) / 2, rel=1e-4)


def test_a_run_that_tells_changes_goes_on_and_writes_a_checkpoint(start: Path, assets: Path, tmp_path: Path) -> None:
    settings = {"changes": 0.5}
    more = {**local_edits(assets, settings), "steps": 1, "save_every": 1, "evaluate_every": 1}
    folder = train(stage("autoregressive", start, assets, tmp_path, **more))
    assert all("changes_accuracy" in metrics(tmp_path, kind)[-1] for kind in ("train", "evaluation"))
    load(folder, device="cpu")
    for wrong, message in (
        ({"autoregressive": {"changes": 0.5, "changes_layer": 99}}, "the model has"),
        ({"autoregressive": settings, "lora": {"rank": 2}}, "goes without lora"),
    ):
        with pytest.raises(UsageError, match=message):
            build_objective(Checkpoint.open(start), stage("autoregressive", start, assets, tmp_path, **wrong), CPU)


def test_uncertain_tokens_weigh_more_in_a_focal_loss(start: Path, assets: Path, tmp_path: Path) -> None:
    """In training; held-out losses stay comparable."""
    settings = {"focal": 0.1, "end_weight": 0.5, "preview": 0.0}
    config = stage("autoregressive", start, assets, tmp_path, autoregressive=settings)
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    batch = StepBatches(config.data, 1, objective.collate, CaptionConfig(), seed=1)[0].tensors
    sequence = objective.sequences(batch)[0]
    with torch.no_grad():
        objective.model.lm_head.weight.mul_(8)  # so that some tokens are certain
        hidden = objective.model(sequence.tokens[None], sequence.positions[:, None], [len(sequence.tokens)])[0]
        asked = sequence.labels >= 0
        scores = objective.model.scores(hidden[asked])
        losses = torch.nn.functional.cross_entropy(scores, sequence.labels[asked], reduction="none")
        plain = torch.where(sequence.regions[asked] == Region.END, 0.5, 1.0)
        weights = plain * (0.1 + 1 - torch.exp(-losses))
        assert float(objective.train()(batch)["loss"]) == pytest.approx(float((losses * weights).sum() / weights.sum()))
        assert float(objective.eval()(batch)["loss"]) == pytest.approx(float((losses * plain).sum() / plain.sum()))
    assert float(weights.std()) > 0.05


def stage_settings() -> Any:
    from arimage.training.config import DecoderTraining

    return DecoderTraining()


def test_teacher_forced_probabilities_are_those_of_generation(start: Path, assets: Path, tmp_path: Path) -> None:
    objective: Any = build_objective(Checkpoint.open(start), stage("autoregressive", start, assets, tmp_path), CPU)
    objective.eval()
    prompt = build_prompt(objective.vocabulary, "a red square", target_grid(64, 64))
    codes = objective.vocabulary.codebook_size
    grids = generate_grids(objective.model, [TokenRequest(prompt, 5)], TokenSampling(1.0, 1.0), codes)[0]
    sequence = training_sequence(prompt, grids, objective.vocabulary)
    with torch.no_grad():
        hidden = objective.model(sequence.tokens[None], sequence.positions[:, None], [len(sequence.tokens)])[0]
        forced = objective.model.scores(hidden, codes).log_softmax(-1)
        from arimage.autoregressive.cache import KeyValueCache
        from arimage.autoregressive.layout import generated_positions

        length = len(prompt.tokens)
        config = objective.model.config
        cache = KeyValueCache(config, 1, length + prompt.new_tokens, CPU, torch.float32)
        state_ = objective.model.prefill(prompt.tokens[None], prompt.positions[:, None], torch.tensor([length]), cache)
        positions = generated_positions(prompt)
        flat = torch.cat([grid.flatten() for grid in grids])
        worst = 0.0
        for index, token in enumerate(flat):
            stepped = objective.model.scores(state_, codes).log_softmax(-1)[0, token]
            worst = max(worst, abs(float(stepped - forced[length - 1 + index, token])))
            if index + 1 < len(flat):
                cos, sin = objective.model.step_rotation(positions[:, index : index + 1][:, None])
                state_ = objective.model.step(token[None, None], (cos, sin), cache)[:, 0]
                cache.advance()
    assert worst < 1e-4


def test_a_sample_costs_the_same_alone_and_in_a_batch(start: Path, assets: Path, tmp_path: Path) -> None:
    for network in ("autoregressive", "decoder"):
        config = stage(network, start, assets, tmp_path, batch_size=3)
        objective = build_objective(Checkpoint.open(start), config, CPU).eval()
        batches = StepBatches(config.data, 3, objective.collate, config.captions)
        examples = batches.examples(0)[0]
        with torch.no_grad():
            together = float(objective(objective.collate(examples))["loss"])
            alone = [float(objective(objective.collate([example]))["loss"]) for example in examples]
        assert together == pytest.approx(sum(alone) / 3, rel=1e-4)


def test_gradients_reach_the_references_and_the_glyph_encoder(start: Path, assets: Path, tmp_path: Path) -> None:
    scenes = {"tasks": {"combine": 1}, "sizes": [[64, 64]]}
    config = stage(
        "decoder", start, assets, tmp_path, data=[{"scenes": scenes, "assets": str(assets)}],
        decoder={"uncond_prob": 0.0, "drop_references": 0.0, "drop_glyphs": 0.0},
    )  # fmt: skip
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    objective.requires_grad_(True)
    with torch.no_grad():
        for parameter in objective.transformer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = objective.collate(StepBatches(config.data, 2, objective.collate, config.captions).examples(0)[0])
    encoded = objective.encode(batch)
    assert all(len(row) == 2 for row in encoded.references)
    leaves = [
        [replace(one, latents=one.latents.clone().requires_grad_(True)) for one in row] for row in encoded.references
    ]
    objective({"encoded": replace(encoded, references=leaves, glyph_texts=[["OPEN"], ["FREE"]])})["loss"].backward()
    grads = [one.latents.grad for row in leaves for one in row]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    assert sum(float(p.grad.abs().sum()) for p in objective.glyph_encoder.parameters() if p.grad is not None) > 0


def test_padded_glyphs_are_those_that_generation_encodes(start: Path) -> None:
    encoder = Checkpoint.open(start).glyph_encoder(device=CPU, dtype=torch.float32)
    texts = [["OPEN"], [], ["你好", "a longer text", "x"]]
    with torch.no_grad():
        one, mask = encoder.encode(texts)
        two, other = encoder.encode_padded(texts)
    assert torch.equal(mask, other)
    assert torch.allclose(one[mask], two[mask], atol=1e-5)


def test_codes_that_look_alike_can_start_alike(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage("decoder", start, assets, tmp_path, decoder={"codes_from_codebook": True})
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    codebook = objective.helpers["tokenizer"].model.vqmodel.quantize.embedding.weight
    with torch.no_grad():
        codebook[7] = codebook[3] * 2
    objective.prepare(None)
    table = objective.transformer.prior_token_embedding.weight
    assert torch.allclose(table[7], table[3], atol=1e-5)
    assert not torch.allclose(table[7], table[4], atol=0.1)


def test_rows_of_codes_that_look_alike_can_start_alike(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage("autoregressive", start, assets, tmp_path, autoregressive={"codes_from_codebook": True})
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    codebook = objective.helpers["tokenizer"].model.vqmodel.quantize.embedding.weight
    text = objective.model.model.language_model.embed_tokens.weight[CONFIG.text_model.vision_vocab_size :].clone()
    with torch.no_grad():
        codebook[7] = codebook[3] * 2
    objective.prepare(None)
    for table in (objective.model.model.language_model.embed_tokens.weight, objective.model.lm_head.weight):
        assert torch.allclose(table[7], table[3], atol=1e-5)
        assert not torch.allclose(table[7], table[4], atol=1e-2)
    assert torch.equal(text, objective.model.model.language_model.embed_tokens.weight[len(table) :])


def test_each_draw_of_a_picture_has_its_own_noise(start: Path, assets: Path, tmp_path: Path) -> None:
    settings = {"uncond_prob": 0.0, "drop_prior": 0.0, "corrupt": 0.0}
    one = stage("decoder", start, assets, tmp_path, decoder=settings)
    both = stage("decoder", start, assets, tmp_path, decoder={**settings, "noise_levels_per_image": 2})
    checkpoint = Checkpoint.open(start)
    objectives: list[Any] = [build_objective(checkpoint, config, CPU).train() for config in (one, both)]
    batches = StepBatches(one.data, 2, objectives[0].collate, one.captions)
    batch = objectives[0].collate(batches.examples(0)[0])
    with torch.no_grad():
        alone, together = (float(objective(batch)["loss"]) for objective in objectives)
        assert float(objectives[1].eval()(batch)["loss"]) == pytest.approx(alone)
    assert together != pytest.approx(alone, rel=1e-4)


def test_crops_lie_where_something_is_shown() -> None:
    codes = torch.full((400, 8, 8), 5)
    codes[:, 6, 1] = 9
    chance = torch.linspace(0, 1 - 1e-6, 400)
    rows, columns = crop_corners(codes, 4, chance).T
    shown = (rows >= 3) & (columns <= 1)
    assert float(shown.float().mean()) == pytest.approx(4 * 1.5 / (4 * 1.5 + 21 * 0.5), abs=0.01)
    plain = crop_corners(torch.full((400, 8, 8), 5), 4, chance)
    assert len(plain.unique(dim=0)) == 25
    assert plain.amin() == 0
    assert plain.amax() == 4


def heard(objective: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What the transformer is told about a batch, and its references."""
    told: dict[str, Any] = {}
    forward, encode = objective.transformer.forward, objective.transformer.cache_references

    def listen(noisy: Tensor, timestep: Tensor, **given: Any) -> Tensor:
        told.update(given, noisy=noisy, timestep=timestep)
        return forward(noisy, timestep, **given)

    def see(rows: Any) -> Any:
        told["rows"] = rows
        return encode(rows)

    objective.transformer.forward, objective.transformer.cache_references = listen, see
    objective(batch)
    return told


@pytest.mark.parametrize("task", ["subject", "combine"])
@pytest.mark.parametrize("full", [0.0, 1.0])
def test_crops_show_the_same_part_of_a_picture_and_its_references(
    task: str, full: float, start: Path, assets: Path, tmp_path: Path
) -> None:
    scenes = {"tasks": {task: 1}, "sizes": [[64, 64]]}
    settings = {"crops_per_image": 3, "crop_cells": 1, "full_image_prob": full, "uncond_prob": 0.0, "corrupt": 0.0}
    settings |= {"drop_prior": 0.0, "drop_references": 0.0}
    data = [{"scenes": scenes, "assets": str(assets)}]
    config = stage("decoder", start, assets, tmp_path, data=data, decoder=settings)
    objective: Any = build_objective(Checkpoint.open(start), config, CPU).train()
    batch = objective.collate(StepBatches(config.data, 2, objective.collate, config.captions).examples(0)[0])
    encoded = objective.encode(batch)
    latents, codes = encoded.latents, encoded.codes
    references = [[(one.latents, one.codes) for one in row] for row in encoded.references]
    told = heard(objective, {"encoded": encoded})
    assert torch.equal(told["target_size"].unique(dim=0), torch.tensor([[64, 64]]))
    if full:
        assert told["noisy"].shape == latents.shape
        assert told["crop"] is None
        assert told["rows"] == references
        return
    assert told["noisy"].shape == (6, latents.shape[1], 4, 4)
    assert set(told["crop"].flatten().tolist()) == {0, 32}
    for row, (crop, shown, others) in enumerate(zip(told["crop"], told["prior_tokens"], told["rows"])):
        y, x = (crop // 32).tolist()
        assert shown.item() == codes[row % 2, y, x]
        assert len(others) == len(references[row % 2]) == (2 if task == "combine" else 0)
        for (part, grid), (all_of_it, all_codes) in zip(others, references[row % 2]):
            assert grid.item() == all_codes[y, x]
            assert torch.equal(part, all_of_it[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4])


@pytest.mark.parametrize("crops", [0, 2])
def test_the_decoders_exercises_in_copying_ask_for_what_the_reference_alone_shows(
    crops: int, start: Path, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = {"tasks": {"combine": 1}, "sizes": [[64, 64]]}
    settings = {"copy_task_prob": 0.5, "crops_per_image": crops, "crop_cells": 1, "uncond_prob": 1.0, "corrupt": 0.0}
    data = [{"scenes": scenes, "assets": str(assets)}]
    config = stage("decoder", start, assets, tmp_path, data=data, decoder=settings)
    objective: Any = build_objective(Checkpoint.open(start), config, CPU).train()
    batch = objective.collate(StepBatches(config.data, 16, objective.collate, config.captions).examples(1)[0])
    before: list[DecoderBatch] = []
    made: list[DecoderBatch] = []

    def listen(sample: DecoderBatch, prob: float) -> DecoderBatch:
        before.append(sample)
        made.append(with_copy_tasks(sample, prob))
        return made[-1]

    monkeypatch.setattr(augmentation, "with_copy_tasks", listen)
    told = heard(objective, batch)
    chosen = ~made[0].no_references  # every other sample is told nothing
    assert before[0].no_references.all()
    assert 0 < int((chosen & made[0].no_codes).sum()) < int(chosen.sum()) < len(chosen)
    assert made[0].no_codes[~chosen].all()
    assert made[0].no_glyphs.all()
    assert torch.equal(told["prior_dropped"], made[0].no_codes)
    for target, codes, row, exercise in zip(made[0].latents, told["prior_tokens"], told["rows"], chosen):
        assert bool(row) == bool(exercise)
        if exercise:
            assert torch.equal(target, row[-1][0])
            assert torch.equal(codes, row[-1][1])


def test_codes_under_other_names_say_where_in_a_reference_to_look(start: Path, assets: Path, tmp_path: Path) -> None:
    data = [{"scenes": {"tasks": {"remove": 1, "subject": 1}, "sizes": [[64, 64]]}, "assets": str(assets)}]
    settings = {"rename_prob": 0.5, "uncond_prob": 0.0, "corrupt": 0.0}
    config = stage("decoder", start, assets, tmp_path, data=data, decoder=settings)
    objective: Any = build_objective(Checkpoint.open(start), config, CPU).train()
    batch = objective.collate(StepBatches(config.data, 24, objective.collate, config.captions).examples(1)[0])
    clean = objective.encode(batch)
    changed = 0
    for training in (True, False):
        sample = augmentation.augmented(clean, config.decoder, objective.num_codes, training)
        for index, (new, old) in enumerate(zip(sample.references, clean.references)):
            target, before = sample.codes[index], clean.codes[index]
            assert torch.equal(sample.latents[index], clean.latents[index])
            if torch.equal(target, before):
                assert all(torch.equal(a.codes, b.codes) for a, b in zip(new, old))
                continue
            changed += 1
            assert training
            assert old, "a picture without a reference keeps its codes"
            whole = torch.cat([target.flatten(), *(one.codes.flatten() for one in new)])
            names = torch.cat([before.flatten(), *(one.codes.flatten() for one in old)])
            pairs = set(zip(names.tolist(), whole.tolist()))
            assert len(pairs) == len(set(names.tolist())) == len(set(whole.tolist())), "one name for each code"
            renamed = target[target != before]
            assert torch.isin(renamed, torch.cat([one.codes.flatten() for one in new])).all()
            assert not torch.isin(renamed, names).any()
            assert all(torch.equal(a.latents, b.latents) for a, b in zip(new, old))
    assert changed


# Distillation


def test_codes_are_the_same_under_autocast(start: Path) -> None:
    tokenizer = Checkpoint.open(start).semantic_tokenizer(device=CPU, dtype=torch.float32)
    views = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in range(40)]
    plain = torch.stack(encode_views(tokenizer, views, CPU))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.stack(encode_views(tokenizer, views, CPU)), plain)
        assert not torch.equal(torch.stack(tokenizer(views)), plain)  # what the rounding would do


def test_a_teacher_walks_as_the_sampler_does(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage("decoder", start, assets, tmp_path, decoder={"distillation": {"steps": 2, "teacher_substeps": 3}})
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    teacher = objective.teacher
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in teacher.transformer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=stream))
    channels = CONFIG.transformer.in_channels
    noise = torch.randn(1, channels, 8, 8, generator=stream)
    codes = torch.tensor([[[1, 2], [3, 4]]])
    none, _ = objective.glyph_encoder.encode([[]])
    request = DecodeRequest(codes[0], none[0].detach(), none[0].detach(), (), noise[0])
    decoder = DiffusionDecoder(teacher.transformer, objective.schedule)
    wanted = decoder.sample([request], DecoderSettings(steps=6, guidance=1.5))[0]
    latents = noise
    schedule = flow_schedule(2, 16, objective.schedule)
    for place in range(2):
        clean = torch.zeros_like(noise) if place == 0 else (latents - schedule.sigmas[1] * noise) / (
            1 - schedule.sigmas[1]
        )  # fmt: skip
        begun, timestep, velocity = teacher.rollout(clean, noise, torch.tensor([place]), codes, [[]], [[]])
        assert timestep == schedule.timesteps[place : place + 1]
        latents = begun + (schedule.sigmas[place + 1] - schedule.sigmas[place]) * velocity
    assert torch.allclose(latents[0], wanted, atol=1e-4)


def test_a_student_comes_nearer_to_its_teacher(start: Path, assets: Path, handful: Path, tmp_path: Path) -> None:
    settings = {"uncond_prob": 0.0, "corrupt": 0.0}
    overfit("decoder", start, assets, handful, tmp_path / "teacher", 60, decoder=settings)
    folder = tmp_path / "teacher" / "checkpoint"
    distillation = {"distillation": {"steps": 2, "teacher_substeps": 2, "guidance": 1.0}, "train_glyph_encoder": False}
    overfit("decoder", folder, assets, handful, tmp_path / "student", 80, decoder=distillation)
    rows = metrics(tmp_path / "student")
    assert sum(row["loss"] for row in rows[-20:]) < 0.7 * sum(row["loss"] for row in rows[:20])


# Schedules, freezing, averages


def test_rates_warm_up_and_fall() -> None:
    base = {"train": "decoder", "start": "a", "output": "b", "data": [{"path": "x"}], "learning_rate": 1.0}
    config = validate({**base, "steps": 110, "warmup": 10, "min_lr_ratio": 0.1}, TrainConfig, "test")
    rates = [learning_rate(config, step) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    flat = config.model_copy(update={"schedule": "constant"})
    assert learning_rate(flat, 100) == 1.0


def test_the_average_is_what_is_evaluated_and_exported(start: Path, assets: Path, tmp_path: Path) -> None:
    run = Run(stage("decoder", start, assets, tmp_path / "run", ema=0.99, learning_rate=1e-2))
    run.start()
    folder = run.run()
    exported = Checkpoint.open(folder).transformer(device=CPU, dtype=torch.float32).state_dict()
    weights = run.objective.transformer.state_dict()
    assert run.train_state.ema is not None
    for name in ("proj_out.weight", "transformer_blocks.0.attn1.to_q.weight"):
        assert torch.equal(exported[name], run.train_state.ema.values[f"transformer.{name}"])
        assert not torch.equal(exported[name], weights[name])


# Resuming


@pytest.mark.parametrize("network", STAGES)
def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(
    network: str, start: Path, assets: Path, tmp_path: Path
) -> None:
    straight = train(stage(network, start, assets, tmp_path / "straight"))
    config = stage(network, start, assets, tmp_path / "broken")
    run = Run(config)
    run.start()
    run.save = stop_after(run, 3)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()
    resumed = train(config.model_copy(update={"workers": 1}))
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    assert Checkpoint.open(resumed).weights_hash() == Checkpoint.open(straight).weights_hash()


def test_replays_learn_again_from_what_was_encoded_once(
    start: Path, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fresh batch is encoded once, each replay has other seeds; a run that was stopped, or whose batches come from
    workers, is the same, and a new schedule learns from none of the old one's batches."""
    encoded, seeds = [], []
    encode, add_noise = DecoderObjective._encode, DecoderObjective.add_noise
    monkeypatch.setattr(DecoderObjective, "_encode", lambda self, batch: (encoded.append(1), encode(self, batch))[1])
    monkeypatch.setattr(
        DecoderObjective, "add_noise", lambda self, batch: (seeds.append(tuple(batch.seeds)), add_noise(self, batch))[1]
    )
    given = {"steps": 7, "replays": 2, "replay_window": 2, "evaluation": (), "save_every": 4, "keep": 3}
    config = stage("decoder", start, assets, tmp_path / "straight", **given)
    straight = train(config)
    assert len(encoded) == 3
    assert len(set(seeds)) == 7
    run = Run(config.model_copy(update={"output": str(tmp_path / "broken")}))
    run.start()
    run.save = stop_after(run, 4)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()
    resumed = train(run.config.model_copy(update={"workers": 2}))
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    assert Checkpoint.open(resumed).weights_hash() == Checkpoint.open(straight).weights_hash()
    encoded.clear()
    again = Run(run.config.model_copy(update={"restart": True, "learning_rate": 1e-5}))
    again.start()
    assert again.batches.replays is not None
    assert again.batches.replays.first == 7
    assert [again.batches.replays.fresh(number) for number in (9, 10, 11)] == [3, 3, 3]
    again.learn()
    assert len(encoded) == 3, "of steps 9 and 12, and of 6, whose replays are steps 7 and 8"


def test_replays_are_for_decoders_that_learn_from_pictures(start: Path, assets: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="replays are for the decoder"):
        stage("autoregressive", start, assets, tmp_path, replays=1)


def test_replays_are_spread_over_the_window() -> None:
    replays = Replays(2, 10, 0)
    found = [replays.fresh(number) for number in range(600)]
    assert found[::3] == list(range(200))
    ages = [number // 3 - batch for number, batch in enumerate(found) if replays.again(number)]
    assert min(ages) == 0
    assert max(ages) == 9
    counts = Counter(batch for number, batch in enumerate(found) if replays.again(number))
    assert statistics.fmean(counts[batch] for batch in range(20, 180)) == pytest.approx(2, abs=0.1)


def stop_after(run: Run, step: int) -> Any:
    save = type(run).save

    def saved() -> None:
        save(run)
        if run.step == step:
            raise KeyboardInterrupt

    return saved


def started(config: TrainConfig, file: Path) -> "subprocess.Popen[bytes]":
    """A stage in a process and a session of its own."""
    file.write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "arimage", "train", str(file), "--threads", str(torch.get_num_threads())]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def test_a_run_that_is_killed_goes_on_from_its_last_state(start: Path, assets: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 40, "save_every": 5, "evaluation": [], "keep": 2}
    straight = train(stage("decoder", start, assets, tmp_path / "straight", **settings))
    config = stage("decoder", start, assets, tmp_path / "killed", **settings)
    process = started(config, tmp_path / "stage.yaml")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "states").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    found = state.newest(tmp_path / "killed" / "states")
    assert found is not None
    assert int(found.name.removeprefix("step-")) < 40
    folder = train(config)
    after = {step: loss for step, loss in losses(tmp_path / "killed").items()}
    assert after == losses(tmp_path / "straight")
    assert Checkpoint.open(folder).weights_hash() == Checkpoint.open(straight).weights_hash()


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_a_run_that_is_asked_to_stop_saves_its_state_and_goes_on(
    start: Path, assets: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    settings: dict[str, Any] = {"steps": 60, "save_every": 1000, "evaluation": [], "log_every": 1, "workers": workers}
    config = stage("decoder", start, assets, tmp_path / "stopped", **settings)
    process = started(config, tmp_path / "stage.yaml")
    deadline = time.monotonic() + 120
    written = tmp_path / "stopped" / "metrics.jsonl"
    while not (written.exists() and written.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal does: the workers get it too
    said = process.communicate(timeout=120)[1].decode()
    found = state.newest(tmp_path / "stopped" / "states")
    assert found is not None
    step = int(found.name.removeprefix("step-"))
    assert 3 <= step < 60
    assert process.returncode == 130
    assert f"stopped at step {step} of 60, saved" in said
    assert "Traceback" not in said
    straight = train(stage("decoder", start, assets, tmp_path / "straight", **settings))
    assert Checkpoint.open(train(config)).weights_hash() == Checkpoint.open(straight).weights_hash()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")


def test_stages_of_different_precisions_follow_each_other_in_one_process(
    start: Path, assets: Path, tmp_path: Path
) -> None:
    for precision in ("no", "bf16", "no"):
        output = tmp_path / precision
        config = stage("autoregressive", start, assets, output, steps=1, evaluation=[], precision=precision)
        assert Run(config).processes.precision == precision


def test_a_damaged_state_is_passed_over_and_old_ones_are_removed(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage("decoder", start, assets, tmp_path / "run", steps=8, save_every=2, keep=3, evaluation=[])
    train(config)
    states = tmp_path / "run" / "states"
    assert sorted(path.name for path in states.iterdir()) == [f"step-{n:08d}" for n in (4, 6, 8)]
    newest = states / "step-00000008"
    content = (newest / "weights.safetensors").read_bytes()
    (newest / "weights.safetensors").write_bytes(content[:-10])
    assert state.newest(states) == states / "step-00000006"
    (states / "step-00000006" / "state.json").unlink()
    assert state.newest(states) == states / "step-00000004"


@pytest.fixture(scope="session")
def one_step(start: Path, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A stage that has been trained, for one step."""
    output = tmp_path_factory.mktemp("one-step") / "run"
    config = stage("autoregressive", start, assets, output, steps=1, warmup=1, evaluation=[])
    train(config)
    return config


@pytest.fixture
def trained(one_step: TrainConfig, tmp_path: Path) -> TrainConfig:
    """It, in a folder of the test's own."""
    shutil.copytree(one_step.output, tmp_path / "run")
    return one_step.model_copy(update={"output": str(tmp_path / "run")})


def test_a_state_of_other_settings_is_refused_and_they_are_named(trained: TrainConfig, tmp_path: Path) -> None:
    other = trained.model_copy(
        update={"steps": 4, "seed": 1, "autoregressive": AutoregressiveTraining(copy_task_prob=0.5)}
    )
    with pytest.raises(DataError) as caught:
        train(other)
    assert str(caught.value) == (
        f"{tmp_path}/run/states/step-00000001 was made with other settings: seed 0 → 1, steps 1 → 4, "
        "autoregressive.copy_task_prob 0.0 → 0.5. Put them back, choose another output, or begin a new schedule of 4 "
        "steps from its weights with restart=true"
    )
    file = tmp_path / "stage.yaml"
    file.write_text(other.model_dump_json(), encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        cli(["train", str(file)])
    assert left.value.code == 1
    contents = json.loads((tmp_path / "run" / "states" / "step-00000001" / "state.json").read_text())
    kept = TrainConfig.model_validate(contents["settings"]["stage"])
    assert kept == trained.model_copy(update={"output": kept.output})


@pytest.mark.parametrize(
    "change",
    [
        {"gradient_checkpointing": True}, {"evaluation_batches": 3}, {"max_bad_share": 0.5}, {"evaluation": []},
        {"workers": 2}, {"keep": 9}, {"output": "elsewhere"}, {"tokenizer": {"codebook_decay": 0.5}}, {"restart": True},
        {"schedule": "constant", "steps": 99, "min_lr_ratio": 0.5},
        {"autoencoder": {"statistics_samples": 9, "latent_scale": "pixels"}},
    ],
)  # fmt: skip
def test_what_does_not_decide_the_weights_may_change(
    change: dict[str, Any], start: Path, assets: Path, tmp_path: Path
) -> None:
    plain = stage("decoder", start, assets, tmp_path)
    fixed = {"schedule": "constant"} if "schedule" in change else {}
    before, after = (
        signature.settings_of(config.model_copy(update=fixed), "hash", 1)
        for config in (plain, validate({**plain.model_dump(), **change}, TrainConfig, "test"))
    )
    assert signature.differences(before, after) == []


def test_what_decides_the_weights_is_named_with_both_values(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage("decoder", start, assets, tmp_path)

    def different(change: dict[str, Any], start_weights: str = "a", processes: int = 1) -> list[str]:
        changed = validate({**config.model_dump(), **change}, TrainConfig, "test")
        made = signature.settings_of(changed, start_weights, processes)
        return signature.differences(signature.settings_of(config, "a", 1), made)

    assert different({"batch_size": 1}, processes=2) == []
    assert different({}, processes=2) == ["batch_size 2 → 4"]
    assert different({}, start_weights="b") == ["start a → b"]
    assert different({"schedule": "constant"}) == ["schedule cosine → constant"]
    assert different({"muon": ["*a*"], "betas": [0.8, 0.9]}) == ["betas [0.9, 0.95] → [0.8, 0.9]", 'muon [] → ["*a*"]']
    source = config.data[0].model_dump()
    (named,) = different({"data": [{**source, "scenes": {**source["scenes"], "sizes": [[96, 64]]}}]})
    assert named == "data.0.scenes.sizes [[64, 64]] → [[96, 64]]"
    older = signature.settings_of(config, "a", 1)
    del older["stage"]["muon"], older["stage"]["decoder"]["full_image_prob"]
    older["stage"]["decoder"]["gone"] = 0.0
    assert signature.differences(older, signature.settings_of(config, "a", 1)) == []
    older["stage"]["decoder"]["gone"] = 0.5
    assert signature.differences(older, signature.settings_of(config, "a", 1)) == ["decoder.gone 0.5 → absent"]


def test_a_constant_schedule_can_be_made_longer(start: Path, assets: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"schedule": "constant", "evaluation": [], "save_every": 9}
    straight = train(stage("autoregressive", start, assets, tmp_path / "straight", steps=3, **settings))
    train(stage("autoregressive", start, assets, tmp_path / "longer", steps=2, **settings))
    longer = train(stage("autoregressive", start, assets, tmp_path / "longer", steps=3, **settings))
    assert losses(tmp_path / "longer") == losses(tmp_path / "straight")
    assert Checkpoint.open(longer).weights_hash() == Checkpoint.open(straight).weights_hash()


def test_a_new_schedule_begins_from_the_weights_of_a_state(
    trained: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts its own steps, sees new data, goes on where it was stopped, and does not begin twice."""
    output = Path(trained.output)
    shutil.copytree(output, tmp_path / "straight")
    again = trained.model_copy(update={"steps": 3, "restart": True, "save_every": 1})
    straight = train(again.model_copy(update={"output": str(tmp_path / "straight")}))
    run = Run(again)
    run.start()
    first = state.load_state(output / "states" / "step-00000001")
    weights = run.objective.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in first.weights.items())
    assert run.train_state.ema is not None
    assert all(torch.equal(value, first.average[name]) for name, value in run.train_state.ema.values.items())
    run.save = stop_after(run, 3)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()
    resumed = train(again)
    assert losses(output) == losses(tmp_path / "straight")
    assert Checkpoint.open(resumed).weights_hash() == Checkpoint.open(straight).weights_hash()
    rates = {row["step"]: row["learning_rate"] for row in metrics(output)}
    assert [rates[step] for step in (2, 3, 4)] == [learning_rate(again, step) for step in range(3)]
    capsys.readouterr()
    train(again)
    assert "all steps of these settings are done" in capsys.readouterr().out
    assert sorted(losses(output)) == [1, 2, 3, 4]


def test_a_new_schedule_needs_the_same_networks(trained: TrainConfig) -> None:
    pytest.importorskip("peft")
    with pytest.raises(DataError, match=r"step-00000001 holds weights of other networks \(.*q_proj\.base_layer"):
        train(trained.model_copy(update={"lora": LoraConfig(), "restart": True}))


def test_a_state_that_does_not_say_its_settings_is_gone_on_from(
    trained: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run" / "states" / "step-00000001" / "state.json"
    contents = json.loads(file.read_text())
    del contents["settings"], contents["metadata"]["first"]
    file.write_text(json.dumps({**contents, "signature": "of another release"}))
    train(trained)
    assert "does not say with which settings" in capsys.readouterr().out


def test_the_newest_state_can_be_written_out_without_training_on(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage("decoder", start, assets, tmp_path / "run", steps=6, save_every=3, evaluation=[])
    run = Run(config)
    run.start()
    run.save = stop_after(run, 3)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()
    folder = train(config, finish=True)
    assert Checkpoint.open(folder).weights_hash() != Checkpoint.open(start).weights_hash()
    assert max(losses(tmp_path / "run")) == 3


# Faults


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(start: Path, assets: Path, tmp_path: Path) -> None:
    run = Run(stage("decoder", start, assets, tmp_path / "run"))
    run.start()
    forward = run.objective.forward

    def broken(batch: Any) -> Any:
        parts = forward(batch)
        return parts if run.step != 3 else {**parts, "loss": parts["loss"] * math.nan}

    run.objective.forward = broken  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match=r"step 4: the loss is nan.*spikes"):
        run.run()
    assert (tmp_path / "run" / "spikes" / "step-00000004-0" / "batch-0.safetensors").exists()

    other = Run(stage("decoder", start, assets, tmp_path / "skip", on_spike="skip"))
    other.start()
    forward_other = other.objective.forward

    def once(batch: Any) -> Any:
        parts = forward_other(batch)
        return parts if other.step != 3 else {**parts, "loss": parts["loss"] * math.nan}

    other.objective.forward = once  # type: ignore[method-assign]
    other.run()
    assert other.losses.skipped == 1
    assert sorted(losses(tmp_path / "skip")) == [1, 2, 3, 5, 6]


def spoil(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"{name}.png").write_bytes(b"no picture")
        (folder / f"{name}.txt").write_text(name, encoding="utf-8")


def test_a_bad_sample_is_named_and_counted_once_however_often_a_run_is_started(
    start: Path, assets: Path, handful: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(handful, "bad")
    settings = {"data": [{"path": str(handful), "sides": [64]}], "evaluation": [], "schedule": "constant"}
    for steps in (1, 2):
        train(stage("autoregressive", start, assets, tmp_path / "run", steps=steps, **settings))
        assert f"1 of the 3 samples of {handful} cannot be used" in capsys.readouterr().out
        lines = (tmp_path / "run" / "bad-samples.txt").read_text().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"{handful}/bad.png: the picture is not a picture")
    spoil(handful, "worse")
    with pytest.raises(TrainingStopped, match=r"2 of the 4 samples of .*max_bad_share=0.05; .*bad-samples.txt names"):
        train(stage("autoregressive", start, assets, tmp_path / "run", steps=3, **settings))
    train(stage("autoregressive", start, assets, tmp_path / "run", steps=3, max_bad_share=0.5, **settings))


@pytest.mark.parametrize(
    ("bad", "size", "most", "stops"),
    [(1, 4, 0.05, False), (2, 4, 0.05, True), (1, 4, 0.0, True), (6, 1_000_000, 0.05, False), (3, 30, 0.1, False),
     (4, 30, 0.1, True), (20, 1_000_000, 1e-5, True)],
)  # fmt: skip
def test_bad_samples_are_a_share_of_their_data_set(bad: int, size: int, most: float, stops: bool) -> None:
    found = BadSamples(None, most, {"set": size, "large": 10**9})
    for _ in range(9):
        found.add(BadSample("set", f"sample {number}", "broken") for number in range(bad))
        found.add([BadSample("large", "one", "broken"), BadSample("endless", "one", "broken")])
    assert (found.excess() is not None) == stops
    assert found.counts() == {"set": bad, "large": 1, "endless": 1}


def test_a_sample_that_breaks_while_training_is_replaced_by_one_of_its_bucket(handful: Path) -> None:
    source = SourceConfig(path=str(handful), sides=(64,))
    batches = StepBatches([source], 1, lambda examples: {}, CaptionConfig(dropout=0.0))
    spoil(handful, "one")
    found = BadSamples(None, 0.05, batches.sizes)
    for step in range(6):
        examples, bad = batches.examples(step)
        found.add(bad)
        assert examples[0].caption == "picture two"
    assert list(found.found) == [(str(handful), f"{handful}/one.png")]
    assert found.excess() is None
    spoil(handful, "two")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"8 samples in a row cannot be read; .*(one|two)\.png: ") as caught:
            next(loader(batches, 0, 2, workers))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": "painter"}, "train"),
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"data": [{"weight": 1}]}, "exactly one of scenes, path, cache and prompts"),
        ({"data": [{"scenes": {"tasks": {"fly": 1}}, "assets": "x"}]}, "no task 'fly'"),
        ({"train": "autoencoder", "lora": {}}, "lora is for"),
        ({"vision_rows_only": True}, "vision_rows_only"),
        ({"decoder": {"uncond_pro": 0.1}}, "did you mean 'uncond_prob'"),
    ],
)
def test_wrong_configs_are_named(
    change: dict[str, Any], message: str, start: Path, assets: Path, tmp_path: Path
) -> None:
    values = stage("decoder", start, assets, tmp_path).model_dump()
    with pytest.raises(UsageError, match=message):
        validate({**values, **change}, TrainConfig, "stage.yaml")


# Batches


def test_batches_depend_on_the_step_alone_and_are_shared_out(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage("decoder", start, assets, tmp_path)
    sources = (*config.data, SourceConfig(scenes=config.data[0].scenes, assets=str(assets), weight=0.5))

    def keys(step: int, size: int, process: int = 0, processes: int = 1) -> list[tuple[bytes, str, int]]:
        batches = StepBatches(sources, size, dict, CaptionConfig(), process=process, processes=processes)  # type: ignore[arg-type]
        return [(e.pictured.image.tobytes(), e.caption, e.seed) for e in batches.examples(step)[0]]

    assert keys(7, 4) == keys(7, 4)
    assert keys(7, 4) != keys(8, 4)
    assert keys(7, 4) == keys(7, 2, 0, 2) + keys(7, 2, 1, 2)


def test_captions_follow_their_shares(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage("decoder", start, assets, tmp_path)
    captions = CaptionConfig(dropout=0.5, kinds={"zh/long": 1.0})
    batches = StepBatches(config.data, 8, lambda examples: {}, captions)
    examples: list[Example] = [example for step in range(12) for example in batches.examples(step)[0]]
    pictures = [example for example in examples if not example.pictured.sources]
    empty = sum(example.caption == "" for example in examples)
    assert 0.3 < empty / len(examples) < 0.7
    assert all(example.caption in ("", example.pictured.captions["zh/long"]) for example in pictures)


# The cache


def test_training_from_a_cache_is_training_from_the_pictures(start: Path, assets: Path, tmp_path: Path) -> None:
    for network in ("autoregressive", "decoder"):
        config = stage(network, start, assets, tmp_path / network)
        made = prepare(config, tmp_path / f"cache-{network}", 12, 5, lambda text: None)
        assert (made.samples, made.shards) == (12, 3) or made.samples >= 12
        with safe_open(tmp_path / f"cache-{network}" / "shard-00000.safetensors", "pt") as file:
            assert any(name.endswith("latents") for name in file.keys()) == (network == "decoder")  # noqa: SIM118
            integers = file.get_tensor("0/codes").dtype
        codebook = Checkpoint.open(start).semantic_tokenizer(device=CPU, dtype=torch.float32).model.vqmodel.config
        assert integers == smallest_integers(codebook.num_embeddings)
        objective: Any = build_objective(Checkpoint.open(start), config, CPU).eval()
        batches = StepBatches(config.data, 2, objective.collate, config.captions)
        source = CacheSource(tmp_path / f"cache-{network}", 0, 2, None)
        for step in range(3):
            for place, example in enumerate(batches.examples(step)[0]):
                encoded = source._read(2 * step + place)
                assert encoded.captions == example.pictured.captions
                with torch.no_grad():
                    plain = objective(objective.collate([example]))
                    batch = objective.collate([Example(encoded, example.caption, example.seed)])
                    cached = objective(batch)
                kept = load_tensors(save(flattened(batch)[0]))  # as a bad step's batch is kept
                assert any(name.endswith("codes") for name in kept)
                assert float(cached["loss"]) == pytest.approx(float(plain["loss"]), rel=2e-3)
        cache = [{"cache": str(tmp_path / f"cache-{network}")}]
        cached_config = stage(network, start, assets, tmp_path / f"{network}-cached", data=cache, evaluation=[])
        assert train(cached_config).exists()
    codes = [{"cache": str(tmp_path / "cache-autoregressive")}]
    useless = stage("decoder", start, assets, tmp_path / "useless", data=codes, evaluation=[])
    with pytest.raises(DataError, match="holds no latents"):
        Run(useless)


def test_codes_are_kept_in_the_smallest_integers_that_hold_them() -> None:
    found = [smallest_integers(codes) for codes in (256, 257, 16_384, 32_768, 32_769)]
    assert found == [torch.uint8, torch.int16, torch.int16, torch.int16, torch.int32]


def test_preparing_goes_on_where_it_stopped_and_other_networks_are_refused(
    start: Path, assets: Path, tmp_path: Path
) -> None:
    config = stage("decoder", start, assets, tmp_path / "run")
    prepare(config, tmp_path / "whole", 12, 4, lambda text: None)
    prepare(config, tmp_path / "parts", 4, 4, lambda text: None)
    prepare(config, tmp_path / "parts", 12, 4, lambda text: None)
    prepare(config, tmp_path / "spread", 4, 4, lambda text: None, lambda make, records: map(make(), records))
    for name, other in (("shard-00000", "parts"), ("shard-00002", "parts"), ("shard-00000", "spread")):
        for suffix in (".safetensors", ".json"):
            written = (tmp_path / "whole" / f"{name}{suffix}").read_bytes()
            assert written == (tmp_path / other / f"{name}{suffix}").read_bytes()
    other = train(stage("autoencoder", start, assets, tmp_path / "other"))
    from_cache = stage(
        "decoder", other, assets, tmp_path / "run2", data=[{"cache": str(tmp_path / "whole")}], evaluation=[]
    )
    with pytest.raises(DataError, match="another tokenizer or autoencoder"):
        Run(from_cache)
    index = tmp_path / "whole" / "index.json"
    about = json.loads(index.read_text())
    about["about"]["data"][0]["path"] = "photos/"
    apart = tmp_path / "apart"
    shutil.copytree(tmp_path / "whole", apart)
    (apart / "index.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="sources were not cropped with their targets"):
        CacheSource(apart, 0, 2, None)
    with pytest.raises(DataError, match="other networks or settings"):
        prepare(config.model_copy(update={"seed": 3}), tmp_path / "whole", 12, 4, lambda text: None)


def test_a_cache_is_not_gone_on_with_from_other_data(start: Path, assets: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()

    def add(*numbers: int) -> None:
        for number in numbers:
            Image.new("RGB", (64, 64), (40 * number, 90, 160)).save(photos / f"{number}.png")
            (photos / f"{number}.txt").write_text(f"a plain square, number {number}", encoding="utf-8")

    add(0, 1, 2, 3, 4)
    data = [{"path": str(photos), "sides": [64]}]
    config = stage("autoregressive", start, assets, tmp_path / "run", data=data, evaluation=[])
    prepare(config, tmp_path / "cache", 2, 2, lambda text: None)
    prepare(config, tmp_path / "cache", 4, 2, lambda text: None)
    add(5)
    with pytest.raises(DataError, match="begun before the data changed"):
        prepare(config, tmp_path / "cache", 6, 2, lambda text: None)


@pytest.fixture(scope="module")
def prepared(start: Path, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """A stage, and a cache of three shards of four samples."""
    folder = tmp_path_factory.mktemp("prepared")
    config = stage("decoder", start, assets, folder / "run")
    prepare(config, folder / "cache", 12, 4, lambda text: None)
    return config, folder / "cache"


HELD = """
import sys, time
from pathlib import Path
from arimage.training.config import TrainConfig
from arimage.training.plan import Machine, plan
from arimage.training.prepare import prepare

begun = []

def spread(make, records):
    begun.append(records)
    if len(begun) == 2:
        print("in its second shard", flush=True)
        time.sleep(600)
    return map(make(), records)

config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
prepare(config, Path(sys.argv[2]), 12, 4, lambda text: None, spread, process=1, processes=2)
"""


def test_processes_share_a_cache_whose_bytes_do_not_depend_on_them(
    prepared: tuple[TrainConfig, Path], tmp_path: Path
) -> None:
    config, alone = prepared
    (tmp_path / "stage.json").write_text(config.model_dump_json(), encoding="utf-8")
    shared = tmp_path / "shared"
    command = [sys.executable, "-c", HELD, str(tmp_path / "stage.json"), str(shared)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as other:
        assert other.stdout is not None
        assert "second shard" in other.stdout.readline()  # it has made shard 1 and holds shard 0
        beside = prepare(config, shared, 12, 4, lambda text: None, process=0, processes=2)
        names = {path.name for path in shared.glob("shard-*.safetensors")}
        assert names == {"shard-00001.safetensors", "shard-00002.safetensors"}
        assert beside.samples == 0
        with pytest.raises(DataError, match="is to hold 12 samples and has 0 so far; finish that first: -n 12"):
            prepare(config, shared, 8, 4, lambda text: None)
        other.kill()
    (shared / ".shard-00000.safetensors.0123456789ab.part").write_bytes(b"what a killed process left")
    assert prepare(config, shared, 12, 4, lambda text: None).samples == 12
    assert contents(shared) == contents(alone)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_damaged_or_missing_shard_is_named_and_made_again(prepared: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    config, whole = prepared
    cache = tmp_path / "cache"
    shutil.copytree(whole, cache)

    def faults() -> list[str]:
        batches = StepBatches([SourceConfig(cache=str(cache))], 1, lambda examples: {}, CaptionConfig())
        return [bad.reason for step in range(12) for bad in batches.examples(step)[1]]

    again = rf"make it again with: arimage prepare STAGE -n 12 --shard 4 -o {cache}"
    assert faults() == []
    tensors, rows = (cache / f"shard-00001.{kind}" for kind in ("safetensors", "json"))
    good = tensors.read_bytes()
    tensors.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert [reason.split(":")[0] for reason in faults()] == [str(tensors)]
    assert "its checksum is not that of its row" in faults()[0]
    assert again in faults()[0]
    tensors.write_bytes(good[:100])
    with pytest.raises(
        DataError, match=rf"^{tensors} is damaged: it has 100 bytes, not {len(good)}; delete it.*{again}$"
    ):
        faults()
    tensors.unlink()
    with pytest.raises(DataError, match=rf"^{tensors} is missing; {again}$"):
        faults()
    prepare(config, cache, 12, 4, lambda text: None)
    rows.write_text(rows.read_text().replace("red", "bed").replace("a", "o"))
    with pytest.raises(DataError, match=rf"^{rows} is damaged: its checksum is not that of the index; delete it"):
        faults()
    rows.unlink()
    prepare(config, cache, 12, 4, lambda text: None)
    assert contents(cache) == contents(whole)


def test_a_cache_of_a_release_without_checksums_is_read_and_gone_on_with(
    prepared: tuple[TrainConfig, Path], tmp_path: Path
) -> None:
    config, whole = prepared
    cache = tmp_path / "cache"
    shutil.copytree(whole, cache)
    for path in cache.glob("shard-*.json"):
        rows = json.loads(path.read_text())["rows"]
        path.write_text(json.dumps([{key: value for key, value in row.items() if key != "checksum"} for row in rows]))
    index = json.loads((cache / "index.json").read_text())
    kept = [{key: entry[key] for key in ("name", "samples", "next_step")} for entry in index["shards"][:2]]
    (cache / "index.json").write_text(json.dumps({"about": index["about"], "shards": kept}))
    old, new = (CacheSource(folder, 0, 2, None) for folder in (cache, whole))
    assert old.size == 8
    assert [old._read(row).captions for row in range(8)] == [new._read(row).captions for row in range(8)]
    prepare(config, cache, 12, 4, lambda text: None)  # its third shard was written, and the index was not
    assert json.loads((cache / "index.json").read_text())["shards"] == [*kept, index["shards"][2]]
    assert CacheSource(cache, 0, 2, None).order.digest() == new.order.digest()


def test_preparing_needs_data_that_is_not_prepared(prepared: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    config, cache = prepared
    again = config.model_copy(update={"data": [SourceConfig(cache=str(cache))]})
    with pytest.raises(UsageError, match="prepared caches alone"):
        prepare(again, tmp_path / "again", 4, 4)


def test_what_could_not_be_read_counts_for_all_processes_together(tmp_path: Path) -> None:
    """Each of two processes finds one of the three bad samples that are one too many."""
    found = BadSamples(tmp_path, 0.1, {"set": 20}, shared=True)
    found.add([BadSample("set", "a", "a: no picture"), BadSample("set", "b", "b: no picture")])
    assert found.excess() is None
    assert not (tmp_path / "bad-samples.txt").exists()
    found.add([BadSample("set", "c", "c: no picture")])
    found.write()
    assert (tmp_path / "bad-samples.txt").read_text().splitlines() == [f"{name}: no picture" for name in "abc"]
    assert "bad-samples.txt names them" in str(found.excess())


@pytest.mark.parametrize("network", ["autoregressive", "decoder"])
def test_the_size_of_a_cache_is_planned_as_it_is(network: str, start: Path, assets: Path, tmp_path: Path) -> None:
    tasks = {"tasks": {"subject": 1}, "sizes": [[64, 96]]}
    config = stage(network, start, assets, tmp_path / "run", data=[{"scenes": tasks, "assets": str(assets)}])
    prepare(config, tmp_path / "cache", 2, 2, lambda text: None)
    kept = load_tensors((tmp_path / "cache" / "shard-00000.safetensors").read_bytes())
    planned = plan(config, Checkpoint.open(start).config, Machine(1, 80, 989, 0.4))
    assert planned.prepared == {"64x96": sum(tensor.nbytes for tensor in kept.values()) / 2}
    size = f"{planned.prepared['64x96'] / 1e3:.1f}"
    assert planned.lines()[-1] == f"a million prepared samples, in GB by size: 64x96 {size}"


# fp16


def test_fp16_is_refused_where_there_is_no_gpu(start: Path, assets: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        Run(stage("decoder", start, assets, tmp_path / "run", precision="fp16"))
    assert not (tmp_path / "run").exists()


def scaled_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, scale: float) -> Run:
    """A started run whose gradients are rounded and scaled as in fp16, which accelerate has on GPUs only."""
    run = Run(config)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    run.start()
    for parameter in run.train_state.parameters():
        parameter.register_hook(lambda gradient: gradient.half().float())
    monkeypatch.setattr(type(run.accelerator), "mixed_precision", "fp16")
    monkeypatch.setattr(run.accelerator, "native_amp", True)
    return run


def test_an_overflow_of_fp16_skips_its_step_and_is_counted(
    checkpoint_folder: Path, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage("autoregressive", checkpoint_folder, assets, tmp_path / "run", evaluation=[])
    run = scaled_run(config, monkeypatch, 2.0**19)
    before = {name: value.clone() for name, value in run.objective.state_dict().items()}
    figures = run.one_step(iter([run.batches[0]]))
    assert (figures["overflows"], figures["loss_scale"], "gradient_norm" in figures) == (1, 2.0**18, False)
    assert all(torch.equal(value, before[name]) for name, value in run.objective.state_dict().items())
    run.run()
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    overflows = [row["overflows"] for row in rows]
    assert 1 <= overflows[-1] < 7
    assert [row["loss_scale"] for row in rows] == [2.0 ** (19 - count) for count in overflows]
    assert ["gradient_norm" in row for row in rows] == [a == b for a, b in zip([1, *overflows], overflows)]
    assert run.losses.skipped == 0
    assert not (tmp_path / "run" / "spikes").exists()
    again = scaled_run(config, monkeypatch, 1.0)
    assert again.accelerator.scaler.get_scale() == rows[-1]["loss_scale"]
    assert again.losses.overflows == overflows[-1]


def test_gradients_that_no_scale_makes_finite_stop_an_fp16_run(
    checkpoint_folder: Path, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage("autoregressive", checkpoint_folder, assets, tmp_path / "run", evaluation=[])
    run = scaled_run(config, monkeypatch, 2.0**-13)
    next(run.objective.parameters()).register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingStopped, match=r"step 3: the gradients are not finite even at the loss scale 3\.05e-05"):
        run.run()


def test_a_step_left_out_for_its_loss_does_not_hold_up_the_scaler(
    checkpoint_folder: Path, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage("autoregressive", checkpoint_folder, assets, tmp_path / "run", evaluation=[], on_spike="skip")
    run = scaled_run(config, monkeypatch, 2.0)
    monkeypatch.setattr(run.losses, "accepts", lambda step, totals, batches: step == 2)
    assert [bool(run.one_step(iter([run.batches[run.step]]))) for run.step in range(3)] == [False, False, True]


# LoRA


@pytest.mark.parametrize("network", ["autoregressive", "decoder"])
def test_adapters_learn_alone_and_are_merged_for_use(
    network: str, checkpoint_folder: Path, assets: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    start = checkpoint_folder  # the gates of a fresh decoder are shut: adapters behind them would learn nothing
    run = Run(stage(network, start, assets, tmp_path / "run", lora={"rank": 4}, learning_rate=1e-2, ema=None))
    assert all(".lora_" in name for name in run.learning)
    run.start()
    folder = run.run()
    files = {"adapter_config.json", "adapter_model.safetensors"}
    files |= {"pytorch_lora_weights.safetensors"} if network == "decoder" else set()
    assert {path.name for path in folder.iterdir()} == files
    plain, merged = load(start, device="cpu"), load(start, device="cpu", lora=[folder])
    with pytest.raises(SystemExit) as caught:
        cli(["generate", "x", "--model", str(start), "--lora", str(folder), "--size", "64", "--steps", "1",
             "-o", str(tmp_path / "x.png"), "--quiet"])  # fmt: skip
    assert not caught.value.code
    recipe = read_recipe(tmp_path / "x.png")
    assert recipe is not None
    assert recipe.weights_sha256 == merged.networks.weights_hash()
    assert plain.networks.weights_hash() != merged.networks.weights_hash()
    name = "transformer" if network == "decoder" else "autoregressive"
    trained = run.objective.transformer if network == "decoder" else run.objective.model
    trained.eval()
    with merged.networks.use(name) as inside, torch.no_grad():
        if network == "decoder":
            batch = (torch.randn(1, 4, 8, 8), torch.tensor([500.0]))
            told = {
                "prior_tokens": torch.zeros(1, 2, 2, dtype=torch.long), "glyphs": torch.randn(1, 3, 24),
                "target_size": torch.tensor([[64, 64]]),
            }  # fmt: skip
            one, two = inside(*batch, **told), trained(*batch, **told)
        else:
            tokens, positions = torch.arange(7)[None], torch.arange(7).expand(3, 1, -1)
            one, two = inside(tokens, positions), trained(tokens, positions)
    assert torch.allclose(one, two, atol=1e-4)
