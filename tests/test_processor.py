"""What is chosen by what a processor can do: kernels, the precision of training, Muon's steps."""

from pathlib import Path
from typing import Any

import pytest
import torch

from arimage.training.config import TrainConfig
from arimage.training.optimizer import build_optimizer, orthogonal
from arimage.training.precision import computed_in, multiplies_bf16
from arimage.yaml_files import validate
from backends.processor import has_avx512
from tests.stages import STAGES, name

CPU = torch.device("cpu")
STAGE: dict[str, Any] = {"train": "decoder", "start": "a", "output": "b", "steps": 1, "data": [{"path": "c"}]}
PROCESSORS = {  # capability of PyTorch's kernels, AVX512-BF16, AMX; whether bf16 is multiplied natively
    "desktop": ("AVX2", False, False, False),
    "server told to do without": ("AVX2", True, True, False),
    "first AVX-512": ("AVX512", False, False, False),
    "with AVX512-BF16": ("AVX512", True, False, True),
    "with AMX": ("AVX512", False, True, True),
    "other": ("DEFAULT", False, False, False),
}


@pytest.fixture(params=PROCESSORS)
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As on each kind of processor; whether it multiplies bf16 natively."""
    capability, bf16, amx, multiplies = PROCESSORS[request.param]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_avx512() == (capability == "AVX512")
    return multiplies


def test_auto_is_bf16_where_it_is_multiplied_natively_else_fp32(native: bool) -> None:
    assert multiplies_bf16(CPU) == native
    assert computed_in("auto", CPU) == ("bf16" if native else "no")
    assert [computed_in(named, CPU) for named in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]  # type: ignore[arg-type]


def test_muon_multiplies_in_bf16_where_that_is_native(native: bool) -> None:
    matrix = torch.randn(12, 24, generator=torch.Generator().manual_seed(0))
    assert orthogonal(matrix).dtype == (torch.bfloat16 if native else torch.float32)


def test_a_stage_in_fp32_learns_the_same_on_every_kind_of_processor(native: bool) -> None:
    def learnt(precision: str) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.eye(12, 24))
        weight.grad = torch.randn(12, 24, generator=torch.Generator().manual_seed(0))
        settings = validate({**STAGE, "muon": ["weight"], "precision": precision}, TrainConfig, "test")
        build_optimizer([("weight", weight)], settings).step()
        return weight.detach()

    assert torch.equal(learnt("no"), learnt("auto")) == (not native)


def test_gpus_that_only_emulate_bf16_train_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for emulated in (False, True):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, emulated=emulated: not emulated
        )
        assert computed_in("auto", gpu) == ("no" if emulated else "bf16")


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_every_recipe_leaves_its_precision_to_the_machine(path: Path) -> None:
    from arimage.yaml_files import load_yaml

    assert load_yaml(path, TrainConfig).precision == "auto"


@pytest.mark.parametrize("given", [None, "auto", "no", False])
def test_a_no_without_quotes_is_understood_and_auto_is_the_default(given: Any) -> None:
    values = STAGE if given is None else {**STAGE, "precision": given}
    assert validate(values, TrainConfig, "test").precision == ("no" if given in ("no", False) else "auto")
