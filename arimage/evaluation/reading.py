"""Text in pictures, read by OCR and scored as the public benchmarks do.

English: word accuracy and NED of CVTG-2K (TextCrafter, arXiv:2503.23461). Chinese: character recall of LongText-Bench
(X-Omni, arXiv:2507.22058).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from arimage.errors import DataError


def optical_reader() -> Any:
    """PP-OCR that keeps to PyTorch's number of threads and holds on to its memory, and says errors only.

    Raises:
        ImportError: the package ``rapidocr`` is not installed.
    """
    from rapidocr import RapidOCR

    runtime = {"intra_op_num_threads": torch.get_num_threads(), "enable_cpu_mem_arena": True}
    params = {f"EngineConfig.onnxruntime.{name}": value for name, value in runtime.items()}
    return RapidOCR(params={**params, "Global.log_level": "error"})


class TextReader:
    """Reads the lines of a picture with PP-OCR (package ``rapidocr``).

    Raises:
        DataError: the package is not installed.
    """

    def __init__(self) -> None:
        try:
            self._read = optical_reader()
        except ImportError:
            raise DataError("evaluation reads texts with rapidocr: pip install 'arimage[eval]'") from None

    def __call__(self, picture: Image.Image) -> list[str]:
        """Lines of text, at the picture's own size enlarged to at least 512 px."""
        factor = max(1, round(512 / max(picture.size)))
        shown = picture.convert("RGB")
        if factor > 1:
            shown = shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.BICUBIC)
        return list(self._read(np.asarray(shown)[:, :, ::-1]).txts or ())


def words_found(truth: str, lines: Sequence[str]) -> tuple[int, int]:
    """CVTG-2K: (words of the truth that are among the words read, words of the truth); case does not count."""
    read = [word for line in lines for word in line.lower().split()]
    wanted = truth.lower().split()
    return sum(word in read for word in wanted), len(wanted)


def word_similarity(truth: str, lines: Sequence[str]) -> float:
    """1 - edit distance / longer length, against the closest word read, averaged over words."""
    read = [word for line in lines for word in line.lower().split()]
    wanted = truth.lower().split()
    best = [max((1 - edit_distance(w, r) / max(len(w), len(r)) for r in read), default=0.0) for w in wanted]
    return sum(best) / max(1, len(best))


def characters_found(truth: str, lines: Sequence[str]) -> tuple[int, int]:
    """LongText-Bench: (Chinese characters of the truth that were read, counted as often as they stand; all)."""
    wanted, read = (Counter(c for c in text if "\u4e00" <= c <= "\u9fff") for text in (truth, "".join(lines)))
    return sum((wanted & read).values()), sum(wanted.values())


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]
