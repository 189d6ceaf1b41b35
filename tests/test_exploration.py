"""Several pictures of a prompt, and variations of the one that is picked."""

import numpy as np
import pytest
import torch

import arimage
from arimage.cli.main import run
from arimage.errors import UsageError
from arimage.images.opening import open_picture
from arimage.images.provenance import read_recipe
from arimage.inference.reproduce import compare, reproduce
from tests.conftest import photo

QUICK = {"size": (128, 96), "steps": 1}
# The format's preview grid is most of the tokens of a small picture; one test has it.
WITHOUT = {"preview_grid": False}


def pixels(made):
    return np.asarray(made.image)


def test_an_exploration_is_pictures_of_one_prompt(pipeline):
    made = arimage.explore("a fox", model=pipeline, count=3, seed=5, **QUICK, **WITHOUT)
    alone = pipeline.generate("a fox", seed=6, **QUICK, **WITHOUT)[0]
    assert [one.recipe.seed for one in made.pictures] == [5, 6, 7]
    assert np.array_equal(pixels(made.pick(6)), pixels(alone))
    assert made.pick(6).recipe == alone.recipe
    assert made.sheet().size[0] > 2 * 128
    with pytest.raises(UsageError, match="no picture here has the seed 9; they are 5, 6, 7"):
        made.pick(9)


def test_a_variation_keeps_the_preview_and_a_share_of_the_tokens(pipeline):
    base = pipeline.generate("a fox", seed=6, **QUICK)[0]
    made = pipeline.explore("a fox", pick=6, change=0.5, count=2, seed=40, **QUICK).pictures
    assert all(torch.equal(one.preview_codes, base.preview_codes) for one in made)
    for one in made:
        kept = (one.codes == base.codes).float().mean().item()
        assert 0.2 < kept < 1
    assert not torch.equal(made[0].codes, made[1].codes)
    assert made[0].recipe.variation.model_dump() == {"of": (6,), "change": 0.5}


def test_without_change_only_the_noise_is_another(pipeline):
    base = pipeline.generate("a fox", seed=6, **QUICK, **WITHOUT)[0]
    same, other = pipeline.explore("a fox", pick=6, change=0, count=2, seed=6, **QUICK, **WITHOUT).pictures
    assert np.array_equal(pixels(same), pixels(base))
    assert torch.equal(other.codes, base.codes)
    assert not np.array_equal(pixels(other), pixels(base))
    anew = pipeline.explore("a fox", pick=6, change=1, count=1, seed=8, **QUICK, **WITHOUT).pictures[0]
    assert torch.equal(anew.codes, pipeline.generate("a fox", seed=8, **QUICK, **WITHOUT)[0].codes)


def test_a_variation_of_a_variation_is_made_again_from_its_file(pipeline, tmp_path):
    """By the seeds on the way to it; it does not depend on its neighbours."""
    options = {"references": photo(64, 64), "change": 0.4, **QUICK}
    first = pipeline.explore("a fox", pick=6, count=2, seed=40, **options).pick(41)
    made = pipeline.explore("a fox", pick=(6, 41), count=2, seed=60, **options).pick(61)
    assert (made.codes == first.codes).float().mean() > 0.2
    path = made.save(tmp_path / "x.png")
    recipe = read_recipe(path)
    assert recipe.variation.of == (6, 41)
    assert compare(path, reproduce(recipe, pipeline, [photo(64, 64)]), recipe).identical


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pick": "six"}, "pick must be the seed of a picture"),
        ({"pick": -1}, "pick must be the seed of a picture"),
        ({"change": 1.5}, r"change must lie in \[0, 1\], got 1.5"),
        ({"count": 0}, "count must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_told(pipeline, options, message):
    with pytest.raises(UsageError, match=message):
        pipeline.explore("x", **options)


def test_explore_writes_each_picture_and_a_sheet_with_seeds(checkpoint_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            run([*arguments, "--steps", "1", "--size", "64", "--no-preview-grid", "--model", str(checkpoint_folder)])
        return ended.value.code or 0, *capsys.readouterr()

    code, out, err = command("explore", "a fox", "-n", "2", "--seed", "5", "-o", "foxes")
    assert (code, out.split()) == (0, ["foxes/arimage-5.png", "foxes/arimage-6.png", "foxes/arimage-sheet.png"])
    assert "with --pick SEED varies one of them" in err
    sheet = np.asarray(open_picture("foxes/arimage-sheet.png").rgb)
    assert sheet.shape[:2] == (64 + 8 + 16 + 8, 2 * 72 + 8)
    assert (sheet[8 + 64 :] < 128).any()
    code, out, _ = command("explore", "a fox", "-n", "1", "--seed", "9", "-o", "foxes", "--pick", "6", "-q")
    assert (code, out.split()) == (0, ["foxes/arimage-6-9.png", "foxes/arimage-6-sheet.png"])
    assert read_recipe("foxes/arimage-6-9.png").variation.of == (6,)
