"""Pictures that are the same, or look almost the same."""

import hashlib

import numpy as np
from PIL import Image

from arimage.data.records import Record

NEAR_BITS = 4
COMPARED = 64


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8x8 places is brighter than its right neighbour."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int.from_bytes(np.packbits((small[:, 1:] > small[:, :-1]).flatten()).tobytes())


def pixel_hash(record: Record) -> int:
    """64 bits of a hash over the pixels of a record's pictures; with sources over the captions too."""
    digest = hashlib.sha256(f"{record.image.size}".encode())
    for image in (record.image, *record.sources, *([] if record.rejected is None else [record.rejected])):
        digest.update(image.tobytes())
    digest.update("\0".join(record.captions.values()).encode() if record.sources else b"")
    return int.from_bytes(digest.digest()[:8])


def first_of_their_kind(pixels: np.ndarray, looks: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which earlier picture each picture repeats.

    Args:
        pixels, looks: (n,) uint64, of :func:`pixel_hash` and :func:`difference_hash`.
        known: (n,) bool, whether the two are known.

    Returns:
        (n,) int64 each: the first picture with the same pixels, and the first of those that look almost the same (at
        most ``NEAR_BITS`` bits differ, from one to the next), or its own number. Flat pictures, with few bits, do not
        look like others.
    """
    count = len(pixels)
    exact = np.arange(count)
    places = np.flatnonzero(known)
    _, first, back = np.unique(pixels[places], return_index=True, return_inverse=True)
    exact[places] = places[first[back]]
    leader = exact.copy()
    bits = _bits(looks)
    candidates = places[(exact[places] == places) & (bits[places] >= 8) & (bits[places] <= 56)]
    for one, other in _near_pairs(looks[candidates]):
        _join(leader, candidates[one], candidates[other])
    for number in places:  # leaders of leaders come before, so one pass settles all
        leader[number] = leader[leader[number]]
    return exact, leader


def _near_pairs(looks: np.ndarray) -> "list[tuple[int, int]]":
    """Pairs that differ in at most ``NEAR_BITS`` bits: they agree in one of ``NEAR_BITS + 1`` bands at least, so that
    only neighbours in the order of each band are compared, ``COMPARED`` at most."""
    bands = NEAR_BITS + 1
    width = 64 // bands + 1
    pairs: set[tuple[int, int]] = set()
    for band in range(bands):
        keys = (looks >> np.uint64(band * width)) & np.uint64((1 << width) - 1)
        order = np.argsort(keys, kind="stable")
        sorted_keys, sorted_looks = keys[order], looks[order]
        for step in range(1, min(COMPARED, len(order) - 1) + 1):
            same = sorted_keys[step:] == sorted_keys[:-step]
            if not same.any():
                break
            near = same & (_bits(sorted_looks[step:] ^ sorted_looks[:-step]) <= NEAR_BITS)
            for place in np.flatnonzero(near):
                one, other = int(order[place]), int(order[place + step])
                pairs.add((min(one, other), max(one, other)))
    return sorted(pairs)


def _join(leader: np.ndarray, one: int, other: int) -> None:
    """Let the earlier of two groups lead both."""
    roots = []
    for number in (one, other):
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        roots.append(int(number))
    leader[max(roots)] = min(roots)


def _bits(values: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 are set."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values)
    return np.unpackbits(np.ascontiguousarray(values).view(np.uint8)).reshape(-1, 64).sum(1)
