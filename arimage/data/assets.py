"""What scenes are composed of: sprites, fonts and words, from one folder.

    sprites.zip   fonts.zip   words.json

``arimage data sprites -o FOLDER`` builds all three.
"""

from dataclasses import dataclass
from pathlib import Path

from arimage.data.fonts import FontPack
from arimage.data.sprites import SpritePack
from arimage.data.words import read_words

SPRITES, FONTS, WORDS = "sprites.zip", "fonts.zip", "words.json"


@dataclass(frozen=True, eq=False)
class Assets:
    """Sprites, fonts, and words by language, most frequent first."""

    sprites: SpritePack
    fonts: FontPack
    words: dict[str, tuple[str, ...]]

    @classmethod
    def open(cls, folder: str | Path) -> "Assets":
        """Read a folder; without fonts and words, Pillow's font and a short list of words serve.

        Raises:
            DataError: the sprites are missing, or a file is damaged.
        """
        folder = Path(folder)
        fonts, words = folder / FONTS, folder / WORDS
        return cls(
            SpritePack.open(folder / SPRITES),
            FontPack.open(fonts) if fonts.exists() else FontPack.built_in(),
            read_words(words if words.exists() else None),
        )
