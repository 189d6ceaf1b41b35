"""What is in a data set: a report that a person reads before training on it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from arimage.data.buckets import Placed, Size, place, same_shape
from arimage.data.folders import OwnData
from arimage.data.records import Record
from arimage.errors import DataError

NEAR_BITS = 4
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


def check(
    data: OwnData, buckets: Sequence[Size], on_sample: Callable[[int, int], None] | None = None
) -> tuple[Report, list[Record]]:
    """Read every sample once.

    Returns:
        The report, and a few records from all over the data for a contact sheet.
    """
    report = Report(samples=len(data))
    sizes: list[tuple[int, int]] = []
    placed: list[Placed] = []
    lengths: list[int] = []
    counted = ("sources", "captions", "languages", "ratings", "buckets")
    counters: dict[str, Counter[str]] = {name: Counter() for name in counted}
    exact: dict[str, list[str]] = defaultdict(list)
    hashes: list[tuple[str, int]] = []
    shown: list[Record] = []
    every = max(1, len(data) // SHOWN)
    for number, sample in enumerate(data):
        if on_sample is not None:
            on_sample(number + 1, len(data))
        try:
            record = sample.read()
        except DataError as error:
            report.problems.append((sample.name, str(error)))
            continue
        report.usable += 1
        report.edits += bool(record.sources)
        for source in record.sources:
            counters["sources"]["aligned" if same_shape(source.size, record.image.size) else "whole"] += 1
        if min(record.image.size) < SMALLEST:
            report.problems.append((sample.name, f"{sample.name}: only {record.image.width}x{record.image.height} px"))
        sizes.append(record.image.size)
        placed.append(place(*record.image.size, buckets))
        counters["buckets"][f"{placed[-1].size[0]}x{placed[-1].size[1]}"] += 1
        counters["captions"][str(len(record.captions))] += 1
        counters["ratings"][str(record.rating)] += 1
        for caption in record.captions.values():
            lengths.append(len(caption))
            counters["languages"][language(caption)] += 1
        exact[_pixel_hash(record)].append(sample.name)
        hashes.append((sample.name, difference_hash(record.image)))
        if number % every == 0 and len(shown) < SHOWN:
            shown.append(record)
    for name, counter in counters.items():
        setattr(report, name, dict(counter.most_common()))
    if sizes:
        columns = np.array(sizes)
        for name, values in (
            ("smallest", columns.min(0)),
            ("median", np.median(columns, 0)),
            ("largest", columns.max(0)),
        ):
            report.sizes[name] = int(values[0]), int(values[1])
        cut = [1 - one.kept for one in placed]
        report.cropped = {"largest": max(cut), "mean": sum(cut) / len(cut)}
        report.enlarged = sum(one.scaled[0] > width for one, (width, _) in zip(placed, sizes))
        report.caption_characters = {
            "shortest": min(lengths), "median": int(np.median(lengths)), "longest": max(lengths)
        }  # fmt: skip
    report.duplicates = [names for names in exact.values() if len(names) > 1]
    same = {name for names in report.duplicates for name in names[1:]}
    report.near_duplicates = _near([pair for pair in hashes if pair[0] not in same])
    return report, shown


def language(text: str) -> str:
    """``en`` (Latin letters), ``zh``, ``mixed`` or ``other``."""
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in text)
    latin = sum(character.isascii() and character.isalpha() for character in text)
    if chinese and latin > 2:
        return "mixed"
    return "zh" if chinese else "en" if latin else "other"


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8x8 places is brighter than its right neighbour."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = (small[:, 1:] > small[:, :-1]).flatten()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def _pixel_hash(record: Record) -> str:
    digest = hashlib.sha256(f"{record.image.size}".encode())
    for image in (record.image, *record.sources):
        digest.update(image.tobytes())
    digest.update("\0".join(record.captions.values()).encode() if record.sources else b"")
    return digest.hexdigest()


def _near(hashes: list[tuple[str, int]]) -> list[list[str]]:
    """Groups of names whose hashes differ in at most ``NEAR_BITS`` bits; flat pictures (few bits) do not count.

    Hashes that are so near agree in at least one of ``NEAR_BITS + 1`` bands, so only those are compared.
    """
    bands = NEAR_BITS + 1
    width = 64 // bands + 1
    tables: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (_, value) in enumerate(hashes):
        if 8 <= value.bit_count() <= 56:
            for band in range(bands):
                tables[band, (value >> band * width) & ((1 << width) - 1)].append(index)
    leader = list(range(len(hashes)))

    def root(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for members in tables.values():
        for place_in_table, first in enumerate(members):
            for second in members[place_in_table + 1 :][:200]:
                if (hashes[first][1] ^ hashes[second][1]).bit_count() <= NEAR_BITS:
                    leader[root(second)] = root(first)
    groups: dict[int, list[str]] = defaultdict(list)
    for index, (name, _) in enumerate(hashes):
        groups[root(index)].append(name)
    return [names for names in groups.values() if len(names) > 1]
