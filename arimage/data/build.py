"""The folder of assets that scenes are composed of: fetched, rendered, packed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arimage.data.artwork import Package, choose, fetch_all
from arimage.data.assets import FONTS, SPRITES, WORDS
from arimage.data.fonts import Font, build_fonts
from arimage.data.split import HELD_OUT_STYLES
from arimage.data.sprites import GROUPS, SIZE, Summary, build_pack
from arimage.data.words import build_words, common_characters, read_words
from arimage.errors import DataError

NANO_STYLES = ("noto", "twemoji", "fluent-flat")
NANO_GROUPS = ("animals and nature", "food and drink", "travel and places", "activities", "objects", "faces")
Say = Callable[[str], None]


@dataclass
class Built:
    """What :func:`build_assets` made.

    Attributes:
        sprites: kept and dropped pictures, with reasons.
        fonts, fonts_dropped: faces, and those left out with the reason.
        words: how many of each language.
        sizes: bytes of each file.
    """

    sprites: Summary
    fonts: list[Font]
    fonts_dropped: dict[str, str]
    words: dict[str, int]
    sizes: dict[str, int] = field(default_factory=dict)


def build_assets(
    folder: Path,
    downloads: Path,
    *,
    styles: Sequence[str] | None = NANO_STYLES,
    groups: Sequence[str] | None = NANO_GROUPS,
    variants: bool = False,
    size: int = SIZE,
    words: int = 50_000,
    say: Say = print,
) -> Built:
    """Fetch what is missing and write ``sprites.zip``, ``fonts.zip`` and ``words.json``.

    Args:
        folder: to write into.
        downloads: where packages are kept; what is there and right is not fetched again.
        styles: of sprites; None for all that may be trained on.
        groups: of concepts; None for all.
        variants: skin tones and genders too.
        size: side of the sprites in pixels.
        words: length of the word list, both languages together.

    Raises:
        DataError: a style or group is not known, or something cannot be fetched or rendered.
    """
    for group in groups or ():
        if group not in GROUPS:
            raise DataError(f"there is no group {group!r}; known are {', '.join(GROUPS)}")
    drawn = choose(("icons", "pictures"), styles)
    if styles is None:
        drawn = [package for package in drawn if package.style not in HELD_OUT_STYLES]
    names, faces = choose(("names",)), choose(("font",))
    wanted: list[Package] = [*names, *drawn, *faces]
    files = fetch_all(wanted, downloads, lambda done, total, name: say(f"package {done}/{total}: {name}"))
    counts = build_words(folder / WORDS, words)
    chinese = common_characters(read_words(folder / WORDS)["zh"])
    summary = build_pack(
        folder / SPRITES,
        files[names[0].name],
        [(package, files[package.name]) for package in drawn],
        size=size,
        groups=groups,
        variants=variants,
        on_progress=lambda style, done, total: say(f"sprites, {style}: {done} of up to {total}"),
    )
    fonts, dropped = build_fonts(
        folder / FONTS,
        [(package, files[package.name]) for package in faces],
        chinese,
        lambda name: say(f"font: {name}"),
    )
    sizes = {name: (folder / name).stat().st_size for name in (SPRITES, FONTS, WORDS)}
    return Built(summary, fonts, dropped, counts, sizes)
