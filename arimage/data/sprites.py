"""Sprites: artwork rendered to transparent pictures, with names in both languages, in one compact file.

A pack is a zip of WebP pictures and an ``index.json``; pictures of one concept (the code point of the base emoji) in
several styles belong together. ``arimage data sprites`` builds it.
"""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from arimage.data.artwork import Package, read_member
from arimage.data.packs import reading_pack
from arimage.errors import DataError
from arimage.files import write_whole

GROUPS = (
    "faces", "people", "components", "animals and nature", "food and drink", "travel and places", "activities",
    "objects", "symbols", "flags",
)  # fmt: skip
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
GENDERS = {"2640", "2642"}
QUALITY = 88
SIZE = 160


@dataclass(frozen=True)
class Concept:
    """What a sprite shows.

    Attributes:
        code: code points of the base emoji, lower-case hex joined by ``-``, without variation selectors.
        names: the name by language (``en``, ``zh``).
        keywords: more words by language.
        group: one of ``GROUPS``.
    """

    code: str
    names: dict[str, str]
    keywords: dict[str, tuple[str, ...]]
    group: str


@dataclass(frozen=True)
class Sprite:
    """One picture of a concept.

    Attributes:
        concept: its code.
        variant: the emoji's own code; differs from the concept's for skin tones and genders.
        style: see :data:`arimage.data.artwork.packages`.
        licence, attribution: of the artwork.
        file: in the pack.
    """

    concept: str
    variant: str
    style: str
    licence: str
    attribution: str
    file: str


class SpritePack:
    """A pack in memory. Pictures are decoded when they are first asked for, and kept.

    Attributes:
        concepts: by code.
        sprites: all of them, in a fixed order.
        size: side of the pictures in pixels.
    """

    def __init__(
        self, concepts: dict[str, Concept], sprites: Sequence[Sprite], size: int, data: zipfile.ZipFile
    ) -> None:
        self.concepts, self.sprites, self.size = concepts, list(sprites), size
        self._data = data
        self._decoded: dict[str, Image.Image] = {}

    @classmethod
    def open(cls, path: str | Path) -> "SpritePack":
        """Read a pack.

        Raises:
            DataError: it is missing or damaged.
        """
        with reading_pack(path, "sprite pack") as (data, index):
            concepts = {
                code: Concept(code, entry["names"], {k: tuple(v) for k, v in entry["keywords"].items()}, entry["group"])
                for code, entry in index["concepts"].items()
            }
            return cls(concepts, [Sprite(**entry) for entry in index["sprites"]], index["size"], data)

    @cached_property
    def styles(self) -> tuple[str, ...]:
        """Styles in the pack, sorted."""
        return tuple(sorted({sprite.style for sprite in self.sprites}))

    @cached_property
    def by_file(self) -> dict[str, Sprite]:
        """Sprites by their file in the pack."""
        return {sprite.file: sprite for sprite in self.sprites}

    @cached_property
    def by_concept(self) -> dict[str, dict[str, Sprite]]:
        """Base sprites by concept and style."""
        table: dict[str, dict[str, Sprite]] = {}
        for sprite in self.sprites:
            if sprite.variant == sprite.concept:
                table.setdefault(sprite.concept, {})[sprite.style] = sprite
        return table

    def picture(self, sprite: Sprite) -> Image.Image:
        """RGBA, ``size`` pixels a side."""
        if sprite.file not in self._decoded:
            with Image.open(io.BytesIO(self._data.read(sprite.file))) as image:
                self._decoded[sprite.file] = image.convert("RGBA")
        return self._decoded[sprite.file]


@dataclass
class Summary:
    """What became of the artwork: how much was kept, and what was dropped for which reason."""

    kept: Counter[str]
    dropped: Counter[str]


def read_concepts(names: Path) -> tuple[dict[str, Concept], dict[str, str]]:
    """Concepts by code, and the base of every emoji's code, from the package of names."""
    english, chinese = (json.loads(read_member(names, f"{lang}/data.json")) for lang in ("en", "zh"))
    labels = {entry["hexcode"]: entry for entry in chinese}
    concepts, base = {}, {}
    for entry in english:
        code = normal_code(entry["hexcode"])
        root = base_code(code)
        base[code] = root
        for skin in entry.get("skins", []):
            base[normal_code(skin["hexcode"])] = root
        other = labels.get(entry["hexcode"])
        if root != code or other is None or entry.get("group") is None:
            continue
        concepts[code] = Concept(
            code,
            {"en": entry["label"], "zh": other["label"]},
            {"en": tuple(entry.get("tags", ())), "zh": tuple(other.get("tags", ()))},
            GROUPS[entry["group"]],
        )
    return concepts, base


def normal_code(code: str) -> str:
    """Lower-case code points without variation selectors."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def base_code(code: str) -> str:
    """The code without skin tones and gender signs."""
    parts = [part for part in code.split("-") if part not in SKIN_TONES]
    while len(parts) > 2 and parts[-1] in GENDERS and parts[-2] == "200d":
        parts = parts[:-2]
    return "-".join(parts)


def render(
    package: Package, file: Path, size: int, wanted: Iterable[str] | None = None
) -> Iterator[tuple[str, Image.Image]]:
    """(code, RGBA picture) of a package's artwork; SVGs are rendered by librsvg through pyvips.

    Args:
        wanted: codes to render, all by default.

    Raises:
        DataError: pyvips is not installed.
    """
    chosen = None if wanted is None else set(wanted)
    if package.kind == "pictures":
        yield from _pictures(file, size, chosen)
        return
    icons = json.loads(read_member(file, "icons.json"))
    codes = json.loads(read_member(file, "chars.json"))
    aliases = icons.get("aliases", {})
    for code, name in codes.items():
        normal = normal_code(code)
        if chosen is not None and normal not in chosen:
            continue
        icon = icons["icons"].get(name) or icons["icons"].get(aliases.get(name, {}).get("parent"))
        if icon is None:
            continue
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        yield normal, render_svg(icon["body"], width, height, size)


def render_svg(body: str, width: int, height: int, size: int) -> Image.Image:
    """An SVG body in a square of ``size`` pixels, centred."""
    try:
        import pyvips
    except ImportError:
        raise DataError("rendering artwork needs pyvips: pip install 'arimage[data]'") from None
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="0 0 {width} {height}">{body}</svg>'
    )
    image = pyvips.Image.svgload_buffer(svg.encode())
    return Image.fromarray(np.ndarray((image.height, image.width, image.bands), np.uint8, image.write_to_memory()))


def _pictures(file: Path, size: int, wanted: set[str] | None) -> Iterator[tuple[str, Image.Image]]:
    import tarfile

    with tarfile.open(file) as archive:
        for member in archive:
            code = normal_code(Path(member.name).stem)
            if not member.name.endswith(".webp") or (wanted is not None and code not in wanted):
                continue
            handle = archive.extractfile(member)
            assert handle is not None
            with Image.open(io.BytesIO(handle.read())) as image:
                yield code, image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)


def build_pack(
    path: Path,
    names: Path,
    styles: Sequence[tuple[Package, Path]],
    *,
    size: int = SIZE,
    groups: Sequence[str] | None = None,
    variants: bool = True,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Summary:
    """Render artwork into a pack.

    Args:
        names: the file of the package of names.
        styles: packages with their files.
        size: side of the pictures.
        groups: of concepts to keep, all by default.
        variants: keep skin tones and genders too, grouped with their base.
        on_progress: called with (style, pictures so far, pictures wanted).
    """
    concepts, base = read_concepts(names)
    kept_concepts = {code: c for code, c in concepts.items() if groups is None or c.group in groups}
    wanted = [code for code, root in base.items() if root in kept_concepts and (variants or code == root)]
    summary = Summary(Counter(), Counter())

    def pictures() -> Iterator[tuple[Sprite, Image.Image]]:
        for package, file in styles:
            seen: set[str] = set()
            unusable: set[str] = set()
            for code, picture in render(package, file, size, wanted):
                reason = _unusable(picture)
                if reason or code in seen:
                    summary.dropped[f"{package.style}: {reason or 'twice in the package'}"] += 1
                    unusable.add(code)
                    continue
                seen.add(code)
                name = f"{package.style}/{code}.webp"
                yield Sprite(base[code], code, package.style, package.licence, package.attribution, name), picture
                summary.kept[package.style] += 1
                if on_progress is not None and len(seen) % 50 == 0:
                    on_progress(package.style, len(seen), len(wanted))
            missing = len(set(wanted) - seen - unusable)
            if missing:
                summary.dropped[f"{package.style}: not drawn in this style"] += missing

    write_pack(path, kept_concepts.values(), pictures(), size)
    return summary


def write_pack(
    path: Path, concepts: Iterable[Concept], pictures: Iterable[tuple[Sprite, Image.Image]], size: int
) -> None:
    """Write a pack of RGBA pictures of ``size`` pixels a side; concepts without a picture are left out."""
    sprites: list[Sprite] = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for sprite, picture in pictures:
            archive.writestr(zipfile.ZipInfo(sprite.file), _encoded(picture))
            sprites.append(sprite)
        used = {sprite.concept for sprite in sprites}
        index = {
            "size": size,
            "concepts": {concept.code: _entry(concept) for concept in concepts if concept.code in used},
            "sprites": [asdict(sprite) for sprite in sprites],
        }
        text = json.dumps(index, ensure_ascii=False)
        archive.writestr(zipfile.ZipInfo("index.json"), text, zipfile.ZIP_DEFLATED)
    write_whole(path, buffer.getvalue())


def _entry(concept: Concept) -> dict[str, object]:
    return {"names": concept.names, "keywords": concept.keywords, "group": concept.group}


def _unusable(picture: Image.Image) -> str | None:
    alpha = np.asarray(picture.getchannel("A"))
    if alpha.max(initial=0) < 128:
        return "empty"
    if (alpha > 127).mean() < 0.02:
        return "almost empty"
    return None


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=4, alpha_quality=95)
    return buffer.getvalue()
