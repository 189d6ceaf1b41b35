"""The contracts that hold everywhere, each by its name."""

import dataclasses
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import arimage
from arimage.autoregressive.generation import generate_grids
from arimage.autoregressive.layout import preview_grid, target_grid
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.errors import ArimageError, UsageError
from arimage.images.provenance import read_recipe
from arimage.images.recipe import Recipe
from arimage.inference import engine
from arimage.inference.api import load
from arimage.inference.reproduce import compare, reproduce
from arimage.options import TIERS
from tests.conftest import photo

FAST = {"steps": 2, "size": 64}
EDIT = {"steps": 2}


def pixels(result):
    return np.asarray(result.image).astype(int)


def test_determinism(pipeline):
    """Image i of a call with seed s depends on its own request alone: not on neighbours or the global stream."""
    reference = photo(90, 70)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    together = pipeline.generate(["a fox", "a much longer prompt “文字”"], images_per_prompt=2, seed=10, **FAST)
    edits = pipeline.edit([reference, photo(200, 64, 1)], "blue", images_per_prompt=2, seed=20, **EDIT)
    assert torch.equal(torch.get_rng_state(), state)
    assert [one.recipe.seed for one in together] == [10, 11, 12, 13]
    for i, prompt in enumerate(["a fox", "a fox", "a much longer prompt “文字”", "a much longer prompt “文字”"]):
        torch.manual_seed(i)
        alone = pipeline.generate(prompt, seed=10 + i, **FAST)[0]
        assert torch.equal(alone.codes, together[i].codes)
        assert np.array_equal(pixels(alone), pixels(together[i]))
    alone = pipeline.edit([reference, photo(200, 64, 1)], "blue", seed=21, **EDIT)[0]
    assert np.array_equal(pixels(alone), pixels(edits[1]))
    assert not np.array_equal(pixels(together[0]), pixels(together[1]))


def test_each_picture_is_handed_over_before_the_next_is_begun(pipeline):
    seen = []
    made = pipeline.generate(
        ["a", "b", "c"], seed=1, size=64, steps=2, preview_grid=False,
        on_progress=lambda progress: seen.append((progress.stage, progress.done)), on_image=seen.append,
    )  # fmt: skip
    assert [event for event in seen if not isinstance(event, tuple)] == made
    steps = [event for event in seen if isinstance(event, arimage.GeneratedImage) or event[0] == "diffusion"]
    for i, image in enumerate(made):
        assert steps[3 * i : 3 * i + 3] == [("diffusion", 2 * i + 1), ("diffusion", 2 * i + 2), image]


@pytest.mark.parametrize("placement", ["resident", "sequential"])
def test_a_call_that_is_stopped_hands_over_what_is_finished(checkpoint_folder, pipeline, placement):
    """Cancelled in the third picture of four: two are there, and they are those of a whole call."""
    model = pipeline if placement == "resident" else load(checkpoint_folder, placement=placement)
    cancel, kept = threading.Event(), []
    options = {"seed": 1, "size": 64, "steps": 2, "preview_grid": False}

    def stop(progress):
        if (progress.stage, progress.done) == ("diffusion", 5):
            cancel.set()

    with pytest.raises(arimage.Cancelled):
        model.generate(["a", "b", "c", "d"], on_progress=stop, cancel=cancel, on_image=kept.append, **options)
    assert [image.recipe.prompt for image in kept] == ["a", "b"]
    assert np.array_equal(pixels(kept[1]), pixels(pipeline.generate("b", **options | {"seed": 2})[0]))


def test_more_pictures_than_a_group_come_in_order(pipeline, monkeypatch):
    options = {"seed": 1, "size": 64, "steps": 1, "preview_grid": False}
    together = pipeline.generate(list("abcde"), **options)
    progress = []
    monkeypatch.setattr("arimage.inference.engine.TOKEN_BATCH", 2)
    grouped = pipeline.generate(list("abcde"), on_progress=progress.append, **options)
    assert [image.recipe for image in grouped] == [image.recipe for image in together]
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(together, grouped))
    for stage in ("tokens", "diffusion"):
        counts = [step.done for step in progress if step.stage == stage]
        assert counts == sorted(counts)
        assert counts[-1] == {step.total for step in progress if step.stage == stage}.pop()


def test_a_grid_is_always_whole(pipeline):
    codes = pipeline.checkpoint.config.quantizer.num_embeddings
    for size, temperature in (((64, 96), 3.0), ((256, 64), 1.0)):
        made = pipeline.generate("x", size=size, steps=1, temperature=temperature, top_p=1.0, seed=1)[0]
        grid = target_grid(*size[::-1])
        assert tuple(made.codes.shape) == tuple(grid)
        assert tuple(made.preview_codes.shape) == tuple(preview_grid(grid))
        for tokens in (made.codes, made.preview_codes):
            assert int(tokens.min()) >= 0
            assert int(tokens.max()) < codes


@given(st.text(max_size=30), st.sampled_from(["<sop>", "<eop>", "<|image|>", "<|dit_token_97|>", "<|endoftext|>"]))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_user_text_is_text(pipeline, text, control):
    engine = pipeline.engine
    words = pipeline.checkpoint.config.text_model.vision_vocab_size
    tokenizer = pipeline.checkpoint.text_tokenizer()
    controls = {tokenizer.sop, tokenizer.eop, tokenizer.image_placeholder, tokenizer.pad}
    ids = engine.vocabulary.encode(f"{text}{control}{text}")
    assert min(ids) >= words
    assert not controls & set(ids)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (300, 17), (33, 500), (97, 101)])
def test_inputs_of_any_size(pipeline, mode, size):
    picture = Image.fromarray(np.full(size[::-1], 40000, np.uint16)) if mode == "I;16" else photo(*size, mode="RGBA")
    picture = picture if mode == "I;16" else picture.convert(mode)
    made = pipeline.edit(picture, "blue", steps=1, seed=0)[0]
    assert made.image.size == size


@given(
    size=st.tuples(st.integers(20, 150), st.integers(20, 150)),
    shape=st.sampled_from(["box", "noise", "pixel", "stripes"]),
    mask_scale=st.sampled_from([1, 2, 0.5]),
    polarity=st.sampled_from(["white", "black"]),
    mode=st.sampled_from(["L", "1", "RGB", "alpha"]),
    picture_mode=st.sampled_from(["RGB", "RGBA", "L"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_mask_protects_does_not_change(pipeline, size, shape, mask_scale, polarity, mode, picture_mode, seed):
    """Zero changed bytes outside, at the input's own size; inside the picture really changes."""
    width, height = size
    generator = np.random.default_rng(seed)
    mask_width, mask_height = max(1, int(width * mask_scale)), max(1, int(height * mask_scale))
    drawn = np.zeros((mask_height, mask_width), bool)
    match shape:
        case "box":
            drawn[mask_height // 4 : mask_height // 2 + 1, mask_width // 3 :] = True
        case "noise":
            drawn = generator.random((mask_height, mask_width)) > 0.5
            drawn[0, 0], drawn[-1, -1] = True, False
        case "pixel":
            drawn[mask_height // 2 : mask_height // 2 + 2, mask_width // 2 : mask_width // 2 + 2] = True
        case "stripes":
            drawn[:, ::5] = True
    mask = Image.fromarray(drawn).convert("L")
    if mode == "alpha":
        white = Image.new("L", mask.size, 255)
        mask = Image.merge("LA", (white, mask.point(lambda value: 255 - value)))
    else:
        mask = mask.convert(mode)
    picture = photo(width, height, seed, picture_mode)
    expected = np.asarray(Image.fromarray(drawn).resize(size, Image.Resampling.NEAREST))
    editable = expected if polarity == "white" else ~expected
    if not editable.any():
        return
    made = pipeline.edit(picture, "blue", mask=mask, mask_polarity=polarity, steps=1, seed=seed)[0]
    before, after = np.asarray(picture.convert("RGBA")), np.asarray(made.image.convert("RGBA"))
    assert made.image.size == size
    assert (before[~editable] != after[~editable]).sum() == 0
    assert (before[editable] != after[editable]).any()


def test_what_outpainting_keeps_does_not_change(pipeline):
    picture = photo(61, 45, mode="RGBA")
    made = pipeline.edit(picture, "more", outpaint=(20, 0, 31, 17), steps=1, seed=1)[0]
    assert made.image.size == (61 + 51, 45 + 17)
    assert np.array_equal(np.asarray(made.image)[:45, 20:81], np.asarray(picture))


def test_tokens_are_guided_away_from_no_text_and_no_references(pipeline, monkeypatch):
    """Of guidance 0 nothing but the unconditional prompt is left: neither text nor references change a token."""
    seen = []
    monkeypatch.setattr(engine, "generate_grids", lambda *given: seen.append(generate_grids(*given)) or seen[-1])
    for prompt, references in (("a fox", [photo(90, 70)]), ("a cup", [photo(64, 64, 1)])):
        for guidance in (0.0, 2.0):
            pipeline.generate(prompt, references=references, seed=3, token_guidance=guidance, **FAST)
    unguided, guided = ([grids[0][-1] for grids in seen[start::2]] for start in (0, 1))
    assert torch.equal(*unguided)
    assert not torch.equal(*guided)


def recipes(pipeline, folder):
    """One written picture of every kind."""
    first, second, mask = folder / "first.png", folder / "second.png", folder / "mask.png"
    photo(90, 70).save(first)
    photo(64, 64, 1, "RGBA").save(second)
    Image.fromarray(np.arange(70 * 90).reshape(70, 90) % 90 > 40).save(mask)
    calls = {
        "generate": lambda: pipeline.generate("a fox “文字”", seed=3, top_k=9, token_guidance=1.5, **FAST),
        "references": lambda: pipeline.generate("both", references=[first, second], seed=4, **FAST),
        "edit": lambda: pipeline.edit(first, "blue", seed=5, guidance=2.0, **EDIT),
        "resized": lambda: pipeline.edit(second, "blue", size=(96, 64), seed=5, **EDIT),
        "masked": lambda: pipeline.edit([first, second], "x", mask=mask, mask_polarity="black", seed=6, **EDIT),
        "outpainted": lambda: pipeline.edit(second, "y", outpaint=(0, 8, 40, 0), seed=7, **EDIT),
        "greedy": lambda: pipeline.generate("x", temperature=0, guidance=1, seed=1, **FAST),
        "strength": lambda: pipeline.edit(first, strength=0.5, seed=8, steps=4, guidance_interval=(0.1, 0.9)),
    }
    for name, call in calls.items():
        yield name, call()[0].save(folder / f"{name}.out.png")


def test_an_image_carries_its_recipe(pipeline, checkpoint_folder, tmp_path):
    """Every kind of picture, made again from its file by a freshly loaded model: pixel for pixel."""
    for name, path in recipes(pipeline, tmp_path):
        recipe = read_recipe(path)
        assert recipe.weights_sha256 == pipeline.checkpoint.weights_hash()
        made = reproduce(recipe, load(checkpoint_folder))
        result = compare(path, made, recipe)
        assert result.identical, (name, result)
        assert result.reasons == ()
        if name == "greedy":
            continue
        other = reproduce(recipe.model_copy(update={"seed": recipe.seed + 1}), pipeline)
        assert not compare(path, other, recipe).identical, name


def test_recipes_hold_beside_a_models_own_way_of_drawing_tokens(pipeline, monkeypatch):
    """Greedy pictures, and values that are the format's defaults but not the model's, are made again as they were."""
    monkeypatch.setattr(Checkpoint, "sampling", {"temperature": 0.7, "top_p": 0.9, "top_k": 5})
    quick = {"steps": 1, "size": 64, "preview_grid": False}
    plain = pipeline.generate("x", seed=1, **quick)[0]
    for options in ({"temperature": 0}, {"top_p": 0.75, "top_k": 0}, {"temperature": 0.9, "guidance": 1}):
        made = pipeline.generate("x", seed=1, **quick, **options)[0]
        again = reproduce(made.recipe, pipeline)
        assert np.array_equal(pixels(made), pixels(again)), options
        assert not np.array_equal(pixels(made), pixels(plain)), options
    monkeypatch.setattr(Checkpoint, "sampling", {"temperature": 0})
    with pytest.raises(UsageError, match="top_p would have no effect"):
        pipeline.generate("x", top_p=0.5, **FAST)


def test_a_moved_or_changed_source_is_noticed(pipeline, tmp_path):
    source = tmp_path / "source.png"
    photo(64, 64).save(source)
    recipe = pipeline.edit(source, "x", seed=1, **EDIT)[0].recipe
    moved = source.rename(tmp_path / "moved.png")
    with pytest.raises(ArimageError, match=r"source\.png does not exist"):
        reproduce(recipe, pipeline)
    assert reproduce(recipe, pipeline, [moved]).recipe.references[0].sha256 == recipe.references[0].sha256
    photo(64, 64, seed=9).save(source)
    with pytest.raises(ArimageError, match="its pixels differ"):
        reproduce(recipe, pipeline)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.generate("x", size=100), "multiple of 32"),
        (lambda p: p.generate("x", size="landscpe"), "did you mean 'landscape'"),
        (lambda p: p.generate("x", size=(64, 4096)), "between 32 and 256"),
        (lambda p: p.generate("x", steps=0), "steps must"),
        (lambda p: p.generate("x", steps=1001), "steps must lie in 1..1000"),
        (lambda p: p.generate("x", guidance=0.5), "guidance must be at least 1"),
        (lambda p: p.generate("x", temperature=-1), "temperature"),
        (lambda p: p.generate("x", stpes=3), "did you mean 'steps'"),
        (lambda p: p.generate("x", tier="best"), "reference, fast"),
        (lambda p: p.generate("x", seed=-1), "seed must"),
        (lambda p: p.generate("x", seed=2**63), "seed must"),
        (lambda p: p.generate("x", images_per_prompt=0), "images_per_prompt"),
        (lambda p: p.generate([]), "at least one"),
        (lambda p: p.generate("word " * 9000), "shorten it"),
        (lambda p: p.edit(photo(40, 40), mask=Image.new("L", (4, 4))), "protects the whole picture"),
        (lambda p: p.edit(photo(40, 40), mask_polarity="grey"), "'white' or 'black'"),
        (lambda p: p.edit(photo(40, 40), outpaint=(0, 0, 0, 0)), "outpaint"),
        (lambda p: p.edit(photo(40, 40), outpaint=(-1, 0, 0, 4)), "outpaint"),
        (lambda p: p.edit(photo(40, 40), strength=0), "strength"),
        (lambda p: p.edit(photo(40, 40), size=64, mask=Image.new("L", (4, 4), 255)), "size does not go with"),
        (lambda p: p.edit([]), "at least one picture"),
        (lambda p: p.edit(photo(40, 40), mask_polarity="black"), "needs a mask"),
        (lambda p: p.generate("x", temperature=0, top_k=3), "top_k would have no effect"),
        (lambda p: p.generate("x", guidance=1, negative_text="x"), "negative_text would have no effect"),
        (lambda p: p.generate("x", solver="heun"), "euler, ab2"),
        (lambda p: load(p.checkpoint.path, device="tpu9"), "device"),
        (lambda p: load(p.checkpoint.path, dtype="bfloat16", device="cpu"), "float32"),
        (lambda p: load(p.checkpoint.path, placement="disk"), "resident"),
    ],
)
def test_errors_name_the_cause_and_the_way_out(pipeline, call, message):
    with pytest.raises(ArimageError) as caught:
        call(pipeline)
    assert message in str(caught.value)
    assert isinstance(caught.value, UsageError) or "device" in message or caught.value.exit_code in (1, 2)


def test_a_failed_write_leaves_the_previous_file_intact(pipeline, tmp_path, monkeypatch):
    made = pipeline.generate("x", seed=0, **FAST)[0]
    path = made.save(tmp_path / "x.png")
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ArimageError, match="No space left"):
        made.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_quality_tiers_are_named(pipeline):
    assert list(TIERS) == ["reference", "fast"]
    slow, fast = (pipeline.generate("x", size=64, seed=1, tier=tier)[0] for tier in TIERS)
    assert (slow.recipe.tier, fast.recipe.tier) == ("reference", "fast")
    names = ("steps", "guidance", "guidance_interval", "solver", "schedule_power")
    settings = [[made.recipe.settings[name] for name in names] for made in (slow, fast)]
    assert settings == [[50, 1.5, [0.0, 1.0], "euler", 1.0], [5, 1.5, [0.6, 1.0], "ab2", 0.7]]
    plain = pipeline.generate("x", size=64, seed=1, steps=50, guidance=1.5, solver="euler")[0]
    assert np.array_equal(pixels(slow), pixels(plain))


def test_sequential_placement_gives_the_same_pictures(checkpoint_folder, pipeline):
    one_at_a_time = load(checkpoint_folder, placement="sequential")
    both = [p.edit(photo(64, 64), "x", seed=1, **EDIT)[0] for p in (pipeline, one_at_a_time)]
    assert np.array_equal(*map(pixels, both))
    assert one_at_a_time.networks._loaded == {}


def test_importing_is_instant():
    """Nothing heavy comes with ``import arimage`` or with the command line's help."""
    code = "import sys; import arimage, arimage.cli.main; print([m for m in sys.modules])"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "numpy", "transformers", "diffusers", "PIL", "pydantic"):
        assert f"'{heavy}'" not in modules


def test_a_recipe_can_be_read_whatever_bytes_a_file_name_holds(pipeline, tmp_path):
    """A name that is no UTF-8: the recipe is valid text, names the file, and makes the picture again."""
    source = os.fsencode(tmp_path / "caf") + b"\xe9.png"
    photo(40, 40).save(os.fsdecode(source))
    made = pipeline.edit(os.fsdecode(source), "blue", steps=1, seed=1)[0]
    path = made.save(tmp_path / "out.png")
    recipe = read_recipe(path)
    json.dumps(recipe.model_dump(mode="json"), ensure_ascii=False).encode()
    assert recipe == made.recipe
    assert os.fsencode(recipe.references[0].file) == source
    assert compare(path, reproduce(recipe, pipeline), recipe).identical
    once_written = recipe.to_json().replace("caf%E9", "caf\\udce9").replace("file://", "")
    assert Recipe.from_json(once_written) == recipe
    assert "\ufffd" in recipe.model_validate(recipe.model_dump() | {"model": "caf\udce9"}).model
    with pytest.raises(UsageError, match="not valid text"):
        pipeline.generate("caf\udce9", **FAST)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "{}", '{"version": 1}', "null"])
def test_damaged_recipes_are_told(text):
    with pytest.raises(ArimageError, match="damaged"):
        Recipe.from_json(text)


def test_recipes_survive_every_format(pipeline, tmp_path):
    made = pipeline.generate('a fox "HI" 文字', seed=1, **FAST)[0]
    for name in ("a.png", "a.jpg", "a.webp"):
        path = made.save(tmp_path / name)
        assert read_recipe(path) == made.recipe
        assert b"trainedAlgorithmicMedia" in path.read_bytes()
        bare = made.save(tmp_path / f"bare-{name}", recipe=False, ai_mark=False)
        assert read_recipe(bare) is None
        assert b"trainedAlgorithmicMedia" not in bare.read_bytes()
    assert json.loads(made.recipe.to_json())["prompt"] == 'a fox "HI" 文字'
    assert dataclasses.is_dataclass(made)
