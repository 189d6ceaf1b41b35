"""A benchmark from its prompts to its report: pictures that are there already are not made again."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from arimage.errors import DataError
from arimage.evaluation.benchmarks.readers import BENCHMARKS, BenchmarkCase
from arimage.evaluation.benchmarks.scores import recall_scores, word_scores
from arimage.evaluation.judge import Share
from arimage.evaluation.reading import TextReader
from arimage.evaluation.run import interval, pooled
from arimage.files import write_whole
from arimage.images.sheets import contact_sheet
from arimage.images.sizes import resized
from arimage.inference.pipeline import ImagePipeline
from arimage.inference.requests import ImageRequest
from tokenizer.image_size import reference_size

ABOUT, SCORES, RESULTS, TABLE = "benchmark.json", "scores.jsonl", "results.json", "results.md"
SHEET = "sheet.jpg"  # LongText-Bench's scorer takes every .png beside it for a picture of a prompt
AT_ONCE = 8
THUMB = 160
Read = Callable[[Image.Image], list[str]]


@dataclass(frozen=True)
class Making:
    """How the pictures of a benchmark are made.

    Attributes:
        size: (height, width); edits have about the size of their source.
        seed: of the first picture; that of each follows from its place in the prompts.
        options: of :func:`arimage.generate`.
        share: (which, of how many): this process makes every so manieth prompt alone.
    """

    size: tuple[int, int]
    seed: int
    options: Mapping[str, Any]
    share: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class ScoreRow:
    """A score over pictures, with a 95 % interval.

    Attributes:
        score: the formula and its reader.
        group: of the prompts; empty for all.
        pictures: that count.
    """

    score: str
    group: str
    pictures: int
    share: float
    low: float
    high: float


def make_pictures(
    cases: Sequence[BenchmarkCase], pipeline: ImagePipeline, making: Making, output: Path, say: Callable[[str], None]
) -> int:
    """Make what is not there yet, in the layout of the benchmark's scorer; how many pictures were made."""
    which, of = making.share
    missing = [
        (number, case, place)
        for number, case in enumerate(cases)
        for place, file in enumerate(case.files)
        if number % of == which and not (output / file).exists()
    ]
    for number, case in enumerate(cases):
        if number % of == which:
            for file, contents in case.beside.items():
                if not (output / file).exists():
                    write_whole(output / file, contents())
    done = 0
    for batch in _batches(missing, AT_ONCE):
        requests, counts = [], []
        for number, case, place in batch:
            repeats = range(4) if case.sheet else (place,)
            requests += [_request(pipeline, case, making, number, repeat) for repeat in repeats]
            counts.append(len(repeats))
        made = [one.image for one in pipeline.make(requests, **making.options)]
        for (_, case, place), count in zip(batch, counts):
            own, made = made[:count], made[count:]
            picture = contact_sheet(own, 2, gap=0, margin=0) if case.sheet else own[0]
            write_whole(output / case.files[place], _encoded(picture, "PNG"))
        done += len(batch)
        say(f"{done} of {len(missing)} pictures")
    return done


def _request(pipeline: ImagePipeline, case: BenchmarkCase, making: Making, number: int, repeat: int) -> ImageRequest:
    seed = making.seed + number * 16 + repeat
    if case.source is None:
        return ImageRequest(case.prompt, making.size, seed)
    picture = case.source().convert("RGB")
    size = reference_size(picture.height, picture.width, pipeline.engine.limits)
    return ImageRequest(case.prompt, size, seed, (resized(picture, size),), output_size=(picture.height, picture.width))


def check_about(output: Path, about: Mapping[str, Any]) -> None:
    """Begin a folder of pictures, or go on with it.

    Raises:
        DataError: it holds pictures that were made otherwise.
    """
    file = output / ABOUT
    now = json.loads(json.dumps(about))
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        other = [name for name in now if before.get(name) != now[name]]
        if other:
            raise DataError(
                f"{output} holds pictures of another {' and '.join(other)}; choose another folder with -o, or remove it"
            )
    else:
        write_whole(file, json.dumps(now, ensure_ascii=False, indent=1).encode())


def prompts_hash(cases: Sequence[BenchmarkCase]) -> str:
    """SHA-256 over all that is asked for and where it goes (hex)."""
    asked = [[case.key, case.prompt, case.files, case.texts] for case in cases]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()


def score_pictures(
    name: str, cases: Sequence[BenchmarkCase], output: Path, read: Read | None = None
) -> list[tuple[BenchmarkCase, dict[str, Share]]]:
    """The scores of the pictures that are there; what was read once is kept beside them.

    Args:
        read: gives the lines of a picture; our own reader by default.
    """
    kind = BENCHMARKS[name].score
    if kind is None:
        return []
    known = _kept_lines(output / SCORES)
    reader = read
    scored = []
    for case in cases:
        for file in case.files:
            if not (output / file).exists():
                continue
            if file not in known:
                reader = reader or TextReader()
                with Image.open(output / file) as picture:
                    known[file] = reader(picture.convert("RGB"))
                with (output / SCORES).open("a", encoding="utf-8") as handle:
                    handle.write(json.dumps({"file": file, "lines": known[file]}, ensure_ascii=False) + "\n")
            lines = known[file]
            words = kind == "words"
            scores = word_scores(case.texts, lines) if words else recall_scores(case.texts, lines, case.language)
            scored.append((case, scores))
    return scored


def _kept_lines(file: Path) -> dict[str, list[str]]:
    """What was read of each picture; a line that a crash cut off is read again."""
    known: dict[str, list[str]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
                known[row["file"]] = row["lines"]
            except (ValueError, KeyError, TypeError):
                continue
    return known


def score_rows(scored: Sequence[tuple[BenchmarkCase, dict[str, Share]]]) -> list[ScoreRow]:
    """Each score over all pictures, then by the groups of the prompts."""
    rows = []
    for name in dict.fromkeys(name for _, scores in scored for name in scores):
        groups = ["", *sorted({case.group for case, _ in scored if case.group})]
        for group in groups:
            shares = [scores[name] for case, scores in scored if not group or case.group == group]
            low, high = interval(shares)
            rows.append(ScoreRow(name, group, len(shares), pooled(shares), low, high))
    return rows


def write_report(
    name: str, cases: Sequence[BenchmarkCase], output: Path, rows: Sequence[ScoreRow], about: Mapping[str, Any]
) -> str:
    """Write ``results.json``, ``results.md`` and ``sheet.jpg``; the table."""
    benchmark = BENCHMARKS[name]
    files = [file for case in cases for file in case.files]
    there = [file for file in files if (output / file).exists()]
    lines = [f"{len(there)} of {len(files)} pictures of the prompts of {benchmark.name}", ""]
    if rows:
        lines += ["| score | prompts | pictures | share | 95 % |", "|---|---|---|---|---|"]
        lines += [
            f"| {row.score} | {row.group or 'all'} | {row.pictures} | {100 * row.share:.1f} % | "
            f"{100 * row.low:.1f} to {100 * row.high:.1f} |"
            for row in rows
        ]
        lines += ["", f"Not the score of {benchmark.name}, which is that of its own scorer: {benchmark.scorer}."]
    else:
        lines += [f"The pictures lie as its scorer expects them: {benchmark.scorer}."]
    table = "\n".join(lines)
    data = {**about, "pictures": len(there), "of": len(files), "rows": [asdict(row) for row in rows]}
    write_whole(output / RESULTS, json.dumps(data, ensure_ascii=False, indent=1).encode())
    write_whole(output / TABLE, (table + "\n").encode())
    if there:
        shown = there[:: max(1, len(there) // 48)][:48]
        sheet = contact_sheet([_thumb(output / file) for file in shown], 8, gap=4, margin=4)
        write_whole(output / SHEET, _encoded(sheet, "JPEG"))
    return table


def _thumb(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        small = picture.convert("RGB")
        small.thumbnail((THUMB, THUMB))
        return small


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _encoded(picture: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()
