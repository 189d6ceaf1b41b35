"""What is in a data set: a report that a person reads before training on it."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from arimage.data.buckets import Size, same_shape
from arimage.data.buckets import place as placed_in
from arimage.data.folders import OwnData
from arimage.data.records import Record
from arimage.errors import DataError

SMALLEST = 32
SHOWN = 16


@dataclass
class Report:
    """What :func:`check` found.

    Attributes:
        samples, usable, edits: how many there are, can be read, and have sources.
        problems: (name, reason) of what cannot be read.
        sources: of the edits: how many have their target's shape and are cropped with it (``aligned``), and how many
            stay whole (``whole``).
        sizes: smallest, median and largest width and height of the usable pictures.
        enlarged: pictures that are smaller than their bucket.
        buckets: usable pictures by ``WxH``.
        cropped: largest and mean share of a picture that its bucket cuts off.
        caption_characters: shortest, median and longest.
        captions: how many samples have so many captions.
        languages: captions by language (``en``, ``zh``, ``mixed``, ``other``).
        ratings: samples by rating.
        duplicates: groups of names whose pictures are the same pixel for pixel.
        near_duplicates: groups of names whose pictures look almost the same (difference hash).
    """

    samples: int = 0
    usable: int = 0
    edits: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    enlarged: int = 0
    buckets: dict[str, int] = field(default_factory=dict)
    cropped: dict[str, float] = field(default_factory=dict)
    caption_characters: dict[str, int] = field(default_factory=dict)
    captions: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    ratings: dict[str, int] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    near_duplicates: list[list[str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def check(data: OwnData, buckets: Sequence[Size]) -> tuple[Report, list[Record]]:
    """What the index of a data set says, which is verified first if it is not yet.

    Returns:
        The report, and a few records from all over the data for a contact sheet.
    """
    data = data.verified()
    index, report = data.entries, Report(samples=len(data))
    counted = ("sources", "captions", "languages", "ratings", "buckets")
    counters: dict[str, Counter[str]] = {name: Counter() for name in counted}
    sizes: Counter[Size] = Counter()
    characters: list[np.ndarray] = []
    problems: list[tuple[int, bytes, str]] = []
    repeated: dict[str, dict[int, list[int]]] = {"same_as": defaultdict(list), "looks_like": defaultdict(list)}
    columns = ("key", "width", "height", "rating", "sources", "characters", "languages", "fault", *repeated)
    for first, table in index.slices(columns):
        for place in np.flatnonzero(table.column("fault").is_valid().to_numpy()):
            problems.append(
                (first + int(place), table.column("key")[place].as_py(), table.column("fault")[place].as_py())
            )
        rows = first + np.flatnonzero(table.column("fault").is_null().to_numpy())
        usable = table.filter(table.column("fault").is_null()).combine_chunks()
        wide, high = usable.column("width").to_numpy(), usable.column("height").to_numpy()
        for place in np.flatnonzero(np.minimum(wide, high) < SMALLEST):
            problems.append(
                (int(rows[place]), usable.column("key")[place].as_py(), f"only {wide[place]}x{high[place]} px")
            )
        sizes.update(zip(wide.tolist(), high.tolist()))
        given = usable.column("sources").to_pylist() if usable.column("sources").null_count < len(usable) else []
        for target, sides in zip(zip(wide.tolist(), high.tolist()), given):
            report.edits += bool(sides)
            for source in zip(sides[::2], sides[1::2]):
                alike = same_shape(source, target)
                counters["sources"]["aligned" if alike else "whole"] += 1
        counters["ratings"].update(map(str, usable.column("rating").to_pylist()))
        counters["captions"].update(map(str, usable.column("characters").combine_chunks().value_lengths().to_pylist()))
        counters["languages"].update(usable.column("languages").combine_chunks().flatten().to_pylist())
        characters.append(usable.column("characters").combine_chunks().flatten().to_numpy())
        for name, groups in repeated.items():
            leaders = usable.column(name)
            for place in np.flatnonzero(leaders.is_valid().to_numpy()):
                if name == "same_as" or not usable.column("same_as")[place].is_valid:
                    groups[leaders[place].as_py()].append(int(rows[place]))
    report.usable = sum(sizes.values())
    report.problems = [
        (name, f"{name}: {text}") for name, text in
        ((index.name(row, data.storage, key), text) for row, key, text in sorted(problems))
    ]  # fmt: skip
    _measure(report, sizes, buckets, counters["buckets"])
    for name, counter in counters.items():
        setattr(report, name, dict(counter.most_common()))
    if report.usable:
        lengths = np.concatenate(characters)
        report.caption_characters = {
            "shortest": int(lengths.min()), "median": int(np.median(lengths)), "longest": int(lengths.max())
        }  # fmt: skip
    for name, groups in repeated.items():
        named = [[index.name(row, data.storage) for row in (leader, *rows)] for leader, rows in groups.items()]
        setattr(report, "duplicates" if name == "same_as" else "near_duplicates", named)
    return report, list(_shown(data))


def _measure(report: Report, sizes: Counter[Size], buckets: Sequence[Size], counter: Counter[str]) -> None:
    """What sizes come to: their spread, buckets, and what is cut off or enlarged."""
    if not sizes:
        return
    columns = np.repeat(np.array(list(sizes)), list(sizes.values()), 0)
    for name, values in (("smallest", columns.min(0)), ("median", np.median(columns, 0)), ("largest", columns.max(0))):
        report.sizes[name] = int(values[0]), int(values[1])
    cut: list[tuple[float, int]] = []
    for size, count in sizes.items():
        placed = placed_in(*size, buckets)
        counter[f"{placed.size[0]}x{placed.size[1]}"] += count
        cut.append((1 - placed.kept, count))
        report.enlarged += count * (placed.scaled[0] > size[0])
    report.cropped = {
        "largest": max(share for share, _ in cut), "mean": sum(share * count for share, count in cut) / len(columns)
    }  # fmt: skip


def _shown(data: OwnData) -> Iterator[Record]:
    count = 0
    for number in range(0, len(data), max(1, len(data) // SHOWN)):
        if count < SHOWN:
            with suppress(DataError):
                yield data[number].read()
                count += 1
