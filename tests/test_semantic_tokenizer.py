"""The semantic tokenizer against unmodified upstream, and the size rule."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil, smart_resize

from tests.tiny import SHAPES, tiny_language_encoder
from tokenizer import attention
from tokenizer.image_size import SizeLimits, reference_size


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def upstream_codes(upstream, pictures):
    processor = GlmImageImageProcessorPil(
        patch_size=16, temporal_patch_size=1, merge_size=1, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": 64**2, "longest_edge": 2048**2},
    )  # fmt: skip
    inputs = processor(pictures, return_tensors="pt")
    grids = inputs["image_grid_thw"]
    with torch.no_grad():
        features = upstream.model.visual(inputs["pixel_values"], grid_thw=grids).last_hidden_state
        parts = features.split(grids.prod(-1).tolist())
        maps = [part.view(1, h, w, -1).permute(0, 3, 1, 2) for part, (_, h, w) in zip(parts, grids.tolist())]
        codes = [upstream.model.vqmodel.encode(features).image_tokens for features in maps]
    return [grid.view(h, w) for grid, (_, h, w) in zip(codes, grids.tolist())]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_code_grids_are_upstreams(shape, seed):
    """Several pictures of different sizes in one call: identical codes."""
    upstream, _, semantic = tiny_language_encoder(shape, seed)
    pictures = [picture(128, 128, 1), picture(96, 256, 2), picture(256, 64, 3)]
    for ours, theirs in zip(semantic.encode(pictures), upstream_codes(upstream, pictures)):
        assert torch.equal(ours, theirs)
        assert len(ours.unique()) > 3


def test_a_picture_does_not_depend_on_its_neighbours():
    _, _, semantic = tiny_language_encoder(SHAPES[0], 0)
    pictures = [picture(128, 96, 1), picture(64, 256, 2)]
    alone = [semantic.encode([one])[0] for one in pictures]
    assert all(torch.equal(a, b) for a, b in zip(alone, semantic.encode(pictures)))


def test_flash_attention_gets_the_same_segments(monkeypatch):
    """The kernel's documented contract, played by plain attention, gives what the fallback gives."""
    calls = []

    def varlen(query, key, value, ends, key_ends, longest, longest_key):
        calls.append((ends.tolist(), longest))
        assert torch.equal(ends, key_ends)
        assert longest == longest_key
        parts = []
        for start, end in itertools.pairwise(ends):
            q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
            weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
            parts.append((weights @ v).transpose(0, 1))
        return torch.cat(parts)

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(9, 2, 8, generator=generator) for _ in range(3))
    plain = attention.packed_attention(query, key, value, [4, 2, 3])
    monkeypatch.setattr(attention, "flash_attn_varlen_func", varlen)
    monkeypatch.setattr(attention, "can_use_flash", lambda query: True)
    assert torch.allclose(attention.packed_attention(query, key, value, [4, 2, 3]), plain, atol=1e-6)
    assert calls == [([0, 4, 6, 9], 4)]


@pytest.mark.parametrize("size", [(100, 128), (128, 72)])
def test_pictures_off_the_grid_are_refused(size):
    _, _, semantic = tiny_language_encoder(SHAPES[0], 0)
    with pytest.raises(ValueError, match="multiples of 32"):
        semantic.encode([picture(*size)])


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_one_size_serves_both_encoders(height, width):
    """Whatever the picture, upstream's own rule agrees with ours once the picture has our size."""
    size = reference_size(height, width)
    assert all(side % 32 == 0 and 512 <= side <= 2048 for side in size)
    assert reference_size(*size) == size
    assert smart_resize(*size) == (size[0] // 2, size[1] // 2)


@given(st.integers(64, 4000), st.integers(64, 4000))
def test_aspect_ratio_is_kept_as_well_as_the_limits_permit(height, width):
    new_height, new_width = reference_size(height, width)
    wanted = min(max(height / width, 1 / 4), 4)
    assert new_height / new_width == pytest.approx(wanted, rel=0.07)


def test_sizes_within_the_limits_stay_as_near_as_multiples_of_32_allow():
    assert reference_size(720, 1280) == (704, 1280)
    assert reference_size(1, 1) == (512, 512)
    assert reference_size(3000, 4000) == (1536, 2048)
    assert reference_size(100, 100, SizeLimits(256, 512)) == (256, 256)


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_wide_limits_still_give_sizes_that_the_format_takes(height, width):
    limits = SizeLimits(64, 2048)
    size = reference_size(height, width, limits)
    assert reference_size(*size, limits) == size
    assert smart_resize(*size, min_pixels=64**2) == (size[0] // 2, size[1] // 2)


def test_limits_without_a_size_between_them_are_refused():
    with pytest.raises(ValueError, match="hold no multiple of 32"):
        SizeLimits(500, 511)
