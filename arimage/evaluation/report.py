"""An evaluation's report: JSON, a Markdown table, and contact sheets of pictures chosen by index."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from arimage.data.fonts import FontPack
from arimage.data.sheet import contact_sheet
from arimage.evaluation.run import Outcome, Row
from arimage.files import write_whole

REPORT = (RESULTS, TABLE, SHEET) = ("results.json", "results.md", "sheet.png")
SIDE = 144
COLUMNS = 6
RIGHT, WRONG = (20, 110, 40), (170, 30, 30)


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
    records, captions, inks = [], [], []
    for outcome in outcomes:
        judged = {name: share for name, share in outcome.shares.items() if name != "false text"}
        wrong = ", ".join(name for name, (points, of) in judged.items() if points < of)
        records.append(replace(outcome.case.record, image=outcome.picture.convert("RGB")))
        captions.append(f"{outcome.case.prompts} [{wrong}]" if wrong else outcome.case.prompts)
        inks.append(WRONG if wrong else RIGHT)
    return contact_sheet(records, COLUMNS, SIDE, fonts, captions, inks)
