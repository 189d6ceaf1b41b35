"""Heads that begin by copying a reference's codes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arimage.autoregressive.layout import Grid, build_prompt, training_sequence
from arimage.autoregressive.model import AutoregressiveModel
from arimage.checkpoints.model_config import ModelConfig
from arimage.training.copy_heads import _directions, initialize_copy_heads, initialize_induction_heads
from arimage.yaml_files import load_yaml
from tests.tiny import VOCABULARY, random_codes

NANO = load_yaml(Path(__file__).parent.parent / "configs" / "nano" / "model.yaml", ModelConfig)
TEXT_FIRST = replace(VOCABULARY, text_first=True)
GRID = Grid(8, 8)
GRIDS = (GRID, Grid(16, 16))
LAYER = 1


@torch.no_grad()
def fresh_model() -> AutoregressiveModel:
    torch.manual_seed(0)
    model = AutoregressiveModel(NANO.text_model)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        else:
            torch.nn.init.constant_(weight, float("norm" in name))
    embedding = model.model.language_model.embed_tokens.weight
    torch.nn.init.normal_(embedding)
    embedding[: TEXT_FIRST.codebook_size] = torch.randn(TEXT_FIRST.codebook_size, 48) @ torch.randn(48, 256) / 48**0.5
    return model


@pytest.fixture(scope="module")
def model() -> AutoregressiveModel:
    """With copying heads for two sizes in one layer."""
    model = fresh_model()
    embedding = model.model.language_model.embed_tokens.weight
    for shared, grid in enumerate(GRIDS):
        initialize_copy_heads(model, [LAYER], TEXT_FIRST, embedding[: TEXT_FIRST.codebook_size], grid, shared)
    return model


@torch.no_grad()
@pytest.mark.parametrize("text", ["", "make the background blue"])
@pytest.mark.parametrize("shared", [0, 1])
def test_they_attend_to_the_cell_that_comes_next(model: AutoregressiveModel, text: str, shared: int) -> None:
    """One head inside the rows, the other at their ends, whatever stands in the prompt."""
    grid = GRIDS[shared]
    reference, target = random_codes(*grid, seed=1), random_codes(*grid, seed=2)
    prompt = build_prompt(TEXT_FIRST, text, grid, [random_codes(3, 5), reference], preview=False)
    sequence = training_sequence(prompt, [target], TEXT_FIRST)
    attention = model.model.language_model.layers[LAYER].self_attn
    hidden = torch.nn.functional.rms_norm(torch.randn(1, len(sequence.tokens), NANO.text_model.hidden_size), (256,))
    query, key, _ = attention.project(hidden, model.rotation(sequence.positions[:, None]))
    cells = len(prompt.tokens)  # of the target's first cell
    start = cells - len(prompt.tokens) + int((prompt.tokens == TEXT_FIRST.image_start).nonzero()[1]) + 1
    for head, columns in ((0, range(grid.width - 1)), (1, [grid.width - 1])):
        rows = range(grid.height if head == 0 else grid.height - 1)
        places = torch.tensor([row * grid.width + column for row in rows for column in columns])
        scores = query[0, cells + places, 2 * shared + head] @ key[0, :, shared].T / attention.head_dim**0.5
        visible = torch.arange(scores.shape[1])[None] <= (cells + places)[:, None]
        found = scores.masked_fill(~visible, -torch.inf).argmax(dim=1)
        assert (found == start + places + 1).float().mean() > 0.9


@torch.no_grad()
def test_what_they_read_they_write(model: AutoregressiveModel) -> None:
    """A code's vector comes out as its own direction, as far as a head is wide."""
    attention = model.model.language_model.layers[LAYER].self_attn
    codes = model.model.language_model.embed_tokens.weight[: TEXT_FIRST.codebook_size]
    size = attention.head_dim
    passed = codes @ attention.v_proj.weight[:size].T @ attention.o_proj.weight[:, :size].T
    alike = torch.nn.functional.normalize(passed, dim=1) @ torch.nn.functional.normalize(codes, dim=1).T
    assert torch.equal(alike.argmax(dim=1), torch.arange(len(codes)))


def test_without_a_text_in_front_or_a_layer_there_are_none(model: AutoregressiveModel) -> None:
    codes = model.lm_head.weight[:64]
    with pytest.raises(ValueError, match="text_first"):
        initialize_copy_heads(model, [LAYER], VOCABULARY, codes, GRID)
    with pytest.raises(ValueError, match="0 to 5"):
        initialize_copy_heads(model, [6], TEXT_FIRST, codes, GRID)
    with pytest.raises(ValueError, match="0 to 1"):
        initialize_copy_heads(model, [LAYER], TEXT_FIRST, codes, GRID, key_value_head=2)


@torch.no_grad()
def test_induction_heads_find_a_thing_that_stands_elsewhere() -> None:
    """Moved blocks: queries inside one attend to the cell of the reference that comes next, by the cell before it
    (first head) or by the one above (third), thirty and fifteen times as often as by chance."""
    model = fresh_model()
    codes = model.model.language_model.embed_tokens.weight[: TEXT_FIRST.codebook_size]
    initialize_induction_heads(model, (0, 1), codes)
    right = torch.tensor([_found_elsewhere(model, seed) for seed in range(10)]).mean(dim=0)
    assert right[0] > 0.5
    assert right[1] > 0.25


def _found_elsewhere(model: AutoregressiveModel, seed: int) -> tuple[float, float]:
    """The share of cells inside a moved block whose queries find the cell that comes next, of the two heads."""
    reference, target = torch.full(tuple(GRID), 7), torch.full(tuple(GRID), 9)
    block = 10 + torch.randperm(50, generator=torch.Generator().manual_seed(seed))[:20].reshape(4, 5)
    reference[1:5, 0:5], target[3:7, 2:7] = block, block
    prompt = build_prompt(TEXT_FIRST, "move it", GRID, [reference], preview=False)
    sequence = training_sequence(prompt, [target], TEXT_FIRST)
    seen: list[torch.Tensor] = []
    layer = model.model.language_model.layers[1]
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(sequence.tokens[None], sequence.positions[:, None], [len(sequence.tokens)])
    hook.remove()
    rope = model.rotation(sequence.positions[:, None])
    query, key, _ = layer.self_attn.project(layer.input_layernorm(seen[0]), rope)
    start = int((prompt.tokens == TEXT_FIRST.image_start).nonzero()[0]) + 1
    shares = []
    for head, shared, rows in ((0, 0, range(3, 7)), (2, 1, range(4, 7))):
        places = [(row, column) for row in rows for column in range(2, 6)]
        at = torch.tensor([len(prompt.tokens) + row * 8 + column for row, column in places])
        wanted = torch.tensor([start + (row - 2) * 8 + column - 1 for row, column in places])
        scores = query[0, at, head] @ key[0, :, shared].T
        visible = torch.arange(scores.shape[1])[None] < len(prompt.tokens)
        found = scores.masked_fill(~visible, -torch.inf).argmax(dim=1)
        shares.append(float((found == wanted).float().mean()))
    return shares[0], shares[1]


def test_what_codes_leave_open_is_not_left_to_rounding() -> None:
    """Directions are the same where another processor rounds otherwise: signs, and rows behind the codes' rank."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(512, 24, generator=draw) @ torch.randn(24, 64, generator=draw)
    rounded = codes * (1 + 1e-7 * torch.randn(codes.shape, generator=draw))
    (found, rank), (others, _) = _directions(codes, 32), _directions(rounded, 32)
    assert rank == 24
    assert found == pytest.approx(others, abs=1e-4)
    assert found @ found.T == pytest.approx(torch.eye(64), abs=1e-5)


def test_induction_heads_need_two_layers(model: AutoregressiveModel) -> None:
    for layers in ((1, 1), (0, 6), (2, 1)):
        with pytest.raises(ValueError, match="0 to 5"):
            initialize_induction_heads(model, layers, model.lm_head.weight[:64])
