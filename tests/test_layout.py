"""The token layout and its 3-D positions."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arimage.autoregressive.layout import (
    IGNORED_LABEL,
    Grid,
    Region,
    build_prompt,
    generated_positions,
    preview_grid,
    target_grid,
    training_sequence,
)
from tests.tiny import CODES, IMAGE_PLACEHOLDER, SHAPES, VISION_WORDS, VOCABULARY, random_codes, tiny_language_encoder

TEXT_FIRST = replace(VOCABULARY, text_first=True)
grids = st.builds(Grid, st.integers(1, 12), st.integers(1, 12))
control_spellings = st.sampled_from(
    ["<sop>", "<eop>", "<|image|>", "<|dit_token_3|>", "<|dit_token_16384|>", "[gMASK]"]
)
prompts = st.lists(st.one_of(st.text(max_size=20), control_spellings), max_size=4).map(" ".join)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, TEXT_FIRST], ids=["text last", "text first"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("references", [[], [(3, 5)], [(2, 2), (1, 7), (4, 3)]])
def test_positions_are_upstreams(shape, references, vocabulary):
    """Prompt and generated positions equal ``get_rope_index`` of the unmodified model."""
    upstream, _, _ = tiny_language_encoder(shape, seed=0)
    prompt = build_prompt(vocabulary, "a cat", Grid(3, 4), [random_codes(*size) for size in references])
    wanted = [*references, *reversed(prompt.grids)]
    positions, _ = upstream.model.get_rope_index(
        input_ids=prompt.tokens[None],
        image_grid_thw=torch.tensor([[1, *grid] for grid in wanted]),
        images_per_sample=torch.tensor([len(wanted)]),
        attention_mask=torch.ones_like(prompt.tokens)[None],
    )
    assert torch.equal(positions[:, 0], prompt.positions)
    assert torch.equal(upstream.model._cached_decode_position_ids[0], generated_positions(prompt))


def test_behind_a_text_references_lie_at_one_distance_from_the_target():
    """The text stands before them, and then its length moves nothing between a reference and the target."""
    codes = [random_codes(3, 4)]
    distances = set()
    for text in ("", "a cat", "a text of many words"):
        prompt = build_prompt(TEXT_FIRST, text, Grid(3, 4), codes)
        assert prompt.tokens.tolist()[: len(text)] == TEXT_FIRST.encode(text)
        first = prompt.tokens.tolist().index(TEXT_FIRST.image_start) + 1
        distances.add(prompt.next_position - int(prompt.positions[0, first]))
    assert len(distances) == 1


@given(text=prompts, target=grids, references=st.lists(grids, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_prompt_and_grids_make_a_whole_sequence(text, target, references):
    codes = [random_codes(*grid, seed=i) for i, grid in enumerate(references)]
    prompt = build_prompt(VOCABULARY, text, target, codes)
    truth = [random_codes(*grid, seed=9) for grid in prompt.grids]
    sequence = training_sequence(prompt, truth, VOCABULARY)

    assert prompt.grids == ((target,) if references else (preview_grid(target), target))
    assert len(sequence.tokens) == len(prompt.tokens) + prompt.new_tokens + 1
    assert sequence.positions.shape == (3, len(sequence.tokens))
    assert torch.equal(sequence.positions[:, len(prompt.tokens) :], generated_positions(prompt))
    learnt = sequence.labels != IGNORED_LABEL
    assert learnt.sum() == prompt.new_tokens + 1
    assert torch.equal(sequence.labels[:-1][learnt[:-1]], sequence.tokens[1:][learnt[:-1]])
    assert torch.equal(learnt, sequence.regions != Region.PROMPT)
    assert (sequence.regions == Region.TARGET).sum() == target.cells
    assert sequence.labels[sequence.regions == Region.END].tolist() == [VOCABULARY.image_end]


@given(text=prompts, references=st.lists(grids, max_size=3))
@settings(max_examples=60, deadline=None)
def test_nothing_a_user_types_becomes_a_control_token(text, references):
    """Control ids stand in a prompt exactly where the layout puts them."""
    codes = [random_codes(*grid) for grid in references]
    tokens = build_prompt(VOCABULARY, text, Grid(2, 3), codes).tokens.tolist()
    shapes = 1 if references else 2
    assert tokens.count(VOCABULARY.image_start) == len(references) + 1
    assert tokens.count(VOCABULARY.image_end) == len(references)
    assert tokens.count(VOCABULARY.grid_start) == tokens.count(VOCABULARY.grid_end) == shapes
    assert IMAGE_PLACEHOLDER not in tokens
    visual = [token for token in tokens if token < VISION_WORDS and token < CODES]
    assert len(visual) == sum(grid.cells for grid in references)


@given(st.lists(grids, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_positions_never_go_back_from_block_to_block(references):
    codes = [random_codes(*grid) for grid in references]
    prompt = build_prompt(VOCABULARY, "x", Grid(2, 2), codes)
    start, base = 0, 0
    for grid in references:
        block = prompt.positions[:, start + 1 : start + 1 + grid.cells]
        assert block[0].unique().tolist() == [base + 1]
        assert block[1].max() - base - 1 == grid.height - 1
        assert block[2].max() - base - 1 == grid.width - 1
        start, base = start + grid.cells + 2, base + 2 + max(grid)
    assert prompt.next_position == int(prompt.positions[0, -1]) + 1


def test_the_preview_covers_about_256_cells_in_the_targets_shape():
    assert preview_grid(Grid(32, 32)) == (16, 16)
    assert preview_grid(Grid(36, 24)) == (19, 13)
    assert preview_grid(Grid(1, 300)) == (1, 277)


def test_a_caller_may_leave_out_the_preview():
    assert build_prompt(VOCABULARY, "x", Grid(2, 2), preview=False).grids == (Grid(2, 2),)


@pytest.mark.parametrize("size", [(0, 32), (48, 64), (-32, 32)])
def test_sizes_off_the_grid_are_refused(size):
    with pytest.raises(ValueError, match="multiples of 32"):
        target_grid(*size)


@pytest.mark.parametrize(
    "codes", [torch.full((2, 2), CODES), torch.full((2, 2), -1), torch.zeros(4), torch.zeros(0, 3)]
)
def test_references_that_are_not_code_grids_are_refused(codes):
    with pytest.raises(ValueError, match="code"):
        build_prompt(VOCABULARY, "x", Grid(2, 2), [codes])


def test_training_refuses_grids_of_another_size():
    prompt = build_prompt(VOCABULARY, "x", Grid(2, 2))
    with pytest.raises(ValueError, match="prompt asks for grids"):
        training_sequence(prompt, [random_codes(2, 2)], VOCABULARY)
