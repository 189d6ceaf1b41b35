"""The autoregressive model against unmodified upstream, and generation's own promises."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

from arimage.autoregressive import attention, generation
from arimage.autoregressive.cache import KeyValueCache
from arimage.autoregressive.generation import UNCONSTRAINED, TokenRequest, generate_grids
from arimage.autoregressive.layout import Grid, build_prompt, generated_positions, training_sequence
from arimage.autoregressive.model import RMSNorm, rotate, turn_
from arimage.autoregressive.sampling import TokenSampling, draw
from backends.norm import rms_norm
from tests.tiny import CODES, SHAPES, VISION_WORDS, VOCABULARY, random_codes, tiny_autoregressive, tiny_language_encoder

GREEDY = TokenSampling(temperature=0)


def prompt(text="a red fox", target=None, references=(), **options):
    return build_prompt(VOCABULARY, text, target or Grid(2, 3), references, **options)


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def upstream_inputs(prompt, references=()):
    grids = [*[tuple(codes.shape) for codes in references], *reversed(prompt.grids)]
    return {
        "input_ids": prompt.tokens[None],
        "attention_mask": torch.ones_like(prompt.tokens)[None],
        "image_grid_thw": torch.tensor([[1, *grid] for grid in grids]),
        "images_per_sample": torch.tensor([len(grids)]),
    }


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", [[], [(3, 2), (2, 5)]])
def test_logits_are_upstreams_in_prefill_and_step_by_step(shape, seed, sizes):
    upstream, model, _ = tiny_language_encoder(shape, seed)
    references = [random_codes(*size, seed=i) for i, size in enumerate(sizes)]
    start = prompt(references=references)
    codes = torch.randint(CODES, (start.new_tokens,), generator=torch.Generator().manual_seed(seed))
    inputs = upstream_inputs(start, references)
    cache = KeyValueCache(model.config, 1, len(start.tokens) + len(codes), model.device, model.dtype)
    cos, sin = model.step_rotation(generated_positions(start)[:, None])
    with torch.no_grad():
        theirs = upstream(**inputs, use_cache=True)
        ours = model.prefill(start.tokens[None], start.positions[:, None], torch.tensor([len(start.tokens)]), cache)
        assert relative(model.scores(ours), theirs.logits[:, -1]) < 1e-4
        for i, code in enumerate(codes):
            theirs = upstream(
                input_ids=code.view(1, 1), past_key_values=theirs.past_key_values, use_cache=True,
                **{name: inputs[name] for name in ("image_grid_thw", "images_per_sample")},
            )  # fmt: skip
            ours = model.step(code.view(1, 1), (cos[:, i : i + 1], sin[:, i : i + 1]), cache)[:, 0]
            cache.advance()
            assert relative(model.scores(ours), theirs.logits[:, -1]) < 1e-4


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", [[], [(3, 2)]])
def test_greedy_tokens_are_upstreams_over_a_whole_picture(shape, seed, sizes):
    """Upstream is kept from drawing special tokens, which ours cannot."""
    upstream, model, _ = tiny_language_encoder(shape, seed)
    references = [random_codes(*size, seed=i) for i, size in enumerate(sizes)]
    start = prompt(target=Grid(6, 5), references=references)
    output = upstream.generate(
        **upstream_inputs(start, references),
        max_new_tokens=start.new_tokens,
        do_sample=False,
        suppress_tokens=list(range(CODES, VISION_WORDS)),
    )
    theirs = output[0, len(start.tokens) :]
    ours = generate_grids(model, [TokenRequest(start, seed=0)], GREEDY, CODES)[0]
    assert torch.equal(torch.cat([grid.flatten() for grid in ours]), theirs)
    assert len(theirs.unique()) > 3


@pytest.mark.parametrize("sampling", [GREEDY, TokenSampling(), TokenSampling(temperature=0.3, guidance=2.0)])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("pictures", [1, 3])
def test_guessing_ahead_draws_the_tokens_that_come_one_by_one(sampling, given, pictures, monkeypatch):
    model = tiny_autoregressive()
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight *= 0.05
    requests = []
    for seed, target in zip(range(pictures), (Grid(6, 5), Grid(3, 4), Grid(1, 1))):
        references = [random_codes(3, 2)] if seed != 1 else []
        fixed = torch.where(torch.rand(*target) < 0.3, random_codes(*target), UNCONSTRAINED) if given else None
        start, empty = (prompt(text, target, references) for text in ("a red fox", ""))
        requests.append(TokenRequest(start, seed, fixed, empty))
    found, passes = [], []
    step = type(model).step
    monkeypatch.setattr(type(model), "step", lambda self, *rest: (passes.append(1), step(self, *rest))[1])
    for ahead in (1, 3, 16):
        monkeypatch.setattr(generation, "AHEAD", ahead)
        states = []
        grids = generate_grids(model, requests, sampling, CODES, states.append)
        found.append(torch.cat([grid.flatten() for picture in grids for grid in picture]))
        shown = [state.done for state in states]
        assert shown == sorted(set(shown))
        assert shown[-1] == len(found[-1])
        passes.append(0)
    alone, few, many = (len(list(group)) for key, group in itertools.groupby(passes) if key)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert alone == max(request.prompt.new_tokens for request in requests) - 1
    assert max(few, many) < alone


@pytest.mark.parametrize("sampling", [GREEDY, TokenSampling(), TokenSampling(temperature=0.3, guidance=2.0)])
def test_steps_that_can_be_recorded_draw_the_same_tokens(sampling):
    model = tiny_autoregressive()
    requests = unequal_requests()
    usual = generate_grids(model, requests, sampling, CODES)
    model.fixed_steps = True
    states = []
    fixed = generate_grids(model, requests, sampling, CODES, states.append)
    assert all(torch.equal(a, b) for one, other in zip(usual, fixed) for a, b in zip(one, other, strict=True))
    assert states[-1].done == states[-1].total == sum(grid.numel() for picture in fixed for grid in picture)
    assert len(states) == max(request.prompt.new_tokens for request in requests)


def test_teacher_forced_scores_are_those_of_generation():
    model = tiny_autoregressive()
    start = prompt(target=Grid(3, 3))
    sequence = training_sequence(start, [random_codes(*grid, seed=4) for grid in start.grids], VOCABULARY)
    forced = model.scores(model(sequence.tokens[None], sequence.positions[:, None]))[0]
    cache = KeyValueCache(model.config, 1, len(sequence.tokens), model.device, model.dtype)
    with torch.no_grad():
        hidden = model.prefill(start.tokens[None], start.positions[:, None], torch.tensor([len(start.tokens)]), cache)
        cos, sin = model.step_rotation(generated_positions(start)[:, None])
        for i, token in enumerate(sequence.tokens[len(start.tokens) :]):
            assert torch.allclose(model.scores(hidden)[0], forced[len(start.tokens) - 1 + i], atol=1e-4)
            hidden = model.step(token.view(1, 1), (cos[:, i : i + 1], sin[:, i : i + 1]), cache)[:, 0]
            cache.advance()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_norms_of_training_have_the_value_and_the_gradients_of_pytorchs(
    dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    found = []
    for norm in (rms_norm, lambda hidden, weight, eps: F.rms_norm(hidden, weight.shape, weight, eps)):
        drawn = torch.Generator().manual_seed(0)
        hidden = torch.randn(2, 5, 24, generator=drawn).to(dtype).requires_grad_()
        weight = torch.rand(24, generator=drawn).to(weight_dtype).requires_grad_()
        made = norm(hidden, weight, 1e-5)
        made.backward(torch.randn(2, 5, 24, generator=drawn).to(made.dtype))
        found.append([made, hidden.grad, weight.grad])
    exact = dtype == weight_dtype == torch.float32
    for ours, theirs in zip(*found):
        assert ours.dtype == theirs.dtype
        assert torch.allclose(ours, theirs, **({"atol": 1e-6} if exact else {"atol": 0.03, "rtol": 0.02}))


def test_norms_and_rotations_of_a_step_are_those_of_training():
    norm, hidden, residual = RMSNorm(24, 1e-5), torch.randn(3, 24) * 0.01, torch.randn(3, 24)
    torch.nn.init.uniform_(norm.weight)
    with torch.no_grad():
        assert torch.allclose(norm(hidden), F.rms_norm(hidden, (24,), norm.weight, 1e-5), atol=1e-6)
        assert torch.allclose(norm.added(residual, hidden), residual + norm(hidden), atol=1e-6)
    assert torch.allclose(norm(hidden), F.rms_norm(hidden, (24,), norm.weight, 1e-5))
    model = tiny_autoregressive()
    positions = generated_positions(prompt())[:, None]
    heads = torch.randn(1, positions.shape[-1], 3, model.config.head_dim)
    turned, (cos, sin) = rotate(heads, model.rotation(positions)), model.step_rotation(positions)
    rotary = 2 * sum(model.config.mrope_section)
    assert rotary < model.config.head_dim
    for i in range(positions.shape[-1]):
        step = heads[:, i : i + 1].clone()
        turn_(step, (cos[:, i : i + 1], sin[:, i : i + 1]), rotary)
        assert torch.allclose(step, turned[:, i : i + 1], atol=1e-6)


def test_packed_sequences_do_not_see_each_other():
    model = tiny_autoregressive()
    parts = [training_sequence(p, [random_codes(*g) for g in p.grids], VOCABULARY) for p in (prompt(), prompt("x"))]
    packed = model(
        torch.cat([part.tokens for part in parts])[None],
        torch.cat([part.positions for part in parts], dim=1)[:, None],
        [len(part.tokens) for part in parts],
    )
    alone = [model(part.tokens[None], part.positions[:, None]) for part in parts]
    assert torch.allclose(packed, torch.cat(alone, dim=1), atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_autoregressive().train()
        model.gradient_checkpointing = checkpointing
        start = prompt()
        model.scores(model(start.tokens[None], start.positions[:, None])).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients):
        assert torch.allclose(plain, recomputed, atol=1e-7)


def unequal_requests():
    """Different texts, targets, numbers and sizes of references."""
    prompts = [
        prompt("a red fox", Grid(2, 3)),
        prompt("two", Grid(4, 2), [random_codes(3, 2)]),
        prompt("a long sentence about a blue house on a hill", Grid(3, 3), [random_codes(1, 4), random_codes(2, 2)]),
        prompt("", Grid(1, 1)),
    ]
    return [
        TokenRequest(p, seed=10 + i, unconditional=dataclasses.replace(prompt("", p.target, preview=len(p.grids) == 2)))
        for i, p in enumerate(prompts)
    ]


@pytest.mark.parametrize(
    "sampling",
    [TokenSampling(), GREEDY, TokenSampling(guidance=3.0), TokenSampling(1.3, top_p=1.0, top_k=7, min_p=0.05)],
)
def test_a_picture_does_not_depend_on_its_batch_neighbours_or_the_global_stream(sampling):
    model = tiny_autoregressive()
    requests = unequal_requests()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    together = generate_grids(model, requests, sampling, CODES)
    assert torch.equal(torch.get_rng_state(), state)
    for request, grids in zip(requests, together):
        torch.manual_seed(request.seed)
        alone = generate_grids(model, [request], sampling, CODES)[0]
        assert all(torch.equal(a, b) for a, b in zip(alone, grids))


def test_a_grid_is_always_whole():
    """Codes only, as many as the grid has cells, even when the model would rather end or write specials."""
    model = tiny_autoregressive()
    with torch.no_grad():
        model.lm_head.weight[CODES:] *= 50
    for request, grids in zip(unequal_requests(), generate_grids(model, unequal_requests(), TokenSampling(), CODES)):
        assert [tuple(grid.shape) for grid in grids] == [tuple(grid) for grid in request.prompt.grids]
        assert all(int(grid.min()) >= 0 and int(grid.max()) < CODES for grid in grids)


def test_different_seeds_give_different_pictures():
    model = tiny_autoregressive(std=0.03)
    first, second = (
        generate_grids(model, [TokenRequest(prompt(), seed)], TokenSampling(), CODES)[0] for seed in (1, 2)
    )
    assert not torch.equal(first[0], second[0])


def test_given_codes_are_kept_and_the_rest_is_generated():
    model = tiny_autoregressive(std=0.03)
    start = prompt(target=Grid(4, 4), references=[random_codes(4, 4)])
    fixed = torch.full((4, 4), UNCONSTRAINED)
    fixed[:2] = random_codes(2, 4, seed=8)
    grid = generate_grids(model, [TokenRequest(start, 0, fixed)], TokenSampling(), CODES)[0][-1]
    free = generate_grids(model, [TokenRequest(start, 0)], TokenSampling(), CODES)[0][-1]
    assert torch.equal(grid[:2], fixed[:2])
    assert not torch.equal(free[:2], fixed[:2])


def test_guidance_moves_tokens_towards_the_prompt():
    """At a large scale the drawn tokens are those that the prompt raises most over the empty prompt."""
    model = tiny_autoregressive()
    start, empty = prompt(target=Grid(1, 1), preview=False), prompt("", Grid(1, 1), preview=False)
    with torch.no_grad():
        lift = [model.scores(model(p.tokens[None], p.positions[:, None])[:, -1], CODES)[0] for p in (start, empty)]
    wanted = (lift[1] + 1e4 * (lift[0] - lift[1])).argmax()
    request = TokenRequest(start, 0, unconditional=empty)
    grid = generate_grids(model, [request], TokenSampling(temperature=0, guidance=1e4), CODES)[0][0]
    assert int(grid) == int(wanted)


@pytest.mark.parametrize("ahead", [1, 16])
def test_progress_counts_every_token(ahead, monkeypatch):
    monkeypatch.setattr(generation, "AHEAD", ahead)
    seen = []
    requests = unequal_requests()
    generate_grids(
        tiny_autoregressive(), requests, TokenSampling(), CODES,
        lambda progress: seen.append((progress.done, progress.total)),
    )  # fmt: skip
    total = sum(request.prompt.new_tokens for request in requests)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {of for _, of in seen} == {total}


def test_a_callback_can_stop_the_generation():
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_grids(tiny_autoregressive(), unequal_requests(), TokenSampling(), CODES, stop)


def test_no_requests_give_no_grids():
    assert generate_grids(tiny_autoregressive(), [], TokenSampling(), CODES) == []


def test_guidance_without_an_unconditional_prompt_is_refused():
    with pytest.raises(ValueError, match="unconditional"):
        generate_grids(tiny_autoregressive(), [TokenRequest(prompt(), 0)], TokenSampling(guidance=2), CODES)


@pytest.mark.parametrize(
    "setting", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -2}, {"min_p": 1}, {"guidance": -1}]
)
def test_sampling_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        TokenSampling(**setting)


@pytest.mark.parametrize(
    "sampling",
    [TokenSampling(), TokenSampling(0.7, 0.5), TokenSampling(1.0, 1.0, 5), TokenSampling(1.2, 0.9, 20, 0.1),
     TokenSampling(1.0, 1.0, 0, 0.3)],
)  # fmt: skip
def test_draws_follow_the_distribution_that_the_usual_filters_leave(sampling):
    """The filtered distribution is that of transformers' logits warpers."""
    from transformers import generation

    scores = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 2
    wanted = generation.TemperatureLogitsWarper(sampling.temperature)(None, scores)
    if sampling.top_k:
        wanted = generation.TopKLogitsWarper(sampling.top_k)(None, wanted)
    if sampling.top_p < 1:
        wanted = generation.TopPLogitsWarper(sampling.top_p)(None, wanted)
    if sampling.min_p:
        wanted = generation.MinPLogitsWarper(sampling.min_p)(None, wanted)
    wanted = wanted.softmax(-1)[0]
    draws = 20000
    uniform = (torch.arange(draws) + 0.5) / draws
    counts = torch.bincount(draw(scores.expand(draws, -1), uniform, sampling), minlength=40) / draws
    assert torch.allclose(counts, wanted, atol=2e-4)


def test_flash_attention_gets_the_same_rows(monkeypatch):
    """The kernels' documented contracts, played by plain attention, give what the fallback gives."""

    def plain(query, key, value, causal):
        assert causal
        key, value = (x.repeat_interleave(query.shape[2] // x.shape[2], dim=2) for x in (key, value))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(future, -torch.inf).softmax(-1), value)

    def varlen(query, key, value, ends, key_ends, longest, longest_key, causal):
        parts = [
            plain(query[None, a:b], key[None, a:b], value[None, a:b], causal)[0] for a, b in itertools.pairwise(ends)
        ]
        return torch.cat(parts)

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 7, heads, 8, generator=generator) for heads in (4, 2, 2))
    whole = attention.causal_attention(query, key, value)
    packed = attention.packed_causal_attention(query, key, value, [3, 4])
    monkeypatch.setattr(attention, "flash_attn_func", plain)
    monkeypatch.setattr(attention, "flash_attn_varlen_func", varlen)
    monkeypatch.setattr(attention, "can_use_flash", lambda query: True)
    assert torch.allclose(attention.causal_attention(query, key, value), whole, atol=1e-6)
    assert torch.allclose(attention.packed_causal_attention(query, key, value, [3, 4]), packed, atol=1e-6)


def test_matrix_products_train_as_the_fused_kernel_does() -> None:
    query = torch.randn(2, 20, 4, 16, requires_grad=True)
    key, value = (torch.randn(2, 20, 2, 16, requires_grad=True) for _ in range(2))
    fused = attention.causal_attention(query, key, value)
    found = attention.causal_attention(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), fused, atol=0.03)
    parts = (query, key, value)
    true, near = (torch.autograd.grad(made.float().square().sum(), parts) for made in (fused, found))
    assert all(torch.linalg.vector_norm(a - b) < 0.02 * torch.linalg.vector_norm(a) for a, b in zip(true, near))
