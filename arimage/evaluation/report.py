"""An evaluation's report: JSON, a Markdown table, and contact sheets of pictures chosen by index."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image, ImageDraw

from arimage.data.fonts import FontPack
from arimage.evaluation.run import Outcome, Row
from arimage.files import write_whole

REPORT = (RESULTS, TABLE, SHEET) = ("results.json", "results.md", "sheet.png")
SIDE = 144
COLUMNS = 6
CAPTION = 54
GAP = 6


def write_report(
    folder: Path,
    table: Sequence[Row],
    figures: Mapping[str, float],
    outcomes: Sequence[Outcome],
    fonts: FontPack,
    shown: int,
    about: Mapping[str, object],
) -> None:
    """Write ``results.json``, ``results.md`` and ``sheet.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        **about,
        "rows": [{**asdict(row), "gap": row.gap} for row in table],
        "figures": dict(figures),
        "cases": [
            {"group": o.case.group, "index": o.case.index, "language": o.case.language, "prompt": o.case.prompts,
             "shares": o.shares, "ceiling": o.ceiling}
            for o in outcomes
        ],
    }  # fmt: skip
    write_whole(folder / RESULTS, json.dumps(data, ensure_ascii=False, indent=1).encode())
    write_whole(folder / TABLE, (markdown(table, figures) + "\n").encode())
    if shown and outcomes:
        every = max(1, len(outcomes) // shown)
        sheet(outcomes[::every][:shown], fonts).save(folder / SHEET)


def markdown(table: Sequence[Row], figures: Mapping[str, float]) -> str:
    """The rows as a table, the other figures below."""
    lines = ["| ability | cases | share | 95 % | true scenes | English | Chinese | gap |", "|" + "---|" * 8]
    for row in table:
        languages = [f"{100 * row.by_language[name]:.0f} %" if name in row.by_language else "" for name in ("en", "zh")]
        lines.append(
            f"| {row.ability} | {row.cases} | {100 * row.share:.1f} % | {100 * row.low:.0f} to {100 * row.high:.0f} | "
            f"{100 * row.ceiling:.0f} % | {' | '.join(languages)} | {row.gap:.0f} |"
        )
    if figures:
        lines += ["", ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())]
    return "\n".join(lines)


def sheet(outcomes: Sequence[Outcome], fonts: FontPack) -> Image.Image:
    """Pictures with their prompts, sources and judgements: green where all was right, red where not."""
    most = max(len(outcome.case.record.sources) for outcome in outcomes)
    width = (most + 1) * SIDE + GAP
    rows = -(-len(outcomes) // COLUMNS)
    image = Image.new("RGB", (COLUMNS * (width + GAP), rows * (SIDE + CAPTION + GAP)), "white")
    pen = ImageDraw.Draw(image)
    chinese = [font.name for font in fonts.fonts if font.script == "chinese"]
    font = fonts.load(chinese[0], 12) if chinese else fonts.load(fonts.fonts[0].name, 12)
    for number, outcome in enumerate(outcomes):
        left, top = number % COLUMNS * (width + GAP), number // COLUMNS * (SIDE + CAPTION + GAP)
        for place, picture in enumerate((*outcome.case.record.sources, outcome.picture)):
            small = picture.convert("RGB").resize((SIDE - 4, SIDE - 4), Image.Resampling.LANCZOS)
            image.paste(small, (left + place * SIDE, top))
        judged = {name: share for name, share in outcome.shares.items() if name != "false text"}
        right = all(points == of for points, of in judged.values())
        wrong = ", ".join(name for name, (points, of) in judged.items() if points < of)
        text = outcome.case.prompts if right else f"{outcome.case.prompts} [{wrong}]"
        wide = sum(ord(c) > 0x2E80 for c in text) > len(text) / 3
        lines = textwrap.wrap(text, width // (12 if wide else 7), max_lines=3)
        pen.text((left, top + SIDE), "\n".join(lines), font=font, fill=(20, 110, 40) if right else (170, 30, 30))
    return image
