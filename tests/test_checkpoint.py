"""The checkpoint folder: reading, writing, and what is wrong with broken ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, GlmImageTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import GlmImageConfig, GlmImageForConditionalGeneration, T5Config, T5EncoderModel

from arimage.checkpoints.assemble import assemble
from arimage.checkpoints.checkpoint import Checkpoint, save_checkpoint, update_checkpoint
from arimage.checkpoints.components import COMPONENTS, meta_networks
from arimage.checkpoints.information import network_sizes
from arimage.checkpoints.initialization import initialize_folder
from arimage.checkpoints.model_config import ModelConfig
from arimage.cli.model import _sampling
from arimage.errors import CheckpointError, UsageError
from arimage.inference.api import load
from arimage.inference.requests import ImageRequest
from arimage.yaml_files import load_yaml
from tests.tiny_checkpoint import CONFIG, TEXT_FIRST, tiny_folder, tiny_states, tiny_tokenizer

CPU, FLOAT = torch.device("cpu"), torch.float32
NETWORKS = ("semantic_tokenizer", "autoregressive", "transformer", "autoencoder", "glyph_encoder")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def load_all(folder):
    checkpoint = Checkpoint.open(folder)
    return {name: getattr(checkpoint, name)(device=CPU, dtype=FLOAT) for name in NETWORKS}


def test_what_is_saved_is_what_is_read(whole):
    networks = load_all(whole)
    states = tiny_states(tiny_tokenizer()[1])
    read = {
        "vision_language_encoder": {
            **networks["semantic_tokenizer"].state_dict(), **networks["autoregressive"].state_dict()
        },
        "transformer": networks["transformer"].state_dict(),
        "vae": networks["autoencoder"].network.state_dict(),
        "text_encoder": networks["glyph_encoder"].encoder.state_dict(),
    }  # fmt: skip
    for component in COMPONENTS:
        assert read[component].keys() == states[component].keys()
        assert all(torch.equal(read[component][name], tensor) for name, tensor in states[component].items())
    assert Checkpoint.open(whole).config == tiny_tokenizer()[1]


def test_networks_come_ready_for_inference(whole):
    for network in load_all(whole).values():
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not any(parameter.is_meta for parameter in network.parameters())


def test_narrow_weights_are_widened_when_they_are_read(tmp_path):
    narrow = load_all(tiny_folder(tmp_path / "narrow", dtype=torch.bfloat16))
    for network in narrow.values():
        assert all(parameter.dtype == FLOAT for parameter in network.parameters())
    wide = load_all(tiny_folder(tmp_path / "wide"))
    for name, network in narrow.items():
        for parameter, exact in zip(network.parameters(), wide[name].parameters()):
            assert torch.equal(parameter, exact.bfloat16().float())


def test_sharded_folders_are_read_like_whole_ones(tmp_path, whole):
    definition, config = tiny_tokenizer()
    sharded = save_checkpoint(
        tmp_path / "sharded", config, tiny_states(config), definition, dtype=FLOAT, max_shard_size="50KB"
    )
    assert len(list((sharded / "transformer").glob("*.safetensors"))) > 2
    for one, other in zip(load_all(sharded).values(), load_all(whole).values()):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def test_updating_replaces_some_tensors_and_keeps_the_rest(tmp_path, whole):
    source = Checkpoint.open(whole)
    new = {name: tensor + 1 for name, tensor in source.transformer(CPU, FLOAT).state_dict().items()}
    updated = Checkpoint.open(update_checkpoint(source, tmp_path / "new", {"transformer": new}, dtype=FLOAT))
    assert torch.equal(updated.transformer(CPU, FLOAT).proj_out.weight, new["proj_out.weight"])
    before, after = (c.autoregressive(CPU, FLOAT).lm_head.weight for c in (source, updated))
    assert torch.equal(before, after)
    assert source.weights_hash() != updated.weights_hash()


def test_a_failed_write_leaves_the_previous_folder_intact(tmp_path, whole, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "model")
    before = Checkpoint.open(folder).weights_hash()

    def fail(*arguments, **named):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    definition, config = tiny_tokenizer()
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(folder, config, tiny_states(config, 1), definition)
    assert Checkpoint.open(folder).weights_hash() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_saving_refuses_what_the_configuration_does_not_say(tmp_path):
    definition, config = tiny_tokenizer()
    states = tiny_states(config)
    del states["vae"]["decoder.conv_in.bias"]
    with pytest.raises(CheckpointError, match=r"vae.*decoder\.conv_in\.bias.*missing"):
        save_checkpoint(tmp_path / "x", config, states, definition)
    assert not (tmp_path / "x").exists()


def rewrite(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("component", "file", "network", "name"),
    [
        ("transformer", "diffusion_pytorch_model", "transformer", "proj_out.weight"),
        ("vae", "diffusion_pytorch_model", "autoencoder", "decoder.conv_in.bias"),
        ("text_encoder", "model", "glyph_encoder", "encoder.final_layer_norm.weight"),
        ("vision_language_encoder", "model", "autoregressive", "lm_head.weight"),
        ("vision_language_encoder", "model", "semantic_tokenizer", "model.vqmodel.quant_conv.weight"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "integers", "truncated", "rubbish", "empty"])
def test_damage_is_named_by_file_and_tensor(folder, component, file, network, name, damage):
    path = folder / component / f"{file}.safetensors"
    expected = name
    match damage:
        case "missing":
            rewrite(path, lambda tensors: tensors.pop(name))
        case "extra":
            rewrite(path, lambda tensors: tensors.update({"left.over": torch.zeros(2)}))
            expected = "left.over"
        case "shape":
            rewrite(path, lambda tensors: tensors.update({name: torch.zeros(3, 1, 2)}))
        case "integers":
            rewrite(path, lambda tensors: tensors.update({name: tensors[name].int()}))
        case "truncated":
            path.write_bytes(path.read_bytes()[:-100])
            expected = path.name
        case "rubbish":
            path.write_bytes(b"\x80\x04rubbish" * 100)
            expected = path.name
        case "empty":
            path.write_bytes(b"")
            expected = path.name
    with pytest.raises(CheckpointError) as caught:
        getattr(Checkpoint.open(folder), network)(device=CPU, dtype=FLOAT)
    assert expected in str(caught.value)
    assert component in str(caught.value)


def test_pickled_weights_are_never_read(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), folder / "transformer" / "diffusion_pytorch_model.bin")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin.*convert it to safetensors"):
        Checkpoint.open(folder).transformer(CPU, FLOAT)


def test_a_missing_shard_is_named(tmp_path):
    definition, config = tiny_tokenizer()
    path = save_checkpoint(tmp_path / "x", config, tiny_states(config), definition, max_shard_size="50KB")
    shard = sorted((path / "transformer").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        Checkpoint.open(path).transformer(CPU, FLOAT)


@pytest.mark.parametrize(
    "place",
    [
        "model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json",
        "scheduler/scheduler_config.json", "vision_language_encoder/config.json", "processor/processor_config.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "rubbish"])
def test_missing_and_broken_configuration_is_named(folder, place, damage):
    path = folder / place
    if damage == "missing":
        path.unlink()
    else:
        path.write_text("{not json")
    with pytest.raises(CheckpointError, match=r"missing|JSON|picture sizes"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("place", "keys", "value", "message"),
    [
        ("vision_language_encoder/config.json", ("text_config", "hidden_act"), "relu", "text_config.hidden_act"),
        ("vision_language_encoder/config.json", ("tie_word_embeddings",), True, "tie_word_embeddings"),
        ("vision_language_encoder/config.json", ("image_start_token_id",), 7, "image_start_token_id"),
        ("vision_language_encoder/config.json", ("text_config", "hidden_size"), -1, "text_config.hidden_size"),
        ("transformer/config.json", ("in_channels",), 5, "transformer.in_channels"),
        ("vae/config.json", ("act_fn",), "relu", "act_fn"),
        ("scheduler/scheduler_config.json", ("time_shift_type",), "exponential", "time_shift_type"),
        ("processor/processor_config.json", ("image_processor", "patch_size"), 14, "patch_size"),
        ("model_index.json", ("_class_name",), "FluxPipeline", "FluxPipeline"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused_by_name(folder, place, keys, value, message):
    path = folder / place
    data = json.loads(path.read_text())
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message.replace(".", r"\.")):
        Checkpoint.open(folder)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing"):
        Checkpoint.open(tmp_path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("place", "network"),
    [("transformer/diffusion_pytorch_model.safetensors", "transformer"), ("processor/tokenizer.json", None),
     ("vae/config.json", None)],
)  # fmt: skip
def test_a_pointer_that_git_lfs_left_is_called_so(folder, place, network):
    (folder / place).write_bytes(LFS)
    with pytest.raises(CheckpointError, match=rf"{place}.*git lfs pull"):
        load(folder, device="cpu").networks.use(network).__enter__()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The local cache of the Hugging Face hub, empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def cache(hub, folder, commit="0123456789abcdef0123456789abcdef01234567"):
    """Put a folder into the cache as ``owner/name``."""
    repository = hub / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return shutil.copytree(folder, repository / "snapshots" / commit)


def test_a_repository_is_opened_from_the_hubs_local_cache(hub, whole):
    with pytest.raises(CheckpointError, match=r"hf download owner/name$") as caught:
        load("owner/name")
    assert "\n" not in str(caught.value)
    snapshot = cache(hub, whole)
    assert load("owner/name").checkpoint.weights_hash() == Checkpoint.open(whole).weights_hash()
    index = json.loads((snapshot / "model_index.json").read_text())
    del index["_arimage"]
    (snapshot / "model_index.json").write_text(json.dumps(index))
    assert load("owner/name").checkpoint.name == "owner/name"
    (snapshot / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no safetensors file.*hf download owner/name"):
        load("owner/name").networks.use("transformer").__enter__()
    (snapshot / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json is missing.*hf download owner/name"):
        load("owner/name")
    shutil.copytree(whole, "owner/name")
    assert str(load("owner/name").checkpoint.path) == "owner/name"


def test_a_tensor_that_would_come_from_two_files_is_refused_by_name(folder, tmp_path):
    component = folder / "transformer"
    shutil.copy(
        component / "diffusion_pytorch_model.safetensors", component / "diffusion_pytorch_model.fp16.safetensors"
    )
    with pytest.raises(
        CheckpointError, match=r"'.*' is in diffusion_pytorch_model.fp16.safetensors and in diff"
    ) as caught:
        Checkpoint.open(folder).transformer(CPU, FLOAT)
    assert str(component) in str(caught.value)
    definition, config = tiny_tokenizer()
    path = save_checkpoint(tmp_path / "x", config, tiny_states(config), definition, max_shard_size="50KB")
    shards = sorted((path / "transformer").glob("*.safetensors"))
    name = next(iter(load_file(shards[0])))
    rewrite(shards[1], lambda tensors: tensors.update({name: torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=rf"{name}.*{shards[0].name} and in {shards[1].name}"):
        Checkpoint.open(path).transformer(CPU, FLOAT)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("file", r"diffusion_pytorch_model.safetensors is not named by diffusion_pytorch_model.safetensors.index.json"),
        ("index", r"a.safetensors.index.json and diffusion_pytorch_model.safetensors.index.json"),
        ("outside", r"'\.\./x.safetensors', which is no name of a file"),
        ("list", r"weight_map"),
    ],
)
def test_an_index_and_the_files_beside_it_must_agree(damage, message, tmp_path):
    definition, config = tiny_tokenizer()
    path = save_checkpoint(tmp_path / "x", config, tiny_states(config), definition, max_shard_size="50KB")
    folder = path / "transformer"
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    contents = json.loads(index.read_text())
    match damage:
        case "file":
            save_file({"left.over": torch.zeros(1)}, folder / "diffusion_pytorch_model.safetensors")
        case "index":
            shutil.copy(index, folder / "a.safetensors.index.json")
        case "outside":
            contents["weight_map"]["proj_out.weight"] = "../x.safetensors"
        case "list":
            contents["weight_map"] = ["proj_out.weight"]
    index.write_text(json.dumps(contents))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(path).transformer(CPU, FLOAT)


def test_what_systems_leave_beside_weights_is_passed_over(folder):
    for component in COMPONENTS:
        (folder / component / "._model.safetensors").write_bytes(b"\0\5\x16\7")
    before = Checkpoint.open(folder).weights_hash()
    load_all(folder)
    (folder / "vae" / "._model.safetensors").unlink()
    assert Checkpoint.open(folder).weights_hash() == before


def test_random_weights_are_marked(tmp_path, whole):
    assert not Checkpoint.open(whole).is_random
    assert Checkpoint.open(initialize_folder(CONFIG, tmp_path / "random")).is_random


def test_initialisation_depends_on_its_seed_alone(tmp_path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = initialize_folder(CONFIG, tmp_path / "a", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    hashes = [
        Checkpoint.open(path).weights_hash()
        for path in (
            first,
            initialize_folder(CONFIG, tmp_path / "b", seed=3),
            initialize_folder(CONFIG, tmp_path / "c"),
        )
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def upstream_shapes(config: ModelConfig) -> dict[str, dict[str, torch.Size]]:
    """Names and shapes of the reference classes, from their own configuration."""
    text, vision = config.text_model.model_dump(), config.vision_encoder.model_dump()
    rope = {name: text.pop(name) for name in ("rope_theta", "partial_rotary_factor", "mrope_section")}
    rope = {"rope_type": "default", **rope, "mrope_section": list(rope["mrope_section"])}
    with torch.device("meta"):
        references = {
            "vision_language_encoder": GlmImageForConditionalGeneration(
                GlmImageConfig(
                    text_config={**text, "rope_parameters": rope},
                    vision_config=vision,
                    vq_config=config.quantizer.model_dump(),
                )
            ),
            "transformer": GlmImageTransformer2DModel(**config.transformer.model_dump()),
            "vae": AutoencoderKL(**config.autoencoder.arguments()),
            "text_encoder": T5EncoderModel(T5Config(**config.glyph_encoder.model_dump())),
        }
    return {
        component: {name: tensor.shape for name, tensor in network.state_dict().items()}
        for component, network in references.items()
    }


@pytest.mark.parametrize("size", ["nano", "base", "glm-image-9b"])
def test_every_parameter_of_every_size_has_the_references_name_and_shape(size):
    config = load_yaml(f"configs/{size}/model.yaml", ModelConfig)
    with torch.device("meta"):
        networks = meta_networks(config)
    ours = {
        component: {name: tensor.shape for name, tensor in network.state_dict().items()}
        for component, network in networks.items()
    }
    assert ours == upstream_shapes(config)


def test_the_released_dimensions_are_the_defaults():
    assert load_yaml("configs/glm-image-9b/model.yaml", ModelConfig) == ModelConfig()


def test_sizes_are_those_that_the_configurations_promise():
    total = {
        size: sum(network.parameters for network in network_sizes(load_yaml(f"configs/{size}/model.yaml", ModelConfig)))
        for size in ("nano", "base", "glm-image-9b")
    }
    assert total["nano"] <= 20e6
    assert 0.9e9 < total["base"] < 1.1e9
    assert 17e9 < total["glm-image-9b"] < 18e9


def test_a_folder_may_say_how_it_is_best_sampled(tmp_path):
    """The model's own sampling stands where a call says nothing; a wrong name is an error that names the file."""
    source = tiny_folder(tmp_path / "plain")
    assert Checkpoint.open(source).sampling == {}
    unguided = {"token_guidance": 1.0}
    path = assemble(
        source,
        {},
        tmp_path / "own",
        name="own",
        sampling={
            "temperature": 0.5,
            "token_guidance": 2.0,
            "preview_grid": False,
            "sigma_min": 0.3,
            "with_references": unguided,
        },
    )
    assert Checkpoint.open(path).name == "own"
    pipeline = load(path)
    first = pipeline.generate("a", size=64, steps=1, seed=1)[0]
    made = first.recipe.settings
    assert (made["temperature"], made["token_guidance"], made["top_p"]) == (0.5, 2.0, 0.75)
    assert (made["preview_grid"], made["sigma_min"], first.preview_codes) == (False, 0.3, None)
    steps: list[int] = []
    pipeline.generate("a", size=64, steps=10, seed=1, on_progress=lambda one: steps.append(one.total))
    assert steps[-1] == 6, "0.30 is the sixth level of 64 px, and 0.23 the next"
    asked = pipeline.generate("a", size=64, steps=1, seed=1, temperature=0, preview_grid=True)[0]
    assert asked.recipe.settings["temperature"] == 0
    assert asked.preview_codes.shape == (16, 16)
    with pytest.raises(UsageError, match="preview_grid"):
        pipeline.edit(asked.image, "b", preview_grid=False)
    edited = pipeline.edit(asked.image, "b", steps=1, seed=1)[0].recipe.settings
    referring = pipeline.generate("b", references=asked.image, size=64, steps=1, seed=1)[0].recipe.settings
    for settings in (edited, referring):
        assert (settings["temperature"], settings["token_guidance"]) == (0.5, 1.0)
    assert pipeline.edit(asked.image, "b", steps=1, seed=1, token_guidance=3)[0].recipe.settings["token_guidance"] == 3
    requests = [ImageRequest("b", (64, 64), 1, (asked.image,)), ImageRequest("a", (64, 64), 1)]
    together = pipeline.make(requests, steps=1)
    alone = [pipeline.make([request], steps=1)[0] for request in requests]
    assert all(torch.equal(one.codes, other.codes) for one, other in zip(together, alone))
    assert torch.equal(alone[1].codes, torch.as_tensor(first.codes))
    index = json.loads((path / "model_index.json").read_text())
    index["_arimage"]["sampling"] = {"temprature": 1}
    (path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model_index.json.*temprature.*temperature"):
        load(path).generate("a", size=64, steps=1)
    index["_arimage"]["sampling"] = {"with_references": {"with_references": {}}}
    (path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model_index.json.*names 'with_references'"):
        load(path).generate("a", size=64, steps=1)


@pytest.mark.parametrize(
    ("text", "value"), [("preview_grid=false", False), ("preview_grid=true", True), ("top_k=5", 5), ("top_p=0.5", 0.5)]
)
def test_a_sampling_default_is_read_as_what_it_is(text, value):
    found = _sampling([text])
    assert found == {text.split("=")[0]: value}
    assert type(next(iter(found.values()))) is type(value)


def test_sampling_defaults_of_pictures_with_references_stand_by_themselves():
    found = _sampling(["token_guidance=1.5", "with_references.token_guidance=1", "with_references.top_k=5"])
    assert found == {"token_guidance": 1.5, "with_references": {"token_guidance": 1.0, "top_k": 5}}


@pytest.mark.parametrize(
    "text",
    [
        "with_references=1",
        "with_references.other=1",
        "preview_grid=0.5",
        "preview_grid=yes",
        "top_k=0.5",
        "top_p=much",
        "top_p",
        "sigma_min=1",
        "steps=5",
        "other=1",
    ],
)
def test_a_wrong_sampling_default_is_refused(text):
    with pytest.raises(UsageError, match="--sampling"):
        _sampling([text])


def test_what_is_put_together_keeps_what_the_base_says_beside_its_weights(tmp_path):
    base = tiny_folder(tmp_path / "base")
    said = {"temperature": 0.5, "top_p": 0.9, "with_references": {"token_guidance": 1.0, "temperature": 0.1}}
    first = assemble(base, {}, tmp_path / "first", sampling=said)
    (first / "domain.json").write_text("{}")
    second = assemble(first, {}, tmp_path / "second", sampling={"top_p": 0.8, "with_references": {"temperature": 0.2}})
    inner = {"token_guidance": 1.0, "temperature": 0.2}
    assert Checkpoint.open(second).sampling == {"temperature": 0.5, "top_p": 0.8, "with_references": inner}
    assert (second / "domain.json").read_text() == "{}"
    assert not (assemble(base, {}, tmp_path / "third") / "domain.json").exists()


def test_networks_that_were_trained_under_other_settings_are_not_put_together(tmp_path):
    """RoPE's base is not to be seen in the weights, so a part that has another one must be refused by its name."""
    base = tiny_folder(tmp_path / "base")
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = json.loads((other / "vision_language_encoder" / "config.json").read_text())
    config["text_config"]["rope_parameters"]["rope_theta"] = 10000.0
    (other / "vision_language_encoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"text_model.rope_theta 10000.*8"):
        assemble(base, {"autoregressive": other}, tmp_path / "both")
    assemble(base, {"semantic_tokenizer": other}, tmp_path / "both")


@pytest.mark.parametrize("config", [CONFIG, TEXT_FIRST], ids=["text last", "text first"])
def test_the_order_of_text_and_references_is_the_chat_templates(tmp_path: Path, config: ModelConfig) -> None:
    """Written as a template, read from one, also where it stands in the tokenizer's settings."""
    folder = tiny_folder(tmp_path / "tiny", config=config)
    assert Checkpoint.open(folder).vocabulary().text_first == config.processor.text_first
    template = (folder / "processor" / "chat_template.jinja").read_text()
    (folder / "processor" / "chat_template.jinja").unlink()
    path = folder / "processor" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    assert Checkpoint.open(folder).vocabulary().text_first == config.processor.text_first
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ raise_exception('no') }}"}))
    assert not Checkpoint.open(folder).vocabulary().text_first
