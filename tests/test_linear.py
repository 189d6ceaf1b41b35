"""Linear layers of networks that only run."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backends import linear
from backends.linear import Linear, Projections, prepare_to_run


class Attention(Projections):
    projected = ("to_q", "to_k", "to_v")

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (Linear(8, size, bias=bias) for size in (12, 4, 4))


@pytest.mark.parametrize("bias", [True, False])
def test_joined_projections_are_the_separate_ones(bias: bool) -> None:
    attention, hidden = Attention(bias), torch.randn(3, 5, 8)
    with torch.no_grad():
        separate = attention.project_all(hidden)
        assert torch.equal(
            separate, torch.cat([attention.to_q(hidden), attention.to_k(hidden), attention.to_v(hidden)], -1)
        )
        prepare_to_run(nn.Sequential(attention))
        assert torch.allclose(attention.project_all(hidden), separate, atol=1e-6)
        apart = torch.cat([attention.to_q(hidden), attention.to_k(hidden), attention.to_v(hidden)], -1)
        assert torch.allclose(apart, separate, atol=1e-6)


def test_joined_weights_follow_what_is_written_into_them_and_part_when_they_are_cast() -> None:
    attention, hidden = Attention(), torch.randn(2, 8)
    attention.join()
    with torch.no_grad():
        attention.to_k.weight.zero_()
        attention.to_k.bias.fill_(3.0)
        assert attention.project_all(hidden)[:, 12:16].eq(3.0).all()
        names = set(attention.state_dict())
        attention.double()
        attention.to_v.weight.zero_()
        attention.to_v.bias.fill_(2.0)
        assert attention.project_all(hidden.double())[:, 16:].eq(2.0).all()
    assert names == {f"to_{name}.{part}" for name in "qkv" for part in ("weight", "bias")}


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where oneDNN leads."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(linear, "ONEDNN", True)


@pytest.mark.usefixtures("onednn")
def test_products_of_onednn_are_those_of_pytorch() -> None:
    layer, hidden = Linear(32, 48), torch.randn(2, 9, 32)
    assert layer.weight.stride(0) != 1
    prepare_to_run(layer)
    assert layer.weight.stride(0) == 1
    with torch.no_grad():
        assert linear.can_use_onednn(hidden, layer.weight)
        assert torch.allclose(layer(hidden), F.linear(hidden, layer.weight, layer.bias), atol=1e-5)
        activated = F.gelu(F.linear(hidden, layer.weight, layer.bias), approximate="tanh")
        assert torch.allclose(linear.linear_gelu_tanh(hidden, layer.weight, layer.bias), activated, atol=1e-5)
        assert torch.allclose(linear.linear(hidden, layer.weight, None), F.linear(hidden, layer.weight), atol=1e-5)


@pytest.mark.usefixtures("onednn")
def test_what_learns_or_is_narrower_goes_through_pytorch() -> None:
    layer, hidden = Linear(32, 48), torch.randn(9, 32)
    prepare_to_run(layer)
    assert not linear.can_use_onednn(hidden, layer.weight)
    with torch.no_grad():
        assert not linear.can_use_onednn(hidden[:1], layer.weight)
        assert not linear.can_use_onednn(hidden.bfloat16(), layer.weight.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert not linear.can_use_onednn(hidden, layer.weight)
            assert layer(hidden).dtype == torch.bfloat16
    layer(hidden).sum().backward()
    assert layer.weight.grad is not None


def test_where_onednn_does_not_lead_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ONEDNN", False)
    layer, attention = Linear(32, 48), Attention()
    prepare_to_run(nn.Sequential(layer, attention))
    assert layer.weight.is_contiguous()
    assert attention.to_k.weight.is_contiguous()
    with torch.no_grad():
        assert torch.equal(layer(torch.ones(9, 32)), F.linear(torch.ones(9, 32), layer.weight, layer.bias))


@pytest.mark.parametrize("rows", [2, 16, 300])
def test_gelu_of_what_runs_is_the_one_that_learns(rows: int) -> None:
    hidden = 4 * torch.randn(rows, 1024, generator=torch.Generator().manual_seed(rows))
    with torch.no_grad():
        assert torch.allclose(linear.gelu_tanh(hidden), F.gelu(hidden, approximate="tanh"), atol=1e-6)
        halves = hidden.bfloat16()
        assert torch.equal(linear.gelu_tanh(halves), F.gelu(halves, approximate="tanh"))
    assert torch.equal(linear.gelu_tanh(hidden), F.gelu(hidden, approximate="tanh"))


def test_building_networks_loads_no_compiler() -> None:
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom arimage.checkpoints.embedded import embedded_folder\n"
        "import arimage\nwith arimage.load().networks.use('autoregressive'): pass\n"
        "assert 'torch._dynamo' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
