"""Words and characters to write: a list sorted by frequency, and draws that give the long tail its share."""

import json
from functools import lru_cache
from pathlib import Path
from random import Random

from arimage.errors import DataError
from arimage.files import write_whole

FALLBACK = {
    "en": "the and you for open love home time happy birthday sale hello world coffee music summer garden blue today "
    "welcome thank friend party light moon star magic dream fresh bread water stop exit free hotel bar pizza tea",
    "zh": "你好 世界 谢谢 欢迎 生日 快乐 开门 关门 出口 入口 爱 家 春 夏 秋 冬 福 新年 咖啡 音乐 花园 "
    "月亮 星星 书店 面包 茶 小心 朋友",
}
HARMLESS = ("god", "gay", "lesbian", "organ", "stroke", "pot", "strip", "fat", "virgin", "oral", "wang", "slave")
ENGLISH_LETTERS = (1, 12)
CHINESE_CHARACTERS = (1, 4)


def build_words(path: Path, total: int = 50_000) -> dict[str, int]:
    """Write a frequency-sorted list of English words, and Chinese words and characters, half of each.

    English words that nobody wants to find on a picture are left out, by the list of ``better-profanity``.

    Returns:
        How many of each language.

    Raises:
        DataError: the package ``wordfreq`` is not installed.
    """
    try:
        from better_profanity import profanity
        from wordfreq import top_n_list
    except ImportError:
        raise DataError(
            "word lists are built from wordfreq and better-profanity: pip install 'arimage[data]'"
        ) from None
    profanity.load_censor_words(whitelist_words=list(HARMLESS))
    half = total // 2
    low, high = ENGLISH_LETTERS
    listed = top_n_list("en", 4 * half, "large")
    english = [word for word in listed if word.isascii() and word.isalpha() and low <= len(word) <= high]
    english = [word for word in english[: half + half // 10] if not profanity.contains_profanity(word)]
    chinese = [w for w in top_n_list("zh", 6 * half, "large") if _chinese(w)]
    lists = {"en": english[:half], "zh": chinese[:half]}
    write_whole(path, json.dumps(lists, ensure_ascii=False).encode())
    return {language: len(words) for language, words in lists.items()}


def _chinese(word: str) -> bool:
    low, high = CHINESE_CHARACTERS
    return low <= len(word) <= high and all("\u4e00" <= character <= "\u9fff" for character in word)


@lru_cache(maxsize=4)
def read_words(path: Path | None) -> dict[str, tuple[str, ...]]:
    """Words by language, most frequent first; without a file, a few that every installation has.

    Raises:
        DataError: the file is missing or no word list.
    """
    if path is None:
        return {language: tuple(text.split()) for language, text in FALLBACK.items()}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {language: tuple(data[language]) for language in ("en", "zh")}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; build it with: arimage data words -o {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no word list: {error}") from None


def draw_word(random: Random, words: tuple[str, ...], zipf: float = 0.5) -> str:
    """A share of the draws follows Zipf's law, the others are even: frequent words are learnt well, rare ones seen."""
    if random.random() < 1 - zipf:
        return words[random.randrange(len(words))]
    return words[min(int(len(words) ** random.random()), len(words) - 1)]


def common_characters(words: tuple[str, ...], count: int = 3500) -> str:
    """The characters of a frequency-sorted list of Chinese words, most frequent first."""
    return "".join(list(dict.fromkeys("".join(words)))[:count])
