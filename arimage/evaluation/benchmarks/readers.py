"""Prompt files of public benchmarks, which are the user's own, and where their scorers look for the pictures.

cvtg-2k        CVTG/2.json ... CVTG-Style/5.json ({"data_list": [{"index", "prompt"}]}), or one of them
longtext       text_prompts.jsonl or text_prompts_zh.jsonl ({"prompt_id", "prompt", "text"})
geneval        evaluation_metadata.jsonl ({"tag", "prompt", ...})
dpg-bench      a folder of .txt files, each a prompt
gedit          parquet files or a .jsonl ({"key", "task_type", "instruction", "instruction_language", "input_image",
               "input_image_raw"}; the last may be missing)
imgedit        basic_edit.json ({key: {"id", "prompt", "edit_type"}}), and the folder of the pictures that ids name
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from arimage.data.records import naming
from arimage.errors import DataError, UsageError
from arimage.images.opening import open_picture
from decoder.glyph import quoted_texts

Score = Literal["words", "recall"]
OpenSource = Callable[[], Image.Image]
PROMPTS = Path(__file__).with_name("prompts")


@dataclass(frozen=True)
class BenchmarkCase:
    """A prompt of a benchmark.

    Attributes:
        key: its name in messages and in the report.
        prompt: what is asked for.
        files: the pictures to make, relative to the output, each from a seed of its own.
        sheet: all pictures of the prompt go into one file, two in a row: the only one in ``files``.
        language: ``en`` or ``zh``.
        group: what the report shows beside the whole.
        texts: that the picture must show.
        source: opens the picture to edit.
        beside: other files that the scorer expects, relative to the output.
    """

    key: str
    prompt: str
    files: tuple[str, ...]
    sheet: bool = False
    language: str = "en"
    group: str = ""
    texts: tuple[str, ...] = ()
    source: OpenSource | None = None
    beside: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is read, and what is scored here.

    Attributes:
        name: as papers write it.
        read: gives its cases from the prompts, the number of pictures of each, and the folder of pictures to edit.
        repeats: pictures of each prompt that its scorer counts on.
        score: the formula that is computed here; None where its own scorer is needed.
        scorer: where that is.
        edits: whether pictures are edited.
    """

    name: str
    read: Callable[[Path, int, Path | None], Iterator[BenchmarkCase]]
    repeats: int
    score: Score | None
    scorer: str
    edits: bool = False


def _cvtg(place: Path, repeats: int, images: Path | None) -> Iterator[BenchmarkCase]:
    files = [place] if place.is_file() else sorted(place.glob("CVTG*/[0-9].json"))
    if not files:
        raise DataError(
            f"{place}: there is no CVTG/2.json or the like; give the folder of CVTG-2K, or one of its files"
        )
    for file in files:
        rows = _field(_json(file), "data_list", list, str(file))
        part = f"{file.parent.name}/{file.stem}"
        for number, row in enumerate(rows):
            where = f"{file}: data_list[{number}]"
            index, prompt = _field(row, "index", (int, str), where), _field(row, "prompt", str, where)
            texts = tuple(quoted_texts(prompt))
            if not texts:
                raise DataError(f"{where}: the prompt quotes no text, which it is scored by")
            paths = _repeated(f"{part}/{index}", repeats)
            yield BenchmarkCase(f"{part}/{index}", prompt, paths, group=f"{file.stem} texts", texts=texts)


def _longtext(place: Path, repeats: int, images: Path | None) -> Iterator[BenchmarkCase]:
    for where, row in _lines(place):
        number, prompt = _field(row, "prompt_id", int, where), _field(row, "prompt", str, where)
        given = _field(row, "text", (str, list), where)
        texts = (given,) if isinstance(given, str) else tuple(str(text) for text in given)
        language = "zh" if any("\u4e00" <= character <= "\u9fff" for text in texts for character in text) else "en"
        files = tuple(f"{number:04d}_{repeat}.png" for repeat in range(1, repeats + 1))
        group = str(row.get("category") or row.get("length") or "")
        yield BenchmarkCase(f"{number:04d}", prompt, files, language=language, group=group, texts=texts)


def _geneval(place: Path, repeats: int, images: Path | None) -> Iterator[BenchmarkCase]:
    for number, (where, row) in enumerate(_lines(place)):
        key, prompt = f"{number:05d}", _field(row, "prompt", str, where)
        files = tuple(f"{key}/samples/{repeat:04d}.png" for repeat in range(repeats))
        about = json.dumps(row, ensure_ascii=False).encode()
        beside = {f"{key}/metadata.jsonl": lambda about=about: about}
        yield BenchmarkCase(key, prompt, files, group=_field(row, "tag", str, where), beside=beside)


def _dpg(place: Path, repeats: int, images: Path | None) -> Iterator[BenchmarkCase]:
    files = sorted(place.glob("*.txt")) if place.is_dir() else []
    if not files:
        raise DataError(f"{place}: there is no .txt file; give the folder of DPG-Bench's prompts, one in each file")
    for file in files:
        with naming(f"{file} cannot be read"):
            prompt = " ".join(file.read_text(encoding="utf-8").split())
        if not prompt:
            raise DataError(f"{file} is empty; each file holds a prompt")
        yield BenchmarkCase(file.stem, prompt, (f"{file.stem}.png",), sheet=True)


def _gedit(place: Path, repeats: int, images: Path | None) -> Iterator[BenchmarkCase]:
    for where, row in _rows(place):
        key, task = (_field(row, name, str, where) for name in ("key", "task_type"))
        prompt, language = (_field(row, name, str, where) for name in ("instruction", "instruction_language"))
        shown = row.get("input_image") or row.get("input_image_raw")
        if shown is None:
            raise DataError(f"{where}: there is no 'input_image'")
        # the raw picture is edited, and compared with the other one, to whose size the scorer brings it
        edited = row.get("input_image_raw") or shown
        source, compared = (_source(picture, images or place.parent, where) for picture in (edited, shown))
        folder = f"fullset/{task}/{language}"
        beside = {f"{folder}/{key}_SRCIMG.png": lambda compared=compared: _png(compared())}
        code = "zh" if language in ("cn", "zh") else "en"
        files = _repeated(f"{folder}/{key}", repeats)
        yield BenchmarkCase(f"{task}/{language}/{key}", prompt, files, False, code, task, (), source, beside)


def _imgedit(place: Path, repeats: int, images: Path | None) -> Iterator[BenchmarkCase]:
    rows = _json(place)
    if not isinstance(rows, dict):
        raise DataError(f"{place} must hold an object of edits by key, as ImgEdit's basic_edit.json does")
    if images is None:
        raise DataError(f"{place} names pictures by id; give their folder with --images")
    for key, row in rows.items():
        where = f"{place}: {key}"
        source = _source(_field(row, "id", str, where), images, where)
        prompt, task = _field(row, "prompt", str, where), _field(row, "edit_type", str, where)
        yield BenchmarkCase(str(key), prompt, _repeated(str(key), repeats), group=task, source=source)


BENCHMARKS = {
    "cvtg-2k": Benchmark("CVTG-2K", _cvtg, 1, "words", "unified_metrics_eval.py of NJU-PCALab/TextCrafter"),
    "longtext": Benchmark("LongText-Bench", _longtext, 4, "recall", "textbench/eval.sh of X-Omni"),
    "geneval": Benchmark("GenEval", _geneval, 4, None, "evaluation/evaluate_images.py of djghosh13/geneval"),
    "dpg-bench": Benchmark("DPG-Bench", _dpg, 4, None, "dpg_bench/compute_dpg_bench.py of TencentQQGYLab/ELLA"),
    "gedit": Benchmark("GEdit-Bench", _gedit, 1, None, "GEdit-Bench of stepfun-ai/Step1X-Edit", edits=True),
    "imgedit": Benchmark("ImgEdit", _imgedit, 1, None, "Benchmark/Basic of PKU-YuanGroup/ImgEdit", edits=True),
}


def read_cases(name: str, prompts: Path, repeats: int | None = None, images: Path | None = None) -> list[BenchmarkCase]:
    """The cases of a benchmark.

    Args:
        prompts: its file or folder.
        repeats: pictures of each prompt, as its scorer counts on by default.
        images: the folder of the pictures to edit, where the prompts name them.

    Raises:
        DataError: the prompts are missing or of another form.
    """
    benchmark = BENCHMARKS[name]
    if not prompts.exists():
        raise DataError(f"{prompts} does not exist; --prompts names the prompts of {benchmark.name}")
    found = list(benchmark.read(prompts, repeats or benchmark.repeats, images))
    if not found:
        raise DataError(f"{prompts} holds no prompts of {benchmark.name}")
    seen: set[str] = set()
    for case in found:
        if case.files[0] in seen:
            raise DataError(f"{prompts}: two prompts are called {case.key}")
        seen.add(case.files[0])
    return found


def own_prompts(name: str, language: str = "en") -> Path:
    """Fifty prompts of our own in the form of a benchmark, for checking.

    Raises:
        UsageError: there are none.
    """
    files = {"cvtg-2k": "CVTG", "geneval": "evaluation_metadata.jsonl", "dpg-bench": "dpg"}
    files["longtext"] = "text_prompts_zh.jsonl" if language == "zh" else "text_prompts.jsonl"
    if name not in files:
        raise UsageError(f"{BENCHMARKS[name].name} edits pictures: give its prompts with --prompts")
    found = PROMPTS / files[name]
    return found.parent if name == "cvtg-2k" else found


def _repeated(stem: str, repeats: int) -> tuple[str, ...]:
    """One file, or several that count on behind it."""
    return tuple(f"{stem}.png" if repeat == 0 else f"{stem}_{repeat}.png" for repeat in range(repeats))


def _json(file: Path) -> Any:
    with naming(f"{file} cannot be read"):
        return json.loads(file.read_text(encoding="utf-8-sig"))


def _lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a .jsonl file, each with its place."""
    if file.is_dir():
        raise DataError(f"{file} is a folder; give its .jsonl file")
    with naming(f"{file} cannot be read"):
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            with naming(f"{file}:{number}"):
                row = json.loads(line)
            yield f"{file}:{number}", row


def _rows(place: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a .jsonl file, of a parquet file, or of a folder of those."""
    if place.suffix == ".jsonl":
        yield from _lines(place)
        return
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
    if not files or any(file.suffix != ".parquet" for file in files):
        raise DataError(f"{place}: GEdit-Bench is read from .parquet files or a .jsonl file")
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError("reading parquet needs pyarrow: pip install 'arimage[data]'") from None
    for file in files:
        with naming(f"{file} is no readable parquet file"):
            rows = pyarrow.parquet.read_table(file).to_pylist()
        for number, row in enumerate(rows):
            yield f"{file}:{number}", row


def _field(row: Any, name: str, kind: Any, where: str) -> Any:
    """A value of a row that must be there."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join({str: "text", int: "number", list: "list"}[one] for one in kinds)
    if not isinstance(row, Mapping) or not isinstance(row.get(name), kinds) or row[name] in ("", []):
        raise DataError(f"{where}: there is no {name!r} that is a {wanted}; docs/evaluating.md shows the form")
    return row[name]


def _source(picture: Any, folder: Path, where: str) -> OpenSource:
    """Opens a picture that a row holds or names."""
    value = (picture.get("bytes") or picture.get("path")) if isinstance(picture, Mapping) else picture

    def opened() -> Image.Image:
        with naming(f"{where}: the picture"):
            return open_picture(value if isinstance(value, bytes) else folder / str(value)).flattened()

    return opened


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
