"""The vision-word vocabulary: which token ids mean what.

One embedding table holds everything: rows ``0 .. codebook_size - 1`` are visual codes, image start and image end
follow, reserved rows fill up to ``vision_vocab_size``, and the text model's own rows come after that. Control
tokens enter a sequence only through the ids kept here: ``encode`` turns a user's text into text ids and nothing
else, whatever the text spells.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of a checkpoint.

    Attributes:
        codebook_size: visual codes are ``0 .. codebook_size - 1``.
        image_start, image_end: the tokens around an image's codes.
        grid_start, grid_end: ``<sop>`` and ``<eop>``, around a grid's height and width.
        pad: a token that is never attended.
        encode: text to ids, with no way to spell a control token.
        prefix: ids that the checkpoint's tokenizer puts in front of every sequence (usually none).
        text_first: the prompt's text stands before the references, as the checkpoint's chat template has it.
    """

    codebook_size: int
    image_start: int
    image_end: int
    grid_start: int
    grid_end: int
    pad: int
    encode: Callable[[str], list[int]]
    prefix: tuple[int, ...] = ()
    text_first: bool = False
