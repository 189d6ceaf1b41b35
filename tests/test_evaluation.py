"""The evaluation's formulas, and that its judge tells right pictures from wrong ones."""

import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from arimage.data.assets import Assets
from arimage.data.scenes import Scenes
from arimage.data.scenes.draw import draw
from arimage.data.scenes.spec import scene_spec
from arimage.errors import DataError, UsageError
from arimage.evaluation.cases import Case, cases
from arimage.evaluation.codes import counted_cells
from arimage.evaluation.config import EvaluateConfig
from arimage.evaluation.features import fill_features
from arimage.evaluation.judge import Judge
from arimage.evaluation.lpips import Lpips, _Arrays
from arimage.evaluation.measures import border_color, foreground, named_color_found, region_psnr
from arimage.evaluation.reading import characters_found, edit_distance, word_similarity, words_found
from arimage.evaluation.report import markdown, write_report
from arimage.evaluation.run import Outcome, evaluate, pictures, rows
from arimage.inference.api import load
from arimage.inference.requests import ImageRequest
from arimage.yaml_files import load_yaml
from tests.tiny_assets import tiny_assets
from tests.tiny_checkpoint import tiny_folder
from tokenizer.pixels import pixels

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    return tiny_assets(tmp_path_factory.mktemp("assets"))


def config(
    assets: Assets, *tasks: str, colors: tuple[str, ...] = (), styles_named: float = 0.6, **group: Any
) -> EvaluateConfig:
    scenes = {"tasks": dict.fromkeys(tasks, 1.0), "sizes": ((128, 128),), "patterns": 0.0, "jitter": 0,
              "scales": (0, 1, 0), "threes": 0.0, "colors": colors, "styles_named": styles_named}  # fmt: skip
    return EvaluateConfig.model_validate({"assets": "x", "groups": {"one": {"scenes": scenes, **group}}, "cases": 4})


FEW = ("green", "yellow", "black", "pink")


@pytest.fixture(scope="module")
def judge(assets: Assets) -> Judge:
    composer = Scenes(assets, config(assets, "subject").groups["one"].scenes).composer
    return Judge(assets, composer.concepts, composer.styles)


def test_words_are_scored_as_in_cvtg_2k() -> None:
    assert words_found("Open Late", ["OPEN", "lats"]) == (1, 2)
    assert words_found("open", ["o pen"]) == (0, 1)
    assert word_similarity("open late", ["open", "lats"]) == pytest.approx((1 + 0.75) / 2)
    assert word_similarity("open", []) == 0


def test_characters_are_scored_as_in_longtext_bench() -> None:
    assert characters_found("你好你", ["你", "x好"]) == (2, 3)
    assert characters_found("abc", ["abc"]) == (0, 0)


@pytest.mark.parametrize(("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("same", "same", 0)])
def test_edit_distance_is_levenshteins(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_a_square_on_a_colour_is_found_with_its_place() -> None:
    picture = Image.new("RGB", (100, 100), (35, 87, 214))
    ImageDraw.Draw(picture).rectangle((60, 20, 79, 39), fill=(255, 255, 255))
    assert border_color(picture) == (35, 87, 214)
    seen = foreground(picture)
    assert seen is not None
    assert seen.box == (60, 20, 80, 40)
    assert (seen.x, seen.y) == pytest.approx((0.7, 0.3), abs=0.01)
    assert foreground(picture, (0, 0, 50, 100)) is None
    assert named_color_found(picture, (35, 87, 214))
    assert named_color_found(picture, (35, 90, 220))
    assert not named_color_found(picture, (122, 48, 178))


def test_psnr_counts_the_region_only() -> None:
    first, second = Image.new("RGB", (8, 8), (100, 100, 100)), Image.new("RGB", (8, 8), (110, 110, 110))
    second.paste((255, 0, 0), (0, 0, 8, 4))
    region = np.zeros((8, 8), bool)
    region[4:] = True
    assert region_psnr(first, second, region) == pytest.approx(20 * np.log10(25.5), abs=1e-6)


@pytest.mark.parametrize(
    ("task", "ability"),
    [("subject", "subject"), ("subjects", "placement, two"), ("background", "edit: background"),
     ("replace", "edit: replace subject"), ("add", "edit: add subject"), ("remove", "edit: remove subject"),
     ("move", "edit: move subject"), ("style", "edit: style"), ("identity", "identity")],
)  # fmt: skip
def test_the_true_scene_is_right_and_another_is_wrong(assets: Assets, judge: Judge, task: str, ability: str) -> None:
    """The judge needs MobileNetV2, which is part of the development environment."""
    wanted = cases(config(assets, task), assets, "one")
    judge.__dict__["reader"] = lambda picture: []
    right = wrong = 0.0
    for case in wanted:
        blurred = case.record.image.filter(ImageFilter.GaussianBlur(0.5))
        right += judge(case, blurred)[ability][0]
        blank = Image.new("RGB", case.record.image.size, (1, 250, 250))
        wrong += judge(case, blank)[ability][0]
    assert right >= 0.5 * len(wanted)
    assert wrong < right


def test_a_style_that_nobody_asked_for_is_not_judged(assets: Assets, judge: Judge) -> None:
    """The right thing in the other style is right where the prompt names no style, wrong where it names one."""
    told, untold = (
        cases(config(assets, "subject", colors=FEW, styles_named=share), assets, "one") for share in (1.0, 0.0)
    )
    right = {}
    for name, wanted in (("told", told), ("untold", untold)):
        found = []
        for case in wanted:
            other = next(style for style in judge.styles if style != case.scene["subjects"][0]["style"])
            spec = scene_spec(case.scene)
            spec = replace(spec, subjects=tuple(replace(subject, style=other) for subject in spec.subjects))
            found.append(judge(case, draw(spec, assets).image))
            assert judge(case, case.record.image)["subject, in its style"] == (1, 1)
        right[name] = sum(one["subject"][0] for one in found) / len(found)
        right[name, "style too"] = sum(one["subject, in its style"][0] for one in found) / len(found)
    assert right["untold"] == 1
    assert right["told"] == right["told", "style too"]
    assert right["untold", "style too"] < 1


def test_features_of_a_gallery_are_kept_and_damaged_ones_made_anew(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARIMAGE_CACHE", str(tmp_path))
    gallery = [Image.new("RGB", (32, 32), color) for color in ("red", "green")]
    made = judge.features.remembered(gallery)
    (file,) = tmp_path.rglob("*.npy")
    assert torch.equal(made, judge.features(gallery))
    with monkeypatch.context() as frozen:
        frozen.setattr(type(judge.features), "__call__", None)
        assert torch.equal(judge.features.remembered(gallery), made)
    file.write_bytes(file.read_bytes()[:-8])
    assert torch.equal(judge.features.remembered(gallery), made)
    other = judge.features.remembered([*gallery[:1], Image.new("RGB", (32, 32), "blue")])
    assert not torch.equal(other, made)
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    monkeypatch.setenv("ARIMAGE_CACHE", str(file))
    assert torch.equal(judge.features.remembered(gallery), made)


def test_every_line_of_a_text_counts(assets: Assets, judge: Judge) -> None:
    for case in cases(config(assets, "lines"), assets, "one")[:4]:
        lines = case.scene["lettering"]["text"].split("\n")
        words = sum(len(line.split()) for line in lines)
        judge.__dict__["reader"] = lambda picture, lines=lines: lines
        assert judge(case, case.record.image)["lines of text"] == (words, words)
        judge.__dict__["reader"] = lambda picture, lines=lines: lines[1:]
        assert judge(case, case.record.image)["lines of text"] == (words - len(lines[0].split()), words)


@pytest.mark.parametrize("task", ["add", "remove", "move"])
def test_a_picture_that_was_not_edited_or_lost_the_other_thing_is_wrong(
    assets: Assets, judge: Judge, task: str
) -> None:
    ability = f"edit: {task} subject"
    for case in cases(config(assets, task, colors=FEW), assets, "one")[:4:2]:
        assert judge(case, case.record.sources[-1])[ability] == (0, 1)
        spoilt = case.record.image.copy()
        before = case.record.truth["sources"][-1]["spec"]["subjects"]
        for subject, box in zip(case.scene["subjects"], case.record.truth["subjects"]):
            if subject in before or task == "move":
                spoilt.paste(case.scene["background"]["first"]["rgb"], box)
        assert judge(case, spoilt)[ability] == (0, 1)


def test_two_edits_hold_only_when_both_do(assets: Assets, judge: Judge) -> None:
    """The first brings the background of the scene that the second starts from."""
    right = 0.0
    wanted = cases(config(assets, "remove", second=True, colors=FEW), assets, "one")
    for case in wanted:
        source, between, target = case.record.sources[-1], case.second.source, case.record.image  # type: ignore[union-attr]
        assert border_color(between) == border_color(target) != border_color(source)
        right += judge(case, target)["two edits"][0]
        once = judge(case, between)
        assert (once["two edits"], once["two edits, first"], once["two edits, second"]) == ((0, 1), (1, 1), (0, 1))
        assert judge(case, source)["two edits, first"] == (0, 1)
    assert right == len(wanted)
    assert {case.prompts for case in wanted if case.language == "en"} >= {
        f"{c.prompt} → {c.second.prompt}" for c in wanted[:1]
    }  # type: ignore[union-attr]


def test_a_masked_edit_may_change_nothing_outside_its_mask(assets: Assets, judge: Judge) -> None:
    wanted = cases(config(assets, "replace", masked=True, colors=FEW), assets, "one")[:4:2]
    right = [case for case in wanted if judge(case, case.record.image)["masked edit"] == (1, 1)]
    assert len(right) >= 0.5 * len(wanted)
    for case in right:
        touched = case.record.image.copy()
        x, y = next(
            (x, y)
            for x in range(touched.width)
            for y in range(touched.height)
            if not case.record.mask.getpixel((x, y))  # type: ignore[union-attr]
        )
        r, g, b = touched.getpixel((x, y))
        touched.putpixel((x, y), (r ^ 1, g, b))
        assert judge(case, touched)["masked edit"] == (0, 1)


def test_the_second_edit_is_made_on_the_picture_of_the_first(assets: Assets, tmp_path: Path) -> None:
    pipeline = load(tiny_folder(tmp_path / "tiny"))
    wanted = config(assets, "remove", second=True, colors=FEW).model_copy(update={"options": {"steps": 1}})
    case = cases(wanted, assets, "one")[0]
    size, seed = case.record.image.size[::-1], wanted.seed + case.index
    first = pipeline.make([ImageRequest(case.prompt, size, seed, case.record.sources)], steps=1)[0].image
    second = ImageRequest(case.second.prompt, size, seed, (first,))  # type: ignore[union-attr]
    (made,) = pictures([case], pipeline, wanted)
    assert np.array_equal(np.asarray(made), np.asarray(pipeline.make([second], steps=1)[0].image))


def test_a_masked_case_is_made_under_its_mask(assets: Assets, tmp_path: Path) -> None:
    pipeline = load(tiny_folder(tmp_path / "tiny"))
    wanted = config(assets, "add", masked=True).model_copy(update={"options": {"steps": 1}})
    case = cases(wanted, assets, "one")[0]
    (made,) = pictures([case], pipeline, wanted)
    changed = np.asarray(made) != np.asarray(case.record.sources[-1])
    assert changed.any()
    assert not changed[np.asarray(case.record.mask) == 0].any()


def test_a_row_in_own_words_measures_its_kind(assets: Assets, judge: Judge) -> None:
    wanted = cases(config(assets, "subject", own_words="placement", colors=FEW), assets, "one")
    standard = {record.captions["en/sentence"] for record in (case.record for case in wanted)}
    assert len(wanted) == 8
    for case in wanted[:4]:
        assert case.prompt not in standard
        assert case.scene["subjects"][0]["place"] != "center"
        assert set(judge(case, case.record.image)) == {"placement, one, own words"}


@pytest.mark.parametrize(
    ("group", "task", "message"),
    [
        ("own_words: placment", "subject", "no kind 'placment'; did you mean 'placement'?"),
        ("own_words: placement", "replace", "placement goes with the task subject alone"),
        ("second: true", "background", "second goes with the tasks replace, remove"),
        ("masked: true", "style", "masked goes with the tasks replace, add only"),
        ("masked: true, second: true", "replace", "a group has one of them"),
    ],
)
def test_a_group_that_cannot_be_measured_is_refused(tmp_path: Path, group: str, task: str, message: str) -> None:
    file = tmp_path / "evaluate.yaml"
    file.write_text(f"assets: x\ngroups: {{one: {{{group}, scenes: {{tasks: {{{task}: 1}}}}}}}}\n")
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        load_yaml(file, EvaluateConfig, [])
    assert "\n" not in str(caught.value)


def test_generated_codes_are_counted_where_the_things_are(assets: Assets, tmp_path: Path) -> None:
    """Of an edit apart: what stands as it did, and what comes or goes."""
    pipeline = load(tiny_folder(tmp_path / "tiny"))
    wanted = config(assets, "remove").model_copy(update={"part": "autoregressive", "languages": ("en",)})
    case = cases(wanted, assets, "one")[0]
    with pipeline.networks.use("semantic_tokenizer") as tokenizer:
        true, cells = counted_cells(tokenizer, case.record)
    assert set(cells) == {"codes kept", "codes changed"}
    ((left, top, right, bottom),) = case.record.truth["subjects"]
    rows_kept, columns_kept = cells["codes kept"].nonzero().T
    assert (rows_kept * 32 < bottom).all()
    assert ((rows_kept + 1) * 32 > top).all()
    assert (columns_kept * 32 < right).all()
    assert ((columns_kept + 1) * 32 > left).all()
    assert true.shape == cells["codes changed"].shape
    assert not (cells["codes kept"] & cells["codes changed"]).any()
    one = wanted.model_copy(update={"groups": {"one": wanted.groups["one"].model_copy(update={"cases": 2})}})
    outcomes = evaluate(one, pipeline, Judge(assets, (), ()), say=lambda line: None)
    table = rows(outcomes)
    assert {row.ability for row in table} == {
        f"one: codes {what}, {how}" for what in ("kept", "changed") for how in ("greedy", "drawn")
    }
    assert all(row.ceiling == 1 and 0 <= row.low <= row.share <= row.high <= 1 for row in table)


def test_pictures_that_are_made_elsewhere_are_the_same(assets: Assets, tmp_path: Path) -> None:
    class Blind:
        """Sees nothing."""

        def __init__(self) -> None:
            self.assets = assets

        def __call__(self, case: object, picture: Image.Image) -> dict[str, tuple[float, float]]:
            return {"seen": (1.0, 1.0)}

    folder = tiny_folder(tmp_path / "tiny")
    wanted = config(assets, "remove")
    few = {"one": wanted.groups["one"].model_copy(update={"cases": 2})}
    wanted = wanted.model_copy(
        update={"part": "autoencoder", "languages": ("en",), "groups": few, "model": str(folder)}
    )
    judge: Any = Blind()
    here = evaluate(wanted, load(folder), judge, lambda line: None)
    there = evaluate(wanted, load(folder), judge, lambda line: None, lambda make, batches: map(make(), batches))
    assert [one.picture.tobytes() for one in here] == [one.picture.tobytes() for one in there]
    assert len(here) == 2


def test_the_table_pools_points_and_shows_languages_and_ceiling(assets: Assets, tmp_path: Path) -> None:
    made = cases(config(assets, "subject"), assets, "one")
    assert [case.language for case in made[:2]] == ["en", "zh"]
    picture = Image.new("RGB", (64, 64))
    outcomes = [
        Outcome(case, picture, {"subject": (float(case.language == "en"), 1)}, {"subject": (1.0, 1)}) for case in made
    ]
    (row,) = rows(outcomes)
    assert (row.share, row.ceiling, row.cases) == (0.5, 1.0, 8)
    assert row.by_language == {"en": 1.0, "zh": 0.0}
    assert row.gap == 100
    assert row.low < 0.5 < row.high
    assert "| subject | 8 | 50.0 % |" in markdown([row], {"kid": 1.0})
    write_report(tmp_path / "report", [row], {"kid": 1.0}, outcomes, assets.fonts, 4, {"model": "m"})
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"results.json", "results.md", "sheet.png"}


def test_nanos_evaluation_asks_for_what_training_never_saw() -> None:
    wanted = load_yaml(ROOT / "configs" / "nano" / "evaluate.yaml", EvaluateConfig, [])
    assert all(group.scenes.split == "evaluation" and group.scenes.held for group in wanted.groups.values())
    assert 2 * wanted.cases >= 100


def test_a_part_alone_starts_from_the_true_scene(
    assets: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder renders the scene's own tokens, the autoencoder the scene; neither asks the autoregressive model."""
    pipeline = load(tiny_folder(tmp_path / "tiny"))
    wanted = config(assets, "subject").model_copy(update={"options": {"steps": 1}})
    case = cases(wanted, assets, "one")[0]
    width, height = case.record.image.size
    tokens = pipeline.networks.checkpoint.semantic_tokenizer(torch.device("cpu"), torch.float32).encode(
        [case.record.image]
    )
    request = ImageRequest(case.prompt, (height, width), wanted.seed + case.index, codes=tokens[0])
    made = pipeline.make([request], steps=1)[0]
    assert torch.equal(made.codes, tokens[0])
    monkeypatch.setattr("arimage.inference.engine.generate_grids", lambda *_: pytest.fail("asked for tokens"))
    (rendered,) = pictures([case], pipeline, wanted.model_copy(update={"part": "decoder"}))
    assert np.array_equal(np.asarray(rendered), np.asarray(made.image))
    (there_and_back,) = pictures([case], pipeline, wanted.model_copy(update={"part": "autoencoder"}))
    assert there_and_back.size == (width, height)
    assert not np.array_equal(np.asarray(there_and_back), np.asarray(rendered))
    with pytest.raises(ValueError, match="codes"):
        ImageRequest("x", (height, 2 * width), 1, codes=tokens[0])


def test_features_are_unit_vectors(judge: Judge) -> None:
    found = judge.features([Image.new("RGB", (50, 70), (200, 10, 10)), Image.new("RGB", (64, 64))])
    assert found.shape == (2, 1280)
    assert torch.allclose(found.norm(dim=1), torch.ones(2))


def test_a_case_knows_its_scene(assets: Assets) -> None:
    case: Case = cases(config(assets, "subject"), assets, "one")[0]
    assert case.scene["subjects"]


def test_lpips_is_nought_for_the_same_picture_and_grows_with_blur() -> None:
    distance = Lpips()
    picture = Image.effect_noise((96, 96), 90).convert("RGB")
    first, soft, softer = (
        pixels(p)[None] for p in (picture, *(picture.filter(ImageFilter.GaussianBlur(r)) for r in (0.7, 2)))
    )
    assert float(distance(first, first)) == 0
    assert 0.01 < float(distance(first, soft)) < float(distance(first, softer))


def test_weights_of_lpips_are_arrays_and_nothing_else(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('run')",)

    file = tmp_path / "harm"
    file.write_bytes(pickle.dumps({"AlexNet_0": Harm()}))
    with file.open("rb") as handle, pytest.raises(pickle.UnpicklingError, match="exec is no array"):
        _Arrays(handle).load()
    file.write_bytes(pickle.dumps({"a": np.arange(3.0)}))
    with file.open("rb") as handle:
        assert _Arrays(handle).load()["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.1.bias"), "lacks '1.bias'"),
        (lambda state: state.update({"features.9.weight": torch.ones(1)}), "holds '9.weight' besides"),
        (lambda state: state.update({"features.0.weight": torch.ones(1)}), "size mismatch"),
        (lambda state: state.clear(), "lacks '0.weight'"),
        (lambda state: [state.pop(name) for name in list(state) if "num_batches" in name], None),
    ],
)
def test_the_judges_features_take_all_of_their_weights_or_refuse_them(change: Any, message: str | None, tmp_path: Path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.BatchNorm2d(4))
    state = {f"features.{name}": value + 1 for name, value in network.state_dict().items()}
    change(state)
    torch.save({**state, "classifier.weight": torch.ones(2)}, tmp_path / "x.pth")
    if message is None:
        fill_features(network, tmp_path / "x.pth")
        assert torch.equal(network[1].weight, torch.full((4,), 2.0))
        return
    with pytest.raises(DataError, match=message) as caught:
        fill_features(network, tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_weights_of_the_judge_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"x\.pth cannot be read"):
        fill_features(torch.nn.Sequential(), tmp_path / "x.pth")
