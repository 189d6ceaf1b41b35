"""People's own data: every form is read, every fault is named, every picture lands in a bucket."""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from arimage.cli.main import run
from arimage.data.buckets import bucket_sizes, place
from arimage.data.captions import language
from arimage.data.check import check
from arimage.data.folders import OwnData, readable
from arimage.data.records import Record
from arimage.errors import DataError
from arimage.training.batches import StepBatches
from arimage.training.config import CaptionConfig, SourceConfig


def photo(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def imagefolder(path: Path) -> Path:
    path.mkdir()
    rows = [
        {"file_name": "a.png", "text": "a red door", "rating": 5},
        {"file_name": "deep/b.jpg", "captions": {"en/sentence": "a boat", "zh/sentence": "一条船"}},
        {"file_name": "c.webp", "instruction": "make it night", "source": "a.png", "mask": "mask.png"},
    ]
    (path / "deep").mkdir()
    photo(0).save(path / "a.png")
    photo(1, (64, 96)).save(path / "deep" / "b.jpg")
    photo(2).save(path / "c.webp")
    Image.new("L", (96, 64), 255).save(path / "mask.png")
    (path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def csv_folder(path: Path) -> Path:
    path.mkdir()
    photo(0).save(path / "a.png")
    (path / "metadata.csv").write_text('file_name,text,rating\na.png,"a door, red",4\n', encoding="utf-8")
    return path


def sidecars(path: Path) -> Path:
    path.mkdir()
    for number in range(3):
        photo(number).save(path / f"{number}.jpg")
        (path / f"{number}.txt").write_text(f"picture {number}\n第{number}张图\n", encoding="utf-8")
    return path


def webdataset(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in range(3):
            files = {
                f"{number:04d}.jpg": encoded(photo(number), "JPEG"),
                f"{number:04d}.txt": f"picture {number}".encode(),
            }
            if number == 2:
                files["0002.source.png"] = encoded(photo(9))
                files["0002.json"] = json.dumps({"rating": 2}).encode()
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def parquet(path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            "image": [{"bytes": encoded(photo(number)), "path": None} for number in range(4)],
            "caption": [f"picture {number}" for number in range(4)],
            "rating": [1, 2, 3, 4],
        }
    )
    pyarrow.parquet.write_table(table, path, row_group_size=3)
    return path


def saved_dataset(path: Path) -> Path:
    import datasets

    rows = {"image": [photo(0), photo(1)], "text": ["one", "two"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(path))
    return path


FORMS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "imagefolder": (imagefolder, 3),
    "metadata.csv": (csv_folder, 1),
    "sidecars": (sidecars, 3),
    "set.tar": (webdataset, 3),
    "set.parquet": (parquet, 4),
    "saved": (saved_dataset, 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str, tmp_path: Path) -> None:
    make, count = FORMS[form]
    data = OwnData(str(make(tmp_path / form)))
    records = [sample.read() for sample in data]
    assert len(records) == count
    assert all(record.image.mode == "RGB" and record.captions for record in records)


def test_edits_masks_captions_and_ratings_arrive(tmp_path: Path) -> None:
    first, second, third = (sample.read() for sample in OwnData(str(imagefolder(tmp_path / "a"))))
    assert first.rating == 5
    assert second.captions == {"en/sentence": "a boat", "zh/sentence": "一条船"}
    assert third.task == "edit"
    assert third.mask is not None
    assert third.sources[0].tobytes() == first.image.tobytes()
    tar = [sample.read() for sample in OwnData(str(webdataset(tmp_path / "b.tar")))]
    assert (tar[2].rating, len(tar[2].sources)) == (2, 1)
    sidecar = OwnData(str(sidecars(tmp_path / "c")))[1].read()
    assert sidecar.captions == {"caption": "picture 1", "caption 2": "第1张图"}


def test_data_behind_another_file_system_is_read_the_same(tmp_path: Path) -> None:
    import fsspec

    local = OwnData(str(webdataset(tmp_path / "set.tar")))
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/set.tar", (tmp_path / "set.tar").read_bytes())
    remote = OwnData("memory://bucket/set.tar")
    assert [s.read().image.tobytes() for s in local] == [s.read().image.tobytes() for s in remote]


def test_faults_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    photo(0).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(encoded(photo(1))[:60])
    rows = [
        {"file_name": "good.png", "text": "fine"},
        {"file_name": "broken.png", "text": "broken"},
        {"file_name": "missing.png", "text": "missing"},
        {"file_name": "good.png", "text": "  "},
        {"file_name": "good.png"},
        {"text": "no picture"},
        {"file_name": "../good.png", "text": "out"},
        {"file_name": "/etc/passwd", "text": "out"},
        {"file_name": "good.png", "text": "x", "rating": 9},
        {"file_name": "good.png", "text": "x", "rating": "high"},
        ["no", "object"],
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    bad: dict[str, str] = {}
    records = list(readable(OwnData(str(tmp_path)), lambda name, reason: bad.update({name: reason})))
    assert len(records) == 1
    assert len(bad) == 10
    wanted = ["damaged", "cannot be read", "empty", "no caption", "no picture", "outside", "outside", "1..5",
              "no number", "must be an object"]  # fmt: skip
    for (name, reason), part in zip(bad.items(), wanted):
        assert part in reason, (name, reason)
        assert "metadata.jsonl:" in name
        assert "\n" not in reason


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nothing", "does not exist"),
        (lambda path: path, "no pictures"),
        (lambda path: (path / "a.zip").write_bytes(b"x") and path / "a.zip", "data is read from"),
        (lambda path: (path / "a.tar").write_bytes(b"x" * 600) and path / "a.tar", "no readable tar"),
        (lambda path: (path / "a.parquet").write_bytes(b"x" * 60) and path / "a.parquet", "no readable parquet"),
        (lambda path: (path / "metadata.csv").write_text('"file_name') and path, "metadata.csv cannot be read"),
        (lambda path: (path / "state.json").write_text("{}") and path, "no readable data set"),
    ],
)
def test_places_that_hold_no_data_are_refused(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        OwnData(str(make(tmp_path)))


# Faults of one sample: whatever it is, in whatever form, the other samples are read


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def five(damage: str) -> list[dict[str, Any]]:
    """Rows of edits with masks, of which the one before the last is damaged."""
    picture, mask = encoded(photo(1, (64, 64)), "JPEG"), encoded(Image.new("L", (64, 64), 255))
    rows: list[dict[str, Any]] = [
        {"image": picture, "source": picture, "mask": mask, "caption": f"number {number}".encode()}
        for number in range(5)
    ]
    change: dict[str, dict[str, Any]] = {
        "text": {"caption": b"caf\xe9"},
        "half a character": {"caption": b"\xed\xa0\x80"},
        "cut off": {"cut": True},
        "type": {"caption": None, "type": True},
        "truncated picture": {"image": picture[: len(picture) // 2]},
        "no picture": {"image": b"<html>"},
        "empty picture": {"image": b""},
        "truncated source": {"source": picture[: len(picture) // 2]},
        "no mask": {"mask": b"mask"},
        "truncated mask": {"mask": mask[:50]},
        "size of mask": {"mask": encoded(Image.new("L", (32, 48), 255))},
    }
    rows[3] |= change[damage]
    return rows


def as_files(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir()
    for number, row in enumerate(rows):
        for name, suffix in (("image", "jpg"), ("source", "source.jpg"), ("mask", "mask.png")):
            (folder / f"{number}.{suffix}").write_bytes(row[name])


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    as_files(path, rows)
    lines = []
    for n, row in enumerate(rows):
        names = f'"file_name": "{n}.jpg", "source": "{n}.source.jpg", "mask": "{n}.mask.png"'.encode()
        line = b'{"text": "' + (row["caption"] or b"") + b'", ' + names + b"}"
        lines += [b"", line[:-7] if row.get("cut") else b"[1, 2]" if row.get("type") else line]
    (path / "metadata.jsonl").write_bytes(b"\n".join(lines))
    return "metadata.jsonl:8"


def as_csv(path: Path, rows: list[dict[str, Any]]) -> str:
    as_files(path, rows)
    lines = [b"file_name,source,mask,text"]
    for n, row in enumerate(rows):
        text = b'"a picture,\n' + (row["caption"] or b"") + b'"'
        text = b'"never closed' if row.get("cut") else b"a red, a blue" if row.get("type") else text
        lines.append(f"{n}.jpg,{n}.source.jpg,{n}.mask.png,".encode() + text)
    (path / "metadata.csv").write_bytes(b"\r\n".join(lines))
    return "metadata.csv:8"


def as_sidecars(path: Path, rows: list[dict[str, Any]]) -> str:
    path.mkdir()
    for number, row in enumerate(rows):
        (path / f"{number}.jpg").write_bytes(row["image"])
        (path / f"{number}.txt").write_bytes(row["caption"])
    return "3.jpg"


def as_tar(path: Path, rows: list[dict[str, Any]]) -> str:
    files = {}
    for number, row in enumerate(rows):
        about = b'{"rating": 3, "x": [1' if row.get("cut") else b'["x"]' if row.get("type") else b'{"rating": 3}'
        files |= {
            f"{number:04d}.jpg": row["image"], f"{number:04d}.txt": row["caption"] or b"x", f"{number:04d}.json": about,
            f"{number:04d}.source.jpg": row["source"], f"{number:04d}.mask.png": row["mask"],
        }  # fmt: skip
    path.write_bytes(tar_bytes(files))
    return "set.tar:0003"


def as_table(rows: list[dict[str, Any]]) -> Any:
    """An Arrow table whose texts may be any bytes, as other writers leave them."""
    import pyarrow

    columns: dict[str, Any] = {name: [{"bytes": row[name], "path": None} for row in rows] for name in ("image", "mask")}
    columns["sources"] = [[{"bytes": row["source"], "path": None}] for row in rows]
    columns["caption"] = pyarrow.array([row["caption"] for row in rows], pyarrow.binary()).view(pyarrow.string())
    return pyarrow.table(columns)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow.parquet

    pyarrow.parquet.write_table(as_table(rows), path, row_group_size=2)
    return "set.parquet:3"


def as_dataset(path: Path, rows: list[dict[str, Any]]) -> str:
    import datasets

    features = datasets.Features(
        image=datasets.Image(), mask=datasets.Image(), sources=datasets.List(datasets.Image()),
        caption=datasets.Value("string"),
    )  # fmt: skip
    datasets.Dataset(as_table(rows)).cast(features).save_to_disk(str(path))
    return "saved:3"


DAMAGED: dict[str, Callable[[Path, list[dict[str, Any]]], str]] = {
    "jsonl": as_jsonl, "csv": as_csv, "sidecars": as_sidecars, "set.tar": as_tar, "set.parquet": as_parquet,
    "saved": as_dataset,
}  # fmt: skip
REASONS = {
    "text": r"not UTF-8", "half a character": r"not UTF-8", "cut off": r"no valid (JSON|CSV)",
    "type": r"must .* object|no caption|has 5 fields", "truncated picture": r"the picture .*damaged",
    "no picture": r"the picture .*not a picture", "empty picture": r"the picture .*(not|no) ",
    "truncated source": r"the source .*damaged", "no mask": r"the mask .*not a picture",
    "truncated mask": r"the mask .*damaged", "size of mask": r"the mask has 32x48 pixels, its picture 64x64",
}  # fmt: skip
NOT_IN = {
    "sidecars": ("cut off", "type", "truncated source", "no mask", "truncated mask", "size of mask"),
    "set.parquet": ("cut off",), "saved": ("cut off",),
}  # fmt: skip
CASES = [(form, damage) for form in DAMAGED for damage in REASONS if damage not in NOT_IN.get(form, ())]


@pytest.mark.parametrize(("form", "damage"), CASES)
def test_one_bad_sample_is_named_and_the_others_are_used(
    form: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = DAMAGED[form](tmp_path / form, five(damage))
    place = str(tmp_path / form)
    capsys.readouterr()
    config = SourceConfig(path=place, sides=(64,))
    batches = StepBatches([config], 2, lambda examples: {}, CaptionConfig(dropout=0.0))
    read = [batches.examples(step) for step in range(3)]
    bad = {(one.name, one.reason) for one in (*batches.unreadable, *(one for _, found in read for one in found))}
    assert len(batches.unreadable) == ("truncated" not in damage)  # headers say no more
    report, _ = check(OwnData(place), bucket_sizes(64))
    assert (report.samples, report.usable) == (5, 4)
    ((name, reason),) = report.problems
    assert bad == {(name, reason)}
    assert Path(name).name == wanted
    assert re.fullmatch(rf"{re.escape(name)}: .*({REASONS[damage]}).*", reason), reason
    verified = StepBatches([config], 2, lambda examples: {}, CaptionConfig(dropout=0.0))
    assert [(one.name, one.reason) for one in verified.unreadable] == [(name, reason)]
    for examples in (
        [one for found, _ in read for one in found],
        [one for n in (0, 1) for one in verified.examples(n)[0]],
    ):
        assert {example.caption.split()[-1] for example in examples} == {"0", "1", "2", "4"}
    with pytest.raises(SystemExit) as caught:
        run(["data", "show", place, "-o", str(tmp_path / "show.png"), "-n", "5"])
    assert not caught.value.code
    assert capsys.readouterr().err == f"left out: {reason}\n"


def test_where_everything_is_bad_the_first_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metadata.jsonl").write_text('\n{"file_name": ')
    with pytest.raises(DataError, match=r"no sample that can be used.*metadata\.jsonl:2: no valid JSON: Expecting"):
        StepBatches([SourceConfig(path=str(tmp_path))], 2, lambda examples: {}, CaptionConfig())
    with pytest.raises(SystemExit) as caught:
        run(["data", "check", str(tmp_path)])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert "holds no usable sample; the first: " in error
    assert error.count("\n") == 1


def test_a_tar_that_breaks_off_gives_what_is_whole_and_says_where_it_ends(tmp_path: Path) -> None:
    files = {f"{n}.{kind}": encoded(photo(n)) if kind == "png" else b"x" for n in range(4) for kind in ("png", "txt")}
    whole = tar_bytes(files)
    third = whole.index(b"2.png")
    scribbled = whole[:third] + b"\xff" * 512 + whole[third + 512 :]
    for content, readable_ones, last in ((whole[: third + 700], 2, "2.png"), (scribbled, 2, "1.txt")):
        (tmp_path / "x.tar").write_bytes(content)
        report, _ = check(OwnData(str(tmp_path / "x.tar")), bucket_sizes(64))
        assert report.usable == readable_ones
        assert report.problems[-1][0] == f"{tmp_path}/x.tar:after {last}"


def test_names_that_begin_with_a_dot_are_no_samples(tmp_path: Path) -> None:
    folder = tmp_path / ".home" / "photos"
    folder.parent.mkdir()
    sidecars(folder)
    for name in ("._0.jpg", ".ipynb_checkpoints/0-checkpoint.jpg", ".cache/metadata.jsonl", "._x.tar", ".x.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"resource fork")
    assert [Path(sample.name).name for sample in OwnData(str(folder))] == ["0.jpg", "1.jpg", "2.jpg"]
    members = {"._0.jpg": b"x", "0.jpg": encoded(photo(0), "JPEG"), "0.txt": b"one", ".git/1.jpg": b"x"}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    assert [sample.read().captions for sample in OwnData(str(tmp_path / "x.tar"))] == [{"caption": "one"}]


def test_a_folder_of_dot_names_holds_nothing_to_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(0).save(tmp_path / "._0.png")
    with pytest.raises(SystemExit) as caught:
        run(["edit", str(tmp_path), "make it night"])
    assert caught.value.code == 1
    assert f"{tmp_path} holds no pictures" in capsys.readouterr().err


def test_a_name_that_is_no_utf8_can_be_printed_and_written(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as handle:
        handle.write(b"no picture")
    report, _ = check(OwnData(str(tmp_path)), bucket_sizes(64))
    ((name, reason),) = report.problems
    assert name.endswith("caf\\udce9.png")
    assert reason.encode()


# Pairs


def ramp(size: tuple[int, int], down: bool = True) -> Image.Image:
    """Brightness rises from 0 to 255 from one side to the other."""
    width, height = size
    values = np.linspace(0, 255, height if down else width)
    grid = np.repeat(values[:, None], width, 1) if down else np.repeat(values[None], height, 0)
    return Image.fromarray(np.rint(grid).astype(np.uint8)).convert("RGB")


def pair(folder: Path, target: Image.Image, *sources: Image.Image, mask: Image.Image | None = None) -> Path:
    folder.mkdir()
    row: dict[str, Any] = {"file_name": "t.png", "text": "as it is", "sources": []}
    target.save(folder / "t.png")
    for number, source in enumerate(sources):
        source.save(folder / f"{number}.png")
        row["sources"].append(f"{number}.png")
    if mask is not None:
        mask.save(folder / "m.png")
        row["mask"] = "m.png"
    (folder / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
    return folder


def trained_on(folder: Path, side: int = 256) -> Record:
    batches = StepBatches([SourceConfig(path=str(folder), sides=(side,))], 1, lambda examples: {}, CaptionConfig())
    return batches.examples(0)[0][0].pictured


@pytest.mark.parametrize("down", [True, False])
def test_a_pair_has_one_placement(down: bool, tmp_path: Path) -> None:
    """An edit that leaves everything as it is shows the model twice the same picture, whatever its size."""
    size = (1290, 2796) if down else (932, 430)
    smaller = (size[0] // 2, size[1] // 2)
    half = Image.new("L", size)
    half.paste(255, (0, 0, size[0] // 2, size[1] // 2))
    folder = pair(tmp_path / "pair", ramp(size, down), ramp(smaller, down), ramp(size, down), mask=half)
    record = trained_on(folder)
    assert record.image.size == ((192, 352) if down else (352, 192))
    target, small, equal = (np.asarray(image).astype(int) for image in (record.image, *record.sources))
    assert target.min() > 0
    assert target.max() < 255
    assert np.array_equal(equal, target)
    assert small.shape == target.shape
    assert abs(small - target).max() <= 1
    assert record.mask is not None
    bright = target[..., 0] < 127
    shown = np.asarray(record.mask) == 255
    axis = 0 if down else 1
    assert abs(int(shown.any(1 - axis).sum()) - int(bright.any(1 - axis).sum())) <= 2


def test_a_source_of_another_shape_stays_whole(tmp_path: Path) -> None:
    face = photo(3, (100, 140))
    record = trained_on(pair(tmp_path / "pair", ramp((430, 932)), face, ramp((430, 932))))
    assert np.array_equal(np.asarray(record.sources[0]), np.asarray(face))
    assert record.sources[1].tobytes() == record.image.tobytes()
    report, _ = check(OwnData(str(tmp_path / "pair")), bucket_sizes(256))
    assert report.sources == {"whole": 1, "aligned": 1}


def test_a_mask_needs_a_source_that_shows_the_same_place(tmp_path: Path) -> None:
    folder = pair(tmp_path / "pair", ramp((64, 64)), ramp((64, 96)), mask=Image.new("L", (64, 96), 255))
    with pytest.raises(DataError, match=r"metadata\.jsonl:1: with a mask the last source \(64x96\) needs .*64x64"):
        OwnData(str(folder))[0].read()


def test_a_strip_is_cropped_without_scaling_all_of_it(tmp_path: Path) -> None:
    placed = place(2, 40_000, bucket_sizes(256))
    assert placed.scaled[1] > 3_000_000
    image = placed.apply(ramp((2, 40_000)))
    assert image.size == placed.size
    assert 120 < np.asarray(image).mean() < 135


# Buckets


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([256, 512, 1024]))
def test_every_picture_lands_in_the_bucket_nearest_to_its_shape(width: int, height: int, side: int) -> None:
    buckets = bucket_sizes(side)
    found = place(width, height, buckets)
    ratio = abs(np.log(width / height) - np.log(found.size[0] / found.size[1]))
    assert all(ratio <= abs(np.log(width / height) - np.log(w / h)) + 1e-5 for w, h in buckets)
    assert all(a >= b for a, b in zip(found.scaled, found.size))
    assert 0 <= found.left <= found.scaled[0] - found.size[0]
    assert 0 <= found.top <= found.scaled[1] - found.size[1]
    assert 0 < found.kept <= 1


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_buckets_have_sides_of_32_and_nearly_one_area(side: int) -> None:
    for width, height in bucket_sizes(side):
        assert width % 32 == height % 32 == 0
        assert abs(width * height / side**2 - 1) < 0.15
    with pytest.raises(ValueError, match="multiple of 32"):
        bucket_sizes(100)


def test_among_mixed_areas_the_one_that_needs_no_enlarging_is_taken() -> None:
    buckets = (*bucket_sizes(256), *bucket_sizes(512), *bucket_sizes(1024))
    assert place(300, 300, buckets).size == (256, 256)
    assert place(1500, 1500, buckets).size == (1024, 1024)
    assert place(700, 700, buckets).size == (512, 512)


def test_the_crop_is_the_picture_that_it_says() -> None:
    image = photo(0, (300, 200))
    placed = place(300, 200, ((256, 256),))
    cropped = placed.apply(image)
    assert cropped.size == (256, 256)
    assert placed.scaled == (384, 256)
    assert placed.left == 64


# The report


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    folder = sidecars(tmp_path / "photos")
    (folder / "copy.png").write_bytes(encoded(Image.open(folder / "0.jpg")))
    (folder / "copy.txt").write_text("the same", encoding="utf-8")
    noisy = np.asarray(photo(1)).astype(int) + np.random.default_rng(0).integers(-2, 3, (64, 96, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "like1.png")
    (folder / "like1.txt").write_text("almost the same", encoding="utf-8")
    photo(5, (20, 20)).save(folder / "small.png")
    (folder / "small.txt").write_text("small", encoding="utf-8")
    photo(6).save(folder / "mute.png")
    report, shown = check(OwnData(str(folder)), bucket_sizes(256))
    assert (report.samples, report.usable, report.edits) == (7, 6, 0)
    assert len(report.duplicates) == 1
    assert {Path(name).name for name in report.duplicates[0]} == {"0.jpg", "copy.png"}
    assert any({"1.jpg", "like1.png"} <= {Path(name).name for name in names} for names in report.near_duplicates)
    assert report.enlarged == 6
    assert report.languages == {"en": 6, "mixed": 0, "zh": 3} or report.languages["zh"] == 3
    assert sum(report.buckets.values()) == 6
    assert sorted(Path(name).name for name, _ in report.problems) == ["mute.png", "small.png"]
    assert len(shown) >= 3


def test_languages_are_told_apart() -> None:
    assert [language(text) for text in ("a fox", "一只狐狸", "一只fox在跑", "123")] == ["en", "zh", "mixed", "other"]


def test_the_command_reports_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sidecars(tmp_path / "photos")
    with pytest.raises(SystemExit) as caught:
        run(["data", "check", str(folder), "--side", "256", "--sheet", str(tmp_path / "sheet.png")])
    assert not caught.value.code
    assert "3 usable" in capsys.readouterr().out
    assert Image.open(tmp_path / "sheet.png").width > 100
    with pytest.raises(SystemExit) as caught:
        run(["data", "check", str(folder), "--json"])
    assert json.loads(capsys.readouterr().out)["usable"] == 3
    with pytest.raises(SystemExit) as caught:
        run(["data", "show", str(folder), "-o", str(tmp_path / "show.png"), "-n", "2"])
    assert not caught.value.code
    with pytest.raises(SystemExit) as caught:
        run(["data", "check", str(tmp_path / "nothing")])
    assert caught.value.code == 1
    assert "does not exist" in capsys.readouterr().err
