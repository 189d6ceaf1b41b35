"""Prompts in own words: twenty of each kind that the captions' grammar cannot produce, and that say all they must."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from arimage.data import colors
from arimage.data.assets import Assets
from arimage.data.scenes import Scenes, SceneSettings, captions, edits, vocabulary
from arimage.evaluation.phrasings import KINDS, fits, own_places, own_words, phrasings, said
from decoder.glyph import quoted_texts
from tests.tiny_assets import tiny_assets

ALL = [(kind, language, text) for kind, by in phrasings().items() for language in by for text in by[language]]
PLACES = [(language, place, text) for language, by in own_places().items() for place in by for text in by[place]]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    return tiny_assets(tmp_path_factory.mktemp("assets"))


def words(text: str) -> set[str]:
    """English words and Chinese characters outside slots."""
    return set(re.findall(r"[a-z']+|[\u4e00-\u9fff]", re.sub(r"\{\w+\}", " ", text.lower())))


def grammar() -> set[str]:
    """Every word in a text of the modules that write captions and instructions, docstrings and errors apart."""
    found: set[str] = set()
    for module in (captions, edits, vocabulary, colors):
        tree = ast.parse(inspect.getsource(module))
        apart = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        apart |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.Raise) for part in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart:
                found |= words(node.value)
    return found


def test_there_are_twenty_different_phrasings_of_each_kind_in_each_language() -> None:
    assert set(phrasings()) == set(KINDS)
    for by_language in phrasings().values():
        assert set(by_language) == {"en", "zh"}
        assert all(len(set(texts)) == 20 for texts in by_language.values())


def test_no_phrasing_can_be_produced_by_the_grammar_of_the_captions() -> None:
    """Each has a word besides its slots that stands nowhere in the grammar, so no choice of the grammar's makes it."""
    known = grammar()
    assert {"background", "replace", "背", "换"} <= known
    assert not [text for _, _, text in ALL if words(text) <= known]
    assert not [text for _, _, text in PLACES if words(text) <= known]


def test_every_phrasing_has_its_slots_and_no_others() -> None:
    for kind, _, text in ALL:
        assert KINDS[kind].slots <= said(text) <= KINDS[kind].slots | KINDS[kind].optional, text
        assert not re.search(r"[{}]", re.sub(r"\{\w+\}", "", text)), text
    for language in ("en", "zh"):
        assert set(own_places()[language]) == set(vocabulary.PLACES) - {"center"}


@pytest.mark.parametrize("kind", KINDS)
def test_filled_phrasings_name_what_the_scene_shows(assets: Assets, kind: str) -> None:
    settings = SceneSettings(tasks={KINDS[kind].task: 1.0}, split="evaluation", sizes=((64, 64),), patterns=0.0,
                             threes=0.0, scales=(0, 1, 0))  # fmt: skip
    scenes = Scenes(assets, settings)
    record = next(record for record in map(scenes.__getitem__, range(100)) if fits(kind, record))
    spec, slots = record.truth["spec"], KINDS[kind].slots
    for language in ("en", "zh"):
        for number in range(20):
            prompt = own_words(kind, number, record, assets, language, seed=number)
            assert "{" not in prompt
            if "text" in slots:
                assert spec["lettering"]["text"] in quoted_texts(prompt), prompt
            if "color" in slots:
                names = getattr(colors.BY_NAME[spec["background"]["first"]["name"]], language)
                assert any(name in prompt.lower() for name in names), prompt
            if "subject" in slots:
                names = [assets.sprites.concepts[s["concept"]].names[language] for s in spec["subjects"]]
                assert any(name in prompt.lower() for name in names), prompt
    assert own_words(kind, 0, record, assets, "en", 1) != own_words(kind, 1, record, assets, "en", 1)


def test_the_phrasings_are_in_the_package() -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '"evaluation/*.yaml"' in project
