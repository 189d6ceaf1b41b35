"""The split into training and evaluation: a pure function of names, by hashing them.

Every concept has near twins in other styles, so concepts, words and combinations are held out, never single pictures.
Nothing is listed, so nothing can drift: the same name falls on the same side everywhere.
"""

import hashlib
from typing import Literal

Split = Literal["train", "evaluation"]
SHARES = {
    "reference concept": 0.05,
    "combination": 0.03,
    "word": 0.05,
    "character": 0.01,
}
HELD_OUT_STYLES = frozenset({"openmoji"})


def fraction(kind: str, name: str) -> float:
    """Where a name falls in [0, 1)."""
    digest = hashlib.sha256(f"arimage/{kind}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def held_out(kind: str, name: str) -> bool:
    """Whether a ``reference concept``, ``combination``, ``word`` or ``character`` is kept for evaluation."""
    return fraction(kind, name) < SHARES[kind]


def concept_held_out(concept: str) -> bool:
    """Concepts that appear only as references of evaluation; named by the code point of the base emoji."""
    return held_out("reference concept", concept)


def combination_held_out(concept: str, style: str, background: str) -> bool:
    """Subject x style x background colour."""
    return held_out("combination", f"{concept}/{style}/{background}")


def text_held_out(text: str) -> bool:
    """A text is held out when it is, or holds, a held-out word, or a held-out Chinese character."""
    if any(held_out("word", word) for word in [text.casefold(), *text.casefold().split()]):
        return True
    return any(held_out("character", character) for character in text if "\u4e00" <= character <= "\u9fff")
