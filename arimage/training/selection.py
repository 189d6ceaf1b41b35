"""Which samples of people's data a stage learns from, how often, and in which blocks they are read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from arimage.data.buckets import Size, nearest_buckets
from arimage.data.captions import language
from arimage.data.forms.parquet import KEPT
from arimage.data.index import Index
from arimage.data.order import BLOCK, WINDOW, cut, left_out
from arimage.errors import DataError
from arimage.training.config import SourceConfig

SMALL_BLOCK = 64
LONGEST_SIDE = (1 << 16) - 1


def choose(index: Index, buckets: Sequence[Size], config: SourceConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """The kind of each sample, which is the number of its bucket, and how often an epoch has it.

    Returns:
        (n,) unsigned integers, the largest of which leaves a sample out; and (n,) uint8, or None where all come once.

    Raises:
        DataError: the index does not say what a filter asks for.
    """
    if config.drop_duplicates and not all(index.verified):
        raise DataError(
            f"drop_duplicates needs decoded pixels: run arimage data index {config.path} --verify, or data check"
        )
    kinds = np.empty(len(index), np.uint8 if len(buckets) < 255 else np.uint16)
    categories = np.zeros(len(index), np.uint16) if config.balance else None
    names: dict[str | None, int] = {}
    for first, table in index.slices(_columns(index, config)):
        part = kinds[first : first + len(table)]
        part[:] = _kinds(table, buckets)
        part[~_kept(table, config)] = left_out(kinds)
        if categories is not None:
            found = table.column("category").combine_chunks().dictionary_encode()
            known = [names.setdefault(name, len(names)) for name in [*found.dictionary.to_pylist(), None]]
            if len(names) > 1 << 16:
                raise DataError(f"balance: {config.path} has more than {1 << 16} categories")
            codes = found.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)
            categories[first : first + len(table)] = np.array(known)[codes]
    return kinds, None if categories is None else _repeats(kinds, categories, config)


def _columns(index: Index, config: SourceConfig) -> list[str]:
    """The columns that decide; what is the same for all samples is not read."""
    columns = ["width", "height"]
    if index.faults:
        columns.append("fault")
    if config.minimum_rating > min(index.ratings, default=0):
        columns.append("rating")
    if config.languages or config.caption_characters:
        columns += ["characters", "languages"]
    if config.drop_duplicates:
        columns.append("looks_like")
    if config.balance:
        columns.append("category")
    return columns


def _kinds(table: Any, buckets: Sequence[Size]) -> np.ndarray:
    """Buckets of a piece of the index; most pictures share their size with many."""
    import pyarrow

    wide, high = (table.column(name).to_numpy().clip(1, LONGEST_SIDE).astype(np.uint32) for name in ("width", "height"))
    sizes = pyarrow.array(wide << 16 | high).dictionary_encode()
    different = sizes.dictionary.to_numpy()
    return nearest_buckets(different >> 16, different & LONGEST_SIDE, buckets)[sizes.indices.to_numpy()]


def _kept(table: Any, config: SourceConfig) -> np.ndarray:
    """Which samples pass the filters."""
    wide, high = table.column("width").to_numpy(), table.column("height").to_numpy()
    shorter, longer = np.minimum(wide, high), np.maximum(wide, high)
    kept = shorter >= config.minimum_side
    names = set(table.column_names)
    if config.maximum_aspect is not None:
        kept &= longer <= config.maximum_aspect * np.maximum(shorter, 1)
    if "fault" in names:
        kept &= table.column("fault").is_null().to_numpy()
    if "rating" in names:
        kept &= table.column("rating").to_numpy() >= config.minimum_rating
    if "looks_like" in names:
        kept &= table.column("looks_like").is_null().to_numpy()
    if "languages" in names:
        kept &= _captioned(table, config)
    return kept


def _captioned(table: Any, config: SourceConfig) -> np.ndarray:
    """Which samples have a caption that passes the filters."""
    import pyarrow.compute

    lists = table.column("characters").combine_chunks().fill_null([])
    ends = lists.value_lengths().to_numpy().cumsum()
    passing = np.ones(int(ends[-1]) if len(ends) else 0, bool)
    if config.caption_characters is not None:
        characters = lists.flatten().to_numpy()
        passing &= (characters >= config.caption_characters[0]) & (characters <= config.caption_characters[1])
    if config.languages:
        spoken = table.column("languages").combine_chunks().flatten()
        wanted = pyarrow.array(config.languages, pyarrow.string())
        passing &= pyarrow.compute.is_in(spoken, wanted).to_numpy(zero_copy_only=False)
    counted = np.concatenate([[0], np.cumsum(passing)])
    return counted[ends] > counted[np.concatenate([[0], ends[:-1]])]


def _repeats(kinds: np.ndarray, categories: np.ndarray, config: SourceConfig) -> np.ndarray:
    """How often an epoch has each sample, so that rare categories come more often: (largest / own)^balance times.

    What is left of a whole number falls to a share of the samples that their numbers decide, in every epoch the same.
    """
    used = kinds != left_out(kinds)
    counts = np.bincount(categories[used], minlength=int(categories.max(initial=0)) + 1)
    times = (counts.max() / np.maximum(counts, 1)) ** config.balance
    times = np.minimum(times, config.max_repeats)
    repeats = np.empty(len(kinds), np.uint8)
    for first in range(0, len(kinds), 1 << 22):
        part = slice(first, min(first + (1 << 22), len(kinds)))
        wanted = times[categories[part]]
        repeats[part] = np.floor(wanted + _fractions(np.arange(part.start, part.stop, dtype=np.uint64)))
    return repeats


def _fractions(numbers: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) that look random (splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def wanted_captions(captions: dict[str, str], config: SourceConfig) -> dict[str, str]:
    """The captions of a sample that pass the filters; all where the index says that one does, and none is found."""
    if not config.languages and config.caption_characters is None:
        return captions
    least, most = config.caption_characters or (1, 1 << 62)
    spoken = config.languages or ("en", "zh", "mixed", "other")
    found = {kind: text for kind, text in captions.items() if least <= len(text) <= most and language(text) in spoken}
    return found or captions


def shard_blocks(index: Index) -> list[list[int]]:
    """Lengths of the blocks of each shard: what is read in one go, of parquet whole row groups."""
    blocks = []
    for shard, rows in zip(index.shards, index.rows):
        if "groups" not in shard.about:
            blocks.append(cut(rows, BLOCK))
            continue
        lengths: list[int] = []
        for group in shard.about["groups"]:
            if lengths and lengths[-1] < SMALL_BLOCK:
                lengths[-1] += group
            else:
                lengths.append(group)
        blocks.append(lengths)
    return blocks


def shuffle_window(index: Index) -> int:
    """Samples that are shuffled one by one: of parquet no more than what fits into what its reader keeps."""
    packed = [(shard.size, rows) for shard, rows in zip(index.shards, index.rows) if "groups" in shard.about]
    size, rows = sum(size for size, _ in packed), sum(rows for _, rows in packed)
    return max(1, min(WINDOW, KEPT // 2 * rows // size)) if size else WINDOW


def filters_of(config: SourceConfig) -> str:
    """The filters that are set, for messages."""
    texts = {
        "rating >=": config.minimum_rating, "shorter side >=": config.minimum_side if config.minimum_side > 1 else None,
        "aspect <=": config.maximum_aspect, "languages": ", ".join(config.languages) or None,
        "characters": config.caption_characters,
    }  # fmt: skip
    return "; ".join(f"{name} {value}" for name, value in texts.items() if value is not None)
