"""What is known of a caption's text without reading it."""

SHORT = 100


def language(text: str) -> str:
    """``en`` (Latin letters), ``zh``, ``mixed`` or ``other``."""
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in text)
    latin = sum(character.isascii() and character.isalpha() for character in text)
    if chinese and latin > 2:
        return "mixed"
    return "zh" if chinese else "en" if latin else "other"


def length_class(text: str) -> str:
    """``short`` or ``long``; a Chinese character says about as much as three letters."""
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in text)
    return "short" if len(text) + 2 * chinese < SHORT else "long"
