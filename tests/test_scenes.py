"""Scenes: every caption is true, every edit changes what it says and nothing else, every index is itself."""

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from arimage.data.assets import Assets
from arimage.data.colors import BY_NAME, COLORS, distance
from arimage.data.records import Record
from arimage.data.scenes import Scenes
from arimage.data.scenes.cells import letter_cells
from arimage.data.scenes.draw import draw
from arimage.data.scenes.edits import Editor
from arimage.data.scenes.settings import EDIT_TASKS, PICTURE_TASKS, TASKS, SceneSettings
from arimage.data.scenes.spec import scene_spec
from arimage.data.sheet import contact_sheet
from arimage.data.split import (
    SHARES,
    combination_held_out,
    concept_held_out,
    held_out,
    text_held_out,
)
from arimage.errors import DataError, UsageError
from decoder.glyph import quoted_texts
from tests.tiny_assets import write_assets


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="session")
def assets(folder: Path) -> Assets:
    return Assets.open(folder)


def scenes(assets: Assets, *tasks: str, **settings: object) -> Scenes:
    values = {"tasks": dict.fromkeys(tasks or TASKS, 1.0), "sizes": ((128, 128),), "chinese_text": 0.0, **settings}
    return Scenes(assets, SceneSettings.model_validate(values))


def digest(record: Record) -> str:
    images = b"".join(image.tobytes() for image in (record.image, *record.sources))
    mask = b"" if record.mask is None else record.mask.tobytes()
    text = repr((sorted(record.captions.items()), record.task, record.rating, sorted(record.truth)))
    return hashlib.sha256(images + mask + text.encode()).hexdigest()


def test_the_same_index_gives_the_same_bytes_in_another_process(assets: Assets, folder: Path) -> None:
    here = [digest(scenes(assets)[index]) for index in range(20)]
    script = (
        "import sys; from pathlib import Path; from tests.test_scenes import *;"
        "a = Assets.open(sys.argv[1]); print(*[digest(scenes(a)[i]) for i in reversed(range(20))])"
    )
    run = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout.split()[::-1] == here


def test_every_task_comes_and_another_seed_gives_other_scenes(assets: Assets) -> None:
    data = scenes(assets)
    records = [data[index] for index in range(200)]
    assert set(Counter(record.task for record in records)) == set(TASKS)
    other = scenes(assets, seed=1)
    assert sum(digest(other[index]) == digest(records[index]) for index in range(20)) == 0


@pytest.mark.parametrize("task", TASKS)
def test_every_record_is_whole(assets: Assets, task: str) -> None:
    data = scenes(assets, task)
    for index in range(15):
        record = data[index]
        assert record.image.size == (128, 128)
        assert record.image.mode == "RGB"
        assert all(caption.strip() for caption in record.captions.values())
        assert {kind[:2] for kind in record.captions} >= {"en", "zh"}
        assert 1 <= record.rating <= 5
        assert bool(record.sources) == (task in EDIT_TASKS)
        assert all(source.size == (128, 128) and source.mode == "RGB" for source in record.sources)
        assert (record.mask is not None) == (task == "inpaint")


def test_the_background_has_the_colour_that_is_named(assets: Assets) -> None:
    data = scenes(assets, "subject", "subjects", "count", patterns=0.0)
    for index in range(60):
        record = data[index]
        spec = record.truth["spec"]
        corner = record.image.getpixel((1, 1))
        shade = spec["background"]["first"]
        assert isinstance(corner, tuple)
        assert tuple(corner) == tuple(shade["rgb"])
        nearest = min(COLORS, key=lambda color: distance(color.rgb, tuple(corner)))
        assert nearest.name == shade["name"]
        words = BY_NAME[shade["name"]]
        for kind, caption in record.captions.items():
            if kind != "mixed":
                assert any(word in caption.lower() for word in getattr(words, kind[:2])), caption


def test_the_subjects_are_where_the_caption_says(assets: Assets) -> None:
    data = scenes(assets, "subject", patterns=0.0)
    seen = Counter()
    for index in range(120):
        record = data[index]
        (left, top, right, bottom), subject = record.truth["subjects"][0], record.truth["spec"]["subjects"][0]
        x, y, place = (left + right) / 2 / 128, (top + bottom) / 2 / 128, subject["place"]
        seen[place] += 1
        assert ("left" in place) == (x < 0.4), (place, x)
        assert ("right" in place) == (x > 0.6), (place, x)
        assert ("top" in place) == (y < 0.4), (place, y)
        assert ("bottom" in place) == (y > 0.6), (place, y)
        different = ImageChops.difference(record.image, Image.new("RGB", (128, 128), record.image.getpixel((0, 0))))
        box = different.getbbox()
        assert box is not None
        assert all(abs(a - b) <= 3 for a, b in zip(box, (left, top, right, bottom)))
    assert len(seen) == 9


def test_as_many_subjects_are_drawn_as_are_counted(assets: Assets) -> None:
    data = scenes(assets, "count")
    words = ["zero", "one", "two", "three", "four"]
    for index in range(30):
        record = data[index]
        count = len(record.truth["subjects"])
        assert words[count] in record.captions["en/sentence"].lower()
        assert len({tuple(box) for box in record.truth["subjects"]}) == count


@pytest.mark.parametrize("task", ["background", "replace", "style", "add", "remove"])
def test_crowded_edits_begin_with_four_subjects(assets: Assets, task: str) -> None:
    data = Scenes(assets, SceneSettings(tasks={task: 1}, crowded=1.0))
    for index in range(5):
        before = 3 if task == "add" else 4
        after = 3 if task == "remove" else 4
        record = data[index]
        assert len(record.truth["spec"]["subjects"]) == after, record.captions
        assert len(record.truth["sources"][0]["subjects"]) == before


def test_four_different_subjects_stand_in_the_corners(assets: Assets) -> None:
    data = scenes(assets, "corners")
    for index in range(20):
        record = data[index]
        subjects = record.truth["spec"]["subjects"]
        assert len({subject["concept"] for subject in subjects}) == 4
        assert len({subject["style"] for subject in subjects}) == 1
        corners = {(subject["x"] > 0.5, subject["y"] > 0.5) for subject in subjects}
        assert len(corners) == 4
        places = [subject["place"] for subject in subjects]
        assert places == ["top left", "top right", "bottom left", "bottom right"]
        boxes = record.truth["subjects"]
        assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for a in boxes for b in boxes if a != b)


def test_a_written_text_is_quoted_in_every_caption_and_nothing_else_is(assets: Assets) -> None:
    data = scenes(assets, "text", "typography", phrases=0.5)
    for index in range(80):
        record = data[index]
        text = record.truth["spec"]["lettering"]["text"]
        for caption in record.captions.values():
            assert quoted_texts(caption) == [text], caption
        left, top, right, bottom = record.truth["text"]
        assert right - left > 4
        assert bottom - top > 4
        assert left >= 0
        assert right <= 128


def test_texts_in_captions_without_text_are_not_quoted(assets: Assets) -> None:
    data = scenes(assets, "subject", "subjects", "count")
    assert not any(quoted_texts(caption) for index in range(40) for caption in data[index].captions.values())


@pytest.mark.parametrize("task", [task for task in EDIT_TASKS if task not in ("background", "combine", "identity")])
def test_a_local_edit_leaves_everything_else_pixel_for_pixel(assets: Assets, task: str) -> None:
    data = scenes(assets, task)
    changed = 0
    for index in range(25):
        record = data[index]
        allowed = np.zeros((128, 128), bool)
        for left, top, right, bottom in record.truth["changed"]:
            allowed[top:bottom, left:right] = True
        before, after = (np.asarray(image) for image in (record.sources[-1], record.image))
        different = (before != after).any(axis=-1)
        assert not (different & ~allowed).any()
        changed += different.any()
        if record.mask is not None:
            assert not (different & (np.asarray(record.mask) == 0)).any()
    assert changed == 25


def test_another_background_leaves_the_subjects_as_they_are(assets: Assets) -> None:
    data = scenes(assets, "background")
    for index in range(20):
        record = data[index]
        before, after = (np.asarray(image).astype(int) for image in (record.sources[0], record.image))
        left, top, right, bottom = record.truth["subjects"][0]
        y, x = (top + bottom) // 2, (left + right) // 2
        assert (before[y, x] == after[y, x]).all()
        assert (before[0, 0] != after[0, 0]).any() or record.truth["spec"]["background"]["pattern"] != "plain"


def test_a_reference_keeps_its_identity(assets: Assets) -> None:
    data = scenes(assets, "identity", "insert", "combine")
    for index in range(30):
        record = data[index]
        shown = {(s["concept"], s["style"]) for s in record.truth["spec"]["subjects"]}
        for source in record.truth["sources"]:
            assert {(s["concept"], s["style"]) for s in source["spec"]["subjects"]} <= shown


def test_the_same_scene_in_another_size_has_the_same_parts(assets: Assets) -> None:
    record = scenes(assets, "subjects")[3]
    large = scenes(assets, "subjects", sizes=((256, 256),))[3]
    assert [s["concept"] for s in record.truth["spec"]["subjects"]] == [
        s["concept"] for s in large.truth["spec"]["subjects"]
    ]


def test_neighbours_share_a_size_so_that_batches_can_be_made(assets: Assets) -> None:
    settings = SceneSettings(sizes=((128, 128), (128, 192), (192, 128)))
    data = Scenes(assets, settings, run=8)
    sizes = [data.size(index) for index in range(80)]
    assert all(len(set(sizes[start : start + 8])) == 1 for start in range(0, 80, 8))
    assert len(set(sizes)) == 3
    assert data[17].image.size == sizes[17]


# Held out


def test_training_and_evaluation_are_disjoint(assets: Assets) -> None:
    def seen(split: str, held: str | None, *tasks: str) -> tuple[set[object], set[object], set[object]]:
        data = scenes(assets, *tasks, split=split, held=held)
        combinations, concepts, texts = set(), set(), set()
        for index in range(80):
            spec = data[index].truth["spec"]
            for subject in spec["subjects"]:
                combinations.add((subject["concept"], subject["style"], spec["background"]["first"]["name"]))
                concepts.add(subject["concept"])
            if spec["lettering"] is not None:
                texts.add(spec["lettering"]["text"].casefold())
        return combinations, concepts, texts

    train = seen("train", None, "subject", "subjects", "text", "typography", "background", "identity")
    assert not any(concept_held_out(concept) for concept in train[1])
    assert not any(text_held_out(text) for text in train[2])
    assert not any(combination_held_out(*combination) for combination in train[0])
    held = seen("evaluation", "combination", "subject")
    assert all(combination_held_out(*combination) for combination in held[0])
    assert not held[0] & train[0]
    words = seen("evaluation", "word", "typography")
    assert all(text_held_out(text) for text in words[2])
    assert not words[2] & train[2]


def test_the_split_is_a_function_of_names_with_the_shares_that_are_stated() -> None:
    for kind, share in SHARES.items():
        names = [f"name {number}" for number in range(20_000)]
        held = [name for name in names if held_out(kind, name)]
        assert abs(len(held) / len(names) - share) < 0.005
        assert all(held_out(kind, name) for name in held)
    assert text_held_out("OPEN") == text_held_out("open")


def test_a_style_for_evaluation_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="kept for evaluation"):
        SceneSettings(styles=("openmoji",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": {"subjet": 1}}, "no task 'subjet'"),
        ({"tasks": {"subject": -1}}, "must not be negative"),
        ({"tasks": {"subject": 0}}, "at least one"),
        ({"colors": ["mauve"]}, "no colour 'mauve'"),
        ({"sizes": [[100, 100]]}, "multiples of 32"),
        ({"held": "word"}, "split: evaluation"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneSettings.model_validate(settings)


def test_settings_that_nothing_fits_are_an_error_not_a_hang(assets: Assets) -> None:
    with pytest.raises(DataError, match="style 'marble'"):
        scenes(assets, styles=("marble",))
    with pytest.raises(DataError, match="two styles"):
        scenes(assets, "style", styles=("bold",))[0]
    with pytest.raises(DataError, match="no scene fits"):
        scenes(assets, "typography", split="evaluation", held="combination")[0]


# Quality


def test_ratings_follow_their_rules(assets: Assets) -> None:
    from dataclasses import replace

    from arimage.data.scenes.quality import rating
    from arimage.data.scenes.spec import Background, Lettering, SceneSpec, Shade, Subject

    white, black = Shade("white", (255, 255, 255)), Shade("black", (0, 0, 0))
    subject = Subject("a2", "bold", 0.5, 0.35, 0.4)
    text = Lettering("OPEN", "en", "built-in", black, 0.5, 0.85, 0.15)
    good = SceneSpec(256, 256, Background("plain", white), (subject,), text)
    grade = {"good": rating(good, draw(good, assets), assets)}
    faint = replace(good, lettering=replace(text, color=Shade("beige", (240, 230, 210))))
    over = replace(good, lettering=replace(text, y=0.35))
    crowd = replace(good, subjects=(subject, replace(subject, x=0.55)), lettering=None)
    lost = replace(good, subjects=(replace(subject, tint=white),), lettering=None)
    for name, spec in {"faint": faint, "over": over, "crowd": crowd, "lost": lost}.items():
        grade[name] = rating(spec, draw(spec, assets), assets)
    assert grade == {"good": 5, "faint": 3, "over": 3, "crowd": 4, "lost": 4}


def test_the_best_scenes_can_be_asked_for(assets: Assets) -> None:
    data = scenes(assets, "subject", "text", minimum_rating=5)
    assert {data[index].rating for index in range(30)} == {5}


def test_every_edit_family_is_in_the_editor(assets: Assets) -> None:
    assert set(Editor(scenes(assets).composer).families) == set(EDIT_TASKS)
    assert set(PICTURE_TASKS) | set(EDIT_TASKS) == set(TASKS)


def test_a_contact_sheet_shows_all(assets: Assets) -> None:
    data = scenes(assets)
    sheet = contact_sheet([data[index] for index in range(9)], columns=3, side=64)
    assert sheet.width > 3 * 64
    assert sheet.getcolors(maxcolors=64) is None


def test_a_missing_pack_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="arimage data sprites"):
        Assets.open(tmp_path)
    (tmp_path / "sprites.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="no sprite pack"):
        Assets.open(tmp_path)


def test_wrong_usage_of_the_commands(tmp_path: Path, folder: Path) -> None:
    from arimage.cli.data import _records

    with pytest.raises(UsageError, match="no task 'fly'"):
        _records(str(folder), 1, 0, ["fly"], 128)
    with pytest.raises(UsageError, match="multiple of 32"):
        _records(str(folder), 1, 0, None, 100)


IN_CELLS = {"english_letters": 8, "phrases": 0.0, "digits": 0.0}


@pytest.mark.parametrize("size", [(256, 256), (512, 256)])
def test_on_a_grid_subjects_fill_whole_cells(assets: Assets, size: tuple[int, int]) -> None:
    made = scenes(assets, sizes=(size,), cells=8, **IN_CELLS)
    for index in range(40):
        facts = made[index].truth
        for scene in (facts, *facts.get("sources", [])):  # type: ignore[misc]
            for subject in scene["spec"]["subjects"]:
                side = subject["size"] * 8
                assert side in (2, 4, 6)
                corner = (subject["x"] * size[0] / 32 - side / 2, subject["y"] * size[1] / 32 - side / 2)
                assert all(abs(value - round(value)) < 1e-6 and value >= 0 for value in corner), corner


@pytest.mark.parametrize("size", [(256, 256), (512, 256)])
def test_on_a_grid_each_character_has_its_own_cell(assets: Assets, size: tuple[int, int]) -> None:
    made = scenes(assets, "typography", sizes=(size,), cells=8, patterns=0.0, plain_ink=True, capitals=True, **IN_CELLS)
    for index in range(20):
        record = made[index]
        text = record.truth["spec"]["lettering"]  # type: ignore[index]
        left, top, right, bottom = record.truth["text"]  # type: ignore[misc]
        assert (left % 32, top % 32, bottom - top) == (0, 0, 32)
        assert right - left == 32 * len(text["text"])
        assert text["text"] == text["text"].upper()
        assert text["color"]["name"] in ("black", "white")
        for cell in range(len(text["text"])):
            drawn = record.image.crop((left + 32 * cell, top, left + 32 * cell + 32, bottom))
            assert len(drawn.getcolors(1024) or []) > 1, "every cell shows its character"


def test_texts_stand_on_the_grounds_that_are_asked_for(assets: Assets) -> None:
    made = scenes(assets, "typography", grounds=("white", "navy"), patterns=0.0)
    for index in range(30):
        spec = made[index].truth["spec"]  # type: ignore[index]
        holder = spec["lettering"]["holder_color"]
        ground = spec["background"]["first"] if spec["lettering"]["holder"] == "none" else holder
        assert ground["name"] in ("white", "navy") or spec["lettering"]["holder"] == "banner"


def test_words_longer_than_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="longer than the grid"):
        SceneSettings(cells=8, english_letters=9, phrases=0)
    with pytest.raises(ValueError, match="set phrases to 0"):
        SceneSettings(cells=8, english_letters=8)


def test_lines_of_text_are_quoted_one_by_one_from_top_to_bottom(assets: Assets) -> None:
    data = scenes(assets, "lines", phrases=0.5)
    for index in range(40):
        record = data[index]
        lines = record.truth["spec"]["lettering"]["text"].split("\n")
        assert 2 <= len(lines) == len(set(lines)) <= 5
        for caption in record.captions.values():
            assert quoted_texts(caption) == lines, caption
        left, top, right, bottom = record.truth["text"]
        assert 0 <= left < right <= 128, "the block fits the picture"
        assert 0 <= top < bottom <= 128
        held = [text_held_out(line) for line in lines]
        assert not any(held)


def test_on_a_grid_lines_stand_below_each_other_a_cell_for_each_character(assets: Assets) -> None:
    plain: dict[str, Any] = {"patterns": 0.0, "plain_ink": True, "capitals": True, **IN_CELLS}
    made = scenes(assets, "lines", sizes=((256, 256),), cells=8, **plain)
    for index in range(20):
        record = made[index]
        spec = scene_spec(record.truth["spec"])
        assert spec.lettering is not None
        text = spec.lettering.text
        places = letter_cells(spec, 16, 16)
        assert sorted(set(places.flatten().tolist()) - {-1}) == [i for i, c in enumerate(text) if c != "\n"]
        for place, character in enumerate(text):
            if character == "\n":
                continue
            rows, columns = (places == place).nonzero(as_tuple=True)
            assert (len(rows), rows.min() % 2, columns.min() % 2) == (4, 0, 0), "a cell of two tokens by two"
            row = text[:place].count("\n")
            assert rows.min() == round(spec.lettering.y * 16) - len(spec.lettering.lines) + 2 * row
            box = (columns.min() * 16, rows.min() * 16, columns.min() * 16 + 32, rows.min() * 16 + 32)
            drawn = record.image.crop(tuple(int(edge) for edge in box))  # type: ignore[arg-type]
            assert len(drawn.getcolors(1024) or []) > 1, "every cell shows its character"


def test_random_letters_show_every_letter(assets: Assets) -> None:
    made = scenes(assets, "lines", random_letters=1.0, phrases=0.0, digits=0.0, chinese_text=0.0)
    texts = [made[index].truth["spec"]["lettering"]["text"] for index in range(60)]
    assert set("".join(texts)) - {"\n"} == set(ascii_uppercase)
    counts = [sum(text.count(letter) for text in texts) for letter in "QXJ"]
    assert min(counts) > 5, "rare letters are as frequent as others"


def test_one_line_among_several_is_changed_and_named(assets: Assets) -> None:
    data = scenes(assets, "change text", crowded=1.0)
    for index in range(15):
        record = data[index]
        before, after = (
            facts["spec"]["lettering"]["text"].split("\n") for facts in (record.truth["sources"][-1], record.truth)
        )
        different = [(a, b) for a, b in zip(before, after) if a != b]
        assert len(before) == len(after) > 1
        assert len(different) == 1
        for instruction in record.captions.values():
            assert quoted_texts(instruction) == list(different[0])
