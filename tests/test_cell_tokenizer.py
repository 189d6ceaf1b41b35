"""A tokenizer that names things: neutral views, classes of cells, and codes that a background does not change."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.data.assets import Assets
from arimage.data.colors import BY_NAME
from arimage.data.records import Record
from arimage.data.scenes import Scenes, SceneSettings
from arimage.data.scenes.cells import cells_of, flat, letter_cells
from arimage.data.scenes.draw import draw
from arimage.data.scenes.spec import Background, SceneSpec, Shade, scene_spec
from arimage.errors import DataError
from arimage.evaluation.codes import CHANGES, characters, stability, with_first
from arimage.training.cells import Classes, different_cells, neutral_view
from arimage.training.loop import Run, train
from arimage.training.objectives import build_objective
from tests.test_training import CPU, assets, metrics, stage, start  # noqa: F401
from tokenizer.semantic_tokenizer import half_size_pixels

SCENES = SceneSettings(
    sizes=((256, 256),), tasks={"corners": 1, "text": 1, "typography": 1}, patterns=0.0, jitter=0, cells=8, phrases=0.0,
    digits=0.0, english_letters=8, chinese_text=0.0, capitals=True, plain_ink=True,
)  # fmt: skip


def on(scene: SceneSpec, color: str, pack: Assets) -> Record:
    """A scene on another background."""
    from dataclasses import asdict

    spec = replace(scene, background=Background("plain", Shade(color, BY_NAME[color].rgb)))
    return Record(draw(spec, pack).image, {}, truth={"spec": asdict(spec)})


def test_a_scene_comes_back_from_its_plain_form(assets: Path) -> None:  # noqa: F811
    from dataclasses import asdict

    scenes = Scenes(Assets.open(assets), SCENES)
    for index in range(12):
        facts = scenes[index].truth["spec"]
        assert asdict(scene_spec(facts)) == facts


def test_a_neutral_view_is_the_same_on_every_background(assets: Path) -> None:  # noqa: F811
    pack = Assets.open(assets)
    scenes = Scenes(pack, SCENES)
    compared = 0
    for index in range(12):
        scene = scene_spec(scenes[index].truth["spec"])
        cells, shown = [], []
        for color in ("green", "purple"):
            record = on(scene, color, pack)
            view = half_size_pixels(record.image)
            cells.append(cells_of(neutral_view(record, view, pack, 16)[0][None], 16)[0])
            shown.append(flat(cells_of(view[None], 16)[0]))
        ground = (cells[0] != cells[1]).any(dim=-1)
        things = ~(shown[0] | shown[1])
        traces = ground & things  # cells with hardly anything but ground in them
        assert traces.sum() <= 0.25 * things.sum()
        compared += int(things.sum())
    assert compared > 100


def test_the_cells_of_letters_are_found_in_their_order(assets: Path) -> None:  # noqa: F811
    scenes = Scenes(Assets.open(assets), SCENES.model_copy(update={"tasks": {"typography": 1}}))
    for index in range(8):
        spec = scene_spec(scenes[index].truth["spec"])
        assert spec.lettering is not None
        places = letter_cells(spec, 8, 8)
        row = places[(places >= 0).any(dim=1)]
        assert row[row >= 0].tolist() == list(range(len(spec.lettering.text)))


def test_a_picture_without_a_plan_is_refused(assets: Path) -> None:  # noqa: F811
    pack = Assets.open(assets)
    picture = Scenes(pack, SCENES)[0].image
    with pytest.raises(DataError, match="scenes only"):
        neutral_view(Record(picture, {}), half_size_pixels(picture), pack, 16)


def test_cells_that_differ_from_all_others_are_classes_of_their_own() -> None:
    stream = torch.Generator().manual_seed(0)
    groups = torch.randn(8, 48, generator=stream)
    cells = torch.cat([group + 0.01 * torch.randn(20, 48, generator=stream) for group in groups])
    own = torch.zeros(len(cells), dtype=torch.bool)
    own[3] = True
    classes = Classes(48, 16, 9)
    error = classes.fit(cells, torch.ones(len(cells)), own, 10, seed=0)
    names = classes.assign(cells)
    assert error < 0.02
    assert names[3] == 0
    assert (names == 0).sum() >= 1
    used = [set(names[20 * group : 20 * group + 20].tolist()) for group in range(8)]
    assert sum(len(codes) for codes in used) == len(set().union(*used))  # no two groups share one


def test_cells_that_differ_by_rounding_share_a_class_of_their_own() -> None:
    """Else which of them a colour is told to be would hang on the last bit."""
    stream = torch.Generator().manual_seed(0)
    cells = torch.rand(40, 48, generator=stream) * 2 - 1
    cells[10:20] = cells[:10] + (torch.rand(10, 48, generator=stream) * 2 - 1) / 127.5
    classes = Classes(48, 40, 40)
    classes.fit(cells, torch.ones(40), torch.arange(40) < 20, 10, seed=0)
    names = classes.assign(cells)
    assert names[:20].tolist() == [*range(10), *range(10)]
    distances = torch.cdist(classes.centers, classes.centers) + 10 * torch.eye(40)
    assert distances.min() > 0.5


@pytest.mark.parametrize("count", [24, 100])
def test_classes_do_not_hang_on_rounding(count: int) -> None:
    """The same ones where another processor rounds otherwise, also with more classes than cells."""
    stream = torch.Generator().manual_seed(0)
    cells = torch.randn(60, 48, generator=stream) @ torch.diag(torch.linspace(2, 0.1, 48))
    rounded = cells * (1 + 1e-7 * torch.randn(cells.shape, generator=stream))
    found = [Classes(48, 8, count) for _ in range(2)]
    for classes, seen in zip(found, (cells, rounded)):
        classes.fit(seen, torch.ones(60), torch.arange(60) < 5, 10, seed=0)
    assert found[0].centers == pytest.approx(found[1].centers, abs=1e-4)
    assert torch.equal(found[0].assign(cells), found[1].assign(cells))
    assert len(found[0].assign(cells).unique()) == min(count, 60)


def test_letters_have_codes_of_their_own(assets: Path) -> None:  # noqa: F811
    pack = Assets.open(assets)
    scenes = Scenes(pack, SCENES.model_copy(update={"tasks": {"typography": 1}}))
    records = [scenes[index] for index in range(40)]
    cells, weights, own = different_cells(records, pack, 16, 0.1)
    assert len(cells) == len(weights) == len(own)
    letters = {letter for record in records for letter in record.truth["spec"]["lettering"]["text"]}
    assert own.sum() >= len(letters)


def interrupted_at(run: Run, step: int) -> Any:
    """The run's own step, until a step at which somebody presses Ctrl-C."""
    own = run.one_step

    def one_step(incoming: Any) -> dict[str, float]:
        if run.step == step:
            raise KeyboardInterrupt
        return own(incoming)

    return one_step


def test_codes_learn_to_ignore_the_background(start: Path, assets: Path, tmp_path: Path) -> None:  # noqa: F811
    scenes = {"tasks": {"subject": 1}, "sizes": [[128, 128]], "patterns": 0.0, "jitter": 0, "cells": 8, "phrases": 0.0,
              "english_letters": 8, "concepts": 4}  # fmt: skip
    config = stage(
        "tokenizer", start, assets, tmp_path, steps=60, batch_size=8, learning_rate=4e-3, sample_every=60,
        save_every=30, muon=["visual.blocks.*.weight"], data=[{"scenes": scenes, "assets": str(assets)}], evaluation=[],
        tokenizer={"cell_classes": True, "components": 32, "class_samples": 48, "degradation_prob": 0.0},
    )  # fmt: skip
    first_half = Run(config)
    first_half.start()
    first_half.one_step = interrupted_at(first_half, 40)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first_half.run()
    folder = train(config)
    rows = metrics(tmp_path)
    first, last = (sum(row["things_right"] for row in part) / 8 for part in (rows[:8], rows[-8:]))
    assert last > 2 * first
    settings = SceneSettings.model_validate({**scenes, "split": "train"})
    kept = [
        sum(same for same, _ in found["another background"]) / sum(of for _, of in found["another background"])
        for found in (
            stability(Checkpoint.open(place).semantic_tokenizer(CPU, torch.float32), Assets.open(assets), settings, 12)
            for place in (start, folder)
        )
    ]
    assert kept[1] > kept[0] + 0.2
    assert list((tmp_path / "samples").glob("*.png"))
    classes = tmp_path / "classes.safetensors"
    later = {"cell_classes": True, "components": 32, "classes": str(classes), "degradation_prob": 0.0}
    data = {"data": [{"scenes": scenes, "assets": str(assets)}], "evaluation": [], "steps": 2, "batch_size": 8}
    on = stage("tokenizer", folder, assets, tmp_path / "on", tokenizer=later, warmup=0, learning_rate=1e-6, **data)
    train(on)
    assert metrics(tmp_path / "on")[0]["things_right"] > 0.8 * last  # the codes mean what they meant
    for settings, reason in (({"components": 16}, "another tokenizer"), ({"classes": "none.safetensors"}, "none")):
        wrong = stage("tokenizer", folder, assets, tmp_path / "wrong", tokenizer=later | settings, **data)
        with pytest.raises(DataError, match=reason):
            train(wrong)


def test_places_do_not_enter_the_codes(start: Path, assets: Path, tmp_path: Path) -> None:  # noqa: F811
    config = stage("tokenizer", start, assets, tmp_path, tokenizer={"cell_classes": True})
    objective: Any = build_objective(Checkpoint.open(start), config, CPU)
    view = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    turned = torch.cat([view[..., 16:], view[..., :16]], dim=-1)
    with torch.no_grad():
        one, other = objective.scores(view[None])[0], objective.scores(turned[None])[0]
    torch.testing.assert_close(one[:, 1:], other[:, :2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one[:, :1], other[:, 2:], atol=1e-4, rtol=1e-4)


def test_stability_of_a_tokenizer_is_measured(
    start: Path,  # noqa: F811
    assets: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of things that training never saw, and of those alone."""
    tokenizer = Checkpoint.open(start).semantic_tokenizer(device=CPU, dtype=torch.float32)
    pack = Assets.open(assets)
    kept_away = sorted(pack.sprites.concepts)[:3]
    for module in ("arimage.data.scenes.compose", "arimage.evaluation.codes"):
        monkeypatch.setattr(f"{module}.concept_held_out", lambda concept: concept in kept_away)
    unseen = SCENES.model_copy(update={"split": "evaluation", "held": "reference concept"})
    for settings in (SCENES, unseen):
        found = stability(tokenizer, pack, settings, 3)
        assert list(found) == list(CHANGES)
        assert all(len(shares) == 3 and all(0 <= same <= of for same, of in shares) for shares in found.values())
    corners = unseen.model_copy(update={"tasks": {"corners": 1.0}})
    firsts = [scene.subjects[0].concept for scene in islice(with_first(Scenes(pack, corners)), 6)]
    assert set(firsts) <= set(kept_away)


def test_spelling_of_a_tokenizer_is_measured(start: Path, assets: Path) -> None:  # noqa: F811
    tokenizer = Checkpoint.open(start).semantic_tokenizer(device=CPU, dtype=torch.float32)
    pack = Assets.open(assets)
    read = characters(tokenizer, pack, SCENES, SCENES, 4, learnt=32)
    assert len(read) == 4
    assert all(0 <= right <= of for right, of in read)
