"""The order of an epoch: batches of one kind each, shuffled so that data that does not fit in memory reads well.

    shards    are shuffled; ``OPEN_SHARDS`` of them are in use at a time
    blocks    of neighbouring samples are shuffled within those: each is read in one go
    windows   of ``WINDOW`` samples, from many blocks, are shuffled sample by sample and put into batches

A data set of no more than ``WINDOW`` samples is shuffled as a whole. What a kind's samples in a window do not fill goes
into its batches of the next; at the end of an epoch a batch is filled up from its kind's beginning, so nothing is
dropped. Everything follows from the seed and the number of the batch: nothing has a state, any batch can be asked for.

In memory are a byte or two a sample, and the counts of each block.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OPEN_SHARDS = 16
BLOCK = 256
WINDOW = 16_384
KEPT_WINDOWS = 8


def left_out(kinds: np.ndarray) -> int:
    """The kind of samples that are not used."""
    return int(np.iinfo(kinds.dtype).max)


def cut(rows: int, length: int = BLOCK) -> list[int]:
    """Lengths of the blocks of a shard."""
    return [length] * (rows // length) + ([rows % length] if rows % length else [])


@dataclass(frozen=True)
class _Epoch:
    """Of one epoch: the blocks in order, where windows begin among them, and running totals over the windows.

    Attributes:
        blocks: (m,); windows: (w + 1,) into them.
        samples: (w, kinds) of each kind up to a window's end.
        batches: (w, kinds) likewise.
    """

    blocks: np.ndarray
    windows: np.ndarray
    samples: np.ndarray
    batches: np.ndarray


class EpochOrder:
    """Batches of sample numbers, without end.

    Args:
        kinds: (n,) unsigned integers: samples of one kind make a batch; the largest integer leaves one out.
        blocks: lengths of the blocks, in order.
        shards: how many blocks each shard has; by default all are one shard.
        batch_size: samples of a batch.
        repeats: (n,) how often an epoch has each sample; by default once.
        window: samples that are shuffled one by one.

    Attributes:
        batches_per_epoch: the same in every epoch.

    Raises:
        ValueError: there is no sample, or no batch size.
    """

    def __init__(
        self,
        kinds: np.ndarray,
        blocks: Sequence[int],
        batch_size: int,
        seed: int = 0,
        *,
        shards: Sequence[int] | None = None,
        repeats: np.ndarray | None = None,
        window: int = WINDOW,
        open_shards: int = OPEN_SHARDS,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.kinds, self.batch_size, self.seed, self.repeats = kinds, batch_size, seed, repeats
        self.window, self.open_shards = window, open_shards
        self.starts = np.concatenate([[0], np.cumsum(np.asarray(blocks, np.int64))]).astype(np.int64)
        of_shards = [len(blocks)] if shards is None else shards
        self.shards = np.concatenate([[0], np.cumsum(np.asarray(of_shards, np.int64))]).astype(np.int64)
        self.counts = self._counted()
        self.totals = self.counts.sum(0, dtype=np.int64)
        if not self.totals.sum():
            raise ValueError("there are no samples to make batches of")
        self.batches_per_epoch = int((-(-self.totals // batch_size)).sum())
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], list[np.ndarray]] = OrderedDict()

    def _counted(self) -> np.ndarray:
        """(blocks, kinds): samples of each."""
        out = left_out(self.kinds)
        kinds = 1 + max((int(part[part < out].max(initial=0)) for part in _pieces(self.kinds)), default=0)
        most = int(np.diff(self.starts).max(initial=0)) * (1 if self.repeats is None else int(self.repeats.max()))
        counts = np.zeros((len(self.starts) - 1, kinds), np.uint16 if most < 1 << 16 else np.uint32)
        step = max(1, (1 << 20) // max(1, int(np.diff(self.starts).max(initial=1))))
        for first in range(0, len(counts), step):
            bounds = self.starts[first : first + step + 1]
            part = self.kinds[bounds[0] : bounds[-1]]
            places = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)) * (kinds + 1) + np.minimum(part, kinds)
            weights = None if self.repeats is None else self.repeats[bounds[0] : bounds[-1]]
            found = np.bincount(places, weights, (len(bounds) - 1) * (kinds + 1))
            counts[first : first + step] = found.reshape(-1, kinds + 1)[:, :kinds]
        return counts

    def batch(self, draw: int) -> np.ndarray:
        """(batch_size,) sample numbers of the ``draw``-th batch, in the order in which they lie."""
        number, within = divmod(draw, self.batches_per_epoch)
        epoch = self._epoch(number)
        ends = epoch.batches.sum(1)
        window = int(np.searchsorted(ends, within, "right"))
        before = epoch.batches[window - 1] if window else np.zeros_like(self.totals)
        here = epoch.batches[window] - before
        place = int(self._random("batches", number, window).permutation(int(here.sum()))[within - int(before.sum())])
        kind = int(np.searchsorted(np.cumsum(here), place, "right"))
        first = int(before[kind] + place - np.cumsum(here)[kind] + here[kind]) * self.batch_size
        positions = np.arange(first, first + self.batch_size) % self.totals[kind]
        of_kind = epoch.samples[:, kind]
        windows = np.searchsorted(of_kind, positions, "right")
        found = [
            self._window(number, int(one))[kind][position - (int(of_kind[one - 1]) if one else 0)]
            for one, position in zip(windows, positions)
        ]
        return np.sort(np.array(found, np.int64))

    def another(self, sample: int, attempt: int) -> int:
        """A sample of the same kind, mostly from another shard; sample itself where ``attempt`` is 0."""
        if not attempt:
            return sample
        kind = int(self.kinds[sample])
        ends = np.cumsum(self.counts[:, kind], dtype=np.int64)
        total = int(ends[-1])
        block = int(np.searchsorted(self.starts, sample, "right")) - 1
        own = int(np.flatnonzero(self._of_block(block, kind) == sample)[0]) + (int(ends[block - 1]) if block else 0)
        place = (own + attempt * max(1, int(0.381966 * total))) % total
        block = int(np.searchsorted(ends, place, "right"))
        return int(self._of_block(block, kind)[place - (int(ends[block - 1]) if block else 0)])

    def digest(self) -> str:
        """Another one where the data, or what is taken of it, gives another order."""
        digest = hashlib.sha256(f"{self.batch_size} {self.window} {self.open_shards}".encode())
        for values in (self.kinds, self.starts, self.shards, *([] if self.repeats is None else [self.repeats])):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()[:16]

    def block_of(self, sample: int) -> tuple[int, int]:
        """First sample of the block in which a sample lies, and the first one behind it."""
        block = int(np.searchsorted(self.starts, sample, "right")) - 1
        return int(self.starts[block]), int(self.starts[block + 1])

    def _of_block(self, block: int, kind: int | None = None) -> np.ndarray:
        """Samples of a block, each as often as it comes, of one kind or of all that are used."""
        first, end = self.starts[block], self.starts[block + 1]
        kinds = self.kinds[first:end]
        found = first + np.flatnonzero(kinds != left_out(self.kinds) if kind is None else kinds == kind)
        return found if self.repeats is None else np.repeat(found, self.repeats[found])

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            while len(self._epochs) >= 2:
                self._epochs.popitem(last=False)
            self._epochs[number] = self._ordered(number)
        return self._epochs[number]

    def _ordered(self, number: int) -> _Epoch:
        random = self._random("blocks", number)
        shards = random.permutation(len(self.shards) - 1)
        groups = []
        for first in range(0, len(shards), self.open_shards):
            together = shards[first : first + self.open_shards]
            inside = np.concatenate([np.arange(self.shards[one], self.shards[one + 1]) for one in together])
            groups.append(random.permutation(inside))
        blocks = np.concatenate(groups)
        sizes = self.counts.sum(1, dtype=np.int64)[blocks]
        windows = (np.cumsum(sizes) - sizes) // self.window
        starts = np.flatnonzero(np.concatenate([[True], windows[1:] != windows[:-1]]))
        samples = np.cumsum(np.add.reduceat(self.counts[blocks], starts, 0, dtype=np.int64), 0)
        batches = samples // self.batch_size
        batches[-1] = -(-samples[-1] // self.batch_size)
        return _Epoch(blocks, np.append(starts, len(blocks)), samples, batches)

    def _window(self, number: int, window: int) -> list[np.ndarray]:
        """The samples of a window by kind, shuffled."""
        key = number, window
        if key not in self._windows:
            while len(self._windows) >= KEPT_WINDOWS:
                self._windows.popitem(last=False)
            epoch = self._epoch(number)
            blocks = epoch.blocks[epoch.windows[window] : epoch.windows[window + 1]]
            samples = np.concatenate([self._of_block(int(block)) for block in blocks])
            samples = self._random("samples", number, window).permutation(samples)
            kinds = self.kinds[samples]
            self._windows[key] = [samples[kinds == kind] for kind in range(len(self.totals))]
        self._windows.move_to_end(key)
        return self._windows[key]

    def _random(self, *what: object) -> np.random.RandomState:
        """A stream of its own for each purpose; NumPy keeps what RandomState gives for ever."""
        digest = hashlib.sha256(repr(("order", self.seed, *what)).encode()).digest()
        return np.random.RandomState(np.frombuffer(digest, np.uint32))


def _pieces(values: np.ndarray, length: int = 1 << 22) -> list[np.ndarray]:
    return [values[first : first + length] for first in range(0, len(values), length)]
