"""Prompts rewritten by a chat endpoint."""

from pathlib import Path

import pytest

from arimage import Rewriter, UsageError
from arimage.cli.main import run
from arimage.images.provenance import read_recipe
from arimage.inference.pipeline import ImagePipeline
from tests.chat import Chat
from tests.conftest import photo


def test_the_answer_is_the_prompt_and_quoted_texts_are_as_they_were(chat: Chat) -> None:
    rewrite = Rewriter(chat.url, model="a")
    chat.answer = ' A wooden sign that says "GO" and, in Chinese, “走”, at dawn. \n'
    assert rewrite('“走” and "GO" on a sign').prompt == chat.answer.strip()
    assert chat.asked["model"] == "a"
    assert chat.asked["messages"][-1] == {"role": "user", "content": '“走” and "GO" on a sign'}


def test_what_a_model_thinks_is_no_prompt(chat: Chat) -> None:
    chat.answer = '<think>A sign. "STOP"? No.</think>\n\na green sign "GO"'
    assert Rewriter(chat.url)('a sign "GO"').prompt == 'a green sign "GO"'


@pytest.mark.parametrize(
    "answer",
    ['a sign "go"', 'a sign "GO" and a sign "GO"', "a sign", "", None, ["a"], '"GO" \ud800', '"GO"' + "x" * 5000],
)
def test_an_answer_that_cannot_be_used_leaves_the_prompt(chat: Chat, answer: object) -> None:
    chat.answer = answer
    kept = Rewriter(chat.url)('a sign "GO"')
    assert kept.prompt == 'a sign "GO"'
    assert kept.notice is not None
    assert kept.notice.startswith("the prompt was not rewritten")


def test_an_endpoint_that_fails_leaves_the_prompt(chat: Chat) -> None:
    chat.status = 500
    assert "answered 500" in str(Rewriter(chat.url)("a").notice)
    assert "cannot be reached" in str(Rewriter("http://127.0.0.1:9/v1")("a").notice)
    with pytest.raises(UsageError, match="http://HOST/v1"):
        Rewriter("file:///etc/passwd")


def test_the_command_uses_the_new_prompt_and_says_it(
    chat: Chat, checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.answer = "a fox in deep snow"
    command = ["generate", "a fox", "--rewrite", chat.url, "--model", str(checkpoint_folder), "--size", "64"]
    with pytest.raises(SystemExit) as ended:
        run([*command, "--steps", "1", "-o", str(tmp_path / "fox.png")])
    assert not ended.value.code
    assert "rewritten: a fox in deep snow" in capsys.readouterr().err
    recipe = read_recipe(tmp_path / "fox.png")
    assert recipe is not None
    assert recipe.prompt == chat.answer


def test_an_answer_that_was_cut_off_leaves_the_prompt(chat: Chat) -> None:
    chat.answer, chat.ended = "a fox in deep", "length"
    assert Rewriter(chat.url)("a fox").prompt == "a fox"


def test_python_takes_an_address_for_pictures_and_for_edits(chat: Chat, pipeline: ImagePipeline) -> None:
    chat.answer = "a fox in deep snow"
    pictures = pipeline.generate(["a fox", "a fox"], size=64, steps=1, seed=1, rewrite=chat.url)
    assert [picture.recipe.prompt for picture in pictures] == [chat.answer] * 2
    assert chat.count == 1
    chat.answer = 'write "STOP"'
    edited = pipeline.edit(photo(64, 64), 'write "GO"', steps=1, seed=1, rewrite=Rewriter(chat.url))[0]
    assert edited.recipe.prompt == 'write "GO"'
    assert "quoted texts" in edited.notices[0]
    assert "image editor" in chat.asked["messages"][0]["content"]
    with pytest.raises(UsageError, match="rewrite must be an address"):
        pipeline.generate("a", rewrite=True)


def test_an_edit_on_the_command_line_is_rewritten(
    chat: Chat, checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.answer = "the sky turns pink, everything else stays"
    photo(64, 64).save(tmp_path / "in.png")
    command = ["edit", str(tmp_path / "in.png"), "pink", "--rewrite", chat.url, "--model", str(checkpoint_folder)]
    with pytest.raises(SystemExit) as ended:
        run([*command, "--steps", "1", "-o", str(tmp_path / "out.png")])
    assert not ended.value.code
    assert f"rewritten: {chat.answer}" in capsys.readouterr().err
    recipe = read_recipe(tmp_path / "out.png")
    assert recipe is not None
    assert recipe.prompt == chat.answer
