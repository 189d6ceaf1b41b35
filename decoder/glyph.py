"""Glyphs: the texts that a prompt asks to see in the picture, as the decoder reads them.

Only what stands in quotes reaches the decoder. :func:`quoted_texts` finds it; :class:`GlyphEncoder` turns its bytes
into embeddings with a ByT5-style T5 encoder (Xue et al. 2021, arXiv:2105.13626).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PAD, END_OF_TEXT, BYTE_OFFSET = 0, 1, 3
MAX_BYTES = 2048

QUOTES = {"“": "”", "‘": "’", "「": "」", "『": "』", '"': '"', "'": "'"}


def quoted_texts(prompt: str) -> list[str]:
    """The texts in quotes, in order of appearance.

    Straight and curly, single and double, and CJK corner quotes open and close texts. Of nested quotes the outermost
    counts, inner ones are part of it. An apostrophe ("don't", "the dogs' bowls", "'90s") is no quote, and a quote
    that is never closed is plain text. Empty texts are left out.
    """
    texts, position = [], 0
    while position < len(prompt):
        end = _closing(prompt, position) if _opens(prompt, position) else None
        if end is None:
            position += 1
        else:
            texts.append(prompt[position + 1 : end])
            position = end + 1
    return [text for text in texts if text]


def _word(prompt: str, position: int) -> bool:
    """Whether the character there is part of a word written with spaces (CJK characters are not)."""
    if not 0 <= position < len(prompt):
        return False
    character = prompt[position]
    return character.isalnum() and ord(character) < 0x2E80


def _opens(prompt: str, position: int) -> bool:
    mark = prompt[position]
    if mark not in QUOTES:
        return False
    return mark not in "'‘" or not _word(prompt, position - 1)


def _closing(prompt: str, start: int) -> int | None:
    """The place of the mark that closes the one at ``start``, or None."""
    mark = prompt[start]
    closing = QUOTES[mark]
    depth = 1
    for position in range(start + 1, len(prompt)):
        character = prompt[position]
        if character == closing and not _is_apostrophe(prompt, start, position):
            depth -= 1
            if depth == 0:
                return position
        elif character == mark and mark != closing and _opens(prompt, position):
            depth += 1
    return None


def _is_apostrophe(prompt: str, start: int, position: int) -> bool:
    """Whether a closing single quote is an apostrophe: inside a word, or a plural's with a later candidate."""
    mark = prompt[position]
    if mark not in "'’":
        return False
    if _word(prompt, position + 1):
        return True
    trailing_s = prompt[position - 1] in "sS" and position - 1 > start
    if not trailing_s or prompt[position + 1 : position + 2] != " ":
        return False
    return _balanced_without(prompt, position, mark)


def _balanced_without(prompt: str, position: int, mark: str) -> bool:
    """Whether a later mark of the same kind could close instead, with no other text opening in between."""
    opening = "'" if mark == "'" else "‘"
    for later in range(position + 1, len(prompt)):
        if prompt[later] == mark and not _word(prompt, later + 1):
            return _word(prompt, later - 1) or prompt[later - 1] in ".,!?…"
        if prompt[later] == opening and not _word(prompt, later - 1):
            return False
    return False


def glyph_bytes(texts: Sequence[str]) -> list[list[int]]:
    """Token ids of one prompt's glyph texts, as ByT5 counts: bytes shifted by 3, then the end of the text.

    Byte ids leave no way to spell a special token. The released pipeline puts one attended pad id in front of every
    text of a prompt that has an even number of them, and checkpoints were used that way; so do we. At most 2048 ids.
    """
    texts = list(texts) or [""]
    lead = [PAD] * ((len(texts) + 1) % 2)
    ids = []
    for text in texts:
        encoded = [byte + BYTE_OFFSET for byte in text.encode("utf-8", errors="replace")]
        ids.append([*lead, *encoded[: MAX_BYTES - 1], END_OF_TEXT])
    return ids


class GlyphEncoder(nn.Module):
    """Glyph texts to embeddings.

    Args:
        encoder: a transformers ``T5EncoderModel`` over bytes (the folder ``text_encoder``).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def encode(self, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Embeddings of every prompt's glyph texts, concatenated.

        Args:
            texts: for each prompt its texts; none counts as one empty text.

        Returns:
            (B, L, width) padded on the right, and (B, L) bool, False on padding.
        """
        rows = [self._one(prompt) for prompt in texts]
        longest = max(len(row) for row in rows)
        embeddings = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
        mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=embeddings.device)
        for index, row in enumerate(rows):
            embeddings[index, : len(row)] = row
            mask[index, : len(row)] = True
        return embeddings, mask

    forward = encode

    def encode_padded(self, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """As :meth:`encode`, up to rounding, with all texts in one call of the network: for training."""
        ids = [glyph_bytes(prompt) for prompt in texts]
        flat = [text for prompt in ids for text in prompt]
        device = next(self.encoder.parameters()).device
        longest = max(len(text) for text in flat)
        padded = torch.tensor([text + [PAD] * (longest - len(text)) for text in flat])
        attended = torch.arange(longest) < torch.tensor([[len(text)] for text in flat])
        places = attended.flatten().nonzero()[:, 0].split([sum(len(text) for text in prompt) for prompt in ids])
        lengths = torch.tensor([[len(row)] for row in places])
        mask = (torch.arange(int(lengths.max())) < lengths).to(device)
        hidden = self.encoder(padded.to(device), attention_mask=attended.long().to(device)).last_hidden_state
        rows = torch.nn.utils.rnn.pad_sequence(list(places), batch_first=True).to(device)
        return hidden.flatten(0, 1)[rows].masked_fill(~mask[..., None], 0.0), mask

    def _one(self, texts: Sequence[str]) -> Tensor:
        ids = glyph_bytes(texts)
        device = next(self.encoder.parameters()).device
        return torch.cat([self.encoder(torch.tensor([text], device=device)).last_hidden_state[0] for text in ids])
