"""Small data sets of people's own pictures, in every form that is read."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMS = ("pictures", "table", "tar", "parquet", "saved")


def picture(seed: int = 0, size: tuple[int, int] = (48, 32), kind: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def rows_of(count: int, first: int = 0, **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows with pictures of three shapes; further columns by their values."""
    sizes = ((48, 32), (32, 48), (40, 40))
    return [
        {"image": picture(n, sizes[n % 3]), "caption": f"number {n}", **{k: v[n - first] for k, v in columns.items()}}
        for n in range(first, first + count)
    ]


def write_tar(path: Path, rows: Sequence[dict[str, Any]], first: int = 0) -> Path:
    with tarfile.open(path, "w") as archive:
        for number, row in enumerate(rows, first):
            about = {key: value for key, value in row.items() if key != "image"}
            for suffix, content in (("png", row["image"]), ("json", json.dumps(about).encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write(form: str, folder: Path, rows: Sequence[dict[str, Any]], shards: int = 3) -> Path:
    """A data set of a form, in several shards where it has some."""
    import pyarrow.parquet

    folder.mkdir(parents=True)
    parts = [
        (first, rows[first : first + -(-len(rows) // shards)]) for first in range(0, len(rows), -(-len(rows) // shards))
    ]
    if form == "pictures":
        for number, row in enumerate(rows):
            (folder / f"{number:05d}.png").write_bytes(row["image"])
            (folder / f"{number:05d}.txt").write_text(row["caption"], encoding="utf-8")
    elif form == "table":
        lines = []
        for number, row in enumerate(rows):
            (folder / f"{number:05d}.png").write_bytes(row["image"])
            lines.append(json.dumps({**row, "image": f"{number:05d}.png"}))
        (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    elif form == "tar":
        for first, part in parts:
            write_tar(folder / f"{first:05d}.tar", part, first)
    elif form == "parquet":
        for first, part in parts:
            pictures = [{**row, "image": {"bytes": row["image"], "path": None}} for row in part]
            pyarrow.parquet.write_table(
                pyarrow.Table.from_pylist(pictures), folder / f"{first:05d}.parquet", row_group_size=4
            )
    else:
        import datasets

        features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
        table = pyarrow.Table.from_pylist([{**row, "image": {"bytes": row["image"], "path": None}} for row in rows])
        datasets.Dataset(table).cast(features).save_to_disk(str(folder), num_shards=shards)
    return folder
