"""A checkpoint's ``tokenizer.json``: vision words and control tokens around a byte-level BPE.

Ids follow the format: ``<|dit_token_N|>`` = N for the vision words, then the text tokens, then the control tokens at
the end of the table. :func:`train_tokenizer` learns the text part from captions; :func:`shift_tokenizer` takes it
from a language model's tokenizer.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from arimage.errors import UsageError

CONTROL_TOKENS = ("<|endoftext|>", "<sop>", "<eop>", "<|image|>")
DEFAULT_CORPUS = (
    "a picture of red orange yellow green blue purple pink brown black white grey gold silver teal background",
    "a large small cat dog fox bird fish tree flower house car sun moon star heart apple on the left right top bottom",
    'with the text "HELLO" on a sign in the centre, two three, change the background, replace, add, remove, make it',
    "一只 红色 橙色 黄色 绿色 蓝色 紫色 粉色 棕色 黑色 白色 灰色 背景 左边 右边 上方 下方 中间 大 小",
    "猫 狗 狐狸 鸟 鱼 树 花 房子 汽车",
    "太阳 月亮 星星 心 苹果 写着“你好”的牌子 两个 三个 把背景改成 替换 添加 去掉 文字",
)
# Capitals, Chinese characters and digits stand alone: a text that is to be drawn is spelt out, character by character.
PATTERN = r" ?\p{Lu}?\p{Ll}+| ?\p{Lu}|\p{Han}|\p{N}|\p{L}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"


def train_tokenizer(corpus: Iterable[str], vision_words: int, rows: int) -> dict[str, Any]:
    """Learn a byte-level BPE, so that any text can be encoded.

    Args:
        corpus: captions.
        vision_words: ids below this are vision words.
        rows: of the embedding table; a small corpus may use fewer of them.

    Returns:
        The contents of ``tokenizer.json``.

    Raises:
        UsageError: the table has no room for the 256 bytes and the control tokens.
    """
    from tokenizers import Regex as TokenizerRegex
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    room = rows - vision_words - len(CONTROL_TOKENS)
    if room < 256:
        raise UsageError(
            f"text_model.vocab_size leaves {room} rows for text; byte-level text needs 256 and {len(CONTROL_TOKENS)} "
            "control tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(TokenizerRegex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        special_tokens=[],
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _with_vision_words(_parsed(tokenizer), vision_words, rows)


def shift_tokenizer(definition: Mapping[str, Any], vision_words: int) -> dict[str, Any]:
    """A language model's tokenizer with its ids moved behind the vision words.

    Its own control tokens come along; ``<sop>``, ``<eop>``, ``<|image|>`` and a pad token must be among them or are
    given free ids at the end.

    Args:
        definition: the contents of the language model's ``tokenizer.json``.
    """
    model = dict(definition["model"])
    model["vocab"] = {token: index + vision_words for token, index in model["vocab"].items()}
    added = [{**token, "id": token["id"] + vision_words} for token in definition["added_tokens"]]
    following = max([*model["vocab"].values(), *(token["id"] for token in added)]) + 1
    known = {token["content"] for token in added} | set(model["vocab"])
    for name in CONTROL_TOKENS:
        if name not in known:
            added.append(_control(following, name))
            model["vocab"][name] = following
            following += 1
    shifted = {**definition, "model": model, "added_tokens": added, "post_processor": None}
    return _prepend_vision_words(shifted, vision_words)


def token_id(definition: Mapping[str, Any], content: str) -> int:
    """The id of a control token."""
    for token in definition["added_tokens"]:
        if token["content"] == content:
            return token["id"]
    raise UsageError(f"the tokenizer has no control token {content!r}")


def _with_vision_words(definition: dict[str, Any], vision_words: int, rows: int) -> dict[str, Any]:
    model = definition["model"]
    vocabulary = {token: index + vision_words for token, index in model["vocab"].items()}
    following = vision_words + len(vocabulary)
    added = []
    for offset, name in enumerate(CONTROL_TOKENS):
        added.append(_control(following + offset, name))
        vocabulary[name] = following + offset
    assert following + len(CONTROL_TOKENS) <= rows
    definition = {**definition, "model": {**model, "vocab": vocabulary}, "added_tokens": added}
    return _prepend_vision_words(definition, vision_words)


def _prepend_vision_words(definition: dict[str, Any], vision_words: int) -> dict[str, Any]:
    """Vision words are in the vocabulary, which fixes their ids, and marked as control tokens."""
    words = {f"<|dit_token_{index}|>": index for index in range(vision_words)}
    model = {**definition["model"], "vocab": {**words, **definition["model"]["vocab"]}}
    controls = [_control(index, name) for name, index in words.items()]
    return {**definition, "model": model, "added_tokens": [*controls, *definition["added_tokens"]]}


def _control(index: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **flags}


def _parsed(tokenizer: Any) -> dict[str, Any]:
    import json

    return json.loads(tokenizer.to_str())
