"""Muon beside AdamW: what each updates, and that saved states bring both back."""

from pathlib import Path

import pytest
import torch
from torch import nn

from arimage.errors import UsageError
from arimage.training.config import TrainConfig
from arimage.training.optimizer import MuonAdamW, build_optimizer, orthogonal
from tests.stages import name, stages
from tests.tiny_assets import write_assets


def config(**settings: object) -> TrainConfig:
    data = [{"path": "nowhere"}]
    return TrainConfig.model_validate(
        {"train": "decoder", "start": "a", "output": "b", "steps": 1, "data": data, "learning_rate": 0.01, **settings}
    )


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 3))


@pytest.mark.parametrize("shape", [(24, 12), (12, 24), (16, 16)])
def test_an_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1))).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_matrices_of_a_stack_become_orthogonal_each_by_itself() -> None:
    for shape in ((3, 8, 20), (3, 20, 8)):
        sizes = torch.tensor([0.01, 1, 50])[:, None, None]
        stack = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * sizes
        for together, alone in zip(orthogonal(stack, torch.float32), stack):
            assert torch.allclose(together, orthogonal(alone, torch.float32), atol=1e-5)


def test_a_kernel_learns_as_the_matrix_of_its_flattened_inputs() -> None:
    torch.manual_seed(0)
    kernel = nn.Conv2d(6, 16, 3, bias=False)
    matrix = nn.Linear(54, 16, bias=False)
    matrix.weight.data = kernel.weight.data.flatten(1).clone()
    gradient = torch.ones_like(kernel.weight).cumsum(0) * kernel.weight.detach()
    for layer in (kernel, matrix):
        layer.weight.grad = gradient.view_as(layer.weight).clone()
        build_optimizer(layer.named_parameters(), config(muon=["weight"])).step()
    torch.testing.assert_close(kernel.weight.flatten(1), matrix.weight)


def test_what_is_not_named_learns_as_by_adamw() -> None:
    first, second = network(), network()
    ours = build_optimizer(first.named_parameters(), config(muon=["2.weight"]))
    assert isinstance(ours, MuonAdamW)
    theirs = torch.optim.AdamW(second.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.01)
    theirs.param_groups[0]["params"] = [second[0].weight]
    theirs.add_param_group({"params": [second[0].bias], "weight_decay": 0.0})
    for parameter, gradient in zip((first[0].weight, first[0].bias), (second[0].weight, second[0].bias)):
        stream = torch.Generator().manual_seed(2)
        for _ in range(3):
            parameter.grad = torch.randn(parameter.shape, generator=stream)
            gradient.grad = parameter.grad.clone()
            ours.step()
            theirs.step()
            parameter.grad = gradient.grad = None
    torch.testing.assert_close(first[0].weight, second[0].weight)
    torch.testing.assert_close(first[0].bias, second[0].bias)


def test_it_fits_faster_than_it_started() -> None:
    net = network()
    optimizer = build_optimizer(net.named_parameters(), config(muon=["*.weight"]))
    inputs = torch.randn(64, 12, generator=torch.Generator().manual_seed(3))
    wanted = inputs[:, :3].tanh()
    losses = []
    for _ in range(60):
        loss = ((net(inputs) - wanted) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_a_pattern_that_matches_no_matrix_is_refused() -> None:
    with pytest.raises(UsageError, match="matches no matrix"):
        build_optimizer(network().named_parameters(), config(muon=["*.bias"]))


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.mark.parametrize("path", stages("nano"), ids=name)
def test_every_stage_of_the_recipe_finds_what_it_trains(path: Path, assets: Path) -> None:
    """Patterns of what learns, what is frozen and what Muon takes match the embedded model's networks."""
    from arimage.checkpoints.checkpoint import Checkpoint
    from arimage.checkpoints.embedded import embedded_folder
    from arimage.training.objectives import build_objective, choose_trainable
    from arimage.yaml_files import load_yaml

    config = load_yaml(path, TrainConfig, [f"start={embedded_folder()}", f"assets={assets}"])
    objective = build_objective(Checkpoint.open(embedded_folder()), config, torch.device("cpu"))
    choose_trainable(objective, config)
    optimizer = build_optimizer([(n, p) for n, p in objective.named_parameters() if p.requires_grad], config)
    assert any(group.get("muon") for group in optimizer.param_groups) == bool(config.muon)
