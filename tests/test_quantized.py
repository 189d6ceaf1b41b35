"""Weights in 8 bits; runs where torchao is installed (pip install 'arimage[quantize]')."""

import pytest
import torch
from torch import nn

from arimage.checkpoints.quantization import is_quantized
from arimage.inference.api import load

pytest.importorskip("torchao")


@pytest.mark.parametrize(("kind", "stored_as", "off"), [("int8", "Int8", 0.03), ("fp8", "Float8", 0.08)])
def test_a_picture_with_weights_in_8_bits_is_nearly_the_plain_one(kind, stored_as, off, checkpoint_folder) -> None:
    plain, narrow = load(checkpoint_folder, device="cpu"), load(checkpoint_folder, device="cpu", quantization=kind)
    options = {"size": 64, "steps": 3, "seed": 1, "temperature": 0}
    made = narrow.generate("a red square", **options)[0]
    assert made.recipe.dtype == f"float32 with {kind} weights"
    with narrow.networks.use("transformer") as transformer, plain.networks.use("transformer") as whole:
        hidden = torch.randn(5, whole.config.hidden_size)
        for name, module in transformer.named_modules():
            if isinstance(module, nn.Linear):
                stored = type(module.weight.data) is not torch.Tensor and stored_as in type(module.weight).__name__
                assert stored == is_quantized(name, module), name
        one, other = (network.transformer_blocks[0].ff(hidden) for network in (whole, transformer))
        assert 0 < float((one - other).norm() / one.norm()) < off
