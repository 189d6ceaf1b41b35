"""The words of captions in both languages: things, colours, places, styles, counts."""

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from random import Random
from typing import Any

from arimage.data.colors import BY_NAME
from arimage.data.scenes.spec import Background, Lettering, Shade, Subject
from arimage.data.sprites import Concept

STYLES = {
    "noto": {"en": ("soft cartoon", "rounded cartoon"), "zh": ("柔和卡通", "圆润卡通")},
    "twemoji": {"en": ("flat", "flat vector"), "zh": ("扁平", "扁平矢量")},
    "fluent-flat": {"en": ("bold sticker", "sticker"), "zh": ("粗线贴纸", "贴纸")},
    "fluent-3d": {"en": ("3D", "3D rendered"), "zh": ("3D", "立体")},
    "noto-v1": {"en": ("shiny", "glossy"), "zh": ("光泽", "亮面")},
    "emojione": {"en": ("classic emoji", "classic icon"), "zh": ("经典表情", "经典图标")},
    "fluent-high-contrast": {"en": ("black and white", "monochrome"), "zh": ("黑白", "单色")},
    "openmoji": {"en": ("outlined", "line drawing"), "zh": ("描边", "线描")},
}
PLACES = {
    "center": {"en": ("in the center", "in the middle"), "zh": ("中央", "中间")},
    "left": {"en": ("on the left", "on the left side"), "zh": ("左边", "左侧")},
    "right": {"en": ("on the right", "on the right side"), "zh": ("右边", "右侧")},
    "top": {"en": ("at the top", "in the upper part"), "zh": ("上方", "顶部")},
    "bottom": {"en": ("at the bottom", "in the lower part"), "zh": ("下方", "底部")},
    "top left": {"en": ("in the top left corner", "in the upper left"), "zh": ("左上角", "左上方")},
    "top right": {"en": ("in the top right corner", "in the upper right"), "zh": ("右上角", "右上方")},
    "bottom left": {"en": ("in the bottom left corner", "in the lower left"), "zh": ("左下角", "左下方")},
    "bottom right": {"en": ("in the bottom right corner", "in the lower right"), "zh": ("右下角", "右下方")},
}
SCALES = {"small": {"en": ("small", "tiny", "little"), "zh": ("小",)}, "large": {"en": ("large", "big"), "zh": ("大",)}}
NUMBERS = {"en": ("zero", "one", "two", "three", "four"), "zh": ("零", "一", "两", "三", "四")}
PATTERNS = {
    "stripes": {"en": ("striped", "stripes"), "zh": "条纹"},
    "dots": {"en": ("polka dot", "dots"), "zh": "圆点"},
    "checks": {"en": ("checkered", "checks"), "zh": "格子"},
}
HOLDERS = {"sign": {"en": "sign", "zh": "牌子"}, "banner": {"en": "banner", "zh": "横幅"}}
ENGLISH_QUOTES = (("“", "”"), ('"', '"'), ("'", "'"))
CHINESE_QUOTES = (("“", "”"), ("「", "」"), ('"', '"'))


@cache
def _grammar() -> Any:
    import inflect

    return inflect.engine()


@lru_cache(maxsize=16384)
def plural(noun: str) -> str:
    return str(_grammar().plural_noun(noun)) or noun


@lru_cache(maxsize=16384)
def with_article(phrase: str) -> str:
    return str(_grammar().a(phrase))


def colour(random: Random, shade: Shade, language: str) -> str:
    return random.choice(getattr(BY_NAME[shade.name], language))


def style(random: Random, name: str, language: str) -> str:
    words = STYLES.get(name, {"en": (name,), "zh": (name,)})
    return random.choice(words[language])


def names_style(text: str, styles: Iterable[str]) -> bool:
    """Whether a text says one of these styles' names, as captions do."""
    said = text.lower()
    return any(
        name.lower() in said
        for style in styles
        for names in STYLES.get(style, {"en": (style,)}).values()
        for name in names
    )


def place(random: Random, word: str, language: str) -> str:
    return random.choice(PLACES[word][language])


def adjectives(random: Random, subject: Subject, language: str) -> list[str]:
    """Size and paint, as far as captions should say them."""
    words = []
    if subject.scale:
        words.append(random.choice(SCALES[subject.scale][language]))
    if subject.tint is not None:
        words.append(colour(random, subject.tint, language))
    return words


def thing(random: Random, subject: Subject, concept: Concept, language: str, count: int = 1) -> str:
    """One or more of a concept: ``a small red fox``, ``两只狐狸``."""
    name, words = concept.names[language], adjectives(random, subject, language)
    if language == "zh":
        number = NUMBERS["zh"][count]
        measure = "只" if concept.group == "animals and nature" and _is_animal(concept) else "个"
        painted = "".join(word if word in ("小", "大") else f"{word}的" for word in words)
        return f"{number}{measure}{painted}{name}"
    if count > 1:
        return " ".join([NUMBERS["en"][count], *words, plural(name)])
    return with_article(" ".join([*words, name]))


def the_thing(random: Random, subject: Subject, concept: Concept, language: str) -> str:
    """A definite mention: ``the fox``, ``狐狸``."""
    name = concept.names[language]
    return name if language == "zh" else f"the {name}"


def _is_animal(concept: Concept) -> bool:
    return not any(tag in concept.keywords["en"] for tag in ("plant", "flower", "tree", "leaf", "moon", "weather"))


def backdrop(random: Random, background: Background, language: str) -> str:
    """``a plain blue background``, ``蓝色的背景``."""
    first = colour(random, background.first, language)
    if background.pattern == "plain" or background.second is None:
        if language == "zh":
            return random.choice((f"{first}背景", f"{first}的背景", f"纯{first}背景"))
        return with_article(random.choice(("", "", "plain ", "solid ")) + f"{first} background")
    second = colour(random, background.second, language)
    if background.pattern == "gradient":
        if language == "zh":
            way = "从上到下" if background.vertical else "从左到右"
            return random.choice((f"{first}到{second}的渐变背景", f"{way}由{first}渐变到{second}的背景"))
        way = "from top to bottom" if background.vertical else "from left to right"
        plain = with_article(f"{first} to {second} gradient background")
        return random.choice((plain, f"a gradient background from {first} to {second}", f"{plain} running {way}"))
    if language == "zh":
        return f"{first}和{second}相间的{PATTERNS[background.pattern]['zh']}背景"
    adjective, noun = PATTERNS[background.pattern]["en"]
    options = [f"{first} and {second} {adjective} background"]
    if background.pattern == "dots":
        options = [f"{first} background with {second} {noun}"]
    return with_article(random.choice(options))


def quoted(random: Random, text: str, language: str) -> str:
    """A text in one of the quotes of the format that the text itself does not contain."""
    quotes = ENGLISH_QUOTES if language == "en" else CHINESE_QUOTES
    fitting = [pair for pair in quotes if pair[0] not in text and pair[1] not in text]
    opening, closing = random.choice(fitting or [("“", "”")])
    return f"{opening}{text}{closing}"


def writing(random: Random, lettering: Lettering, language: str, *, named_color: bool = True) -> str:
    """The text and what it stands on: ``the word "OPEN" in white on a red sign``."""
    lines = [quoted(random, line, language) for line in lettering.lines]
    text = "".join(lines) if language == "zh" else joined(lines)
    ink = colour(random, lettering.color, language)
    holder = ""
    if lettering.holder != "none" and lettering.holder_color is not None:
        base = colour(random, lettering.holder_color, language)
        holder = HOLDERS[lettering.holder][language]
        holder = f"{base}{holder}" if language == "zh" else with_article(f"{base} {holder}")
    if language == "zh":
        painted = f"{ink}的" if named_color else ""
        kind = random.choice(("文字", "字样"))
        if holder:
            return random.choice((f"{holder}上写着{painted}{text}", f"写有{painted}{text}的{holder}"))
        return random.choice((f"{painted}{text}{kind}", f"{painted}文字{text}"))
    if len(lines) > 1:
        kind = random.choice(("lines", "texts", "words" if lettering.text.replace("\n", "").isalpha() else "lines"))
    else:
        kind = random.choice(("word", "text")) if lettering.text.isalpha() else "text"
    painted = f" in {ink}" if named_color else ""
    if holder:
        return random.choice((f"{holder} that says {text}{painted}", f"the {kind} {text}{painted} on {holder}"))
    return random.choice((f"the {kind} {text}{painted}", f"the {ink} {kind} {text}" if named_color else text))


def joined(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
