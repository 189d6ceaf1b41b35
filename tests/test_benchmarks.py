"""The benchmarks for a GPU, with a small model on the CPU: both sides are the same model, and what is told adds up."""

import functools
import importlib
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from arimage.autoregressive.sampling import TokenSampling
from arimage.checkpoints.model_config import ModelConfig
from arimage.inference.engine import Engine
from arimage.inference.networks import Networks
from arimage.inference.requests import ImageRequest
from arimage.inference.settings import Settings
from arimage.yaml_files import load_yaml
from backends.linear import ONEDNN
from decoder.diffusion_decoder import DecoderSettings
from tests.tiny_checkpoint import CONFIG

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
sys.path.append(str(ROOT / "benchmarks"))  # they are scripts, which find each other beside themselves
attention_backends = importlib.import_module("attention_backends")
drawn_model = importlib.import_module("drawn_model")
full_size = importlib.import_module("full_size")
kernels = importlib.import_module("kernels")
speed = importlib.import_module("speed")
bandwidth_once = functools.cache(full_size.machine.bandwidth)
throughput_once = functools.cache(full_size.machine.throughput)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A configuration as the benchmarks read it."""
    path = tmp_path_factory.mktemp("configuration") / "model.yaml"
    path.write_text(yaml.safe_dump(CONFIG.model_dump(mode="json")))
    return path


@pytest.fixture
def run(model, tmp_path, monkeypatch, capsys):
    """Run a benchmark's ``main``; gives its JSON and the last table that it printed."""
    monkeypatch.setattr(full_size.machine, "bandwidth", bandwidth_once)
    monkeypatch.setattr(full_size.machine, "throughput", throughput_once)

    def once(script, *options: str) -> tuple[dict, str]:
        output = tmp_path / "results.json"
        arguments = [script.__name__, str(model), "--device", "cpu", "-o", str(output), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        script.main()
        return json.loads(output.read_text()), capsys.readouterr().out.rpartition("\n\n|")[2]

    return once


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def both(request, tmp_path_factory):
    """Our networks with drawn weights, and upstream with theirs."""
    folder = drawn_model.write_folder(tmp_path_factory.mktemp("drawn"), CONFIG, request.param)
    networks = Networks(drawn_model.DrawnCheckpoint(folder, CPU, request.param), CPU, request.param)
    drawn_model.load_all(networks)
    return networks, speed.without_special_tokens(drawn_model.open_upstream(networks))


def test_both_sides_hold_the_same_weights_and_none_is_constant(both):
    networks, upstream = both
    for component, parts in drawn_model.parts_of(networks).items():
        theirs = dict(getattr(upstream, component).named_parameters(remove_duplicate=False))
        ours = {name: kept for part in parts for name, kept in part.named_parameters(remove_duplicate=False)}
        assert theirs.keys() == ours.keys()
        for name, kept in ours.items():
            assert torch.equal(theirs[name], kept), name
            assert kept.float().std() > 0.01, name


def test_weights_are_in_memory_once_unless_ours_lays_them_out(both):
    networks, upstream = both
    for component, parts in drawn_model.parts_of(networks).items():
        theirs = dict(getattr(upstream, component).named_parameters())
        for part in parts:
            for name, kept in part.named_parameters():
                shared = theirs[name].data_ptr() == kept.data_ptr()
                assert shared == kept.is_contiguous(), name
    laid_out = [p for p in networks._loaded["transformer"].parameters() if not p.is_contiguous()]
    assert bool(laid_out) == (networks.dtype == torch.float32 and ONEDNN)


@pytest.mark.parametrize("both", [torch.float32], ids=["fp32"], indirect=True)
def test_both_sides_draw_the_same_picture(both):
    """Greedy tokens and the same noise, so that nothing but the networks could differ."""
    networks, upstream = both
    engine = Engine(networks)
    upstream.vision_language_encoder.generation_config.top_k = 1
    theirs = upstream("a fox", height=64, width=64, num_inference_steps=2, latents=engine._noise(5, (2, 2))[None])
    settings = Settings(DecoderSettings(steps=2), TokenSampling(temperature=0))
    ours = engine.run([ImageRequest("a fox", (64, 64), seed=5)], settings)[0].image
    difference = np.asarray(theirs.images[0], dtype=int) - np.asarray(ours, dtype=int)
    assert np.abs(difference).max() <= 1
    assert np.asarray(ours).std() > 5


def test_weights_of_zeros_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn_model.DrawnWeights, "_draw", lambda self, name, shape: torch.zeros(shape))
    folder = drawn_model.write_folder(tmp_path, CONFIG, torch.float32)
    networks = Networks(drawn_model.DrawnCheckpoint(folder, CPU, torch.float32), CPU, torch.float32)
    with pytest.raises(RuntimeError, match="flat picture"):
        drawn_model.check_alive(Engine(networks), side=64)


def test_the_parts_of_a_picture_add_up_on_both_sides(run):
    sizes = ("--sizes", "32", "64")
    found, table = run(full_size, *sizes, "--steps", "2", "--batch", "2", "--warm-up-steps", "0")
    assert [case["size"] for case in found["cases"]] == [32, 64]
    assert found["command"].startswith("python")
    for case in found["cases"]:
        assert case["work"]["tokens"] == 256 + (case["size"] // 32) ** 2
        assert list(case["sides"]) == ["upstream", "ours"]
        for side, row in case["sides"].items():
            (times,) = row["runs"]
            parts = {part: times.get(part, 0) for part in speed.PARTS}
            assert sum(parts.values()) == pytest.approx(times["whole"])
            assert all(parts[part] > 0 for part in ("prompt", "tokens", "diffusion", "autoencoder")), (side, parts)
            assert parts["references"] == 0
            assert row["tokens_a_second"] * row["seconds"]["tokens"] == pytest.approx(2 * case["work"]["tokens"])
            assert row["step"] * 2 == pytest.approx(row["seconds"]["diffusion"])
            assert 0 < row["of_bandwidth"] < 1
            assert row["peak_gb"] > 0.01
    assert table.count("\n| ") == 1 + 4  # the rule, then a row for each case and side


def test_our_prompt_is_not_counted_among_the_tokens(pipeline):
    """By a clock that ticks when it is read: around the call, its tokens, the prompt within them, two other parts."""
    times = speed.run_ours(pipeline, 64, 1, 1, [], speed.AS_UPSTREAM, itertools.count().__next__)
    assert times == {"prompt": 1, "tokens": 2, "diffusion": 1, "autoencoder": 1, "other": 4, "whole": 9}


def test_the_memory_of_a_picture_grows_with_its_size(checkpoint_folder):
    small, large = (speed.picture_memory(checkpoint_folder, size, ["ours"])["ours"] for size in (64, 256))
    assert 0.1 < small < large < 5


def test_upstreams_methods_are_sorted_into_parts_without_counting_twice():
    seen = {
        "generate_prior_tokens": 100, "get_image_features": 10, "get_image_tokens": 5, "generate": 60, "_prefill": 20,
        "encode_prompt": 7, "encode": 3, "decode": 30, "preprocess": 2, "postprocess": 1,
    }  # fmt: skip
    assert full_size._parts(seen, 500) == {
        "references": 20, "prompt": 20, "tokens": 40, "diffusion": 357, "autoencoder": 30, "other": 33, "whole": 500,
    }  # fmt: skip


@pytest.mark.parametrize("both", [torch.float32], ids=["fp32"], indirect=True)
def test_upstreams_diffusion_is_the_time_of_its_transformer(both):
    seen: dict[str, float] = {}
    with speed.timed(both[1].transformer, "forward", seen, "passes"):
        times = full_size.run_upstream(both[1], full_size.Case(64, 1, 0, 64), 8, 1.5, time.perf_counter)
    assert seen["passes"] <= times["diffusion"] <= 3 * seen["passes"] + 0.5


def test_a_reference_is_work_of_its_own(run):
    found, _ = run(full_size, "--sides", "ours", "--sizes", "64", "--steps", "1", "--references", "1", "--repeats", "2")
    (case,) = found["cases"]
    assert list(case["sides"]) == ["ours"]
    assert len(case["sides"]["ours"]["runs"]) == 2
    assert case["sides"]["ours"]["seconds"]["references"] > 0
    assert case["work"]["tokens"] == 4  # no preview
    assert case["work"]["flops_a_step"] > speed.work(CONFIG, 64, preview=False)["flops_a_step"]


def test_upstreams_editing_is_refused_where_it_crashes(run, monkeypatch, capsys):
    monkeypatch.setattr(full_size.transformers, "__version__", "5.20.0")
    with pytest.raises(SystemExit):
        run(full_size, "--references", "1")
    assert "use 5.17, or --sides ours" in capsys.readouterr().err


def test_a_side_that_does_not_fit_is_left_out(run, monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(full_size, "run_upstream", too_much)
    found, table = run(full_size, "--sizes", "32", "--steps", "1")
    assert list(found["cases"][0]["sides"]) == ["ours"]
    assert "| ours |" in table
    assert "| upstream |" not in table


def test_the_released_dimensions_take_58_teraflops_a_pass_and_8_billion_weights_a_token():
    done = speed.work(load_yaml(ROOT / "configs/glm-image-9b/model.yaml", ModelConfig), 1024, True, bytes_a_weight=2)
    assert done["tokens"] == 256 + 1024
    assert done["flops_a_step"] == pytest.approx(58e12, rel=0.01)
    assert done["bytes_a_token"] == pytest.approx(2 * 8.2e9, rel=0.02)


def test_every_backend_is_timed_or_says_why_not(run):
    found, table = run(attention_backends, "--sizes", "64", "--rows", "2", "--seconds", "0.001")
    names = [case["case"] for case in found["cases"]]
    assert names == [
        "decoder, 64 px", "decoder, 64 px, glyphs padded", "prompt of 64", "prompt of 68", "token, 64 px",
        "token, 64 px, 2 rows that differ",
    ]  # fmt: skip
    for case in found["cases"]:
        assert list(case["backends"]) == list(attention_backends.BACKENDS)
        ran = {name: row for name, row in case["backends"].items() if "seconds" in row}
        assert {"default", "SDPA math", "SDPA flash"} <= set(ran)
        assert all(row["seconds"] > 0 and row["within"] for row in ran.values()), (case["case"], ran)
        assert all(row["unavailable"] for name, row in case["backends"].items() if name not in ran)
        assert ran["default"]["of_default"] == 1
    assert found["cases"][0]["query"] == [2, 32 + 16, 3, 16]
    assert "OUTSIDE" not in table
    assert "- SDPA cuDNN (all): " in table


@pytest.mark.parametrize("fault", ["scaled", "unmasked"])
def test_a_backend_that_deviates_is_marked(run, monkeypatch, fault):
    def wrong(case):
        if fault == "scaled":
            return 1.001 * attention_backends.sdpa(case)
        return attention_backends.joint_attention(case.query, case.key, case.value)

    monkeypatch.setattr(attention_backends, "BACKENDS", {"default": (wrong, None)})
    monkeypatch.setattr(attention_backends, "cases", lambda config, sizes, rows, draw: [
        attention_backends.decoder_case(config, 64, True, draw)
    ])  # fmt: skip
    found, table = run(attention_backends, "--seconds", "0.001")
    assert not found["cases"][0]["backends"]["default"]["within"]
    assert "OUTSIDE" in table


def test_every_kernel_is_measured_beside_plain_pytorch(tmp_path, monkeypatch, capsys):
    output = tmp_path / "kernels.json"
    monkeypatch.setattr(kernels, "TURN", 1e-4)
    monkeypatch.setattr(sys, "argv", ["kernels", "--only", "norm", "precision", "--rounds", "1", "-o", str(output)])
    threads = torch.get_num_threads()
    try:
        kernels.main()
    finally:
        torch.set_num_threads(threads)
    found = json.loads(output.read_text())
    assert {row["group"] for row in found["cases"]} == {"norm", "precision"}
    assert all(row["ratio"] == row["ours"] / row["plain"] > 0 for row in found["cases"])
    assert len(capsys.readouterr().out.splitlines()) == len(found["cases"]) + 4
