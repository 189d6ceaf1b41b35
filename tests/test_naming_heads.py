"""A head that begins by recognising in a reference what the prompt names."""

from itertools import pairwise

import pytest
import torch

from arimage.autoregressive.layout import Grid, build_prompt, training_sequence
from arimage.autoregressive.model import AutoregressiveModel
from arimage.training.naming_heads import Alignment, NamedCodes, ToldApart, align, initialize_naming_head
from tests.test_copy_heads import TEXT_FIRST, fresh_model

LAYER, HEAD = 2, 3
NAMES = "ABCDEFGHIJKL"
GRID = Grid(4, 4)
SIZE = 31  # entries of a head that are not rotated, less one


def codes_of(name: int) -> torch.Tensor:
    """Four codes of each thing."""
    return torch.arange(4) + 4 * name + 8


def edit(removed: int, stays: int) -> ToldApart:
    """Of two things in a picture the first is taken away."""
    source = torch.zeros(GRID, dtype=torch.long)
    source[0], source[2] = codes_of(removed), codes_of(stays)
    target = source.clone()
    target[0] = 0
    prompt = build_prompt(TEXT_FIRST, f"remove {NAMES[removed]}", GRID, [source], preview=False)
    words = len(TEXT_FIRST.encode(f"remove {NAMES[removed]}"))
    flat, after = source.flatten(), target.flatten()
    sequence = training_sequence(prompt, [target], TEXT_FIRST)
    return ToldApart(sequence, words, prompt.references[0], flat != after, (flat == after) & (flat != 0))


@pytest.fixture(scope="module")
def learnt() -> tuple[AutoregressiveModel, Alignment, list[str]]:
    model, said = fresh_model(), list[str]()
    torch.manual_seed(0)
    alignment = Alignment(model.config.hidden_size, SIZE)
    prompts = [
        NamedCodes(torch.tensor(TEXT_FIRST.encode(f"{how} {name}")), codes_of(number), codes_of((number + 1) % 12))
        for number, name in enumerate(NAMES)
        for how in ("remove", "draw")
    ]
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    align(model, alignment, prompts, LAYER, 200, say=said.append)
    rows = "model.language_model.embed_tokens.weight"
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert changed == [rows]
    vision = model.config.vision_vocab_size
    assert torch.equal(model.model.language_model.embed_tokens.weight[vision:], before[rows][vision:])
    assert all(weight.requires_grad for weight in model.parameters())
    return model, alignment, said


def test_codes_find_the_texts_that_name_them(learnt: tuple[AutoregressiveModel, Alignment, list[str]]) -> None:
    said = learnt[2]
    assert [line.split(":")[0] for line in said] == [f"aligning {step}/200" for step in (50, 100, 150, 200)]
    assert float(said[-1].split("alignment_accuracy ")[1]) > 0.9


def test_a_head_attends_from_what_is_named_to_its_words(
    learnt: tuple[AutoregressiveModel, Alignment, list[str]],
) -> None:
    """And from what is not named to the token before the reference; what it finds reaches what it writes."""
    model, alignment, _ = learnt
    edits = [edit(first, second) for first, second in pairwise(range(12))]
    initialize_naming_head(model, LAYER, HEAD, alignment, edits, TEXT_FIRST.codebook_size)
    layer = model.model.language_model.layers[LAYER]
    attention = layer.self_attn
    found = []
    for one in (edit(3, 9), edit(9, 3), edit(10, 6)):
        tokens, states = one.sequence.tokens, list[torch.Tensor]()
        positions = one.sequence.positions[:, None]
        model(tokens[None], positions, [len(tokens)], states)
        with torch.no_grad():
            query, key, value = attention.project(layer.input_layernorm(states[LAYER - 1]), model.rotation(positions))
        head = HEAD // (attention.heads // attention.shared)
        seen = one.first + GRID.cells
        scores = query[0, one.first : seen, HEAD] @ key[0, :seen, head].T / attention.head_dim**0.5
        hidden = torch.ones(GRID.cells, seen, dtype=torch.bool).triu(one.first + 1)
        shares = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        words = shares[:, : one.words].sum(dim=1)
        found.append((words[one.named].mean(), words[one.kept].mean()))
        assert float(shares[one.kept][:, one.words].mean()) > 0.5
        written = shares @ value[0, :seen, head][:, SIZE]
        assert float(written[one.named].mean()) > 2 * float(written[one.kept].mean())
    assert all(named > 0.7 and kept < 0.3 for named, kept in found), found


def test_what_cannot_be_fitted_is_refused(learnt: tuple[AutoregressiveModel, Alignment, list[str]]) -> None:
    model, alignment, _ = learnt
    edits = [edit(1, 2)]
    with pytest.raises(ValueError, match="there is no head 4 in a layer 2"):
        initialize_naming_head(model, LAYER, 4, alignment, edits, TEXT_FIRST.codebook_size)
    with pytest.raises(ValueError, match="must have 31 entries, not 8"):
        initialize_naming_head(model, LAYER, HEAD, Alignment(model.config.hidden_size, 8), edits, 64)
    nothing = [replace_kept(one) for one in edits]
    with pytest.raises(ValueError, match="no edit shows both"):
        initialize_naming_head(model, LAYER, HEAD, alignment, nothing, 64)


def replace_kept(one: ToldApart) -> ToldApart:
    return one._replace(kept=torch.zeros_like(one.kept))
