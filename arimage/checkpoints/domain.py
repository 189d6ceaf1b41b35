"""What a small model was taught, and a gentle word when a prompt is about something else.

A checkpoint folder may hold a ``domain.json``; ``arimage data domain`` writes it from the scenes that training drew.
Large models have none, and nothing is said.
"""

import json
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from decoder.glyph import quoted_texts

FILE = "domain.json"
EXAMPLES = 8
QUOTED = re.compile("[\"“「'][^\"”」']*[\"”」']")


class Domain(BaseModel):
    """What a model knows.

    Attributes:
        subjects: English and Chinese names of the things that it can draw.
        colors: words for the colours of backgrounds.
        letters: of the longest English word that it can write.
        capitals: whether it writes capital letters only.
        characters: the Chinese characters that it can write, at most ``row`` of them in a text.
        notice: said with every prompt, for a model that is not finished.
    """

    model_config = ConfigDict(frozen=True)

    subjects: tuple[tuple[str, str], ...]
    colors: tuple[str, ...]
    letters: int
    capitals: bool
    characters: str
    row: int
    notice: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Domain | None":
        """That of a checkpoint folder, None where it has none or one that cannot be read."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def notes(self, prompt: str, *, editing: bool = False) -> list[str]:
        """What should be known about a prompt, in plain sentences; nothing when it lies within the domain."""
        texts = quoted_texts(prompt)
        found = [self.notice] if self.notice else []
        found += [note for text in texts for note in self._about_text(text)]
        rest = QUOTED.sub(" ", prompt) if texts else prompt
        if editing:
            return found
        if not texts and not any(_says(rest, name) for names in self.subjects for name in names):
            some = ", ".join(names[0] for names in self.subjects[:: max(1, len(self.subjects) // EXAMPLES)][:EXAMPLES])
            found.append(
                f"this model knows {len(self.subjects)} subjects and the prompt names none of them; some are: {some}"
            )
        if ("background" in rest.lower() or "背景" in rest) and not any(_says(rest, color) for color in self.colors):
            found.append(f"the colours that this model knows are: {', '.join(self.colors)}")
        return found

    def _about_text(self, text: str) -> list[str]:
        if any("\u4e00" <= character <= "\u9fff" for character in text):
            unknown = sorted({c for c in text if c not in self.characters})
            if unknown:
                return [f"this model was not taught to write {'、'.join(unknown)}"]
            return [f"texts of more than {self.row} Chinese characters come out wrong"] if len(text) > self.row else []
        if not text.isascii() or not text.isalpha() or len(text) > self.letters:
            return [f"this model writes single English words of up to {self.letters} letters, not {text!r}"]
        if self.capitals and not text.isupper():
            return [f"this model writes capital letters; {text.upper()!r} in the prompt works better than {text!r}"]
        return []


def _says(text: str, name: str) -> bool:
    if name.isascii():
        return re.search(rf"(?<![a-z]){re.escape(name.lower())}(e?s)?(?![a-z])", text.lower()) is not None
    return name in text
