"""Where pictures go: patterns, names, earlier results, and outputs that cannot be written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arimage.cli.targets import output_paths, plan_edits, sheet_path, typed, without_results
from arimage.errors import ArimageError, UsageError
from arimage.files import check_writable
from arimage.images.recipe import Recipe, Source
from arimage.images.writing import check_holds, save_picture
from tests.conftest import photo


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty one, and every test runs in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        photo(8, 8).save(name)
    return [Path(name) for name in names]


def result(path, source, **options):
    """The result of an edit, as this package writes it."""
    recipe = Recipe(
        arimage="0", model="m", weights_sha256="0", random_weights=False, task="edit", prompt="x", seed=1,
        size=(64, 64), output_size=(8, 8), settings={}, tier="fast", device="cpu", dtype="float32", torch="2",
        references=(Source(path=str(Path(source).resolve()), sha256="0"),),
    )  # fmt: skip
    mark = "compositeWithTrainedAlgorithmicMedia"
    return save_picture(photo(8, 8, 1), path, **{"recipe": recipe, "ai_mark": mark, **options})


def planned(names, output=None, count=1, seed=1, protected=False):
    return [
        [str(path) for path in job.paths]
        for job in plan_edits([Path(name) for name in names], output and Path(output), count, seed, protected)
    ]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a.png", ["a-1.png", "a-2.png"]),
        ("{seed}-{index}.png", ["7-1.png", "8-2.png"]),
        ("x/{index:03}.png", ["x/001.png", "x/002.png"]),
        ("{3F25-A}.png", ["{3F25-A}-1.png", "{3F25-A}-2.png"]),
        ("{A3F2-11}{index}.png", ["{A3F2-11}1.png", "{A3F2-11}2.png"]),
        ("{{seed}}{seed}.png", ["{seed}7.png", "{seed}8.png"]),
        ("{1}{}{ {index}.png", ["{1}{}{ 1.png", "{1}{}{ 2.png"]),
        ("there{seed}/{seed}.png", ["there{seed}/7.png", "there{seed}/8.png"]),
        ("there{name}/more/{seed}.png", ["there{name}/more/7.png", "there{name}/more/8.png"]),
    ],
)
def test_only_index_and_seed_are_filled_in_and_folders_that_exist_are_meant_as_they_stand(pattern, paths):
    for name in ("there{seed}", "there{name}"):
        Path(name).mkdir()
    assert list(map(str, output_paths(typed(Path(pattern)), [7, 8]))) == paths


@pytest.mark.parametrize("pattern", ["{name}.png", "{sed:3}.png", "{seed:zz}.png", "{index[0]}.png", "new{name}/x.png"])
def test_an_unknown_placeholder_is_named(pattern):
    with pytest.raises(UsageError) as caught:
        typed(Path(pattern))
    assert pattern.split("/")[0].removesuffix(".png").removeprefix("new") in str(caught.value)


def test_the_contact_sheet_is_called_after_the_pattern():
    for pattern, name in (("a.png", "a"), ("{index:03}.png", "all"), ("x-{seed}.webp", "x"), ("{{b}}.png", "{b}")):
        assert sheet_path(Path(pattern), Path("out/1.png")) == Path(f"out/{name}-sheet.png")


def test_braces_in_the_names_of_inputs_and_their_folders_are_no_pattern():
    names = ["{3F25-01}.png", "dir{1}/{seed}.png", "dir{seed}/{name}.jpg"]
    pictures(*names)
    assert planned(names) == [
        ["{3F25-01}-edited.png"], ["dir{1}/{seed}-edited.png"], ["dir{seed}/{name}-edited.jpg"],
    ]  # fmt: skip
    assert planned(names, "out{1}") == [["out{1}/{3F25-01}.png"], ["out{1}/{seed}.png"], ["out{1}/{name}.jpg"]]
    assert planned(names[:1], "out-{seed}", seed=5) == [["out-5/{3F25-01}.png"]]


def test_formats_that_lose_pixels_are_not_chosen_where_a_part_is_protected():
    names = ["a.jpg", "b.JPEG", "c.webp", "d.png", "e.tif"]
    pictures(*names)
    assert planned(names) == [[f"{n}-edited.{s}"] for n, s in zip("abcde", ("jpg", "jpeg", "webp", "png", "png"))]
    masked = planned(names, protected=True)
    assert masked == [[f"{n}-edited.{s}"] for n, s in zip("abcde", ("png", "png", "webp", "png", "png"))]
    assert planned(["a.jpg"], "x.jpg", protected=True) == [["x.jpg"]]


def test_earlier_results_are_no_inputs_and_peoples_own_pictures_of_that_name_are():
    inputs = pictures("p1.png", "p2.jpg", "p3.png", "p4.tif", "p3-edited.png", "own-edited.png")
    results = [
        result("p1-edited.png", "p1.png"),
        result("p1-edited-edited.png", "p1-edited.png"),
        result("p2-edited-2.jpg", "p2.jpg", recipe=None),
        result("p4-tif-edited.png", "p4.tif", ai_mark=None),
    ]
    alone = result("gone-edited.png", "gone.png")
    assert without_results(sorted([*inputs, *results, alone])) == sorted([*inputs, alone])


def test_no_name_that_is_taken_is_used():
    """Not a picture of somebody's own, not another input, not another one's result; our own is used again."""
    pictures("a.png", "a-edited.png", "b.png", "b.tif", "c.png")
    result("c-edited.png", "c.png")
    result("d-edited.png", "c.png")
    pictures("d.png")
    assert planned(["a.png", "b.png", "b.tif", "c.png", "d.png"]) == [
        ["a-png-edited.png"], ["b-edited.png"], ["b-tif-edited.png"], ["c-edited.png"], ["d-png-edited.png"],
    ]  # fmt: skip
    pictures("out/a.png", "x/b.png")
    assert planned(["a.png"], "out") == [["out/a.png"]]
    assert planned(["x/b.png", "b.png"], "out") == [["out/b.png"], ["out/b-png.png"]]
    assert planned(["c.png", "x/b.png", "out/a.png"], "x", 2)[1:] == [
        ["x/b-1.png", "x/b-2.png"],
        ["x/a-1.png", "x/a-2.png"],
    ]
    with pytest.raises(UsageError, match=r"x/b\.png would be overwritten"):
        planned(["x/b.png"], "x")
    pictures("a-png-edited.png")
    with pytest.raises(UsageError, match=r"every name .* a\.png is taken"):
        planned(["a.png"])
    assert planned(["a.png", "c.png"], "out")[0] == ["out/a.png"]
    with pytest.raises(UsageError, match="2 pictures need a folder"):
        planned(["a.png", "c.png"], "one.png")


@pytest.mark.parametrize(
    "path",
    ["folder.png", "file/x.png", "file/new/x.png", "x" * 300 + ".png", "new/" + "x" * 300 + "/y.png", "loop/x.png"],
)
def test_outputs_that_cannot_be_written_are_refused_and_nothing_is_left(path, folder):
    (folder / "folder.png").mkdir()
    (folder / "file").write_text("")
    (folder / "loop").symlink_to(folder / "loop")
    before = sorted(folder.iterdir())
    for place in (Path(path), folder / path):
        with pytest.raises(ArimageError, match="cannot write"):
            check_writable([Path("fine.png"), place])
    assert sorted(folder.iterdir()) == before


def test_outputs_that_can_be_written_leave_nothing_behind(folder):
    (folder / "there.png").write_text("old")
    long = "文" * 80 + ".png"
    check_writable([Path("there.png"), Path("new/folder/x.png"), Path(long), folder / "y.png"])
    assert [path.name for path in folder.iterdir()] == ["there.png"]
    save_picture(photo(8, 8), long)
    assert Path(long).exists()


def test_a_folder_that_takes_no_files_is_refused(monkeypatch):
    """Permissions do not stop every user, so the refusal is the system's own."""

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ArimageError, match=r"cannot write x\.png: Permission denied"):
        check_writable([Path("x.png")])


def test_webp_keeps_every_pixel_where_asked():
    picture = photo(40, 30, mode="RGBA")
    save_picture(picture, "x.webp", lossless=True)
    assert np.array_equal(np.asarray(Image.open("x.webp")), np.asarray(picture))


def test_a_picture_that_a_format_cannot_hold_is_told():
    with pytest.raises(ArimageError, match=r"cannot write wide\.webp: .*; use \.png"):
        save_picture(Image.new("RGB", (16_400, 1)), "wide.webp")
    assert not Path("wide.webp").exists()


@pytest.mark.parametrize(("name", "most"), [("x.webp", 16_383), ("x.jpg", 65_500)])
def test_the_longest_sides_are_those_that_can_be_written(name, most):
    check_holds(Path(name), (1, most))
    save_picture(Image.new("RGB", (most, 1)), name)
    with pytest.raises(
        ArimageError, match=rf"cannot write {name}: {most + 1}x1 pixels, .* holds {most} a side; use \.png"
    ):
        check_holds(Path(name), (most + 1, 1))
    check_holds(Path("x.png"), (100_000, 1))
