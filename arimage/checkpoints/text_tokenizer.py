"""Text to token ids, with no way for a text to spell a control token."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from arimage.checkpoints.model_config import ModelConfig
from arimage.errors import CheckpointError


@dataclass(frozen=True)
class TextTokenizer:
    """The tokenizer of a checkpoint (``processor/tokenizer.json``).

    Attributes:
        encode: text to ids of ordinary text tokens; ``<sop>`` or ``<|image|>`` typed by a user stay text.
        prefix_ids: what the tokenizer puts in front of every sequence.
        image_start, image_end, image_placeholder, sop, eop, pad: ids of control tokens.
        definition: the parsed ``tokenizer.json``.
    """

    encode: Callable[[str], list[int]]
    prefix_ids: tuple[int, ...]
    image_start: int
    image_end: int
    image_placeholder: int
    sop: int
    eop: int
    pad: int
    definition: dict[str, Any]


def text_tokenizer(
    definition: dict[str, Any], config: ModelConfig, settings: dict[str, Any] | None = None
) -> TextTokenizer:
    """A tokenizer from the contents of ``tokenizer.json``.

    Args:
        settings: the contents of ``tokenizer_config.json``, which may rename control tokens.
    """
    settings = {**(settings or {}), **((settings or {}).get("extra_special_tokens") or {})}
    try:
        vocabulary = dict(definition["model"]["vocab"])
        vocabulary.update({token["content"]: token["id"] for token in definition["added_tokens"]})
        whole = Tokenizer.from_str(json.dumps(definition))
        plain = Tokenizer.from_str(json.dumps(_without_control_tokens(definition, config)))
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises plain exceptions on bad input
        raise CheckpointError(f"not a usable tokenizer: {error}") from None

    def control(key: str, default: str) -> int:
        name = settings.get(key, default)
        name = name.get("content") if isinstance(name, dict) else name
        if name not in vocabulary:
            raise CheckpointError(f"the control token {name!r} ({key}) is not in the vocabulary")
        return vocabulary[name]

    pad = settings.get("pad_token")
    return TextTokenizer(
        encode=lambda text: plain.encode(_encodable(text), add_special_tokens=False).ids,
        prefix_ids=tuple(whole.encode("", add_special_tokens=True).ids),
        image_start=config.image_start,
        image_end=config.image_start + 1,
        image_placeholder=control("image_token", "<|image|>"),
        sop=control("grid_bos_token", "<sop>"),
        eop=control("grid_eos_token", "<eop>"),
        pad=control("pad_token", "<|endoftext|>") if pad else config.text_model.pad_token_id,
        definition=definition,
    )


def _without_control_tokens(definition: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The same tokenizer with nothing but text in its vocabulary."""
    if definition["model"].get("type") != "BPE":
        raise CheckpointError(f"the model type {definition['model'].get('type')!r} is not supported, only 'BPE'")
    added = {token["content"] for token in definition["added_tokens"]}
    vision_words = config.text_model.vision_vocab_size
    vocabulary = {
        token: index
        for token, index in definition["model"]["vocab"].items()
        if index >= vision_words and token not in added
    }
    model = {**definition["model"], "vocab": vocabulary}
    return {**definition, "model": model, "added_tokens": [], "post_processor": None}


def _encodable(text: str) -> str:
    """Text with lone surrogates, which no encoding has, replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
