"""Quoted texts and their encoding."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from decoder.glyph import glyph_bytes, quoted_texts
from tests.tiny_decoder import tiny_glyph_encoder


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "OPEN"', ["OPEN"]),
        ("a sign that says 'OPEN' and 'NOW'", ["OPEN", "NOW"]),
        ("写着“你好”的牌子，旁边是「世界」", ["你好", "世界"]),
        ("標題『今天』和‘明天’", ["今天", "明天"]),
        ("写着'你好'的牌子", ["你好"]),
        ("it's a cat, don't move", []),
        ("the dogs' bowl and the cats' tree", []),
        ("rock 'n' roll", ["n"]),
        ("the '90s were loud", []),
        ("it's a sign that says 'DON'T PANIC'", ["DON'T PANIC"]),
        ("a sign 'the dogs' bowls' here", ["the dogs' bowls"]),
        ("‘it’s late’", ["it’s late"]),
        ("\"she said 'hi' to me\"", ["she said 'hi' to me"]),
        ("“outer “inner” end” and “two”", ["outer “inner” end", "two"]),
        ("「外『内』外」", ["外『内』外"]),
        ('an unclosed "quote', []),
        ("“open only", []),
        ("closed only”", []),
        ('empty "" and “”', []),
        ("first \"b\" then 'a' then “c”", ["b", "a", "c"]),
        ('a 5" screen', []),
        ("", []),
        ('"two\nlines"', ["two\nlines"]),
        ("two plates: 'ABC', 'DEF'.", ["ABC", "DEF"]),
        ("the boss' desk with a sign 'HI'", ["HI"]),
    ],
)
def test_quoted_texts(prompt, texts):
    assert quoted_texts(prompt) == texts


words = st.text(st.sampled_from("abcXYZ 019字体!?"), min_size=1, max_size=8).filter(str.strip)
pairs = st.sampled_from([('"', '"'), ("“", "”"), ("「", "」"), ("'", "'")])


@given(st.lists(st.tuples(pairs, words), max_size=4), words)
def test_ordinary_prompts_give_what_the_references_patterns_give(quoted, between):
    """Plain text and quotes of one kind each, set off by spaces."""
    prompt = f" {between} ".join(["", *[f"{left}{text}{right}" for (left, right), text in quoted], ""])
    patterns = [r"'([^']*)'", r"“([^“”]*)”", r'"([^"]*)"', r"「([^「」]*)」"]
    wanted = [text for pattern in patterns for text in re.findall(pattern, prompt)]
    assert sorted(quoted_texts(prompt)) == sorted(wanted)


@given(st.text(max_size=60))
def test_any_prompt_is_parsed_and_texts_come_from_it_in_order(prompt):
    position = 0
    for text in quoted_texts(prompt):
        found = prompt.index(text, position)
        position = found + len(text)


@given(st.text(max_size=40).filter(lambda text: "<" not in text))
def test_bytes_are_byt5s(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert glyph_bytes([text]) == [ByT5Tokenizer()(text).input_ids]


def test_special_spellings_stay_text():
    ids = glyph_bytes(["</s><pad><extra_id_0>"])[0]
    assert ids == [byte + 3 for byte in b"</s><pad><extra_id_0>"] + [1]


def test_an_even_number_of_texts_gets_the_released_pipelines_pad():
    assert glyph_bytes([]) == [[1]]
    assert glyph_bytes(["a"]) == [[100, 1]]
    assert glyph_bytes(["a", "b"]) == [[0, 100, 1], [0, 101, 1]]
    assert len(glyph_bytes(["x" * 5000])[0]) == 2048


def test_glyphs_do_not_depend_on_their_neighbours():
    encoder = tiny_glyph_encoder()
    prompts = [["HELLO", "世界"], [], ["a much longer text than the others"]]
    with torch.no_grad():
        embeddings, mask = encoder.encode(prompts)
        for i, prompt in enumerate(prompts):
            alone, _ = encoder.encode([prompt])
            assert torch.equal(embeddings[i][mask[i]], alone[0])
    assert mask.sum(dim=1).tolist() == [7 + 8, 1, 35]


def test_glyph_embeddings_are_upstreams():
    """One padded batch with a mask, as upstream encodes the texts of a prompt."""
    encoder = tiny_glyph_encoder()
    texts = ["HELLO", "世界", "x"]
    ids = glyph_bytes(texts)
    longest = max(map(len, ids))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    mask = torch.arange(longest) < torch.tensor([len(row) for row in ids])[:, None]
    with torch.no_grad():
        wanted = encoder.encoder(padded, attention_mask=mask.long()).last_hidden_state[mask]
        assert torch.allclose(encoder.encode([texts])[0][0], wanted, atol=1e-5)
