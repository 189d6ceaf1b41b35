"""The diffusion transformer against unmodified upstream."""

import pytest
import torch
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

from backends import attention as kernels
from backends import linear
from decoder import attention
from decoder.transformer import head_norm
from tests.tiny import random_codes
from tests.tiny_decoder import CHANNELS, CONFIGS, GLYPH_WIDTH, random_tensor, tiny_transformers

SIZE = (2, 3)


def inputs(batch=2, glyphs=5, seed=0):
    height, width = SIZE
    return {
        "latents": random_tensor(batch, CHANNELS, 4 * height, 4 * width, seed=seed),
        "timestep": torch.tensor([999.0, 250.0])[:batch],
        "prior_tokens": torch.stack([random_codes(*SIZE, seed=seed + i) for i in range(batch)]),
        "glyphs": random_tensor(batch, glyphs, GLYPH_WIDTH, seed=seed + 7),
        "target_size": torch.tensor([[32 * height, 32 * width]]).expand(batch, 2),
        "crop": torch.tensor([[0, 0], [8, 24]])[:batch],
    }


def doubled(tokens):
    return tokens.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1)


def upstream_output(upstream, given, dropped=None, caches=None):
    prior = doubled(given["prior_tokens"])
    drop = torch.zeros_like(prior, dtype=torch.bool)
    if dropped is not None:
        drop |= dropped[:, None]
    with torch.no_grad():
        return upstream(
            hidden_states=given["latents"],
            encoder_hidden_states=given["glyphs"],
            prior_token_id=prior,
            prior_token_drop=drop,
            timestep=given["timestep"],
            target_size=given["target_size"],
            crop_coords=given["crop"],
            kv_caches=caches,
            return_dict=False,
        )[0]


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def some_references(count, seed=3):
    sizes = [(2, 2), (1, 3), (3, 1)][:count]
    return [
        (random_tensor(CHANNELS, 4 * h, 4 * w, seed=seed + i), random_codes(h, w, seed=seed + i))
        for i, (h, w) in enumerate(sizes)
    ]


def upstream_caches(upstream, rows):
    """Write the cache as upstream's pipeline does."""
    caches = GlmImageKVCache(num_layers=upstream.config.num_layers)
    caches.set_mode("write")
    for row in rows:
        for latents, codes in row:
            upstream_output(
                upstream,
                {
                    "latents": latents[None],
                    "glyphs": torch.zeros(1, 0, GLYPH_WIDTH),
                    "prior_tokens": codes[None],
                    "timestep": torch.zeros(1),
                    "target_size": torch.tensor([latents.shape[-2:]]) * 8,
                    "crop": torch.zeros(1, 2),
                },
                caches=caches,
            )
        caches.next_sample()
    caches.set_mode("read")
    return caches


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_have_the_checkpoints_names_and_shapes(config):
    upstream, ours = tiny_transformers(config, 0)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (upstream, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("config", CONFIGS)
def test_velocity_is_upstreams(config, seed):
    upstream, ours = tiny_transformers(config, seed)
    given = inputs(seed=seed)
    dropped = torch.tensor([False, True])
    with torch.no_grad():
        assert relative(ours(**given), upstream_output(upstream, given)) < 1e-4
        assert relative(ours(**given, prior_dropped=dropped), upstream_output(upstream, given, dropped)) < 1e-4


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("config", CONFIGS)
def test_velocity_with_references_is_upstreams(config, count, seed):
    upstream, ours = tiny_transformers(config, seed)
    given = inputs(batch=1, seed=seed)
    row = some_references(count)
    with torch.no_grad():
        theirs = upstream_output(upstream, given, caches=upstream_caches(upstream, [row]))
        mine = ours(**given, references=ours.cache_references([row]))
        assert relative(mine, theirs) < 1e-4
        assert relative(ours(**given), theirs) > 1e-3


@pytest.mark.parametrize("config", CONFIGS)
def test_padded_glyphs_and_unequal_references_change_nothing(config):
    """Rows with 5, 2 and 1 glyphs and 2, 0 and 1 references, in one batch and alone (upstream, unpadded)."""
    upstream, ours = tiny_transformers(config, 0)
    lengths, counts = [5, 2, 1], [2, 0, 1]
    rows = [some_references(count) for count in counts]
    alone = [inputs(batch=1, glyphs=length, seed=i) for i, length in enumerate(lengths)]
    batch = {name: torch.cat([one[name] for one in alone]) for name in alone[0] if name != "glyphs"}
    padded = torch.full((3, 5, GLYPH_WIDTH), 7.0)
    for i, one in enumerate(alone):
        padded[i, : lengths[i]] = one["glyphs"][0]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        together = ours(**batch, glyphs=padded, glyph_mask=mask, references=ours.cache_references(rows))
    for i, one in enumerate(alone):
        caches = upstream_caches(upstream, [rows[i]]) if rows[i] else None
        assert relative(together[i : i + 1], upstream_output(upstream, one, caches=caches)) < 1e-4


def test_a_reference_that_several_rows_share_is_encoded_once(monkeypatch):
    _, ours = tiny_transformers(CONFIGS[0], 0)
    one, two = some_references(2)
    encoded = []
    encode = ours._encode_references
    monkeypatch.setattr(ours, "_encode_references", lambda *given: (encoded.append(len(given[0])), encode(*given))[1])
    with torch.no_grad():
        shared = ours.cache_references([[one], [one, two], [one]])
        assert sum(encoded) == 2
        apart = ours.cache_references(
            [[(row[0].clone(), row[1]) for row in rows] for rows in ([one], [one, two], [one])]
        )
        assert sum(encoded) == 6
    for these, those in zip(shared.layers, apart.layers):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(these, those))


def test_all_timesteps_modulated_at_once_are_those_of_each():
    _, ours = tiny_transformers(CONFIGS[0], 0)
    size = torch.tensor([[64, 96]])
    steps = torch.tensor([999.0, 500.0, 19.0])
    together = ours.modulate(steps, size.expand(3, -1))
    for i in range(3):
        alone = ours.modulate(steps[i : i + 1], size)
        assert torch.allclose(together.at(i).output, alone.output, atol=1e-5)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together.at(i).blocks, alone.blocks))


def test_gradients_reach_every_parameter_also_through_references_and_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        _, ours = tiny_transformers(CONFIGS[0], 0)
        ours.gradient_checkpointing = checkpointing
        row = some_references(1)
        only_references = torch.zeros(1, CHANNELS, 8, 8, requires_grad=True)
        cache = ours.cache_references([[(only_references[0], row[0][1])]])
        ours(**inputs(batch=1), references=cache).square().mean().backward()
        assert only_references.grad.abs().sum() > 0
        # Glyphs are not read after the last block, so nothing flows into their half of its modulation.
        assert all(parameter.grad is not None for parameter in ours.parameters())
        gradients.append([parameter.grad for parameter in ours.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients))


def test_flash_attention_gets_the_visible_keys(monkeypatch):
    """The kernels' documented contracts, played by plain attention, give what the fallback gives."""

    def plain(query, key, value):
        weights = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        return torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), value)

    def varlen(query, key, value, query_ends, key_ends, longest_query, longest_key):
        assert max(query_ends.diff()) == longest_query
        assert max(key_ends.diff()) == longest_key
        bounds = zip(query_ends[:-1], query_ends[1:], key_ends[:-1], key_ends[1:])
        return torch.cat([plain(query[None, a:b], key[None, c:d], value[None, c:d])[0] for a, b, c, d in bounds])

    query = random_tensor(3, 4, 2, 8)
    key, value = random_tensor(3, 6, 2, 8, seed=1), random_tensor(3, 6, 2, 8, seed=2)
    visible = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    whole, masked = attention.joint_attention(query, key, value), attention.joint_attention(query, key, value, visible)
    assert not torch.allclose(whole, masked)
    monkeypatch.setattr(attention, "flash_attn_func", plain)
    monkeypatch.setattr(attention, "flash_attn_varlen_func", varlen)
    monkeypatch.setattr(attention, "can_use_flash", lambda query: True)
    assert torch.allclose(attention.joint_attention(query, key, value), whole, atol=1e-6)
    assert torch.allclose(attention.joint_attention(query, key, value, visible), masked, atol=1e-6)


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("length", [512, 1100])
def test_long_rows_are_attended_head_by_head_where_onednn_leads_with_the_same_result(
    length: int, leads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if leads and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    for module in (kernels, linear):
        monkeypatch.setattr(module, "ONEDNN", leads)
    query = torch.randn(2, length, 2, 16)
    key, value = torch.randn(2, 600, 3, 2, 16)[:, :, 1:].unbind(2)
    fused = attention.joint_attention(query.requires_grad_(), key, value)
    with torch.no_grad():
        assert kernels.can_use_by_heads(query, key) == leads
        assert torch.allclose(kernels.by_heads_attention(query, key, value), fused, atol=1e-5)
        assert torch.allclose(attention.joint_attention(query, key, value), fused, atol=1e-5)
        assert not kernels.can_use_by_heads(query[:, :100], key)
        assert not kernels.can_use_by_heads(query.bfloat16(), key.bfloat16())


def test_matrix_products_train_as_the_fused_kernel_does_where_bf16_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    native = [True]
    monkeypatch.setattr(kernels, "multiplies_bf16", lambda device: native[0])
    parts = [torch.randn(2, 20, 4, 16, requires_grad=True) for _ in range(3)]
    visible = torch.rand(2, 20) > 0.3
    visible[:, 0] = True
    for mask in (None, visible):
        fused = attention.joint_attention(*parts, mask)
        halves = [part.bfloat16() for part in parts]
        assert kernels.can_use_matmul(*halves[:2])
        assert not kernels.can_use_matmul(*parts[:2])
        found = attention.joint_attention(*halves, mask)
        assert found.dtype == torch.bfloat16
        assert torch.allclose(found.float(), fused, atol=0.03)
        true, near = (torch.autograd.grad(made.float().square().sum(), parts) for made in (fused, found))
        assert all(torch.linalg.vector_norm(a - b) < 0.02 * torch.linalg.vector_norm(a) for a, b in zip(true, near))
    native[0] = False
    assert not kernels.can_use_matmul(*halves[:2])


def test_the_norm_of_heads_that_run_is_the_one_that_learns() -> None:
    heads = torch.randn(2, 30, 3, 4, 64)[..., :2, :, :] + 3
    with torch.no_grad():
        found = head_norm(heads)
    assert torch.allclose(found, head_norm(heads), atol=1e-5)
    assert torch.allclose(found.std(-1, correction=0), torch.ones(()), atol=1e-4)
