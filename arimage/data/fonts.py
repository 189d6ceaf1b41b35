"""Fonts to write with, in one compact file: open Latin fonts whole, Chinese ones with the common characters.

A pack is a zip of font files and an ``index.json`` that says what each covers and under which licence it is.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from arimage.data.artwork import Package
from arimage.data.packs import reading_pack
from arimage.errors import DataError
from arimage.files import write_whole

WEIGHTS = ("400Regular", "700Bold")
ASCII = "".join(chr(code) for code in range(0x20, 0x7F))
CHINESE_PUNCTUATION = "，。！？、：；“”‘’《》「」·…（）"
BUILT_IN = "built-in"


@dataclass(frozen=True)
class Font:
    """A face of a pack.

    Attributes:
        name: family and weight.
        script: ``latin`` or ``chinese``; a Chinese face writes Latin letters too.
        missing: the characters of the pack's Chinese set that it cannot write.
        file: in the pack; empty for the font that comes with Pillow.
    """

    name: str
    script: str
    licence: str
    attribution: str
    missing: str = ""
    file: str = ""

    def writes(self, text: str) -> bool:
        """Whether it has a glyph for every character of a text of its script."""
        if self.script == "latin":
            return all(character in ASCII for character in text)
        return not any(character in self.missing for character in text)


class FontPack:
    """Faces of a pack; :meth:`load` gives one at a size, ready to draw with.

    Attributes:
        fonts: all of them.
        chinese: the Chinese characters that the pack was made for.
    """

    def __init__(self, fonts: Sequence[Font], chinese: str, data: zipfile.ZipFile | None) -> None:
        self.fonts, self.chinese = list(fonts), frozenset(chinese)
        self._data = data
        self._files: dict[str, bytes] = {}
        self.by_name = {font.name: font for font in self.fonts}
        self.load = lru_cache(maxsize=512)(self._load)

    @classmethod
    def open(cls, path: str | Path) -> "FontPack":
        """Read a pack.

        Raises:
            DataError: it is missing or damaged.
        """
        with reading_pack(path, "font pack") as (data, index):
            return cls([Font(**entry) for entry in index["fonts"]], index["chinese"], data)

    @classmethod
    def built_in(cls) -> "FontPack":
        """The one Latin font that comes with Pillow."""
        return cls([Font(BUILT_IN, "latin", "OFL-1.1", "Aileron, Sora Sagano")], "", None)

    def can_write(self, text: str) -> list[Font]:
        """Faces that have every character of a text; a Latin text is left to Latin faces."""
        if all(character in ASCII for character in text):
            return [font for font in self.fonts if font.script == "latin"]
        if any(c not in self.chinese and c not in ASCII and c not in CHINESE_PUNCTUATION for c in text):
            return []
        return [font for font in self.fonts if font.script == "chinese" and font.writes(text)]

    def _load(self, name: str, size: int) -> ImageFont.FreeTypeFont:
        font = self.by_name[name]
        if self._data is None or not font.file:
            built_in = ImageFont.load_default(size)
            assert isinstance(built_in, ImageFont.FreeTypeFont)
            return built_in
        if font.file not in self._files:
            self._files[font.file] = self._data.read(font.file)
        return ImageFont.truetype(io.BytesIO(self._files[font.file]), size)


def build_fonts(
    path: Path,
    packages: Iterable[tuple[Package, Path]],
    chinese: str,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[list[Font], dict[str, str]]:
    """Write a pack of the regular and bold faces of font packages.

    Args:
        chinese: the Chinese characters to keep.

    Returns:
        The faces, and what was left out with the reason.

    Raises:
        DataError: fontTools is not installed.
    """
    try:
        from fontTools.ttLib import TTFont, TTLibError
    except ImportError:
        raise DataError("packing fonts needs fonttools: pip install 'arimage[data]'") from None
    fonts, dropped = [], {}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for package, file in packages:
            for name, content in _faces(file):
                try:
                    face = TTFont(io.BytesIO(content))
                    covered = set(face.getBestCmap())
                except (TTLibError, KeyError, AssertionError) as error:
                    dropped[name] = f"unreadable: {error}"
                    continue
                if any(ord(character) not in covered for character in ASCII):
                    dropped[name] = "not all of ASCII"
                    continue
                missing = ""
                if package.style == "chinese":
                    missing = "".join(character for character in chinese if ord(character) not in covered)
                    if len(missing) > len(chinese) // 2:
                        dropped[name] = f"{len(missing)} of {len(chinese)} Chinese characters are missing"
                        continue
                content = _subset(face, ASCII + CHINESE_PUNCTUATION + (chinese if package.style == "chinese" else ""))
                font = Font(name, package.style, package.licence, package.attribution, missing, f"{name}.ttf")
                archive.writestr(zipfile.ZipInfo(font.file), content, zipfile.ZIP_DEFLATED)
                fonts.append(font)
                if on_progress is not None:
                    on_progress(name)
        index = {"chinese": chinese, "fonts": [asdict(font) for font in fonts]}
        archive.writestr(zipfile.ZipInfo("index.json"), json.dumps(index, ensure_ascii=False), zipfile.ZIP_DEFLATED)
    write_whole(path, buffer.getvalue())
    return fonts, dropped


def _faces(file: Path) -> list[tuple[str, bytes]]:
    """(name, contents) of a package's regular and bold face."""
    faces = []
    with tarfile.open(file) as archive:
        for member in archive:
            stem = Path(member.name).stem
            if member.name.endswith(".ttf") and stem.endswith(WEIGHTS):
                handle = archive.extractfile(member)
                if handle is not None:
                    faces.append((stem, handle.read()))
    return sorted(faces)


def _subset(face: object, characters: str) -> bytes:
    """A face with nothing but some characters, without hinting."""
    from fontTools.subset import Options, Subsetter

    options = Options(hinting=False, layout_features=["kern", "mark", "mkmk"], notdef_outline=True)
    options.drop_tables += ["DSIG", "GSUB"]
    subsetter = Subsetter(options)
    subsetter.populate(text=characters)
    subsetter.subset(face)
    buffer = io.BytesIO()
    face.save(buffer)  # type: ignore[attr-defined]
    return buffer.getvalue()
