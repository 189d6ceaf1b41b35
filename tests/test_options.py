"""Options are declared once: what takes, records, repeats and documents them follows from the declaration."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, TypedDict

import pytest

from arimage.cli import options as cli_options
from arimage.cli.main import app, run
from arimage.cli.options_page import options_page
from arimage.cli.python_page import python_page
from arimage.errors import UsageError
from arimage.images.provenance import read_recipe
from arimage.images.recipe import Recipe
from arimage.inference.reproduce import reproduce
from arimage.inference.settings import PHASES, Settings
from arimage.options import OPTIONS, Option, Range, declared, resolve
from decoder.diffusion_decoder import DecoderSettings

PICTURES = sorted((Path(__file__).parent.parent / "docs" / "pictures").glob("*.png"))
QUICK = {"size": 64, "steps": 1, "seed": 1}


@dataclass(frozen=True)
class SharperSettings(DecoderSettings):
    sharpness: float = 0.0


class OneMore(TypedDict, total=False):
    sharpness: Annotated[
        float,
        Option("How sharp edges are", default=0.0, half="diffusion", range=Range("[0, 5]"), tiers={"fast": 2.0}),
    ]


@pytest.fixture
def one_more(monkeypatch):
    """One more entry, and the setting of the decoder that it is for; the commands as they are made with it."""
    for option in declared(OneMore):
        monkeypatch.setitem(OPTIONS, option.name, option)
    monkeypatch.setitem(PHASES, "diffusion", ("decoder", SharperSettings))
    for command in app.registered_commands:
        if command.name in ("generate", "edit"):
            callback = cli_options.sampling(command.name)(command.callback.__wrapped__)
            monkeypatch.setattr(command, "callback", callback)


@pytest.mark.usefixtures("one_more")
def test_one_entry_is_a_keyword_a_command_line_option_a_recipes_setting_and_documented(
    pipeline, checkpoint_folder, monkeypatch, tmp_path
):
    seen = []
    engine_run = pipeline.engine.run

    def seeing(requests, settings, *more):
        seen.append(settings)
        return engine_run(requests, settings, *more)

    monkeypatch.setattr(pipeline.engine, "run", seeing)
    made = pipeline.generate("x", sharpness=3, **QUICK)[0]
    assert made.recipe.settings["sharpness"] == seen[-1].decoder.sharpness == 3.0
    assert pipeline.generate("x", tier="fast", **QUICK)[0].recipe.settings["sharpness"] == 2.0
    assert reproduce(made.recipe, pipeline).recipe.settings == made.recipe.settings
    before = {name: value for name, value in made.recipe.settings.items() if name != "sharpness"}
    reproduce(made.recipe.model_copy(update={"settings": before}), pipeline)
    assert seen[-1].decoder.sharpness == 0.0
    with pytest.raises(UsageError, match=r"sharpness must lie in \[0, 5\], got 6"):
        pipeline.generate("x", sharpness=6)
    with pytest.raises(UsageError, match="did you mean 'sharpness'"):
        pipeline.generate("x", sharpnes=1)

    path = tmp_path / "x.png"
    with pytest.raises(SystemExit) as ended:
        run(["generate", "x", "--sharpness", "1.5", "--size", "64", "--steps", "1", "-q", "-o", str(path),
             "--model", str(checkpoint_folder)])  # fmt: skip
    assert not ended.value.code
    assert read_recipe(path).settings["sharpness"] == 1.5
    row = "| `--sharpness` | How sharp edges are; in [0, 5]. | 0.0, 2.0 at fast |"
    assert options_page().count(row) == 2
    assert "| `sharpness` | `float` | 0.0, 2.0 at fast |  | How sharp edges are; in [0, 5]. |" in python_page()


def test_what_each_half_takes_by_default_is_what_the_options_say():
    tier, values = resolve({}, {})
    assert (tier, Settings.of(values)) == ("reference", Settings())
    for half, (_, kind) in PHASES.items():
        declared_here = {option.setting or option.name for option in OPTIONS.values() if option.half == half}
        assert {field.name for field in fields(kind)} - {"batch_branches"} <= declared_here


@pytest.mark.parametrize("name", [option.name for option in OPTIONS.values() if option.range is not None])
def test_ranges_of_options_are_those_of_the_half_that_they_are_for(name):
    """At the ends of a range and beyond: what an option takes its half takes, and nothing else."""
    option = OPTIONS[name]
    kind = PHASES[option.half][1]
    if (option.setting or name) not in {field.name for field in fields(kind)}:
        kind = Settings
    for end in filter(math.isfinite, option.range.bounds):
        for value in (end - 1, end, end + 1):
            given = (value, value) if option.type == tuple[float, float] else value
            wanted = {option.setting or name: given}
            assert taken(lambda given=given: option.checked(given)) == taken(lambda wanted=wanted: kind(**wanted)), (
                given
            )


def taken(call):
    """Whether no value was refused."""
    try:
        call()
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 2.5, "a whole number"), ("steps", True, "a whole number"), ("steps", None, "a whole number"),
        ("guidance", "high", "a finite number"), ("guidance", float("nan"), "a finite number"),
        ("negative_text", 3, "a text"),
        ("preview_grid", "no", "true or false"), ("guidance_interval", 0.5, "low, high"),
        ("guidance_interval", (0.8, 0.2), "low, high"), ("solver", "heun", "euler, ab2"),
        ("tier", None, "reference, fast"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_name(name, value, message):
    with pytest.raises(UsageError, match=f"{name} must be.*{message}"):
        OPTIONS[name].checked(value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.generate("x", strength=0.5), "strength is an option of edit, not of generate"),
        (lambda p: p.edit(PICTURES[0], preview_grid=True), "preview_grid has no effect on pictures with references"),
        (lambda p: p.generate("x", references=PICTURES[0], preview_grid=True), "preview_grid has no effect"),
    ],
)
def test_an_option_where_it_has_no_meaning_is_refused(pipeline, call, message):
    with pytest.raises(UsageError, match=message):
        call(pipeline)


def test_recipes_by_the_names_of_once_are_read():
    """The pictures of the documents name the tier and the solver as they were named when they were made."""
    recipes = [recipe for path in PICTURES if (recipe := read_recipe(path)) is not None]
    assert {recipe.tier for recipe in recipes} == {"reference"}
    text = json.loads(recipes[0].to_json())
    text |= {"tier": "fast", "settings": text["settings"] | {"solver": "multistep", "negative_text": "lossless"}}
    settings = Recipe.from_json(json.dumps(text)).settings
    assert (settings["solver"], settings["negative_text"]) == ("ab2", "lossless")
