"""Adapters as people have them: every layout, every setting, applied as peft applies it or refused by name."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from arimage.checkpoints.adapters import merge_adapters
from arimage.checkpoints.lora import ADAPTER_FILE, CONFIG_FILE, DIFFUSERS_FILE, parse_lora, read_adapters
from arimage.cli.main import run as cli
from arimage.errors import ArimageError, CheckpointError, UsageError
from arimage.inference.api import load
from arimage.training.config import LoraConfig
from arimage.training.lora import add_adapters, save_adapters
from arimage.yaml_files import validate
from tests.tiny import randomize
from tests.tiny_checkpoint import CONFIG

peft = pytest.importorskip("peft")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LAYER = "transformer_blocks.0.attn1.to_q"


@pytest.fixture
def transformer(pipeline):
    """The checkpoint's transformer, fresh."""
    return pipeline.checkpoint.transformer(torch.device("cpu"), torch.float32)


def upstream(pipeline, network="transformer"):
    """Upstream's class of a network with the checkpoint's weights."""
    if network == "transformer":
        from diffusers import GlmImageTransformer2DModel

        return GlmImageTransformer2DModel.from_pretrained(pipeline.checkpoint.path / "transformer")
    from transformers import GlmImageForConditionalGeneration

    return GlmImageForConditionalGeneration.from_pretrained(pipeline.checkpoint.path / "vision_language_encoder")


def trained(model, folder, **settings):
    """Adapters that peft puts into a model and saves, as if they had learnt; the model with them merged in."""
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, **settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.copy_(parameter * (1 + noise) if "magnitude" in name else noise)
    model.save_pretrained(folder)
    return {name: value.clone() for name, value in model.merge_and_unload().state_dict().items()}


def merged(pipeline, network, *adapters):
    with load(pipeline.checkpoint.path, device="cpu", lora=list(adapters)).networks.use(network) as inside:
        return inside.state_dict()


def same(one, other, tolerance=1e-5):
    return all(torch.allclose(value, other[name], atol=tolerance) for name, value in one.items())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["norm_out"]},
        {"rank_pattern": {"attn1.to_q": 2}, "alpha_pattern": {"1.attn1.to_q": 3, "to_k": 9}},
        {"target_modules": [*ATTENTION, "prior_token_embedding", "proj", "linear"]},
        {"target_modules": ["prior_token_embedding"], "use_dora": True},
    ],
    ids=str,
)
def test_what_peft_saves_is_applied_as_peft_applies_it(settings, pipeline, tmp_path):
    wanted = trained(upstream(pipeline), tmp_path, **{"target_modules": ATTENTION, **settings})
    assert same(merged(pipeline, "transformer", tmp_path), wanted)
    assert not same(merged(pipeline, "transformer"), wanted)


def test_adapters_of_upstreams_language_encoder_are_applied(pipeline, tmp_path):
    targets = r".*language_model.*(q_proj|o_proj|gate_up_proj|embed_tokens)|lm_head"
    wanted = trained(upstream(pipeline, "autoregressive"), tmp_path, target_modules=targets)
    assert same(merged(pipeline, "autoregressive", tmp_path), wanted)


def products(scale=0.5, rank=3):
    """(A, B) of two layers, and what their weights gain."""
    generator = torch.Generator().manual_seed(1)
    pairs = {
        name: (torch.randn(rank, 48, generator=generator), torch.randn(48, rank, generator=generator))
        for name in (LAYER, "transformer_blocks.1.attn1.to_out.0")
    }
    return pairs, {f"{name}.weight": scale * b @ a for name, (a, b) in pairs.items()}


def diffusers_file(pairs):
    named = [
        (f"transformer.{name}.lora_{letter}.weight", pair[i])
        for name, pair in pairs.items()
        for i, letter in enumerate("AB")
    ]
    return dict(named), {"lora_adapter_metadata": json.dumps({"transformer.r": 3, "transformer.lora_alpha": 1.5})}


def kohya_file(pairs, dotted):
    tensors = {}
    for name, (down, up) in pairs.items():
        name = f"diffusion_model.{name}" if dotted else "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.5)}
    return tensors, {}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (DIFFUSERS_FILE, diffusers_file),
        ("woodcut.safetensors", lambda pairs: kohya_file(pairs, False)),
        ("woodcut.safetensors", lambda pairs: kohya_file(pairs, True)),
    ],
    ids=["diffusers", "kohya", "dotted"],
)
@pytest.mark.parametrize("place", ["folder", "file"])
def test_other_layouts_are_applied(name, layout, place, pipeline, transformer, tmp_path):
    pairs, gains = products()
    tensors, metadata = layout(pairs)
    save_file(tensors, tmp_path / name, metadata)
    found = merged(pipeline, "transformer", tmp_path if place == "folder" else tmp_path / name)
    plain = transformer.state_dict()
    assert same({key: plain[key] + gain for key, gain in gains.items()}, found)
    assert {key for key, value in found.items() if not torch.equal(value, plain[key])} == set(gains)


def test_magnitudes_may_be_of_columns(pipeline, transformer, tmp_path):
    """DoRA as LyCORIS saves it: ``dora_scale`` of (1, in)."""
    pairs, gains = products()
    tensors, _ = kohya_file(pairs, False)
    tensors[f"lora_unet_{LAYER.replace('.', '_')}.dora_scale"] = wanted = torch.rand(1, 48) + 1
    save_file(tensors, tmp_path / "x.safetensors")
    weight = merged(pipeline, "transformer", tmp_path)[f"{LAYER}.weight"]
    assert torch.allclose(weight.norm(dim=0), wanted[0], atol=1e-5)
    direction = transformer.state_dict()[f"{LAYER}.weight"] + gains[f"{LAYER}.weight"]
    assert torch.allclose(torch.cosine_similarity(weight, direction, dim=0), torch.ones(48), atol=1e-5)


def test_each_adapter_has_a_strength(pipeline, transformer, tmp_path):
    pairs, gains = products()
    save_file(*kohya_file(pairs, False)[:1], tmp_path / "a.safetensors")
    path, key = tmp_path / "a.safetensors", f"{LAYER}.weight"
    plain, gain = transformer.state_dict()[key], gains[f"{LAYER}.weight"]
    for adapters, factor in (
        ([f"{path}:0.5"], 0.5), ([(path, -1)], -1.0), ([path, (str(path), 0.25)], 1.25), ([f"{path}:2"], 2.0)
    ):  # fmt: skip
        assert torch.allclose(merged(pipeline, "transformer", *adapters)[key], plain + factor * gain, atol=1e-5)
    hashes = {load(pipeline.checkpoint.path, lora=one).networks.weights_hash() for one in (path, (path, 0.5), ())}
    assert len(hashes) == 3


def test_half_of_a_magnitude_is_half_the_way(pipeline, transformer, tmp_path):
    wanted = trained(upstream(pipeline), tmp_path, target_modules=["to_q"], use_dora=True, bias="lora_only")
    plain, half = transformer.state_dict(), merged(pipeline, "transformer", (tmp_path, 0.5))
    assert same({name: (value + plain[name]) / 2 for name, value in wanted.items()}, half)


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("runs/x", "runs/x", 1.0),
        ("runs/x:0.8", "runs/x", 0.8),
        ("runs/x:-1", "runs/x", -1.0),
        ("a:b/x", "a:b/x", 1.0),
        ("a:b/x:1e-1", "a:b/x", 0.1),
        (r"C:\loras\x", r"C:\loras\x", 1.0),
        (r"C:\loras\x:0.5", r"C:\loras\x", 0.5),
        ("x:", "x:", 1.0),
        ("x:half", "x:half", 1.0),
    ],
)
def test_only_a_number_behind_the_last_colon_is_a_strength(text, path, strength):
    assert (str(parse_lora(text)[0]), parse_lora(text)[1]) == (path, strength)


def test_a_path_that_ends_like_a_strength_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x:0.5").mkdir()
    assert parse_lora("x:0.5")[1] == 1.0
    assert parse_lora("y:0.5")[1] == 0.5
    with pytest.raises(UsageError, match="finite number other than 0"):
        parse_lora("y:0")


def peft_folder(folder, tensors, **settings):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / ADAPTER_FILE)
    values = {"peft_type": "LORA", "r": 3, "lora_alpha": 1.5, **settings}
    (folder / CONFIG_FILE).write_text(json.dumps({name: value for name, value in values.items() if value != "gone"}))
    return folder


def peft_tensors():
    pairs, _ = products()
    return {
        key.replace("transformer.", "base_model.model.", 1): value for key, value in diffusers_file(pairs)[0].items()
    }


A = f"base_model.model.{LAYER}.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"base_model.model.other.lora_A.weight": torch.ones(3, 4)}, {}, r"'base_model.model.other.lora_A.weight'"),
        ({"base_model.model.model.visual.x.weight": torch.ones(3)}, {}, r"model.visual.x.weight"),
        ({A.replace("lora_A", "lokr_w1"): torch.ones(2, 2)}, {}, r"lokr_w1"),
        ({A.replace("lora_A", "hada_w1_a"): torch.ones(2, 2)}, {}, r"hada_w1_a"),
        ({A.replace("lora_A", "lora_mid"): torch.ones(2, 2)}, {}, r"lora_mid"),
        ({A: torch.ones(3, 7)}, {}, r"to_q.lora_A.weight.*does not fit"),
        ({A: torch.full((3, 48), float("nan"))}, {}, r"to_q.lora_A.weight.*finite"),
        ({A: torch.ones(3, 48, dtype=torch.int8)}, {}, r"to_q.lora_A.weight.*finite"),
        ({A: None}, {}, r"to_q.lora_B.weight' has no lora_A"),
        ({A.replace("_A", "_B"): None}, {}, r"to_q.lora_A.weight' has no lora_B"),
        ({A.replace(".weight", ".other.weight"): torch.ones(3, 48)}, {}, r"two adapters of one layer"),
        ({A.replace("lora_A.weight", "bias"): torch.ones(7)}, {}, r"to_q.bias.*shape"),
        ({}, {"use_dora": True}, r"use_dora.*lora_magnitude_vector"),
        ({}, {"peft_type": "LOKR"}, r"peft_type is 'LOKR'"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, r"init_lora_weights = 'pissa_niter_4'"),
        ({}, {"use_qalora": True}, r"use_qalora = True"),
        ({}, {"trainable_token_indices": [1]}, r"trainable_token_indices"),
        ({}, {"a_setting_of_tomorrow": 2}, r"a_setting_of_tomorrow = 2"),
        ({}, {"r": 4}, r"rank 3, its settings say 4"),
        ({}, {"r": "gone"}, r"adapter_config.json: r and lora_alpha"),
        ({}, {"lora_alpha": "gone"}, r"adapter_config.json: r and lora_alpha"),
        ({}, {"alpha_pattern": {"(": 1}}, r"adapter_config.json: r and lora_alpha"),
    ],
)  # fmt: skip
def test_what_cannot_be_applied_is_refused_by_name(change, settings, message, tmp_path):
    tensors = {key: value for key, value in {**peft_tensors(), **change}.items() if value is not None}
    folder = peft_folder(tmp_path / "lora", tensors, **settings)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_adapters(folder, CONFIG)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_changes_nothing_is_an_error(tmp_path):
    tensors = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in peft_tensors().items()}
    with pytest.raises(CheckpointError, match="changes nothing"):
        read_adapters(peft_folder(tmp_path / "zeros", tensors), CONFIG)
    with pytest.raises(CheckpointError, match="holds no adapters"):
        read_adapters(peft_folder(tmp_path / "empty", {}), CONFIG)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CheckpointError, match=r"neither adapter_model\.safetensors nor"):
        read_adapters(tmp_path / "nothing", CONFIG)


def test_files_that_cannot_be_told_apart_are_refused(tmp_path):
    folder = peft_folder(tmp_path / "two", peft_tensors())
    tensors, metadata = diffusers_file(products()[0])
    save_file(tensors, folder / DIFFUSERS_FILE, metadata)
    assert read_adapters(folder, CONFIG).path.name == ADAPTER_FILE
    tensors[f"transformer.{LAYER}.lora_A.weight"] += 1
    save_file(tensors, folder / DIFFUSERS_FILE, metadata)
    with pytest.raises(CheckpointError, match="different adapters; name the file"):
        read_adapters(folder, CONFIG)
    assert read_adapters(folder / DIFFUSERS_FILE, CONFIG).path.name == DIFFUSERS_FILE
    for name in ("a", "b"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"a.safetensors, b.safetensors, .*name the file"):
        read_adapters(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("lora", "code", "message"),
    [("gone", 1, r"gone is not a folder or file"), ("gone:half", 1, r"gone:half is not a folder or file"), (
     "owner/gone:0.5", 1, "hf download owner/gone$"), ("x:0", 2, r"other than 0"),
     ("x:nan", 2, "finite"), ("pickled", 1, r"adapter_model.bin.*convert it to safetensors")],
)  # fmt: skip
def test_the_command_line_says_what_is_wrong_in_one_line(lora, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"\x80\x04rubbish")
    with pytest.raises(SystemExit) as caught:
        cli(["generate", "x", "--lora", lora, "-o", "x.png"])
    said = capsys.readouterr().err
    assert (caught.value.code, said.count("\n")) == (code, 1)
    assert re.search(message, said)
    assert not (tmp_path / "x.png").exists()


def test_a_picture_is_made_again_with_its_adapters(pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = peft_folder(tmp_path / "lora", peft_tensors())
    adapted = load(pipeline.checkpoint.path, device="cpu", lora=(folder, 0.5))
    made = adapted.generate("x", size=64, steps=1, seed=1, preview_grid=False)[0]
    assert [(one.path, one.strength) for one in made.recipe.lora] == [(str(folder / ADAPTER_FILE), 0.5)]
    assert made.recipe.weights_sha256 == adapted.networks.weights_hash()
    made.save("x.png")
    command = ["reproduce", "x.png", "--model", str(pipeline.checkpoint.path)]
    with pytest.raises(SystemExit) as caught:
        cli(command)
    said = capsys.readouterr()
    assert (caught.value.code, said.out, said.err) == (0, "identical: every pixel is the same\n", "")
    folder.rename(tmp_path / "moved")
    with pytest.raises(SystemExit):
        cli(command)
    assert re.search(r"lora/adapter_model.safetensors that the recipe names are gone.*--lora", capsys.readouterr().err)
    with pytest.raises(SystemExit) as caught:
        cli([*command, "--lora", "moved:0.5"])
    assert caught.value.code == 0


class OneNetwork:
    """What :func:`add_adapters` needs of an objective."""

    def __init__(self, train, network):
        self.config = type("Stage", (), {"train": train})
        self.model = self.transformer = network


def adapted(train, network, folder, targets):
    """A network in training with adapters that have learnt, and their folder."""
    config = LoraConfig(rank=4, alpha=6, targets=targets)
    add_adapters(OneNetwork(train, network), config)
    learnt = {name.replace(".", "-"): value for name, value in network.named_parameters() if "lora_" in name}
    randomize(torch.nn.ParameterDict(learnt), 0)
    prefix = "transformer." if train == "decoder" else "model."
    save_adapters(folder, {prefix + name: value for name, value in network.state_dict().items()}, config, train)
    return network.eval()


def predict(network):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        if hasattr(network, "scores"):
            tokens, positions = torch.arange(7)[None], torch.arange(7).expand(3, 1, -1)
            return network.scores(network(tokens, positions), 96)
        return network(
            torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([500.0]),
            prior_tokens=torch.arange(4).view(1, 2, 2), glyphs=torch.randn(1, 3, 24, generator=generator),
            target_size=torch.tensor([[64, 64]]),
        )  # fmt: skip


EVERY_LAYER = {
    "decoder": (
        "to_q",
        "to_out.0",
        "proj",
        "net.2",
        "linear",
        "linear_1",
        "linear_2",
        "prior_token_embedding",
        "proj_out",
    ),
    "autoregressive": ("q_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head"),
}


@pytest.mark.parametrize("train", EVERY_LAYER)
def test_beside_every_layer_training_computes_what_merged_inference_computes(train, pipeline, tmp_path):
    name = "transformer" if train == "decoder" else "autoregressive"
    read = getattr(pipeline.checkpoint, name)
    plain, network = (read(torch.device("cpu"), torch.float32) for _ in range(2))
    before = predict(plain)
    add_adapters(OneNetwork(train, network), LoraConfig(targets=EVERY_LAYER[train]))
    assert torch.allclose(predict(network), before, atol=1e-6)  # fresh adapters add nothing
    network = adapted(train, read(torch.device("cpu"), torch.float32), tmp_path / "lora", EVERY_LAYER[train])
    merge_adapters(plain, [read_adapters(tmp_path / "lora", pipeline.checkpoint.config)])
    assert torch.allclose(predict(network), predict(plain), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(before, predict(plain), atol=0.1)


def test_what_training_writes_opens_in_diffusers_and_in_peft(pipeline, transformer, tmp_path):
    adapted("decoder", transformer, tmp_path / "lora", (*ATTENTION, "proj"))
    wanted = merged(pipeline, "transformer", tmp_path / "lora")
    for how in ({"use_safetensors": True}, {"weight_name": ADAPTER_FILE, "prefix": "base_model.model"}):
        by_diffusers = upstream(pipeline)
        by_diffusers.load_lora_adapter(tmp_path / "lora", **how)
        by_diffusers.fuse_lora()
        by_diffusers.unload_lora()
        assert same(by_diffusers.state_dict(), wanted)
    shutil.copy(tmp_path / "lora" / ADAPTER_FILE, tmp_path / "renamed.safetensors")
    assert same(merged(pipeline, "transformer", tmp_path / "renamed.safetensors"), wanted)
    by_peft = peft.PeftModel.from_pretrained(upstream(pipeline), tmp_path / "lora").merge_and_unload()
    assert same(by_peft.state_dict(), wanted)
    tensors = load_file(tmp_path / "lora" / DIFFUSERS_FILE)
    assert all(name.startswith("transformer.") for name in tensors)


@pytest.mark.parametrize(
    ("targets", "message"),
    [(("to_qq",), r"'to_qq' matches no layer.*'to_q'"), (("to_q", "nothing"), r"'nothing' matches no layer"),
     (("attn1",), r"attn1: .*not supported")],
)  # fmt: skip
def test_a_wrong_target_is_refused_by_name(targets, message, transformer):
    with pytest.raises(UsageError, match=message) as caught:
        add_adapters(OneNetwork("decoder", transformer), validate({"targets": targets}, LoraConfig, "x"))
    assert isinstance(caught.value, ArimageError)
    assert "\n" not in str(caught.value)
