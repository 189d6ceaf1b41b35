"""Things that an edit keeps have their reference's codes in its target, wherever they stand."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from arimage.data.records import Record
from arimage.data.scenes import SceneSettings
from arimage.data.scenes.spec import Background, SceneSpec, Shade, Subject
from arimage.training.kept_codes import kept_cells, with_kept_codes
from arimage.training.loop import train
from arimage.training.prepare import prepare
from tests.test_training import CPU, assets, metrics, stage, start  # noqa: F401
from tokenizer.image_size import SizeLimits

LIMITS = SizeLimits(256, 512)
GROUND = Background("plain", Shade("blue", (0, 0, 255)))
FOX = Subject("fox", "noto", 0.5, 0.5, 0.25)


def record(target: tuple[Subject, ...], *sources: tuple[Subject, ...], side: int = 256) -> Record:
    """An edit between scenes of these subjects, without its pictures."""
    scenes = [asdict(SceneSpec(side, side, GROUND, subjects)) for subjects in (target, *sources)]
    return Record(None, {}, truth={"spec": scenes[0], "sources": [{"spec": spec} for spec in scenes[1:]]})  # type: ignore[arg-type]


def moved(x: float, y: float) -> Subject:
    return replace(FOX, x=x, y=y, place="left")


def test_cells_of_a_thing_are_found_where_it_was_and_where_it_is() -> None:
    found = kept_cells(record((moved(0.25, 0.75),), (FOX,)), LIMITS)
    assert found.tolist() == [[5, 1, 0, 3, 3], [5, 2, 0, 3, 4], [6, 1, 0, 4, 3], [6, 2, 0, 4, 4]]
    second = kept_cells(record((moved(0.25, 0.75),), (replace(FOX, concept="cat"),), (FOX,)), LIMITS)
    assert second[:, 2].tolist() == [1] * 4


@pytest.mark.parametrize(
    "other",
    [
        replace(FOX, concept="cat"), replace(FOX, style="twemoji"), replace(FOX, size=0.5), replace(FOX, flipped=True),
        replace(FOX, tint=Shade("red", (255, 0, 0))), replace(FOX, x=0.51), replace(FOX, x=0.0),
    ],
    ids=["concept", "style", "size", "mirrored", "tint", "off the grid", "over the edge"],
)  # fmt: skip
def test_what_looks_otherwise_or_stands_off_the_grid_is_left_alone(other: Subject) -> None:
    assert kept_cells(record((FOX,), (other,)), LIMITS).shape == (0, 5)


def test_pictures_without_a_plan_and_references_of_another_size_are_left_alone() -> None:
    assert not len(kept_cells(Record(None, {}, truth={}), LIMITS))  # type: ignore[arg-type]
    assert not len(kept_cells(record((FOX,), (FOX,), side=1024), LIMITS))
    codes = torch.arange(4).view(2, 2)
    assert with_kept_codes(codes, [], torch.empty(0, 5, dtype=torch.long)) is codes


def test_of_two_that_are_alike_the_one_at_the_same_place_is_taken() -> None:
    found = kept_cells(record((moved(0.75, 0.5),), (moved(0.25, 0.5), moved(0.75, 0.5))), LIMITS)
    assert found[0].tolist() == [3, 5, 0, 3, 5]


def test_codes_are_taken_over_where_both_show_something() -> None:
    cells = kept_cells(record((moved(0.25, 0.75),), (FOX,)), LIMITS)
    reference, target = torch.full((8, 8), 7), torch.full((8, 8), 9)
    reference[3:5, 3:5] = torch.tensor([[1, 2], [3, 7]])  # the last of its cells is ground
    target[5:7, 1:3] = torch.tensor([[1, 9], [4, 5]])  # so is the second of these
    target[0, 0] = 6
    before = target.clone()
    made = with_kept_codes(target, [reference], cells)
    assert made[5:7, 1:3].tolist() == [[1, 9], [3, 5]]
    assert torch.equal(target, before)
    assert (made != target).sum() == 1


@pytest.mark.parametrize("network", ["autoregressive", "decoder"])
def test_stages_learn_kept_codes_fresh_and_from_a_cache(
    network: str,
    start: Path,  # noqa: F811
    assets: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """An unlearnt tokenizer names a thing anew on every ground, so gradients differ; a cache holds the same codes."""
    scenes = SceneSettings(tasks={"background": 1}, cells=8, phrases=0, patterns=0, english_letters=8).model_dump()
    told = {"kept_codes": True} | ({"rename_prob": 0.0, "copy_task_prob": 0.0} if network == "autoregressive" else {})
    common = {"steps": 1, "batch_size": 4, "warmup": 0, "evaluation": []}
    data = {"data": [{"scenes": scenes, "assets": str(assets)}]}
    gradients = {}
    for name, settings in (("kept", told), ("not", told | {"kept_codes": False})):
        train(stage(network, start, assets, tmp_path / name, **{network: settings}, **common, **data))
        gradients[name] = metrics(tmp_path / name)[0]["gradient_norm"]
    assert gradients["kept"] != gradients["not"]
    config = stage(network, start, assets, tmp_path / "made", **{network: told}, **common, **data)
    prepare(config, tmp_path / "cache", 4, 4, say=lambda text: None)
    cached = {"data": [{"cache": str(tmp_path / "cache")}]}
    train(stage(network, start, assets, tmp_path / "cached", **{network: told}, **common, **cached))
    assert metrics(tmp_path / "cached")[0]["gradient_norm"] == pytest.approx(gradients["kept"], rel=1e-3)
