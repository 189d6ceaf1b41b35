"""Published formulas over texts in pictures, computed with our own reader: they are called so, never by a benchmark's
own name.

Word accuracy and NED are those of CVTG-2K (TextCrafter, arXiv:2503.23461), both pooled over the words of all pictures.
The recall is that of LongText-Bench (X-Omni, arXiv:2507.22058): tokens of the truth that were read, counted as often as
they stand, pooled over all pictures. Tokens are words in English, characters in Chinese, where Latin letters and digits
count too.
"""

import difflib
from collections import Counter
from collections.abc import Sequence

from arimage.evaluation.judge import Share
from arimage.evaluation.reading import edit_distance, words_found

READER = "RapidOCR"
ACCENTED = "àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"


def word_scores(texts: Sequence[str], lines: Sequence[str]) -> dict[str, Share]:
    """CVTG-2K's formulas for the texts of a picture and the lines that were read in it."""
    truth = " ".join(texts)
    wanted, read = truth.lower().split(), " ".join(lines).lower().split()
    likeness = [_likeness(word, read) for word in wanted]
    return {
        f"word accuracy (CVTG-2K formula, {READER})": words_found(truth, lines),
        f"NED (CVTG-2K formula, {READER})": (sum(likeness), len(likeness)),
    }


def _likeness(word: str, read: Sequence[str]) -> float:
    """1 - edit distance / longer length, against the closest word that was read.

    The closest is that of difflib, not always that of least edit distance: it and the 1e-5 are those of the scorer.
    """
    closest = difflib.get_close_matches(word, read or [""], n=1, cutoff=0)[0]
    return 1 - edit_distance(word, closest) / (max(len(word), len(closest)) + 1e-5)


def recall_scores(texts: Sequence[str], lines: Sequence[str], language: str) -> dict[str, Share]:
    """LongText-Bench's formula."""
    wanted, read = (Counter(tokens(" ".join(part), language)) for part in (texts, lines))
    return {f"text score (LongText-Bench formula, {READER})": ((wanted & read).total(), wanted.total())}


def tokens(text: str, language: str) -> list[str]:
    """What is counted: words in lower case, or characters; punctuation is left out."""
    kept = "".join(character for character in text if _counts(character) or character.isspace())
    return kept.lower().split() if language == "en" else [character for character in kept if not character.isspace()]


def _counts(character: str) -> bool:
    plain = character.isascii() and character.isalnum()
    return plain or character in ACCENTED or "\u4e00" <= character <= "\u9fa5"
