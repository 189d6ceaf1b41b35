"""Public benchmarks: their prompt files are read, pictures lie where scorers look, formulas are those of the papers."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from arimage.cli.main import run as cli
from arimage.errors import DataError, UsageError
from arimage.evaluation.benchmarks.readers import BENCHMARKS, BenchmarkCase, own_prompts, read_cases
from arimage.evaluation.benchmarks.run import (
    Making,
    check_about,
    make_pictures,
    score_pictures,
    score_rows,
    write_report,
)
from arimage.evaluation.benchmarks.scores import recall_scores, tokens, word_scores
from arimage.inference.pipeline import ImagePipeline

PROMPTS: dict[str, dict[str, Any]] = {
    "cvtg-2k": {"CVTG/2.json": {"data_list": [{"index": 7, "prompt": "a mug 'Hi Bob' and a card 'Yes'"}]}},
    "longtext": {"text_prompts.jsonl": {"prompt_id": 3, "prompt": 'a card "Good day"', "text": ["Good day"]}},
    "geneval": {"evaluation_metadata.jsonl": {"tag": "counting", "include": [], "prompt": "a photo of two cats"}},
    "dpg-bench": {"prompts/own_1.txt": "a fox\non a stone"},
    "gedit": {
        "gedit.jsonl": {
            "key": "k1", "task_type": "style", "instruction": "变成水彩画", "instruction_language": "cn",
            "input_image": "pictures/a.png",
        }
    },
    "imgedit": {"basic_edit.json": {"1082": {"id": "pictures/a.png", "prompt": "make it red", "edit_type": "adjust"}}},
}  # fmt: skip
LAYOUT = {
    "cvtg-2k": ("CVTG/2/7.png",),
    "longtext": ("0003_1.png", "0003_2.png", "0003_3.png", "0003_4.png"),
    "geneval": tuple(f"00000/samples/000{number}.png" for number in range(4)),
    "dpg-bench": ("own_1.png",),
    "gedit": ("fullset/style/cn/k1.png",),
    "imgedit": ("1082.png",),
}


def written(name: str, folder: Path) -> Path:
    """A benchmark's prompts, as its own files; what --prompts is given."""
    for file, contents in PROMPTS[name].items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents if isinstance(contents, str) else json.dumps(contents) + "\n", encoding="utf-8")
    (folder / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (100, 80), "gray").save(folder / "pictures" / "a.png")
    if name == "cvtg-2k":
        return folder
    return path.parent if name == "dpg-bench" else path


def cases_of(name: str, folder: Path) -> list[BenchmarkCase]:
    return read_cases(name, written(name, folder), None, folder)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prompts_are_read_and_pictures_go_where_the_scorer_looks(name: str, tmp_path: Path) -> None:
    (case,) = cases_of(name, tmp_path)
    assert case.files == LAYOUT[name]
    wanted = {"cvtg-2k": ("Hi Bob", "Yes"), "longtext": ("Good day",)}
    assert case.texts == wanted.get(name, ())
    assert case.language == ("zh" if name == "gedit" else "en")
    assert case.group == {"cvtg-2k": "2 texts", "geneval": "counting", "gedit": "style", "imgedit": "adjust"}.get(
        name, ""
    )
    assert (case.source is not None) == BENCHMARKS[name].edits
    if name == "dpg-bench":
        assert case.prompt == "a fox on a stone"
        assert case.sheet


@pytest.mark.parametrize(
    ("name", "file", "contents", "told"),
    [
        ("cvtg-2k", "2.json", "{}", r"2.json: there is no 'data_list' that is a list"),
        ("cvtg-2k", "2.json", '{"data_list": [{"index": 1}]}', r"data_list\[0\]: there is no 'prompt' that is a text"),
        ("cvtg-2k", "2.json", '{"data_list": [{"index": 1, "prompt": "a"}]}', r"data_list\[0\]: the prompt quotes no"),
        ("longtext", "a.jsonl", '{"prompt_id": 1}\n', r"a.jsonl:1: there is no 'prompt'"),
        ("longtext", "a.jsonl", '\n{"prompt_id"', r"a.jsonl:2: no valid JSON"),
        ("geneval", "a.jsonl", '"a"\n', r"a.jsonl:1: there is no 'prompt'"),
        ("geneval", "a.jsonl", "", r"a.jsonl holds no prompts of GenEval"),
        ("dpg-bench", "a.txt", "", r"there is no .txt file; give the folder"),
        ("gedit", "a.json", "{}", r"a.json: GEdit-Bench is read from .parquet files or a .jsonl file"),
        ("imgedit", "a.json", "[]", r"must hold an object of edits by key"),
        ("imgedit", "a.json", '{"1": {"id": "a.png"}}', r"give their folder with --images"),
    ],
)
def test_prompts_of_another_form_are_named_with_their_place(
    name: str, file: str, contents: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(contents, encoding="utf-8")
    with pytest.raises(DataError, match=told) as caught:
        read_cases(name, tmp_path / file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "language"),
    [("cvtg-2k", "en"), ("longtext", "en"), ("longtext", "zh"), ("geneval", "en"), ("dpg-bench", "en")],
)
def test_fifty_prompts_of_our_own_ship_in_each_text_form(name: str, language: str) -> None:
    cases = read_cases(name, own_prompts(name, language))
    assert len(cases) == len({case.key for case in cases}) == 50
    assert {case.language for case in cases} == {language}
    for case in cases:
        assert all(text in case.prompt for text in case.texts)
        assert bool(case.texts) == (BENCHMARKS[name].score is not None)
    if name == "cvtg-2k":
        assert {(case.group, len(case.texts)) for case in cases} == {(f"{n} texts", n) for n in (2, 3, 4, 5)}
    with pytest.raises(UsageError, match="edits pictures: give its prompts with --prompts"):
        own_prompts("gedit")


def test_word_accuracy_and_ned_by_hand() -> None:
    accuracy, ned = word_scores(["Hi Bob", "Yes"], ["hi bog", "no"]).values()
    assert accuracy == (1, 3)
    assert ned == (pytest.approx(1 + (1 - 1 / 3) + 0, abs=1e-5), 3)


def test_recall_counts_tokens_as_often_as_they_stand() -> None:
    (english,) = recall_scores(["The cat, the dog.", "THE end"], ["the CAT!", "the cat"], "en").values()
    assert english == (3, 6)
    (chinese,) = recall_scores(["你好你好 AB1"], ["你好，A！"], "zh").values()
    assert chinese == (3, 7)
    assert tokens("Café №5 — déjà vu!", "en") == ["café", "5", "déjà", "vu"]


def small(options: dict[str, Any] | None = None, **more: Any) -> Making:
    return Making((64, 64), 5, {"steps": 1, "guidance": 1.0, "preview_grid": False, **(options or {})}, **more)


def nothing(text: str) -> None:
    return


def test_pictures_that_are_there_are_not_made_again_and_come_out_alike_however_they_are_shared(
    pipeline: ImagePipeline, tmp_path: Path
) -> None:
    cases = read_cases("geneval", own_prompts("geneval"), 2)[:2]
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert make_pictures(cases, pipeline, small(), whole, nothing) == 4
    assert make_pictures(cases, pipeline, small(), whole, nothing) == 0
    assert json.loads((whole / "00001" / "metadata.jsonl").read_text())["prompt"] == cases[1].prompt
    for which in (1, 0):
        assert make_pictures(cases, pipeline, small(share=(which, 2)), shared, nothing) == 2
    (shared / cases[0].files[1]).unlink()
    assert make_pictures(cases, pipeline, small(), shared, nothing) == 1
    files = [file for case in cases for file in case.files]
    assert len({(whole / file).read_bytes() for file in files}) == 4
    for file in files:
        assert Image.open(whole / file).tobytes() == Image.open(shared / file).tobytes()


def test_edits_keep_the_size_of_their_source_which_lies_beside_them(pipeline: ImagePipeline, tmp_path: Path) -> None:
    cases = cases_of("gedit", tmp_path)
    make_pictures(cases, pipeline, Making((64, 64), 0, {"steps": 1, "guidance": 1.0}), tmp_path / "out", nothing)
    made, source = (Image.open(tmp_path / "out" / "fullset/style/cn" / name) for name in ("k1.png", "k1_SRCIMG.png"))
    assert made.size == source.size == (100, 80)


def test_four_pictures_of_a_prompt_in_one_file_and_a_report_without_scores(
    pipeline: ImagePipeline, tmp_path: Path
) -> None:
    cases = cases_of("dpg-bench", tmp_path)
    make_pictures(cases, pipeline, small(), tmp_path / "out", nothing)
    assert Image.open(tmp_path / "out" / "own_1.png").size == (128, 128)
    assert score_pictures("dpg-bench", cases, tmp_path / "out") == []
    table = write_report("dpg-bench", cases, tmp_path / "out", [], {})
    assert "1 of 1 pictures" in table
    assert "as its scorer expects them: dpg_bench/compute_dpg_bench.py" in table


def test_texts_are_read_once_and_scored_with_intervals_by_group(tmp_path: Path) -> None:
    cases = read_cases("cvtg-2k", own_prompts("cvtg-2k"))[:26]
    for case in cases[:20]:
        (tmp_path / case.files[0]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / case.files[0])
    asked = []

    def read(picture: Image.Image) -> list[str]:
        asked.append(picture)
        return [" ".join(cases[len(asked) - 1].texts)] if len(asked) % 2 else []

    scored = score_pictures("cvtg-2k", cases, tmp_path, read)
    assert score_pictures("cvtg-2k", cases, tmp_path, read) == scored
    assert len(asked) == 20
    rows = score_rows(scored)
    accuracy = next(row for row in rows if not row.group)
    assert accuracy.score == "word accuracy (CVTG-2K formula, RapidOCR)"
    assert (accuracy.pictures, accuracy.low < accuracy.share < accuracy.high) == (20, True)
    assert {row.group for row in rows} == {"", "2 texts", "3 texts"}
    table = write_report("cvtg-2k", cases, tmp_path, rows, {"model": "tiny"})
    assert "20 of 26 pictures" in table
    assert "Not the score of CVTG-2K, which is that of its own scorer" in table
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["share"] == accuracy.share
    assert Image.open(tmp_path / "sheet.jpg").width > 8


def test_a_folder_of_other_pictures_is_refused(tmp_path: Path) -> None:
    about = {"benchmark": "geneval", "weights_sha256": "a", "options": {"steps": 1}}
    check_about(tmp_path, about)
    check_about(tmp_path, about)
    with pytest.raises(DataError, match="holds pictures of another weights_sha256 and options; choose another folder"):
        check_about(tmp_path, {**about, "weights_sha256": "b", "options": {"steps": 2}})


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["geneva"], 2, "there is no benchmark 'geneva'; did you mean 'geneval'?"),
        (["geneval", "--share", "3/2"], 2, "--share must be like 1/4"),
        (
            ["geneval", "--prompts", "absent.jsonl"],
            1,
            "absent.jsonl does not exist; --prompts names the prompts of GenEval",
        ),
        (["imgedit"], 2, "give its prompts with --prompts"),
    ],
)
def test_wrong_calls_say_the_way_out(
    arguments: list[str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli(["benchmark", *arguments, "-o", str(tmp_path / "out")])
    assert caught.value.code == code
    assert told in capsys.readouterr().err


def test_the_command_makes_pictures_and_a_report(
    checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["benchmark", "geneval", "--prompts", str(written("geneval", tmp_path)), "-o", str(tmp_path / "out"),
            "--repeats", "1", "--size", "64", "--steps", "1", "--no-preview-grid",
            "--model", str(checkpoint_folder)]  # fmt: skip
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            cli(call)
        assert not caught.value.code
    assert "1 of 1 pictures of the prompts of GenEval" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "results.json").read_text())
    assert about["options"] == {"steps": 1, "preview_grid": False}
    with pytest.raises(SystemExit) as caught:
        cli([*call, "--seed", "3"])
    assert caught.value.code == 1
    assert "holds pictures of another seed" in capsys.readouterr().err
