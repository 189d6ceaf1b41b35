"""Our formulas give what the benchmarks' own scripts give on the same readings, and those scripts find our files.

Figures are what the scripts computed with the readings below in the place of their OCR; ``|`` parts lines and texts.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from arimage.evaluation.benchmarks.readers import BenchmarkCase, read_cases
from arimage.evaluation.benchmarks.run import Making, make_pictures, score_pictures, score_rows, write_report
from arimage.evaluation.benchmarks.scores import recall_scores, word_scores
from arimage.evaluation.run import pooled
from arimage.inference.pipeline import ImagePipeline

# benchmark_eval/cvtg-2k/unified_metrics_eval.py of zlab-princeton/i1 at b58a62f4a301370f35c5873bcb453bf7eea9f0e4, where
# TextCrafter's script is "kept intact": the lines read, then correct words, words, and the sum of the words' NED.
# fmt: off
CVTG: dict[str, list[tuple[str, int, int, float]]] = {
    "a mug 'Hi Bob' and a card 'Yes'": [
        ("hi bob|yes", 3, 3, 3.0),
        ("", 0, 3, 1.2e-05),
        ("HI BOB YES", 3, 3, 3.0),
        ("YES|BOB|HI", 3, 3, 3.0),
        ("hi bog|no", 1, 3, 1.666671),
        ("HiBob|Yes", 1, 3, 2.000002),
        ("Hi, Bob!|Yes.", 0, 3, 2.166669),
        ("  hi   bob ||yes yes yes", 3, 3, 3.0),
    ],
    "a sign 'OPEN OPEN OPEN' and a flag 'open'": [
        ("open", 4, 4, 4.0),
        ("opened|pen", 0, 4, 3.000002),
    ],
    "a sign 'OPEN' and a poster 'LATE NIGHT JAZZ'": [
        ("OPEN LATE NIGHT JAZZ|TONIGHT ONLY", 4, 4, 4.0),
        ("0PEN|LATE NlGHT JA22", 1, 4, 3.050002),
        ("JAZZ|NIGHT", 2, 4, 2.250004),
        ("thing|latent", 0, 4, 1.166672),
    ],
    "a tag 'Plums 3.20' and a cart 'No. 7'": [
        ("plums 3,20|no 7", 2, 4, 3.416668),
        ("Plums 3.20|No. 7", 4, 4, 4.0),
        ("3.20|7", 2, 4, 2.000004),
    ],
    "a book 'Ocean' and a cup 'Canoe'": [
        ("canoe", 1, 2, 1.200002),
        ("ocena|cane", 0, 2, 1.400001),
        ("no|one|can", 0, 2, 1.200002),
    ],
    "a book 'Listen' and a wall 'SILENT'": [
        ("enlist|tinsel", 0, 2, 0.666669),
        ("silent|inlets|lis ten", 1, 2, 1.500001),
    ],
    "a screen 'abcd' and a label 'dcba'": [
        ("bcd|abxcd|dcb", 0, 2, 1.550001),
        ("xabcdx|ab|cd", 0, 2, 0.916669),
        ("axbxcxd|abd", 0, 2, 1.000002),
    ],
    "a wall 'Straße' and a door 'Café'": [
        ("STRASSE|CAFE", 0, 2, 1.464287),
        ("straße|CAFÉ", 2, 2, 2.0),
    ],
    "a lantern '你好 世界' and a fan '春'": [
        ("你好|世 界|春", 2, 3, 2.500002),
        ("你她|hello", 0, 3, 0.500012),
    ],
    "a notice 'Please do not feed the ducks' and a post 'Pond 12 West'": [
        ("PLEASE DO NOT|FEED THE DUCKS|POND 12 WEST", 9, 9, 9.0),
        ("Plase do nt|fed teh dcks|Pond 12 Wset", 3, 9, 6.883339),
        ("Please feed the ducks", 4, 9, 4.583345),
        ("ducks the feed not do Please|West 12 Pond", 9, 9, 9.0),
        ("P l e a s e|d o n o t", 0, 9, 2.283354),
    ],
    "a cup 'I', a plate 'a' and a bowl '7'": [
        ("l|A|T", 1, 3, 1.00002),
        ("i a 7 i a 7", 3, 3, 3.0),
        ("ia7", 0, 3, 1.000007),
    ],
    "a van 'FAST-DELIVERY', a bus 'city_line' and a cab '#42'": [
        ("fast-delivery|CITY_LINE|#42", 3, 3, 3.0),
        ("fast delivery|city line|42", 0, 3, 1.726498),
        ("FASTDELIVERY|cityline|#24", 0, 3, 2.145302),
    ],
    "a page 'winter', a page 'summer', a page 'spring' and a page 'autumn'": [
        ("spring winter|simmer", 2, 4, 2.833335),
        ("inter|win|sum|string|sprint|column", 0, 4, 2.666669),
        ("?|!|...", 0, 4, 7e-06),
    ],
    "a stone 'ONE', a stone 'TWO', a stone 'THREE', a stone 'FOUR' and a stone 'FIVE'": [
        ("one two|three|four five", 5, 5, 5.0),
        ("eno owt eerht ruof evif", 0, 5, 1.116677),
        ("one|ON|TO|TREE|FOR|FIRE", 1, 5, 3.966669),
        ("lorem ipsum dolor sit amet", 0, 5, 1.250009),
    ],
    "a shelf 'Fragile', a box 'Handle With Care' and a lid 'This Side Up'": [
        ("FRAGILE|HANDLE WITH|CARE THIS|SIDE UP", 7, 7, 7.0),
        ("agile|candle|width|car|his|tide|cup", 0, 7, 5.26429),
        ("fragilefragile|handlewithcare|thissideup", 0, 7, 2.500004),
    ],
}
# fmt: on
# The same script over these pictures, the first in CVTG/2, the second in CVTG/3 and so on: word accuracy and NED.
CVTG_PARTS = {
    "CVTG/2": (0.5385, 0.8158),
    "CVTG/3": (0.2564, 0.5184),
    "CVTG/4": (0.7500, 0.8125),
    "CVTG-Style/2": (0.2857, 0.6014),
    "CVTG-Style/5": (0.3095, 0.6201),
}
CVTG_ALL = (0.4257, 0.6724)

# textbench/summary_scores.py of X-Omni-Team/X-Omni at 2b8237bb3789638c290eeda3e83ed81bd3652c3b: the lines read, then
# match_word_count and gt_word_count; below, the text score that it prints for all of them.
# fmt: off
LONGTEXT_EN: dict[str, list[tuple[str, int, int]]] = {
    "Good day": [
        ("good day", 2, 2),
        ("", 0, 2),
        ("GOOD DAY!", 2, 2),
        ("day good", 2, 2),
        ("Goodday", 0, 2),
        ("good good good", 1, 2),
    ],
    "The cat, the dog.|THE end": [
        ("the CAT!|the cat", 3, 6),
        ("the the the the|the", 3, 6),
        ("The cat the dog|the end", 6, 6),
    ],
    "CENTRAL PARK - 2 BLOCKS": [
        ("CENTRAL PARK|2 BLOCKS", 4, 4),
        ("CENTRAL PARK-2 BLOCKS", 2, 4),
        ("central\u00a0park|—2\u2003blocks", 4, 4),
    ],
    "Visit EVExpo2023.com for details": [
        ("visit evexpo2023 com for details", 3, 4),
        ("Visit EVExpo2O23.com|for detail s", 2, 4),
    ],
    "It's 5 o'clock; don't be late": [
        ("Its 5 oclock dont be late", 6, 6),
        ("It’s 5 o’clock; don’t be late", 6, 6),
        ("It s 5 o clock|don t be late", 3, 6),
    ],
    "Café DÉJÀ VU|Straße Ñandú": [
        ("café déjà vu|strae andu", 4, 5),
        ("CAFE DEJA VU|Strasse Nandu", 1, 5),
    ],
    "Menu 菜单 $4.50|50% off": [
        ("menu 菜单|4.50|50 off", 5, 5),
        ("menu菜单 450 50% 0ff", 2, 5),
    ],
    "one two three four five six seven": [
        ("one|two|three\nfour|five\tsix|seven eight nine", 7, 7),
        ("seven six five four three two one", 7, 7),
        ("on etwo thr ee four-five six_seven", 0, 7),
    ],
    "(a) first; (b) second; (c) third": [
        ("a first b second c third", 6, 6),
        ("(a)first;(b)second;(c)third", 0, 6),
    ],
    "Ｈｅｌｌｏ world ①": [
        ("Hello world 1", 1, 1),
    ],
}
LONGTEXT_ZH: dict[str, list[tuple[str, int, int]]] = {
    "你好世界": [
        ("你好世界", 4, 4),
        ("", 0, 4),
        ("界世好你", 4, 4),
        ("你 好|世界。", 4, 4),
        ("你好世界你好世界", 4, 4),
    ],
    "你好你好 AB1": [
        ("你好，A！", 3, 7),
        ("你你你 ab1", 3, 7),
    ],
    "本地烘焙，始于1998|中央公园 - 2公里": [
        ("本地烘培|始于1998|中央公园 2公里", 16, 17),
        ("中央公园一２公里|1989", 10, 17),
    ],
    "警告：氧气水平危急|01:14:08": [
        ("警告:氧气水平危急|011408", 14, 14),
        ("警告|01:14", 6, 14),
    ],
    "咖啡Café 第3号": [
        ("咖啡 CAFÉ|第3号", 6, 9),
        ("咖啡 café|第三号", 7, 9),
    ],
    "繁體書籍": [
        ("繁体书籍", 2, 4),
    ],
    "〇零龥龦": [
        ("〇零龥龦", 2, 2),
    ],
    "第一行|第二行|第三行": [
        ("第一行\n第二行|第三行", 9, 9),
        ("第行|一二三", 5, 9),
    ],
    "《学而》：学而时习之，不亦说乎？": [
        ("学而时习之不亦说乎", 9, 11),
        ("学学而而之之之|乎乎", 6, 11),
    ],
    "今天打折 50% OFF": [
        ("今天打折|50% off", 6, 9),
        ("5折|今日 OFF OFF", 6, 9),
    ],
    "请勿吸烟|NO SMOKING": [
        ("NO SMOKING|请勿吸烟", 13, 13),
        ("请物吸咽|N0 SM0KING", 9, 13),
    ],
}
# fmt: on
LONGTEXT_ALL = {"en": 0.6721, "zh": 0.7255}


def readings() -> list[tuple[str, list[str], int, int, float]]:
    return [
        (prompt, lines_of(read), correct, words, ned)
        for prompt, rows in CVTG.items()
        for read, correct, words, ned in rows
    ]


def lines_of(read: str) -> list[str]:
    return read.split("|") if read else []


@pytest.fixture
def cvtg(tmp_path: Path) -> Path:
    """CVTG-2K's folder as it is published, with these prompts."""
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in CVTG_PARTS}
    for index, (prompt, *_) in enumerate(readings()):
        row = {"index": index, "prompt": prompt, "carrier_list": ["sign"], "sentence_list": [prompt]}
        rows[list(rows)[index % len(rows)]].append(row)
    for part, own in rows.items():
        for file in (f"{part}.json", f"{part}_combined.json"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(json.dumps({"data_list": own}, indent=4), encoding="utf-8")
    return tmp_path


def test_word_accuracy_and_ned_are_those_of_the_script_picture_by_picture_and_over_all(
    cvtg: Path, tmp_path: Path
) -> None:
    cases = {case.key.rpartition("/")[2]: case for case in read_cases("cvtg-2k", cvtg)}
    pictures = []
    for index, (prompt, read, correct, words, similarity) in enumerate(readings()):
        scores = word_scores(cases[str(index)].texts, read)
        accuracy, ned = scores.values()
        assert accuracy == (correct, words), (prompt, read)
        assert ned == (pytest.approx(similarity, abs=1e-6), words), (prompt, read)
        pictures.append((cases[str(index)], scores))
    for part, printed in CVTG_PARTS.items():
        own = [scores for case, scores in pictures if case.key.startswith(f"{part}/")]
        assert tuple(round(pooled([scores[name] for scores in own]), 4) for name in own[0]) == printed
    assert tuple(round(row.share, 4) for row in score_rows(pictures) if not row.group) == CVTG_ALL


@pytest.mark.parametrize(("language", "printed"), LONGTEXT_ALL.items())
def test_the_text_score_is_that_of_the_script_picture_by_picture_and_over_all(language: str, printed: float) -> None:
    shares = []
    for texts, rows in (LONGTEXT_EN if language == "en" else LONGTEXT_ZH).items():
        for read, matched, wanted in rows:
            (share,) = recall_scores(lines_of(texts), lines_of(read), language).values()
            assert share == (matched, wanted), (texts, read)
            shares.append(share)
    assert round(pooled(shares), 4) == printed


# From here on: what the scripts look for, read in their source and tried on folders that were made by this code.
# CVTG-2K         as above
# LongText-Bench  textbench/evaluate_text_reward.py of X-Omni, as above
# GenEval         evaluation/evaluate_images.py of djghosh13/geneval at af4902f24d3ca90ebbb446dd9891a59e0f82725f
# DPG-Bench       dpg_bench/compute_dpg_bench.py of TencentQQGYLab/ELLA at 3c228f1dc6c4d3cad0a47493816151a419f14db3
# GEdit           GEdit-Bench/test_gedit_score.py of stepfun-ai/Step1X-Edit at 570eba6ebda0c45c013983a483afbf2fd12bfcbc
# ImgEdit         Benchmark/Basic/basic_bench.py of PKU-YuanGroup/ImgEdit at 547185d12c08267a862b94248576e1746e479937


class Painter:
    """Stands for a model whose pictures are told apart by their colour: the first is (1, 1, 1), and so on."""

    made = 0

    def make(self, requests: Sequence[Any], **options: Any) -> Iterator[SimpleNamespace]:
        for request in requests:
            self.made += 1
            yield SimpleNamespace(image=Image.new("RGB", request.size[::-1], (self.made,) * 3))


def painted(name: str, cases: Sequence[BenchmarkCase], output: Path) -> Path:
    """The folder of a benchmark, with its report."""
    making = Making((32, 32), 0, {})
    make_pictures(cases, cast(ImagePipeline, Painter()), making, output, lambda text: None)
    scored = score_pictures(name, cases, output, lambda picture: ["a"])
    write_report(name, cases, output, score_rows(scored), {})
    return output


def test_cvtgs_script_finds_each_picture_in_the_folder_of_its_part_by_its_index(cvtg: Path, tmp_path: Path) -> None:
    output = painted("cvtg-2k", read_cases("cvtg-2k", cvtg), tmp_path / "out")
    for part in CVTG_PARTS:
        known = {str(row["index"]) for row in json.loads((cvtg / f"{part}.json").read_text())["data_list"]}
        assert {file.stem for file in (output / part).iterdir()} == known


def test_longtexts_script_finds_a_prompt_for_every_png(tmp_path: Path) -> None:
    rows = [
        {"category": "sign", "length": "short", "prompt": 'A shop that reads "OPEN, EVERY DAY" and "Est. 1998".',
         "text": ["OPEN, EVERY DAY", "Est. 1998"], "text_length": 5, "prompt_id": 0},
        {"category": "slide", "length": "long", "prompt": 'A slide titled "Tides".', "text": ["Tides"],
         "text_length": 1, "prompt_id": 199},
    ]  # fmt: skip
    file = tmp_path / "text_prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cases = read_cases("longtext", file)
    assert [case.texts for case in cases] == [("OPEN, EVERY DAY", "Est. 1998"), ("Tides",)]
    pictures = sorted(painted("longtext", cases, tmp_path / "out").glob("*.png"))
    assert [int(picture.stem.split("_")[0]) for picture in pictures] == [0] * 4 + [199] * 4


def test_genevals_script_finds_the_line_of_the_prompts_beside_four_pictures(tmp_path: Path) -> None:
    rows = [
        {"tag": "counting", "include": [{"class": "cup", "count": 3}], "exclude": [{"class": "cup", "count": 4}],
         "prompt": "a photo of three cups"},
        {"tag": "position", "include": [{"class": "cow", "count": 1}, {"class": "bed", "count": 1,
         "position": ["left of", 0]}], "prompt": "a photo of a bed left of a cow"},
    ]  # fmt: skip
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = painted("geneval", read_cases("geneval", file), tmp_path / "out")
    folders = sorted(folder for folder in output.iterdir() if folder.is_dir() and folder.name.isdigit())
    assert [json.loads((folder / "metadata.jsonl").read_text()) for folder in folders] == rows
    for folder in folders:
        assert len([file for file in (folder / "samples").iterdir() if re.match(r"\d+\.png", file.name)]) == 4


def test_dpgs_script_cuts_the_four_pictures_apart_and_finds_their_prompt_by_name(tmp_path: Path) -> None:
    for name in ("0", "partiprompts12"):
        (tmp_path / "prompts").mkdir(exist_ok=True)
        (tmp_path / "prompts" / f"{name}.txt").write_text("A red kite above a hill.", encoding="utf-8")
    output = painted("dpg-bench", read_cases("dpg-bench", tmp_path / "prompts"), tmp_path / "out")
    assert {file.name.split(".")[0] for file in output.glob("*.png")} == {"0", "partiprompts12"}
    sheet, side = Image.open(output / "partiprompts12.png"), 32
    for shade, (left, top) in zip(range(5, 9), ((0, 0), (side, 0), (0, side), (side, side))):
        assert sheet.crop((left, top, left + side, top + side)).getcolors() == [(side * side, (shade,) * 3)]


def test_gedits_script_compares_with_the_smaller_source_and_the_raw_one_is_edited(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    def stored(size: tuple[int, int]) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.new("RGB", size, "gray").save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    rows = [
        {"task_type": "subject-add", "key": "0a1b2c", "instruction": instruction, "instruction_language": language,
         "input_image": stored((64, 48)), "input_image_raw": stored((200, 150)), "Intersection_exist": True}
        for instruction, language in (("add a boat", "en"), ("加一条船", "cn"))
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train-00000-of-00001.parquet")
    cases = read_cases("gedit", tmp_path)
    assert [case.files for case in cases] == [(f"fullset/subject-add/{code}/0a1b2c.png",) for code in ("en", "cn")]
    for case in cases:
        ((file, contents),) = case.beside.items()
        assert file == case.files[0].replace(".png", "_SRCIMG.png")
        assert Image.open(io.BytesIO(contents())).size == (64, 48)
        assert case.source is not None
        assert case.source().size == (200, 150)


def test_imgedits_script_finds_each_picture_by_its_key_and_its_source_by_its_id(tmp_path: Path) -> None:
    row = {"id": "daily object/000001.jpg", "prompt": "Replace the cup with a bowl.", "edit_type": "replace"}
    (tmp_path / "basic_edit.json").write_text(json.dumps({"628": row, "97": row}, indent=4), encoding="utf-8")
    (tmp_path / "images" / "daily object").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / row["id"])
    cases = read_cases("imgedit", tmp_path / "basic_edit.json", None, tmp_path / "images")
    assert [case.files for case in cases] == [("628.png",), ("97.png",)]
    assert all(case.source and case.source().size == (60, 40) for case in cases)
