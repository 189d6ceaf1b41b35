"""People's own data: every form is read, every fault is named, every picture lands in a bucket."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arimage.cli.main import run
from arimage.data.buckets import BucketBatches, bucket_sizes, place
from arimage.data.check import check, language
from arimage.data.folders import OwnData, readable
from arimage.errors import DataError


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
        (lambda path: (path / "metadata.jsonl").write_text("{") and path, "cannot be read"),
    ],
)
def test_places_that_hold_no_data_are_refused(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        OwnData(str(make(tmp_path)))


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


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 7), st.integers(1, 3))
def test_an_epoch_holds_every_sample_in_batches_of_one_bucket(kinds: list[int], size: int, processes: int) -> None:
    buckets = [(32 * (kind + 1), 32) for kind in kinds]
    whole = BucketBatches(buckets, size, seed=3, processes=processes)
    batches = whole.epoch_batches(0)
    assert {index for batch in batches for index in batch} == set(range(len(kinds)))
    assert all(len({buckets[index] for index in batch}) == 1 and len(batch) == size for batch in batches)
    assert len(batches) % processes == 0
    assert whole.epoch_batches(0) == batches


def test_batches_go_on_where_they_stopped_also_in_the_middle_of_an_epoch() -> None:
    buckets = [(32, 32)] * 10 + [(64, 32)] * 7
    first = iter(BucketBatches(buckets, 3, seed=1))
    straight = [next(first) for _ in range(20)]
    for stop in (1, 6, 13):
        before = BucketBatches(buckets, 3, seed=1)
        source = iter(before)
        got = [next(source) for _ in range(stop)]
        after = BucketBatches(buckets, 3, seed=1)
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        rest = iter(after)
        assert got + [next(rest) for _ in range(20 - stop)] == straight
    with pytest.raises(ValueError, match="seed"):
        BucketBatches(buckets, 3, seed=2).load_state_dict(before.state_dict())


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
