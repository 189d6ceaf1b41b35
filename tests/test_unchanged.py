"""A start from many thousands of pictures looks at their folders alone, and misses no file that came or went."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arimage.data import storage, unchanged
from arimage.data.folders import OwnData
from arimage.data.storage import Storage
from tests.tiny_data import picture


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures in a folder and in two below it, which count as many thousands."""
    monkeypatch.setenv("ARIMAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(unchanged, "FROM", 3)
    monkeypatch.setattr(storage, "SETTLED", 0.05)
    root = tmp_path / "photos"
    for name in ("a", "b", "one/c", "one/two/d"):
        add(root, name)
    time.sleep(0.1)
    return root


def add(root: Path, name: str, caption: str = "a photo") -> None:
    place = root / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_suffix(".png").write_bytes(picture(len(name)))
    place.with_suffix(".txt").write_text(caption)


def captions(data: OwnData) -> list[str]:
    return [next(iter(sample.read().captions.values())) for sample in data]


def start(root: Path, **more: Any) -> tuple[OwnData, int]:
    """The data as a start of training opens it, and how often all files were listed."""
    listings, listed = 0, Storage.listed

    def counted(place: Storage) -> Any:
        nonlocal listings
        listings += 1
        return listed(place)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Storage, "listed", counted)
        return OwnData(str(root), every_file=False, **more), listings


@pytest.mark.parametrize("beside", [True, False])
def test_folders_alone_are_looked_at_where_nothing_changed(photos: Path, tmp_path: Path, beside: bool) -> None:
    index = {} if beside else {"index": tmp_path / "photos.parquet"}
    first = OwnData(str(photos), **index)
    data, listings = start(photos, **index)
    assert listings == 0
    assert captions(data) == captions(first)
    assert len(OwnData(str(photos), **index)) == 4


def renamed(root: Path) -> None:
    os.rename(root / "one/c.png", root / "one/e.png")
    os.rename(root / "one/c.txt", root / "one/e.txt")


CHANGES: dict[str, tuple[Callable[[Path], Any], int]] = {
    "new in the root": (lambda root: add(root, "e"), 5),
    "new below": (lambda root: add(root, "one/two/e"), 5),
    "new folder": (lambda root: add(root, "three/e"), 5),
    "new folder in a folder": (lambda root: add(root, "one/three/e"), 5),
    "gone": (lambda root: (root / "one/two/d.png").unlink(), 3),
    "folder gone": (lambda root: shutil.rmtree(root / "one/two"), 3),
    "renamed": (renamed, 4),
    "index gone": (lambda root: (root / ".arimage-index.parquet").unlink(), 4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_comes_and_goes_is_seen(photos: Path, change: str) -> None:
    OwnData(str(photos))
    alter, count = CHANGES[change]
    alter(photos)
    time.sleep(0.1)
    data, listings = start(photos)
    assert listings == 1
    assert len(data) == count
    assert captions(data) == ["a photo"] * count
    assert start(photos)[1] == 0


@pytest.mark.parametrize("name", ["e", "one/two/e", "three/e"])
def test_what_comes_while_the_index_is_made_is_seen_by_the_next_start(photos: Path, name: str) -> None:
    data = OwnData(str(photos), processes=1, on_shard=lambda done, of: add(photos, name))
    assert len(data) == 4
    assert len(start(photos)[0]) == 5


def test_a_text_written_over_in_place_is_read_as_it_is_and_indexed_when_all_files_are_looked_at(photos: Path) -> None:
    OwnData(str(photos))
    (photos / "one/c.txt").write_text("another photo, of more words")
    data, listings = start(photos)
    assert listings == 0
    assert captions(data)[2] == "another photo, of more words"
    lengths = [data.entries.row(2, ("characters",))["characters"] for data in (data, OwnData(str(photos)))]
    assert lengths == [[7], [28]]
    assert start(photos)[1] == 0


def test_a_folder_changed_a_moment_before_it_is_listed_may_be_again_unseen(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SETTLED", 3600.0)
    monkeypatch.setattr(unchanged, "WAIT", 0.0)
    OwnData(str(photos))
    assert start(photos)[1] == 1


def test_a_record_that_is_damaged_or_of_another_folder_counts_for_nothing(photos: Path, tmp_path: Path) -> None:
    OwnData(str(photos))
    (record,) = (tmp_path / "cache" / "indexes").glob("*.folders.json")
    for contents in ("", "[]", '{"root": 1}'):
        record.write_text(contents)
        assert start(photos)[1] == 1
    assert start(photos)[1] == 0


def test_few_pictures_are_all_looked_at(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged, "FROM", 5)
    OwnData(str(photos))
    assert start(photos)[1] == 1
    assert not list((tmp_path / "cache" / "indexes").glob("*"))
