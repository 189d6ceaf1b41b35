"""What a model needs, and how it fits a GPU."""

from pathlib import Path

import pytest
import torch

from arimage.checkpoints.information import fit_plans, network_sizes
from arimage.checkpoints.model_config import ModelConfig
from arimage.checkpoints.quantization import check_quantization
from arimage.cli.main import run as cli
from arimage.errors import UsageError
from arimage.inference.api import load
from arimage.yaml_files import load_yaml
from tests.tiny_checkpoint import CONFIG

LARGE = Path(__file__).parent.parent / "configs" / "glm-image-9b" / "model.yaml"


def test_the_large_model_fits_a_card_of_24_gb_and_narrower_weights_need_less() -> None:
    plans = {plan.options: plan for plan in fit_plans(load_yaml(LARGE, ModelConfig), 24, 1024)}
    assert not plans[""].fits
    assert plans["--placement sequential"].fits
    assert 36 < plans[""].gigabytes < 42  # the reference peaks at 38 GB there
    needs = [plans[options].gigabytes for options in ("", "--quantization fp8", "--quantization int4")]
    assert needs == sorted(needs, reverse=True)
    assert all("GB of weights for every call" in plan.costs for options, plan in plans.items() if "seq" in options)


def test_larger_pictures_need_more_until_tiles_take_over() -> None:
    config = load_yaml(LARGE, ModelConfig)
    small, large = (fit_plans(config, 80, size)[0].gigabytes for size in (512, 1024))
    assert small < large
    tiny = fit_plans(CONFIG, 1.5, 256)[0]
    assert tiny.fits
    assert tiny.costs == ""


def test_counted_as_quantised_are_attention_and_feed_forward() -> None:
    sizes = {one.network: one for one in network_sizes(CONFIG)}
    assert 0 < sizes["diffusion transformer"].quantized < sizes["diffusion transformer"].parameters
    assert 0 < sizes["autoregressive model"].quantized < sizes["autoregressive model"].parameters
    assert sizes["autoencoder"].quantized == 0


@pytest.mark.parametrize(("kind", "message"), [("int3", "int8, fp8, int4"), ("int4", "GPU"), ("int8", "torchao")])
def test_weights_that_cannot_be_had_are_refused_before_loading(kind, message, checkpoint_folder, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    with pytest.raises(UsageError, match=message):
        load(checkpoint_folder, device="cpu", quantization=kind)
    check_quantization(None, torch.device("cpu"))


@pytest.mark.parametrize(("arguments", "code"), [
    (["--fit", "24GB"], 0), (["--fit", "24", "--size", "512"], 0), (["--fit", "much"], 2), (["--fit", "0"], 2),
    (["--fit", "8GB", "--size", "100"], 2),
])  # fmt: skip
def test_info_tells_how_a_model_fits(arguments, code, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli(["info", str(LARGE), *arguments])
    assert ended.value.code == code
    out = capsys.readouterr()
    assert ("sequential" in out.out) == (code == 0)
