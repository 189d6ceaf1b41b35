"""From GLM-4 to a starting point for images."""

import json

import pytest
import torch
import yaml
from transformers import Glm4Config, Glm4ForCausalLM

from arimage.autoregressive.layout import Grid, build_prompt
from arimage.checkpoints.bpe import train_tokenizer
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.initialization import initialize_folder
from arimage.cli.main import run
from arimage.errors import CheckpointError, UsageError
from arimage.inference.engine import Engine
from arimage.inference.networks import Networks
from tests.test_checkpoint import cache
from tests.tiny import randomize
from tests.tiny_checkpoint import CONFIG

WORDS = CONFIG.text_model.vision_vocab_size
TEXT_ROWS = 400


@pytest.fixture(scope="module", params=[0, 1])
def glm4(request, tmp_path_factory):
    """A small random GLM-4 folder, in shards, with a tokenizer that knows GLM-4's kind of control tokens."""
    model = Glm4ForCausalLM(
        Glm4Config(
            vocab_size=TEXT_ROWS, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, pad_token_id=0, eos_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            attention_bias=bool(request.param == 0),
        )
    ).eval()  # fmt: skip
    randomize(model, request.param)
    folder = tmp_path_factory.mktemp("glm4")
    model.save_pretrained(folder, max_shard_size="100KB")
    definition = train_tokenizer(["some text, 一些文字"], 0, TEXT_ROWS)
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    return folder, model


def test_hidden_states_on_text_stay_as_they_were(glm4, tmp_path):
    folder, upstream = glm4
    checkpoint = Checkpoint.open(initialize_folder(CONFIG, tmp_path / "new", glm4=folder, dtype=torch.float32))
    model = checkpoint.autoregressive(torch.device("cpu"), torch.float32)
    ids = torch.randint(TEXT_ROWS, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = upstream.model(ids).last_hidden_state
        ours = model(ids + WORDS, torch.arange(30).expand(3, 2, -1))
    assert torch.allclose(ours, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_the_new_folder_holds_the_vision_words_and_the_old_text(glm4, tmp_path):
    folder, upstream = glm4
    path = initialize_folder(CONFIG, tmp_path / "new", glm4=folder, dtype=torch.float32)
    engine = Engine(Networks(Checkpoint.open(path), torch.device("cpu"), torch.float32))
    with engine.networks.use("autoregressive") as model:
        embedding = model.model.language_model.embed_tokens.weight
        assert embedding.shape == (WORDS + TEXT_ROWS, 64)
        assert torch.equal(embedding[WORDS:], upstream.model.embed_tokens.weight)
        assert model.lm_head.weight.shape == (WORDS, 64)
        assert 0.5 < float(embedding[:WORDS].std() / embedding[WORDS:].std()) < 2
    prompt = build_prompt(engine.vocabulary, "some text", Grid(2, 2))
    assert min(engine.vocabulary.encode("some text 文字")) >= WORDS
    assert prompt.tokens[-1] == engine.vocabulary.image_start


@pytest.mark.parametrize("glm4", [0], indirect=True)
def test_glm4_is_found_in_the_hubs_local_cache(glm4, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(CONFIG.model_dump(mode="json")), encoding="utf-8")
    command = ["init", "model.yaml", "--from-glm4", "owner/name", "-o", "new"]
    with pytest.raises(SystemExit):
        run(command)
    assert capsys.readouterr().err.endswith("download it first: hf download owner/name\n")
    cache(tmp_path / "hub", glm4[0])
    with pytest.raises(SystemExit) as caught:
        run(command)
    assert not caught.value.code
    assert Checkpoint.open(tmp_path / "new").config.text_model.vocab_size == WORDS + TEXT_ROWS


def test_other_language_models_are_refused(glm4, tmp_path):
    folder, _ = glm4
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(CheckpointError, match="llama"):
        initialize_folder(CONFIG, tmp_path / "new", glm4=other)


def test_two_tokenizers_are_refused(glm4, tmp_path):
    with pytest.raises(UsageError, match="tokenizer"):
        initialize_folder(CONFIG, tmp_path / "new", glm4=glm4[0], corpus=["text"])
