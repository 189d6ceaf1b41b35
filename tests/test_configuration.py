"""Model configuration files and overrides."""

import pytest

from arimage.configuration import ModelConfig, load_yaml
from arimage.errors import UsageError


def write(tmp_path, text):
    path = tmp_path / "model.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text_modle: {}", "unknown key 'text_modle'; did you mean 'text_model'"),
        ("text_model: {hiden_size: 3}", "unknown key 'text_model.hiden_size'; did you mean 'hidden_size'"),
        ("text_model: {hidden_size: wide}", "text_model.hidden_size"),
        ("text_model: {hidden_size: 100}", "multiple of num_attention_heads"),
        ("quantizer: {num_embeddings: 99}", "must equal quantizer.num_embeddings, which is 99"),
        ("autoencoder: {latent_channels: 3}", "must equal autoencoder.latent_channels"),
        ("- a list", "must hold keys and values"),
        ("{broken", "not valid YAML"),
    ],
)
def test_wrong_files_are_explained(tmp_path, text, message):
    with pytest.raises(UsageError) as caught:
        load_yaml(write(tmp_path, text), ModelConfig)
    assert message in str(caught.value)
    assert "model.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.yaml"):
        load_yaml(tmp_path / "nothing.yaml", ModelConfig)


def test_overrides_change_single_values(tmp_path):
    path = write(tmp_path, "text_model: {num_hidden_layers: 3}")
    config = load_yaml(path, ModelConfig, ["text_model.num_hidden_layers=5", "processor.min_side=256"])
    assert (config.text_model.num_hidden_layers, config.processor.min_side) == (5, 256)


@pytest.mark.parametrize("override", ["text_model", "=3", "text_model.num_layers=3", "processor.min_side.x=3"])
def test_wrong_overrides_are_explained(tmp_path, override):
    with pytest.raises(UsageError):
        load_yaml(write(tmp_path, "processor: {min_side: 256}"), ModelConfig, [override])
