"""A picture as the preview grid of another one: layouts that are followed, and pictures made larger."""

import numpy as np
import pytest
import torch

from arimage.autoregressive.layout import build_prompt, preview_grid, target_grid, training_sequence
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.cli.main import run
from arimage.errors import ArimageError, UsageError
from arimage.images.provenance import read_recipe
from arimage.inference.api import generate, upscale
from arimage.inference.reproduce import compare, reproduce
from arimage.inference.requests import ImageRequest
from arimage.training.codes import encode_views, preview_view
from tests.conftest import photo
from tests.tiny import VOCABULARY, random_codes

QUICK = {"size": 64, "steps": 1}


def pixels(image):
    return np.asarray(image.image)


@pytest.mark.parametrize("references", [[], [(3, 5), (2, 2)]])
def test_a_given_preview_stands_where_a_generated_one_would(references):
    """Prompt and target are, token by token and position by position, the sequence of training."""
    target = target_grid(96, 160)
    grid = preview_grid(target)
    preview, codes = random_codes(*grid, seed=1), random_codes(*target, seed=2)
    given = [random_codes(*size) for size in references]
    asked = build_prompt(VOCABULARY, "a cat", target, given, preview=True)
    laid = build_prompt(VOCABULARY, "a cat", target, given, preview_codes=preview)
    assert (asked.grids, laid.grids) == ((grid, target), (target,))
    assert torch.equal(laid.tokens[: len(asked.tokens)], asked.tokens)
    assert torch.equal(laid.tokens[len(asked.tokens) :], preview.flatten())
    whole = training_sequence(asked, [preview, codes], VOCABULARY)
    continued = training_sequence(laid, [codes], VOCABULARY)
    assert torch.equal(whole.tokens, continued.tokens)
    assert torch.equal(whole.positions, continued.positions)
    with pytest.raises(ValueError, match="the preview of"):
        build_prompt(VOCABULARY, "a cat", target, preview_codes=codes)
    with pytest.raises(ValueError, match="codes lie in"):
        build_prompt(VOCABULARY, "a cat", target, preview_codes=preview + 10_000)


@pytest.mark.parametrize("references", [(), (photo(90, 70), photo(64, 64, 1))])
def test_the_target_is_what_the_model_says_behind_the_layouts_codes(pipeline, references):
    """Greedily, against one pass over the whole sequence of training; the preview is the one of training."""
    sketch = photo(96, 64, seed=3)
    made = pipeline.generate(
        "a fox", layout=sketch, references=references, temperature=0, seed=1, size=(96, 64), steps=1
    )[0]
    with pipeline.networks.use("semantic_tokenizer") as tokenizer:
        assert torch.equal(made.preview_codes, encode_views(tokenizer, [preview_view(sketch)], torch.device("cpu"))[0])
    request = ImageRequest("a fox", (64, 96), 1, references=tuple(references))
    sources = pipeline.engine._encode_references([request])
    codes = [sources[pipeline.engine._source_key(one)].codes for one in references]
    prompt = build_prompt(pipeline.engine.vocabulary, "a fox", target_grid(64, 96), codes, preview=True)
    sequence = training_sequence(prompt, [made.preview_codes, made.codes], pipeline.engine.vocabulary)
    with pipeline.networks.use("autoregressive") as model, torch.no_grad():
        hidden = model(sequence.tokens[None], sequence.positions[:, None])
        likely = model.scores(hidden, pipeline.engine.vocabulary.codebook_size)[0].argmax(dim=-1)
    cells = made.codes.numel()
    assert torch.equal(likely[-cells - 2 : -2], made.codes.flatten())


def test_pictures_of_a_prompt_share_the_layout_and_nothing_else(pipeline):
    sketch = photo(64, 64, seed=3)
    made = pipeline.generate(["a", "b"], layout=sketch, images_per_prompt=2, seed=5, token_guidance=1.5, **QUICK)
    other = pipeline.generate("a", layout=photo(64, 64, seed=9), seed=5, token_guidance=1.5, **QUICK)[0]
    assert all(torch.equal(one.preview_codes, made[0].preview_codes) for one in made)
    assert len({one.codes.numpy().tobytes() for one in made}) > 1
    assert not torch.equal(other.preview_codes, made[0].preview_codes)
    alone = pipeline.generate("b", layout=sketch, seed=8, token_guidance=1.5, **QUICK)[0]
    assert np.array_equal(pixels(alone), pixels(made[3]))
    assert alone.recipe == made[3].recipe


def test_layouts_and_other_requests_go_together_in_one_batch(pipeline):
    """Each is the picture that it is alone, drawn before or with the others."""
    sketches = [photo(64, 64, seed=3), photo(70, 90, seed=4)]
    requests = [
        ImageRequest("a", (64, 64), 1, layout=sketches[0]),
        ImageRequest("a much longer prompt", (64, 64), 2, references=(sketches[0],)),
        ImageRequest("b", (96, 64), 3, layout=sketches[1]),
        ImageRequest("c", (64, 64), 4, references=(sketches[1],), layout=sketches[0]),
    ]
    together = pipeline.make(requests, steps=1)
    drawn = pipeline.engine.draw_tokens(requests, pipeline.prepare_generation("x", steps=1).settings)
    for request, one, tokens in zip(requests, together, drawn):
        alone = pipeline.make([request], steps=1)[0]
        assert torch.equal(alone.codes, one.codes)
        assert torch.equal(tokens.codes, one.codes)
        assert (request.layout is None) == (one.preview_codes is None)
        assert one.preview_codes is None or torch.equal(tokens.preview_codes, one.preview_codes)
        assert np.array_equal(pixels(alone), pixels(one))


def test_a_layout_says_the_aspect_or_lends_its_middle(pipeline):
    wide = photo(400, 200, seed=2)
    made = pipeline.generate("x", layout=wide, steps=1, seed=1)[0]
    assert made.image.size == (192, 96)
    assert made.notices == ()
    square = pipeline.generate("x", layout=wide, seed=1, **QUICK)[0]
    middle = pipeline.generate("x", layout=wide.crop((100, 0, 300, 200)), seed=1, **QUICK)[0]
    assert torch.equal(square.preview_codes, middle.preview_codes)
    assert "the middle of 200x200 of its 400x200 pixels" in square.notices[0]
    with pytest.raises(UsageError, match="beyond 4:1"):
        pipeline.generate("x", layout=photo(500, 20), steps=1)


def test_a_layout_beside_references_is_said_to_be_beyond_training(pipeline):
    made = pipeline.generate("x", layout=photo(64, 64), references=photo(64, 64, 1), seed=1, **QUICK)[0]
    assert made.notices == (
        "a layout beside references: the format trains no such pictures, so they may follow neither",
    )
    assert made.recipe.settings["preview_grid"] is True


def test_a_layout_needs_a_model_that_draws_previews(pipeline, monkeypatch):
    sketch = photo(64, 64)
    with pytest.raises(UsageError, match="which preview_grid=False leaves out"):
        pipeline.generate("x", layout=sketch, preview_grid=False, **QUICK)
    monkeypatch.setattr(Checkpoint, "sampling", {"preview_grid": False})
    for call in (lambda **o: generate("x", layout=sketch, **o), lambda **o: upscale(sketch, "x", **o)):
        with pytest.raises(UsageError, match="tiny draws pictures without one; preview_grid=True tries it all the"):
            call(model=pipeline, steps=1)
        made = call(model=pipeline, steps=1, size=96, seed=1, preview_grid=True)[0]
        assert np.array_equal(pixels(reproduce(made.recipe, pipeline, layout=sketch)), pixels(made))


def test_the_embedded_model_says_that_it_follows_no_layouts_and_upscales_by_drafts():
    with pytest.raises(UsageError, match="arimage-nano draws pictures without one; preview_grid=True tries it"):
        generate("x", layout=photo(64, 64))
    with pytest.raises(UsageError, match="upscaling needs a model that was trained with the picture as its preview"):
        upscale(photo(64, 64), "x", draft_side=0)
    made = upscale(photo(64, 48), "x", tier="fast", seed=1)[0]
    assert made.image.size == (128, 96), "by a draft"


def test_a_picture_is_made_larger_as_its_own_preview(pipeline, tmp_path):
    small = pipeline.generate('a fox "HI"', size=(96, 64), seed=3, steps=1)[0]
    path = small.save(tmp_path / "small.png")
    large = pipeline.upscale(path, size=192, seed=4, steps=1)[0]
    assert large.image.size == (192, 128)
    assert (large.recipe.task, large.recipe.prompt, large.recipe.layout.path) == ("upscale", 'a fox "HI"', str(path))
    for source in (small, path.read_bytes(), small.to_bytes("jpeg"), small.to_bytes("webp")):
        assert pipeline.upscale(source, size=192, seed=4, steps=1)[0].recipe.prompt == 'a fox "HI"'
    followed = pipeline.generate('a fox "HI"', layout=small, size=(192, 128), seed=4, steps=1)[0]
    assert torch.equal(followed.codes, large.codes)
    assert np.array_equal(pixels(followed), pixels(large))


def test_an_upscaled_picture_keeps_its_aspect(pipeline):
    made = pipeline.upscale(photo(91, 57), "x", seed=1, steps=1)[0]
    assert made.image.size == (182, 114)
    assert made.recipe.size == (192, 128)
    assert pipeline.upscale(photo(91, 57), "x", size=250, seed=1, steps=1)[0].image.size == (250, 157)
    assert pipeline.upscale(photo(200, 100), "x", seed=1, steps=1)[0].image.size == (256, 128)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.upscale(photo(64, 64)), "carries no recipe that would say what it shows: give prompt"),
        (lambda p: p.upscale(p.edit(photo(64, 64), "x", steps=1)[0]), "its instruction does not say what it shows"),
        (lambda p: p.upscale(photo(64, 64), "x", size=64), "above the 64 of the picture and at most the 256"),
        (lambda p: p.upscale(photo(64, 64), "x", size=512), "at most the 256 of this model; got 512"),
        (lambda p: p.upscale(photo(64, 64), "x", size="96"), "size must be the longer side"),
        (lambda p: p.upscale(photo(300, 200), "x"), "256 a side is the most of this model"),
        (lambda p: p.upscale(photo(200, 20), "x"), "beyond 4:1"),
        (lambda p: p.upscale(photo(64, 64), ["x"]), "one prompt, a string"),
        (lambda p: p.upscale(photo(64, 64), "x", strength=0.5), "strength is an option of edit, not of upscale"),
        (lambda p: p.upscale(photo(64, 64), "x", preview_grid=False), "upscaling is by the preview grid"),
    ],
)
def test_what_cannot_be_upscaled_is_told(pipeline, call, message):
    with pytest.raises(UsageError, match=message):
        call(pipeline)


def test_pictures_with_a_layout_are_made_again_from_their_files(pipeline, tmp_path):
    """The layout by its hash; one that was changed or is gone is told, and one that was moved can be given."""
    sketch = tmp_path / "sketch.png"
    photo(70, 50, mode="RGBA").save(sketch)
    laid = pipeline.generate("a", layout=sketch, references=photo(64, 64), seed=1, **QUICK)[0]
    calls = {
        "layout": pipeline.generate("a", layout=sketch, seed=1, **QUICK)[0],
        "large": pipeline.upscale(sketch, "a", seed=1, steps=1)[0],
    }
    for name, made in calls.items():
        path = made.save(tmp_path / f"{name}.png")
        recipe = read_recipe(path)
        assert compare(path, reproduce(recipe, pipeline), recipe).identical, name
    moved = sketch.rename(tmp_path / "moved.png")
    recipe = calls["layout"].recipe
    with pytest.raises(ArimageError, match=r"sketch\.png does not exist"):
        reproduce(recipe, pipeline)
    assert np.array_equal(pixels(reproduce(recipe, pipeline, layout=moved)), pixels(calls["layout"]))
    with pytest.raises(ArimageError, match="its pixels differ"):
        reproduce(recipe, pipeline, layout=photo(64, 64))
    again = reproduce(laid.recipe, pipeline, [photo(64, 64)], layout=moved)
    assert np.array_equal(pixels(again), pixels(laid))


def test_the_commands_take_a_layout_and_make_larger(checkpoint_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo(64, 64).save("sketch.png")

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            run([*arguments, "--model", str(checkpoint_folder)])
        return ended.value.code or 0, *capsys.readouterr()

    made = ("--steps", "1", "--seed", "1", "-q")
    assert command("generate", "a fox", "--layout", "sketch.png", "-o", "fox.png", "--size", "64", *made)[0] == 0
    assert read_recipe("fox.png").layout.path == str(tmp_path / "sketch.png")
    assert command("reproduce", "fox.png")[:2] == (0, "identical: every pixel is the same\n")
    assert command("upscale", "fox.png", "--size", "128", *made)[:2] == (0, "fox-upscaled.png\n")
    assert read_recipe("fox-upscaled.png").prompt == "a fox"
    assert command("reproduce", "fox-upscaled.png")[:2] == (0, "identical: every pixel is the same\n")
    code, _, err = command("upscale", "sketch.png", *made)
    assert (code, err) == (
        2, "arimage: sketch.png carries no recipe that would say what it shows: give --prompt\n"
    )  # fmt: skip
    assert command("upscale", "sketch.png", "--prompt", "x", "-o", "sketch.png", *made)[0] == 2
