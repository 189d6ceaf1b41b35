"""Named colours, and how far apart colours look."""

from dataclasses import dataclass
from functools import cache

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class NamedColor:
    """A colour that captions may name, with its English and Chinese words."""

    name: str
    rgb: RGB
    en: tuple[str, ...]
    zh: tuple[str, ...]


COLORS = (
    NamedColor("red", (214, 40, 40), ("red",), ("红色",)),
    NamedColor("orange", (247, 127, 0), ("orange",), ("橙色", "橘色")),
    NamedColor("yellow", (255, 214, 10), ("yellow",), ("黄色",)),
    NamedColor("green", (42, 145, 52), ("green",), ("绿色",)),
    NamedColor("lime", (170, 224, 60), ("lime green", "bright green"), ("黄绿色", "青柠色")),
    NamedColor("teal", (20, 140, 140), ("teal",), ("青色", "蓝绿色")),
    NamedColor("sky", (125, 200, 247), ("sky blue", "light blue"), ("天蓝色", "浅蓝色")),
    NamedColor("blue", (35, 87, 214), ("blue",), ("蓝色",)),
    NamedColor("navy", (16, 32, 82), ("navy blue", "dark blue"), ("深蓝色", "藏青色")),
    NamedColor("purple", (122, 48, 178), ("purple", "violet"), ("紫色",)),
    NamedColor("pink", (255, 158, 200), ("pink",), ("粉色", "粉红色")),
    NamedColor("brown", (121, 78, 44), ("brown",), ("棕色", "褐色")),
    NamedColor("beige", (230, 206, 160), ("beige", "cream"), ("米色", "奶油色")),
    NamedColor("black", (18, 18, 18), ("black",), ("黑色",)),
    NamedColor("gray", (138, 138, 138), ("gray", "grey"), ("灰色",)),
    NamedColor("white", (250, 250, 250), ("white",), ("白色",)),
)
BY_NAME = {color.name: color for color in COLORS}


def lab(rgb: RGB) -> tuple[float, float, float]:
    """CIE L*a*b* of an sRGB colour, D65."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    r, g, b = linear
    xyz = (
        (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047,
        0.2126729 * r + 0.7151522 * g + 0.0721750 * b,
        (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883,
    )
    x, y, z = (v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def distance(first: RGB, second: RGB) -> float:
    """CIE76 colour difference; about 2.3 is just noticeable. The evaluation uses CIEDE2000 from scikit-image."""
    return sum((a - b) ** 2 for a, b in zip(lab(first), lab(second))) ** 0.5


def luminance(rgb: RGB) -> float:
    """Relative luminance (WCAG 2) in [0, 1]."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(first: RGB, second: RGB) -> float:
    """WCAG 2 contrast ratio, 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@cache
def distinct_from(name: str, minimum: float = 28.0) -> tuple[str, ...]:
    """Names of colours that nobody mistakes for a named one."""
    base = BY_NAME[name].rgb
    return tuple(color.name for color in COLORS if distance(color.rgb, base) >= minimum)
