"""A small model says gently what it was not taught."""

from pathlib import Path

import pytest

from arimage.checkpoints.domain import FILE, Domain
from arimage.data.domain import domain_of
from arimage.data.scenes.settings import SceneSettings
from tests.tiny_assets import tiny_assets

DOMAIN = Domain(
    subjects=(("fox", "狐狸"), ("red apple", "红苹果")), colors=("blue", "蓝色"), letters=8, capitals=True,
    characters="你好", row=4,
)  # fmt: skip


@pytest.mark.parametrize(
    "prompt",
    ["a fox on a blue background", "Two foxes", "蓝色背景上的狐狸", 'the word "OPEN" on a blue background', "“你好”"],
)
def test_nothing_is_said_within_the_domain(prompt: str) -> None:
    assert DOMAIN.notes(prompt) == []


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("a submarine", "names none of them"),
        ("a fox on a teal background", "colours that this model knows"),
        ('the word "open"', "'OPEN' in the prompt works better"),
        ('the text "GOOD MORNING"', "single English words of up to 8 letters"),
        ("“关门”", "not taught to write 关、门"),
        ("“你好你好你”", "more than 4 Chinese characters"),
    ],
)
def test_what_lies_outside_is_named(prompt: str, note: str) -> None:
    assert any(note in said for said in DOMAIN.notes(prompt))


def test_an_unfinished_model_says_so_with_every_prompt() -> None:
    unfinished = DOMAIN.model_copy(update={"notice": "not finished"})
    assert unfinished.notes("a fox") == unfinished.notes("make it red", editing=True) == ["not finished"]


def test_an_instruction_needs_no_subject() -> None:
    assert DOMAIN.notes("make it brighter", editing=True) == []


def test_a_folder_without_a_domain_says_nothing(tmp_path: Path) -> None:
    assert Domain.read(tmp_path) is None
    (tmp_path / FILE).write_text("{broken")
    assert Domain.read(tmp_path) is None


def test_it_is_read_off_the_scenes(tmp_path: Path) -> None:
    assets = tiny_assets(tmp_path)
    made = domain_of(SceneSettings(capitals=True, english_letters=6, colors=("red", "blue", "black", "white")), assets)
    assert ("circle", "圆形") in made.subjects
    assert set(made.colors) == {"red", "红色", "blue", "蓝色", "black", "黑色", "white", "白色"}
    (tmp_path / FILE).write_text(made.model_dump_json())
    assert Domain.read(tmp_path) == made
