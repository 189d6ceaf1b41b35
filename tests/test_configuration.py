"""Configuration files, what they extend, and overrides."""

from pathlib import Path

import pytest

from arimage.checkpoints.model_config import ModelConfig
from arimage.errors import UsageError
from arimage.yaml_files import load_yaml


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


@pytest.mark.parametrize(
    "override",
    ["text_model", "=3", "text_model.num_layers=3", "processor.min_side.x=3", "x='3", "x=[3", "x={a: b"],
)
def test_wrong_overrides_are_explained(tmp_path, override):
    with pytest.raises(UsageError):
        load_yaml(write(tmp_path, "processor: {min_side: 256}"), ModelConfig, [override])


# Files that build on others


def files(tmp_path, **texts):
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path / f"{next(iter(texts))}.yaml"


def test_later_files_win_and_the_file_itself_over_them_all(tmp_path):
    (tmp_path / "shared").mkdir()
    common, shared = "processor: {min_side: 64}", "extends: common.yaml\nprocessor: {max_side: 1024}"
    files(tmp_path / "shared", common=common, stage=shared)
    size = "text_model: {num_hidden_layers: 5}\nprocessor: {max_side: 256}"
    stage = "extends: [shared/stage.yaml, size.yaml]\ntext_model: {num_hidden_layers: 9}"
    config = load_yaml(files(tmp_path, stage=stage, size=size), ModelConfig)
    assert (config.processor.min_side, config.processor.max_side, config.text_model.num_hidden_layers) == (64, 256, 9)


def test_a_file_may_be_reached_in_two_ways(tmp_path):
    stage = files(tmp_path, a="extends: [b.yaml, c.yaml]", b="extends: d.yaml", c="extends: d.yaml", d="{}")
    assert load_yaml(stage, ModelConfig) == ModelConfig()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"one": "extends: two.yaml", "two": "extends: thre.yaml", "three": "{}"},
            "two.yaml: extends thre.yaml, which cannot be read: No such file or directory; did you mean 'three.yaml'? "
            "(one.yaml extends two.yaml extends thre.yaml)",
        ),
        (
            {"one": "extends: [two.yaml]", "two": "extends: one.yaml"},
            "two.yaml: extends goes in a circle: one.yaml extends two.yaml extends one.yaml",
        ),
        (
            {"one": "extends: ../here/one.yaml"},
            "one.yaml: extends goes in a circle: one.yaml extends ../here/one.yaml",
        ),
        ({"one": "extends: {file: x}"}, "one.yaml: extends names a file or a list of files, not {'file': 'x'}"),
        ({"one": "extends: [x.yaml, 3]"}, "one.yaml: extends names a file or a list of files, not ['x.yaml', 3]"),
    ],
)
def test_files_that_cannot_be_built_on_are_named_with_the_chain(tmp_path, monkeypatch, texts, message):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError) as caught:
        load_yaml(files(Path(), **texts), ModelConfig)
    assert str(caught.value) == message
