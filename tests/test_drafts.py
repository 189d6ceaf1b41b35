"""Pictures that are made of a smaller one of themselves: for models whose tokens were trained at one size."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from arimage.errors import Cancelled, UsageError
from arimage.images.sizes import enlarged
from arimage.inference.reproduce import reproduce
from arimage.inference.requests import ImageRequest
from tests.conftest import photo

DRAFTED = {"size": 128, "steps": 2, "preview_grid": False, "draft_side": 64}


def pixels(made):
    return np.asarray(made.image)


def test_codes_are_those_of_the_enlarged_draft(pipeline):
    made = pipeline.generate("a fox", seed=3, **DRAFTED)[0]
    draft = pipeline.generate("a fox", seed=3, **{**DRAFTED, "size": 64})[0]
    with pipeline.networks.use("semantic_tokenizer") as tokenizer:
        codes = tokenizer.encode([enlarged(draft.image, (128, 128))])[0]
    assert torch.equal(made.codes, codes)
    assert made.image.size == (128, 128)
    assert made.recipe.settings["draft_side"] == 64
    again = reproduce(made.recipe, pipeline)
    assert np.array_equal(pixels(made), pixels(again))


def test_diffusion_starts_from_the_draft(pipeline):
    """The less of it an enlarged draft goes through, the nearer the picture is to the draft."""
    start = pipeline.generate("a fox", seed=3, **{**DRAFTED, "size": 64})[0]
    begun = np.asarray(pipeline.engine.reconstruct(enlarged(start.image, (128, 128))), np.float32)
    options = DRAFTED | {"steps": 10}
    start_of = [
        pixels(pipeline.generate("a fox", seed=3, **options, draft_strength=strength)[0]).astype(np.float32)
        for strength in (0.1, 0.4, 1.0)
    ]
    far = [float(np.abs(one - begun).mean()) for one in start_of]
    assert far[0] < far[1] < far[2]


def test_pictures_of_the_side_itself_have_no_draft(pipeline):
    options = {**DRAFTED, "size": 64}
    made = pipeline.generate("a fox", seed=3, **options)[0]
    plain = pipeline.generate("a fox", seed=3, **{**options, "draft_side": 0})[0]
    assert np.array_equal(pixels(made), pixels(plain))


@pytest.mark.parametrize(("size", "small"), [((128, 128), (64, 64)), ((128, 64), (64, 32)), ((64, 256), (32, 128))])
def test_a_draft_keeps_the_aspect(pipeline, size, small):
    settings = pipeline.prepare_generation("a", **{**DRAFTED, "size": size[::-1]}).settings
    request = pipeline.engine.with_draft(ImageRequest("a", size, 1), settings)
    assert request.draft.size == small
    assert request.draft.draft is None
    with pytest.raises(AssertionError):
        assert pipeline.engine.with_draft(ImageRequest("a", (64, 64), 1), settings).draft is not None


def test_tokens_that_are_drawn_before_make_the_same_picture(pipeline):
    call = pipeline.prepare_generation(["a fox", "a cat"], seed=4, **DRAFTED)
    drawn = pipeline.draw_tokens([call])[0]
    assert all(request.draft.codes is not None and request.codes is None for request in drawn.requests)
    for one, other in zip(pipeline.run(call), pipeline.run(drawn)):
        assert np.array_equal(pixels(one), pixels(other))


def test_stages_called_one_by_one_make_the_same_picture(pipeline):
    call = pipeline.prepare_edit(photo(128, 128), "make it red", seed=4, size=128, steps=2, draft_side=64)
    engine = pipeline.engine
    encoded = [one.to("cpu") for one in engine.encode(call.requests, call.settings)]
    drawn = engine.tokens(encoded, call.settings)
    latents = engine.diffuse(encoded[0], drawn[0][-1], call.settings)
    image = engine.render(call.requests[0], latents)
    assert np.array_equal(np.asarray(image), np.asarray(engine.run(call.requests, call.settings)[0].image))


def test_an_edit_of_a_masked_part_keeps_the_rest_bit_for_bit(pipeline):
    picture = photo(128, 128)
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    made = pipeline.edit(picture, "a fox", mask=mask, seed=2, steps=2, draft_side=64)[0]
    assert np.array_equal(pixels(made)[:, 64:], np.asarray(picture)[:, 64:])
    assert not np.array_equal(pixels(made)[:, :64], np.asarray(picture)[:, :64])


def test_references_are_shown_to_a_draft_at_its_own_scale(pipeline):
    call = pipeline.prepare_edit(photo(128, 128), "make it red", seed=4, size=128, steps=1, draft_side=64)
    draft = call.requests[0].draft
    assert [one.size for one in draft.references] == [(64, 64)]
    assert [one.size for one in call.requests[0].references] == [(128, 128)]


def test_variations_are_of_the_draft(pipeline):
    first = pipeline.explore("a fox", count=2, seed=6, **DRAFTED).pick(7)
    same = pipeline.explore("a fox", pick=7, change=0, count=1, seed=7, **DRAFTED).pictures[0]
    other = pipeline.explore("a fox", pick=7, change=0.5, count=1, seed=40, **DRAFTED).pictures[0]
    assert np.array_equal(pixels(first), pixels(same))
    assert not np.array_equal(pixels(first), pixels(other))
    assert np.array_equal(pixels(other), pixels(reproduce(other.recipe, pipeline)))


def test_a_call_can_be_cancelled_while_its_draft_is_made(pipeline):
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        pipeline.generate("a fox", seed=1, on_progress=lambda progress: cancel.set(), cancel=cancel, **DRAFTED)


def test_a_draft_has_a_token_at_least(pipeline):
    settings = pipeline.prepare_generation("a", **DRAFTED | {"draft_side": 1}).settings
    draft = pipeline.engine.with_draft(ImageRequest("a", (128, 128), 1), settings).draft
    assert isinstance(draft, ImageRequest)
    assert draft.size == (32, 32)


def test_a_strength_without_a_draft_is_refused(pipeline):
    with pytest.raises(UsageError, match="draft_side=0 makes no draft"):
        pipeline.generate("a fox", size=64, steps=1, draft_strength=0.3)
    with pytest.raises(UsageError, match="draft_strength must lie in"):
        pipeline.generate("a fox", size=64, steps=1, draft_side=64, draft_strength=0)


def test_a_picture_is_upscaled_as_its_own_draft(pipeline, tmp_path):
    path = pipeline.generate("a fox", seed=3, **{**DRAFTED, "size": (96, 64)})[0].save(tmp_path / "small.png")
    made = pipeline.upscale(path, size=192, seed=4, steps=2, preview_grid=False, draft_side=64)[0]
    with pipeline.networks.use("semantic_tokenizer") as tokenizer:
        grown = enlarged(Image.open(path), (128, 192))
        assert torch.equal(made.codes, tokenizer.encode([grown])[0])
    assert (made.image.size, made.recipe.prompt, made.preview_codes) == ((192, 128), "a fox", None)
    assert np.array_equal(pixels(made), pixels(reproduce(made.recipe, pipeline)))


def test_a_picture_that_stands_for_a_draft_has_no_tokens_to_draw(pipeline):
    settings = pipeline.prepare_generation("a", **DRAFTED).settings
    request = ImageRequest("a", (128, 128), 1, draft=photo(64, 64))
    drawn = pipeline.engine.draw_tokens([request], settings)
    assert drawn[0].codes is None
    one, other = (pipeline.engine.run([asked], settings)[0] for asked in (request, drawn[0]))
    assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
