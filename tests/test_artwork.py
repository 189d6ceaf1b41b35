"""Artwork, fonts and words: fetched once, checked, packed with names and licences."""

import base64
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from arimage.data import artwork, sprites
from arimage.data.artwork import Package, choose, fetch, packages, read_member
from arimage.data.colors import COLORS, contrast, distance
from arimage.data.fonts import FontPack
from arimage.data.sprites import SpritePack, base_code, build_pack, normal_code, read_concepts, render_svg
from arimage.data.words import build_words, common_characters, draw_word, read_words
from arimage.errors import DataError


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def emoji(code: str, name: str, group: int = 3, **more: object) -> dict[str, object]:
    return {"hexcode": code, "label": name, "tags": [name, "thing"], "group": group, **more}


@pytest.fixture
def names(tmp_path: Path) -> Path:
    english = [
        emoji("1F98A", "fox"),
        emoji("1F44B", "waving hand", 1, skins=[{"hexcode": "1F44B-1F3FB"}, {"hexcode": "1F44B-1F3FF"}]),
        emoji("1F3C3", "person running", 1),
        emoji("1F3C3-200D-2640-FE0F", "woman running", 1),
        emoji("2764-FE0F", "red heart", 8),
    ]
    chinese = [dict(entry, label=label) for entry, label in zip(english, ["狐狸", "挥手", "跑步", "女生跑步", "红心"])]
    files = {"en/data.json": json.dumps(english).encode(), "zh/data.json": json.dumps(chinese).encode()}
    return archive(tmp_path / "names.tgz", files)


def icons(path: Path) -> Path:
    square = '<path fill="#e33" d="M2 2h12v12H2z"/>'
    bodies = {"fox": {"body": square}, "wave": {"body": square}, "wave-dark": {"body": square}, "none": {"body": ""}}
    chars = {"1f98a": "fox", "1f44b": "wave", "1f44b-1f3ff": "wave-dark", "2764": "none"}
    files = {
        "icons.json": json.dumps({"icons": bodies, "width": 16, "height": 16}).encode(),
        "chars.json": json.dumps(chars).encode(),
    }
    return archive(path, files)


def test_every_package_is_pinned_and_says_its_licence() -> None:
    table = packages()
    assert len(table) > 40
    assert len({package.name for package in table}) == len(table)
    for package in table:
        assert len(base64.b64decode(package.sha512)) == 64
        assert package.licence in ("MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "OFL-1.1", "UFL-1.0")
        assert package.attribution
    assert [p.style for p in table if p.licence == "CC-BY-SA-4.0"] == ["openmoji"]
    assert {"noto", "twemoji", "fluent-flat"} <= {package.style for package in choose(("icons",))}
    with pytest.raises(DataError, match="no style 'apple'"):
        choose(("icons",), ["apple"])


def test_what_is_there_and_right_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"the package"
    package = Package(
        "@a/b", "1.0.0", base64.b64encode(hashlib.sha512(content).digest()).decode(), "icons", "s", "MIT", "x"
    )
    (tmp_path / package.file_name).write_bytes(content)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert fetch(package, tmp_path).read_bytes() == content
    (tmp_path / package.file_name).write_bytes(b"half of it")
    with pytest.raises(DataError, match="npm"):
        fetch(package, tmp_path)


def test_other_contents_than_those_pinned_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package("@a/b", "1.0.0", base64.b64encode(b"0" * 64).decode(), "icons", "s", "MIT", "x")

    def pack(command: list[str], cwd: Path, **more: object) -> object:
        (Path(cwd) / package.file_name).write_bytes(b"something else")
        return type("Done", (), {"returncode": 0, "stderr": "", "stdout": ""})

    monkeypatch.setattr(shutil, "which", lambda name: "npm")
    monkeypatch.setattr(artwork.subprocess, "run", pack)
    with pytest.raises(DataError, match="not those that are pinned"):
        fetch(package, tmp_path)
    assert not (tmp_path / package.file_name).exists()
    with pytest.raises(DataError, match="holds no"):
        read_member(archive(tmp_path / "x.tgz", {}), "icons.json")


def test_codes_are_brought_to_their_base() -> None:
    assert normal_code("2764-FE0F") == "2764"
    assert base_code("1f44b-1f3fb") == "1f44b"
    assert base_code("1f3c3-200d-2640") == "1f3c3"
    assert base_code("1f3c3-1f3fd-200d-2642") == "1f3c3"


def test_concepts_have_names_in_both_languages(names: Path) -> None:
    concepts, base = read_concepts(names)
    assert concepts["1f98a"].names == {"en": "fox", "zh": "狐狸"}
    assert concepts["1f98a"].group == "animals and nature"
    assert base["1f44b-1f3ff"] == "1f44b"
    assert base["1f3c3-200d-2640"] == "1f3c3"


def test_a_pack_groups_variants_and_says_what_was_dropped(names: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyvips")
    package = Package("@a/icons", "1.0.0", "", "icons", "red", "MIT", "somebody")
    summary = build_pack(tmp_path / "pack.zip", names, [(package, icons(tmp_path / "icons.tgz"))], size=32)
    pack = SpritePack.open(tmp_path / "pack.zip")
    assert summary.kept == {"red": 3}
    assert summary.dropped == {"red: empty": 1, "red: not drawn in this style": 3}
    assert {sprite.variant: sprite.concept for sprite in pack.sprites}["1f44b-1f3ff"] == "1f44b"
    assert set(pack.by_concept) == {"1f98a", "1f44b"}
    assert {(sprite.licence, sprite.attribution) for sprite in pack.sprites} == {("MIT", "somebody")}
    picture = pack.picture(pack.by_concept["1f98a"]["red"])
    assert picture.size == (32, 32)
    assert picture.getpixel((0, 0))[3] == 0
    middle = picture.getpixel((16, 16))
    assert middle[0] > 200
    assert middle[3] == 255
    first = (tmp_path / "pack.zip").read_bytes()
    build_pack(tmp_path / "pack.zip", names, [(package, tmp_path / "icons.tgz")], size=32)
    assert (tmp_path / "pack.zip").read_bytes() == first
    build_pack(tmp_path / "few.zip", names, [(package, tmp_path / "icons.tgz")], size=32, variants=False)
    assert {s.variant for s in SpritePack.open(tmp_path / "few.zip").sprites} == {"1f98a", "1f44b"}
    only = build_pack(
        tmp_path / "a.zip", names, [(package, tmp_path / "icons.tgz")], size=32, groups=["animals and nature"]
    )
    assert only.kept == {"red": 1}


def test_an_svg_is_drawn_with_its_transparency() -> None:
    pytest.importorskip("pyvips")
    picture = render_svg('<circle cx="8" cy="8" r="6" fill="#00f"/>', 16, 16, 64)
    pixels = np.asarray(picture)
    assert pixels.shape == (64, 64, 4)
    assert pixels[0, 0, 3] == 0
    assert tuple(pixels[32, 32]) == (0, 0, 255, 255)
    assert sprites.SIZE == 160


def test_the_built_in_font_writes_english_but_not_chinese() -> None:
    fonts = FontPack.built_in()
    assert fonts.can_write("OPEN 24%")
    assert not fonts.can_write("开门")
    assert fonts.load(fonts.fonts[0].name, 24).getbbox("OPEN")[2] > 20
    assert Image.new("L", (1, 1)) is not None


def test_a_word_list_is_sorted_balanced_and_clean(tmp_path: Path) -> None:
    pytest.importorskip("wordfreq")
    counts = build_words(tmp_path / "words.json", 4000)
    assert counts == {"en": 2000, "zh": 2000}
    words = read_words(tmp_path / "words.json")
    assert words["en"].index("the") < words["en"].index("garden")
    assert all(word.isascii() and word.isalpha() and len(word) <= 12 for word in words["en"])
    assert all(1 <= len(word) <= 4 and all("\u4e00" <= c <= "\u9fff" for c in word) for word in words["zh"])
    assert len(set(common_characters(words["zh"], 500))) == 500
    with pytest.raises(DataError, match="arimage data words"):
        read_words(tmp_path / "none.json")


def test_rare_words_are_drawn_too_and_frequent_ones_more_often() -> None:
    random = Random(0)
    words = tuple(str(number) for number in range(10_000))
    drawn = [int(draw_word(random, words)) for _ in range(20_000)]
    assert sum(number < 100 for number in drawn) > 0.2 * len(drawn)
    assert sum(number > 5000 for number in drawn) > 0.2 * len(drawn)
    assert len(set(drawn)) > 5000


def test_named_colours_cannot_be_mistaken_for_each_other() -> None:
    assert len(COLORS) >= 12
    for i, first in enumerate(COLORS):
        assert first.en
        assert first.zh
        for second in COLORS[i + 1 :]:
            assert distance(first.rgb, second.rgb) > 24, (first.name, second.name)
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
